"""Reads a picture as 8-bit RGB, whatever the file stores: 16 bits, a palette, CMYK; and moving WebP as videos.

A single picture is a clip of one frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from softpool3d.datasets.video.frame_index import DecodeError, errors_of
from softpool3d.datasets.video.pyav_reader import scaled
from softpool3d.datasets.video.rate import rate_of

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURES


def is_moving_webp(path: str | Path) -> bool:
    """Whether a file ends in .webp and its header says that it is an animation."""
    if not str(path).lower().endswith(".webp"):
        return False
    try:
        with open(path, "rb") as file:
            header = file.read(21)
    except OSError:
        return False
    return len(header) == 21 and header[8:16] == b"WEBPVP8X" and bool(header[20] & 2)


def is_still(path: str | Path) -> bool:
    """Whether a path is a single picture, and not a folder or a moving WebP."""
    return is_picture(os.path.basename(path)) and not os.path.isdir(path) and not is_moving_webp(path)


def read_picture(path: str | Path) -> Image:
    """Returns a picture, upright, in 8-bit RGB. 16 bits are scaled to 8; transparency is ignored.

    Raises:
        DecodeError: if it cannot be read, holds several pictures, or its pixels are numbers without a known range.
    """
    from PIL import Image, ImageOps

    with errors_of(str(path)):
        try:
            opened = Image.open(path)
        except Image.UnidentifiedImageError:
            raise DecodeError(path, "it is no picture that Pillow knows") from None
        with opened as picture:
            if picture.format in ("PNG", "TIFF", "WEBP") and _several(picture):
                raise DecodeError(path, f"it holds {picture.n_frames} pictures where one is wanted")
            return _rgb(ImageOps.exif_transpose(picture), picture.format)


def _several(picture: Image) -> bool:
    """Whether a second picture of the same size follows; a small one is a thumbnail."""
    if getattr(picture, "n_frames", 1) == 1:
        return False
    size = picture.size
    picture.seek(1)
    same = picture.size == size
    picture.seek(0)
    return same


def _rgb(picture: Image, stored_as: str | None) -> Image:
    from PIL import Image

    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and stored_as in ("PNG", "PPM")):  # Pillow would clip at 255
        pixels = np.asarray(picture).astype(np.uint32) >> 8
        return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers, of which nobody says what is white; save it in 8 or 16 bits")
    return picture.convert("RGB")


def resized(picture: Image, size: tuple[int, int]) -> np.ndarray:
    """Returns a picture as uint8 (H, W, 3), scaled to `size`, (width, height), bilinear and antialiased."""
    from PIL import Image

    return np.array(picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR))


class StillPicture:
    """A single picture, as a video of one frame."""

    name = "pictures"
    fps, num_frames = 1.0, 1

    def __init__(self, path: str, short_side: int | None = None) -> None:
        self._path, self._short_side = path, short_side
        self.times = np.zeros(1)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns uint8 (1, H, W, 3)."""
        picture = read_picture(self._path)
        return resized(picture, scaled(*picture.size, self._short_side))[None]

    def close(self) -> None:
        """Nothing stays open between reads."""


class MovingWebP:
    """A moving WebP as a video; FFmpeg does not read those."""

    name = "pictures"

    def __init__(self, path: str, short_side: int | None = None) -> None:
        self._path, self._short_side = path, short_side
        self.times = np.array([seconds for seconds, _ in self._frames()])
        self.num_frames = len(self.times)
        self.fps = rate_of(self.times, tick=1e-3).fps

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns uint8 (T, H, W, 3) of ascending indices without repeats."""
        wanted, pictures = set(indices.tolist()), []
        for number, (_, picture) in enumerate(self._frames()):
            if number in wanted:
                pictures.append(resized(picture.convert("RGB"), scaled(*picture.size, self._short_side)))
                if len(pictures) == len(wanted):
                    break
        return np.stack(pictures)

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _frames(self) -> Iterator[tuple[float, Image]]:
        """Yields the seconds and the picture of each frame."""
        from PIL import Image

        with errors_of(self._path), Image.open(self._path) as moving:
            for number in range(moving.n_frames):
                moving.seek(number)
                moving.load()
                yield moving.info["timestamp"] / 1000, moving
