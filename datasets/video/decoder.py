"""Reads exactly the frames asked for, from a video file, a folder of pictures, or a picture, which has one frame.

    with open_video("clip.mp4", short_side=128) as video:
        frames = video.frames([0, 8, 16])        # uint8 (3, C, H, W), upright

frame_index.py      which frames there are, and when each is shown
pyav_reader.py      PyAV: reads nearly everything, leaves out B-frames that nobody wants
decord_reader.py    decord: the files that it is known to read exactly (decord_files.py); never faster where we measured
picture_folder.py   pictures: a folder of frames, a moving WebP or a single picture (pictures.py)

Frames are numbered in the order in which they are shown. Open videos inside the worker that reads them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from softpool3d.datasets.video.damage import MAX_MISSING, Damage
from softpool3d.datasets.video.decord_reader import DecordFailed, DecordReader
from softpool3d.datasets.video.frame_index import (
    DecodeError,
    DecodeTimeout,
    FrameIndex,
    errors_of,
    frame_index,
    opened,
    video_stream,
)
from softpool3d.datasets.video.orientation import UPRIGHT, orientation_of
from softpool3d.datasets.video.picture_folder import open_pictures
from softpool3d.datasets.video.pictures import is_still
from softpool3d.datasets.video.pyav_reader import PyAVReader, scaled
from softpool3d.errors import os_reason

if TYPE_CHECKING:
    from softpool3d.config import DataConfig

__all__ = ["DecodeError", "Decoder", "Video", "open_video"]

Decoder = Literal["pyav", "decord"]


class Video:
    """An open video: `num_frames`, `fps`, `times` and any of its frames."""

    def __init__(
        self, path: str | Path, short_side: int | None, timeout_s: float, decoder: Decoder, max_missing: float
    ) -> None:
        self.path = str(path)
        self._short_side, self._timeout_s, self._max_missing = short_side, timeout_s, max_missing
        self._index: FrameIndex | None = None
        self._reader = open_pictures(self.path, short_side)
        if self._reader is not None:
            self.num_frames, self.fps, self.times = self._reader.num_frames, self._reader.fps, self._reader.times
            return
        if (self.path, timeout_s) in _timed_out:
            raise DecodeError(self.path, _timed_out[self.path, timeout_s])
        self._index = index = frame_index(self.path, timeout_s)
        self.num_frames, self.fps, self.times = index.num_frames, index.fps, index.times
        check_damage(self.path, index.damage, max_missing)
        if decoder == "decord":
            self._reader = self._decord(index)
        if self._reader is None:
            self._reader = self._pyav()

    @property
    def decoder(self) -> str:
        """ "decord", "pyav" or "pictures": what reads this file."""
        return self._reader.name

    @property
    def damage(self) -> Damage | None:
        """What is missing of the file, as far as it is known yet; None if nothing is."""
        index = getattr(self._reader, "index", self._index)
        return index.damage if index is not None and index.damage else None

    def part(self, start: float | None, end: float | None) -> tuple[int, int]:
        """Returns the number of the first frame from `start` on, and of the first one from `end` on.

        Args:
            start, end: seconds; None: from the beginning, to the end.

        Raises:
            DecodeError: if the video ends before `start`, or more than two frames before `end`.
        """
        frame_s = 1 / self.fps
        over = float(self.times[-1]) + frame_s
        for name, time, last in (("starts", start, over - frame_s / 2), ("ends", end, over + 2 * frame_s)):
            if time is not None and time > last:
                raise DecodeError(self.path, f"the clip {name} at {time} s, and the video is over after {over:.2f} s")
        # a millisecond of tolerance: 0.4 s at 25 frames a second is frame 10, though 10 / 25 is a little less
        first = 0 if start is None else min(int(np.searchsorted(self.times, start - 1e-3)), self.num_frames - 1)
        stop = self.num_frames if end is None else int(np.searchsorted(self.times, end - 1e-3))
        return first, max(stop, first + 1)

    def frames(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Returns the frames asked for, in the order asked for, repeats included: uint8 (T, C, H, W), RGB.

        Raises:
            IndexError: for an index outside [0, num_frames).
            DecodeError: where they cannot be decoded.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if not wanted.size:
            raise IndexError(f"{self.path}: no frames asked for")
        if not (wanted.min() >= 0 and wanted.max() < self.num_frames):
            raise IndexError(f"{self.path} has frames 0 to {self.num_frames - 1}, asked for {wanted.tolist()}")
        unique, back = np.unique(wanted, return_inverse=True)  # each is decoded once, in order
        with errors_of(self.path):
            try:
                pictures = self._read(unique)
            except DecordFailed:
                _given_up.add(self.path)
                self._reader.close()
                self._reader = self._pyav()
                pictures = self._read(unique)
        if self.damage is not None:
            check_damage(self.path, self.damage, self._max_missing)
        if len(unique) != len(wanted) or (back[1:] < back[:-1]).any():
            pictures = pictures[back]
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    def _read(self, indices: np.ndarray) -> np.ndarray:
        try:
            return self._reader.read(indices)
        except DecodeTimeout as error:
            _timed_out[self.path, self._timeout_s] = error.reason
            raise

    def close(self) -> None:
        with errors_of(self.path):
            self._reader.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pyav(self) -> PyAVReader:
        return PyAVReader(self.path, self._index, self._short_side, self._timeout_s)

    def _decord(self, index: FrameIndex) -> DecordReader | None:
        """Returns decord's reader; None where decord would give other frames, or none."""
        if not index.decord_is_exact or self.path in _given_up:
            return None
        if not self._is_plain():
            return None
        size = None if self._short_side is None else scaled(index.width, index.height, self._short_side)
        try:
            keys = np.searchsorted(index.pts, index.key_pts)
            return DecordReader(self.path, size, self._timeout_s, index.times, keys)
        except DecordFailed:
            _given_up.add(self.path)
            return None

    def _is_plain(self) -> bool:
        """Whether the video is neither turned, mirrored nor interlaced.

        decord turns some videos wrongly and others not at all, and mixes the lines of two fields where it scales.
        """
        with opened(self.path, self._timeout_s) as container:
            frame = next(container.decode(video_stream(container)), None)
            return frame is not None and orientation_of(frame) == UPRIGHT and not frame.interlaced_frame


