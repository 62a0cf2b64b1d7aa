"""Files at http(s) addresses and in buckets (s3://, gs://): fetched to a temporary file, which is then read like any
other."""

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
from importlib.util import find_spec

from softpool3d.datasets.video.containers import is_address
from softpool3d.datasets.video.frame_index import DecodeError
from softpool3d.errors import first_line

_TIMEOUT_S = 30.0  # seconds without a byte
_PLAYLISTS = (".m3u8", ".mpd")
_BUCKETS = ("s3", "gs")
_PIECE = 1 << 20  # bytes


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
    scheme, ending = parts.scheme.lower(), os.path.splitext(parts.path)[1]
    ending = ending if re.fullmatch(r"\.\w{1,8}", ending) else ""
    if scheme == "file":
        raise DecodeError(path, "name a file on this machine by its path, without file://")
    if scheme not in ("http", "https", *_BUCKETS) or ending in _PLAYLISTS:
        raise DecodeError(path, "this is a stream, not a file; read it with --stream or --timeline")
    with tempfile.NamedTemporaryFile(prefix="softpool3d-", suffix=ending) as copy:
        most = shutil.disk_usage(os.path.dirname(copy.name)).free // 2
        for piece in _object(path) if scheme in _BUCKETS else _page(path):
            if copy.tell() + len(piece) > most:
                raise DecodeError(path, f"it is larger than {most / 2**30:.1f} GiB, half of what is free here")
            try:
                copy.write(piece)
                copy.flush()
            except OSError as error:
                raise DecodeError(path, f"it cannot be kept in {copy.name} ({error.strerror})") from None
        try:
            yield copy.name
        except DecodeError as error:
            raise DecodeError(path, error.reason) from None


def _page(path: str) -> Iterator[bytes]:
    """Yields what lies at an http(s) address, in pieces."""
    try:
        with web().open(path, timeout=_TIMEOUT_S) as answer:
            while piece := answer.read(_PIECE):
                yield piece
    except urllib.error.HTTPError as error:
        raise DecodeError(path, f"the server says {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DecodeError(path, f"it cannot be fetched ({getattr(error, 'reason', error)})") from None


def _object(path: str) -> Iterator[bytes]:
    """Yields what lies in a bucket, in pieces. Keys and endpoint come from the environment, as for AWS's tools."""
    if find_spec("pyarrow") is None:
        raise DecodeError(path, "reading from a bucket needs pyarrow; pip install 'softpool3d[parquet]'")
    from pyarrow import fs

    try:
        system, name = fs.FileSystem.from_uri(path)
        with system.open_input_stream(name) as file:
            while piece := file.read(_PIECE):
                yield piece
    except (OSError, ValueError) as error:
        raise DecodeError(path, f"it cannot be fetched ({first_line(error)})") from None
