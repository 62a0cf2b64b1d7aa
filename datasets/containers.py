"""Files and addresses as PyAV opens them, held to what they are: a file reaches no network, an address no file.

Videos come from strangers, and FFmpeg follows what it finds in them: a playlist named clip.mp4 would show other files.
"""

from __future__ import annotations

import os
from typing import Any

_FROM_FILES = "file"
_FROM_ADDRESSES = (
    "crypto,data,ftp,hls,http,httpproxy,https,mmsh,mmst,rtmp,rtmpe,rtmps,rtmpt,rtmpte,rtmpts,rtp,rtsp,sctp,srt,srtp,"
    "tcp,tls,udp,udplite"
)
_LISTS = frozenset(["concat", "dash", "hls", "imf"])  # FFmpeg's formats whose files hold no video but name others


def open_file(path: str | os.PathLike, timeout_s: float | None = None) -> Any:
    """PyAV's container of a file on this machine, whatever its name looks like to FFmpeg (12:30.mp4, http:x.mp4).

    Raises:
        ValueError: if it is a list of other files.
        av.error.FFmpegError: if it cannot be opened.
    """
    import av

    # the whole path: FFmpeg takes what stands before a name's first colon for a protocol
    whole = os.path.abspath(path)
    options = {"protocol_whitelist": _FROM_FILES}
    container = av.open(whole, options=options, metadata_errors="replace", timeout=timeout_s)
    if container.format.name in _LISTS:
        container.close()
        raise ValueError("it is no video but a list of other files, which are not read for it; name them instead")
    return container


def open_address(address: str, timeout_s: float | None = None) -> Any:
    """PyAV's container of what lies at an address: scheme://...

    Raises:
        av.error.FFmpegError: if it cannot be opened, or is no address of a network (file://..., pipe://...).
    """
    import av

    options = {"protocol_whitelist": _FROM_ADDRESSES}
    return av.open(address, options=options, metadata_errors="replace", timeout=timeout_s)