_timed_out: dict[tuple[str, float], str] = {}  # (file, its time limit) -> the reason: not tried again
_given_up: set[str] = set()  # files on which decord failed, hung or miscounted: not tried again


def open_video(
    path: str | Path,
    short_side: int | None = None,
    *,
    timeout_s: float = 30.0,
    decoder: Decoder = "pyav",
    max_missing: float = MAX_MISSING,
) -> Video:
    """Opens a video file, a folder of pictures, or a picture.

    Args:
        path: the file.
        short_side: pixels of the shorter side that frames are scaled to while they are decoded; None keeps their size.
        timeout_s: seconds after which a decoder counts as hung: PyAV takes over from decord, and gives up itself.
        decoder: "decord" reads the files in which it is exact, and PyAV the others, and those in which decord fails.
        max_missing: the share of a file that may be missing, because it breaks off or cannot be decoded (damage.py).

    Raises:
        DecodeError: if there is no such file, or it holds no video that can be decoded, or too much of it is missing.
    """
    check_file(path)
    with errors_of(str(path)):
        return Video(path, short_side, timeout_s, decoder, max_missing)


def open_as(data: DataConfig, path: str | Path, short_side: int | None = None) -> Video:
    """Opens a video as a configuration says: its decoder and limits; `data.short_side` where no other is given.

    Raises:
        DecodeError: as `open_video`; or if it is a single picture, and clips of several frames are wanted.
    """
    if data.num_frames > 1 and is_still(path):
        check_file(path)
        raise DecodeError(
            path,
            f"it is a single picture, and clips of {data.num_frames} frames are wanted; pictures are for networks of "
            "pictures, such as --weights resnet50:imagenet1k",
        )
    return open_video(
        path,
        short_side or data.short_side,
        timeout_s=data.decode_timeout_s,
        decoder=data.decoder,
        max_missing=data.max_missing,
    )


def check_damage(path: str | Path, damage: Damage, max_missing: float) -> None:
    """Raises DecodeError where too much of a file is missing."""
    if damage.is_bad(max_missing):
        raise DecodeError(path, f"{damage} (more than data.max_missing={max_missing:g} of it)")


def check_file(path: str | Path) -> None:
    """Raises DecodeError if there is no such file, or it cannot be opened or is empty; a folder passes."""
    path = Path(path)
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                if not file.read(1):
                    raise DecodeError(path, "the file is empty")
    except OSError as error:
        if path.is_symlink() and not path.exists():
            raise DecodeError(path, f"it is a link to {os.readlink(path)}, which is not there") from None
        raise DecodeError(path, os_reason(error)) from None
