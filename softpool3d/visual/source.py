"""Reads a clip to show: the frames of a video, of a folder of frames, or one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from softpool3d.datasets.video.decoder import check_file, open_video
from softpool3d.datasets.video.pictures import is_still, read_picture, resized
from softpool3d.datasets.video.pyav_reader import scaled
from softpool3d.errors import UsageError

_TIMEOUT_S = 600.0  # for a read; whoever waits can press Ctrl-C
_MOST_BYTES = 1 << 30  # of frames; their pooled forms and floats take several times as much


@dataclass(frozen=True)
class Source:
    """A clip or a picture that is shown.

    frames: uint8 (T, 3, H, W), RGB; a picture has one frame, and no time to pool over.
    fps: frames per second.
    damage: a sentence on what is missing of the video; empty if nothing is known to be missing.
    """

    path: Path
    frames: Tensor
    fps: float
    is_picture: bool = False
    damage: str = ""

    @property
    def size(self) -> str:
        return size_of(self.frames, self.is_picture)


def size_of(frames: Tensor, is_picture: bool = False) -> str:
    """Returns the size of frames (T, C, H, W) as text: TxHxW, or HxW of a picture."""
    time, _, height, width = frames.shape
    return f"{height}x{width}" if is_picture else f"{time}x{height}x{width}"


def read_source(path: Path, start: float = 0.0, seconds: float = 10.0, short_side: int = 224) -> Source:
    """Reads a video, a folder of frames or a picture.

    Args:
        start, seconds: begin and length of the part of a video to read, in seconds.
        short_side: pixels of the shorter side that larger frames are scaled to; smaller ones stay as they are.

    Raises:
        DecodeError: if it cannot be read.
        UsageError: if the video ends before `start`, or the part takes too much memory.
    """
    if is_still(path):
        return Source(path, _read_picture(path, short_side), 1.0, is_picture=True)
    with open_video(path, timeout_s=_TIMEOUT_S, max_missing=1.0) as video:  # a damaged file is shown, too
        # half a millisecond of tolerance: 0.4 s at 25 frames a second is frame 10, though 10 / 25 is a little less
        begin, end = np.searchsorted(video.times, [start - 5e-4, start + seconds - 5e-4])
        chosen = np.arange(begin, max(end, begin + 1))[: video.num_frames - begin]
        if not len(chosen):
            raise UsageError(f"--start {start}: {path} ends after {video.times[-1]:.2f} s")
        height, width = video.frames(chosen[:1]).shape[-2:]
        fps = video.fps
    short_side = min(short_side, height, width)
    _check_memory(path, len(chosen), *scaled(width, height, short_side))
    # opened again, because frames are scaled while they are decoded
    with open_video(path, short_side, timeout_s=_TIMEOUT_S, max_missing=1.0) as video:
        return Source(path, video.frames(chosen), fps, damage=str(video.damage or ""))


def _check_memory(path: Path, frames: int, width: int, height: int) -> None:
    size = frames * width * height * 3
    if size > _MOST_BYTES:
        raise UsageError(
            f"{path}: {frames} frames of {height}x{width} are {size / 2**30:.1f} GiB, and {_MOST_BYTES >> 30} are "
            "the most; show less (--seconds) or smaller frames (--short-side)"
        )


def _read_picture(path: Path, short_side: int) -> Tensor:
    check_file(path)
    picture = read_picture(path)
    pixels = resized(picture, scaled(*picture.size, min(short_side, *picture.size)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]
