"""Lists the files that decord 0.6 reads exactly: those whose frames were found to be the same as PyAV's.

For many kinds of files decord returns wrong frames, and says nothing. So this lists what it may read, and PyAV reads
everything else. What was tried and is not on the list:

open GOPs, intra refresh                it loses count after a seek
H.264 and B-frames in AVI               without presentation times it loses count where frames are stored out of order
edit lists, frames only referred to     it shows them
WMV, MPEG, MPEG-TS, FLV                 it miscounts, or hangs at the first seek
HEVC                                    frames that cannot be decoded shift the frames after them
odd sizes, more than 8 bits, fields     other colours
AV1                                     it has no decoder
"""

from __future__ import annotations

from dataclasses import dataclass

_CODECS = {  # by container, as FFmpeg names it
    "mov,mp4,m4a,3gp,3g2,mj2": {"h264", "mpeg4", "mjpeg", "vp9"},
    "matroska,webm": {"h264", "mpeg4", "mjpeg", "vp8", "vp9"},
    "avi": {"mpeg4", "mjpeg"},
}
_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}


@dataclass(frozen=True)
class VideoFacts:
    """What a container and its packets say of a video, as far as it matters to decord.

    container, codec, pixel_format: FFmpeg's names.
    is_interlaced: whether the container says so.
    video_streams: how many there are; decord has its own idea of which is the default one.
    shows_all_packets: no packet is hidden by an edit list, and none holds a frame that is only referred to.
    has_closed_gops: decoding can begin at each key frame, and no frame that is shown before it is stored after it.
    """

    container: str
    codec: str
    pixel_format: str | None
    width: int
    height: int
    is_interlaced: bool
    video_streams: int
    shows_all_packets: bool
    has_closed_gops: bool


def reads_exactly(facts: VideoFacts) -> bool:
    """Returns whether decord is known to give the frames of such a video as PyAV does, in any order."""
    return (
        facts.codec in _CODECS.get(facts.container, ())
        and facts.pixel_format in _PIXEL_FORMATS
        and facts.width % 2 == facts.height % 2 == 0
        and not facts.is_interlaced
        and facts.video_streams == 1
        and facts.shows_all_packets
        and facts.has_closed_gops
    )


def facts_of(container, stream, shows_all_packets: bool, has_closed_gops: bool) -> VideoFacts:
    """Returns the facts of a PyAV container and its video stream; the last two were found in the packets."""
    context = stream.codec_context
    return VideoFacts(
        container=container.format.name,
        codec=context.name,
        pixel_format=context.format.name if context.format else None,
        width=context.width,
        height=context.height,
        is_interlaced=context.field_order not in (0, 1),
        video_streams=len(container.streams.video),
        shows_all_packets=shows_all_packets,
        has_closed_gops=has_closed_gops,
    )
