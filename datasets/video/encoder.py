"""Writes video files with PyAV.

Whatever is written is BT.601 in limited range and says so. Players that read what a file says about its colours, and
programs that take every file for BT.601 (as OpenCV does), then show the same colours.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from softpool3d.datasets.video.pyav_reader import convert

_BT601, _LIMITED = 6, 1  # AVCOL_SPC_SMPTE170M, AVCOL_RANGE_MPEG


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], fps: float, *, crf: int = 20, gop: int | None = None
) -> None:
    """Writes frames, uint8 (H, W, 3) each, as H.264 in the container that the name's ending asks for.

    H.264 in 4:2:0 needs an even height and width: an odd one is made even by repeating the last row or column.

    Args:
        gop: frames between key frames, without B-frames, for players that seek; None: the encoder's default.
    """
    import av

    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = h264_stream(container, rate)
        stream.options = {"crf": str(crf), "preset": "veryfast"}
        if gop is not None:
            stream.options |= {"g": str(gop), "bf": "0"}
        convert = ToBT601("BILINEAR")
        for number, picture in enumerate(frames):
            picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(convert(frame, stream.width, stream.height)))
        container.mux(stream.encode(None))


def h264_stream(container, rate, like=None):
    """Returns a new stream of H.264 in 4:2:0 that declares the colours of `ToBT601`.

    Args:
        like: a frame of the original. Its primaries and transfer function are declared, as the pixels keep them. What
            it does not name is declared as BT.709's, and so is all without it.
    """
    from av.video.reformatter import ColorPrimaries, ColorTrc

    stream = container.add_stream("libx264", rate=rate)
    stream.pix_fmt = "yuv420p"
    stream.thread_count = 1  # so that the same frames give the same file; every core has a file of its own
    context = stream.codec_context
    context.colorspace, context.color_range = _BT601, _LIMITED
    context.color_primaries = _named(like and like.color_primaries, ColorPrimaries)
    context.color_trc = _named(like and like.color_trc, ColorTrc)
    return stream


class ToBT601:
    """Converts PyAV's frames to 4:2:0 of 8 bits in BT.601, limited range, from whatever they say that they are in.

    Args:
        interpolation: for a change of size, and flags of libswscale.
    """

    def __init__(self, interpolation) -> None:
        from av.video.reformatter import VideoReformatter

        self._interpolation = interpolation
        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame

    def __call__(self, frame, width: int, height: int):
        return convert(
            self._reformatter,
            frame,
            width,
            height,
            format="yuv420p",
            dst_colorspace="ITU601",
            dst_color_range="MPEG",
            interpolation=self._interpolation,
        )


def _named(value: int | None, kinds):
    """Returns `value` if encoders know it, else BT.709's."""
    return value if value in list(kinds) and value != kinds.UNSPECIFIED else kinds.BT709
