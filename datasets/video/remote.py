"""Files at http(s) addresses: fetched to a temporary file, which is then read like any other."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from softpool3d.datasets.video.containers import is_address
from softpool3d.datasets.video.frame_index import DecodeError

_TIMEOUT_S = 30.0  # seconds without a byte
_PLAYLISTS = (".m3u8", ".mpd")


def web() -> urllib.request.OpenerDirector:
    """Returns an opener of http and https alone, through the user's proxy: no redirection leads to a file or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


@contextmanager
def fetched(path: str) -> Iterator[str]:
    """Yields the path itself, or that of a temporary copy of what lies at the address.

    Raises:
        DecodeError: if it cannot be fetched, would take half of what is free on the disk, or the address is that of a
            stream or of a file here.
    """
    if not is_address(path):
        yield path
        return
    parts = urllib.parse.urlsplit(path)
    ending = os.path.splitext(parts.path)[1]
    ending = ending if re.fullmatch(r"\.\w{1,8}", ending) else ""
    if parts.scheme.lower() == "file":
        raise DecodeError(path, "name a file on this machine by its path, without file://")
    if parts.scheme.lower() not in ("http", "https") or ending in _PLAYLISTS:
        raise DecodeError(path, "this is a stream, not a file; read it with --stream or --timeline")
    with tempfile.NamedTemporaryFile(prefix="softpool3d-", suffix=ending) as copy:
        try:
            most = shutil.disk_usage(os.path.dirname(copy.name)).free // 2
            with web().open(path, timeout=_TIMEOUT_S) as answer:
                while block := answer.read(1 << 20):
                    copy.write(block)
                    if copy.tell() > most:
                        raise DecodeError(path, f"it is larger than {most / 2**30:.1f} GiB, half of what is free here")
        except urllib.error.HTTPError as error:
            raise DecodeError(path, f"the server says {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise DecodeError(path, f"it cannot be fetched ({reason})") from None
        copy.flush()
        try:
            yield copy.name
        except DecodeError as error:
            raise DecodeError(path, error.reason) from None
