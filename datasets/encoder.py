"""Frames to a video file, through PyAV."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], fps: float, crf: int = 20, gop: int | None = None
) -> None:
    """Writes uint8 (H, W, 3), one after the other, as H.264, in the container that the name's ending asks for.

    H.264 in 4:2:0 needs an even height and width: an odd one is made even by repeating the last row or column.

    Args:
        gop: a key frame every so many frames and no B-frames, for players that jump about; None: as the encoder likes.
    """
    import av

    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # so that the same frames give the same file
        stream.options = {"crf": str(crf), "preset": "veryfast"}
        if gop is not None:
            stream.options |= {"g": str(gop), "bf": "0"}
        for number, picture in enumerate(frames):
            picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
