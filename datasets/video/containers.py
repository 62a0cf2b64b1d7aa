"""Opens files and addresses with PyAV, safely: no file leads to the network, and no address to a file.

Videos come from strangers, and FFmpeg follows what it finds in them: a playlist named clip.mp4 would show other files.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from typing import Any

_FROM_FILES = "file"
_FROM_ADDRESSES = (
    "crypto,data,ftp,hls,http,httpproxy,https,mmsh,mmst,rtmp,rtmpe,rtmps,rtmpt,rtmpte,rtmpts,rtp,rtsp,rtsps,sctp,srt,srtp,"
    "tcp,tls,udp,udplite"
)
_LISTS = frozenset(["concat", "dash", "hls", "imf"])  # FFmpeg's formats whose files hold no video but name others
_LISTS_BEGIN = (b"ffconcat", b"#EXTM3U", b"<?xml", b"<MPD")


def is_address(path: str | os.PathLike) -> bool:
    """Whether this names something on a network: scheme://..."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path), re.IGNORECASE) is not None


def open_place(place: str, timeout_s: float | None = None) -> Any:
    """Opens an address or a file, with `open_address` or `open_file`."""
    return open_address(place, timeout_s) if is_address(place) else open_file(place, timeout_s)


def open_file(path: str | os.PathLike, timeout_s: float | None = None) -> Any:
    """Opens a file on this machine with PyAV, whatever its name looks like to FFmpeg (12:30.mp4, http:x.mp4).

    Raises:
        ValueError: if it is a list of other files.
        av.error.FFmpegError: if it cannot be opened.
    """
    import av

    # the whole path: FFmpeg takes what stands before a name's first colon for a protocol
    whole = os.path.abspath(path)
    options = {"protocol_whitelist": _FROM_FILES, "format_whitelist": _videos()}
    try:
        return av.open(whole, options=options, metadata_errors="replace", timeout=timeout_s)
    except av.error.ArgumentError:  # also raised for a format that is not allowed
        with open(whole, "rb") as file:
            if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_LISTS_BEGIN):
                text = "it is no video but a list of other files, which are not read for it; name them instead"
                raise ValueError(text) from None
        raise


@functools.cache
def _videos() -> str:
    """Returns the formats that a file may have. No list of files is among them: one that names itself never ends."""
    import av

    return ",".join(name for name in sorted(av.formats_available) if name not in _LISTS)


def open_address(address: str, timeout_s: float | None = None) -> Any:
    """Opens with PyAV what lies at an address: scheme://...

    Raises:
        ValueError: if its scheme is none of a network's, as file://... or pipe://...
        av.error.FFmpegError: if it cannot be opened.
    """
    import av

    scheme = address.partition("://")[0].lower()
    if scheme not in _FROM_ADDRESSES.split(","):
        raise ValueError(f"{scheme}:// is no network that is read; a file on this machine is named by its path alone")
    options = {"protocol_whitelist": _FROM_ADDRESSES, "format_whitelist": f"{_videos()},dash,hls"}
    return av.open(address, options=options, metadata_errors="replace", timeout=timeout_s)


def open_camera(number: int, timeout_s: float | None = None) -> Any:
    """Opens a camera of this machine with PyAV.

    Raises:
        av.error.FFmpegError: if it cannot be opened.
    """
    import av

    name, kind = _camera(number)
    return av.open(name, format=kind, metadata_errors="replace", timeout=timeout_s)


def _camera(number: int) -> tuple[str, str]:
    """Returns FFmpeg's name of a camera, and of the format that reads it."""
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    if sys.platform == "win32":
        return f"video={number}", "dshow"
    return f"/dev/video{number}", "v4l2"
