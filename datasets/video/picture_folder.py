"""Reads pictures as a video: a folder of frames, a moving WebP, or a single picture."""

from __future__ import annotations

import os
import re
from itertools import pairwise

import numpy as np

from softpool3d.datasets.video.frame_index import DecodeError
from softpool3d.datasets.video.pictures import (
    MovingWebP,
    StillPicture,
    is_moving_webp,
    is_picture,
    is_still,
    read_picture,
    resized,
)
from softpool3d.datasets.video.pyav_reader import scaled
from softpool3d.errors import os_reason

FPS = 25.0  # a folder states no rate
# names of pictures, and of folders of pictures, that lie beside frames and are none
_BESIDE = re.compile(
    r"[xyuv][_-]?\*|(.*[^a-z])?(flow[_-]?[xyuv]?|thumb(nail)?s?|cover|folder|poster|preview)([^a-z].*)?"
)
_NUMBER = re.compile(r"\d+")
_FOLDER_BESIDE = re.compile(r"((opt|optical|tvl1)[_-]?)?flow([_-]?[xyuv])?|thumb(nail)?s?")


def open_pictures(path: str, short_side: int | None = None) -> PictureFolderReader | MovingWebP | StillPicture | None:
    """Returns a reader of a folder of frames, a moving WebP or a single picture; None for anything else.

    Raises:
        DecodeError: if it cannot be read.
    """
    if os.path.isdir(path):
        return PictureFolderReader(path, short_side)
    if is_still(path):
        return StillPicture(path, short_side)
    return MovingWebP(path, short_side) if is_moving_webp(path) else None


def frames_among(names: list[str]) -> tuple[list[str], dict[str, int]]:
    """Returns the names of the frames among pictures, in order, and how many pictures are none, by their pattern.

    `img_00001.jpg` and `flow_x_00001.jpg` are of two patterns, img_* and flow_x_*. Optical flow (also x_*, y_*, u_*,
    v_*), thumbnails and covers are no frames where one other pattern is there.

    Raises:
        ValueError: if they are of several patterns that could all be the frames, or a frame is there twice.
    """
    patterns: dict[str, list[tuple[tuple[int, ...], str]]] = {}  # the numbers in a name put it in order
    for name in names:
        stem = os.path.splitext(name)[0]
        numbers = tuple(map(int, _NUMBER.findall(stem)))
        patterns.setdefault(_NUMBER.sub("*", stem).casefold(), []).append((numbers, name))
    kept = {pattern for pattern in patterns if len(patterns) == 1 or not _BESIDE.fullmatch(pattern)}
    if len(names) > 1 and not any("*" in pattern for pattern in patterns):
        raise ValueError(f"its pictures ({min(names)}, ...) have no numbers in their names that put them in order")
    if len(kept) != 1:
        listed = sorted(patterns, key=lambda pattern: (-len(patterns[pattern]), pattern))
        some = ", ".join(f"{len(patterns[key])} {key}" for key in listed[:4]) + (", ..." if len(listed) > 4 else "")
        raise ValueError(f"its pictures are of several kinds ({some}); put each kind into a folder of its own")
    [pattern] = kept
    frames = sorted(patterns.pop(pattern))
    for (number, name), (next_number, after) in pairwise(frames):
        if number == next_number:
            raise ValueError(f"{name} and {after} are the same frame; put each kind into a folder of its own")
    return [name for _, name in frames], {pattern: len(some) for pattern, some in patterns.items()}


def is_beside_frames(folder: str) -> bool:
    """Whether a folder's name says that its pictures are optical flow or thumbnails."""
    return _FOLDER_BESIDE.fullmatch(folder.casefold()) is not None


class PictureFolderReader:
    """Frames in the order of the numbers in their names: frame2.jpg comes before frame10.jpg."""

    name = "pictures"
    fps = FPS

    def __init__(self, path: str, short_side: int | None = None) -> None:
        self._path, self._short_side = path, short_side
        try:
            names = [name for name in os.listdir(path) if is_picture(name)]
        except OSError as error:
            raise DecodeError(path, os_reason(error)) from None
        if not names:
            raise DecodeError(path, "there are no videos in it, and no pictures that could be frames")
        try:
            self._names, _ = frames_among(names)
        except ValueError as error:
            raise DecodeError(path, str(error)) from None
        self.num_frames = len(self._names)
        self.times = np.arange(self.num_frames) / FPS
        self._size: tuple[int, int] | None = None

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns uint8 (T, H, W, 3); all frames get the size of the first one read."""
        return np.stack([self._picture(self._names[i]) for i in indices.tolist()])

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _picture(self, name: str) -> np.ndarray:
        try:
            picture = read_picture(os.path.join(self._path, name))
        except DecodeError as error:
            raise DecodeError(self._path, f"frame {name}: {error.reason}") from None
        self._size = self._size or scaled(*picture.size, self._short_side)
        return resized(picture, self._size)
