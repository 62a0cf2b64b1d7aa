"""A folder of frames (JPEG, PNG) as a video."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from softpool3d.datasets.frame_index import DecodeError
from softpool3d.datasets.pyav_reader import scaled

PICTURES = frozenset([".jpg", ".jpeg", ".png"])
FPS = 25.0  # a folder does not say


def is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in PICTURES


class PictureFolderReader:
    """Frames in the order of the numbers in their names: frame2.jpg comes before frame10.jpg."""

    name = "pictures"
    fps = FPS

    def __init__(self, path: str, short_side: int | None = None) -> None:
        self._path, self._short_side = path, short_side
        try:
            names = [name for name in os.listdir(path) if is_picture(name)]
        except OSError as error:
            raise DecodeError(path, (error.strerror or str(error)).lower()) from None
        if not names:
            raise DecodeError(path, "it is a directory, without JPEG or PNG files that could be frames")
        self._names = sorted(names, key=_natural)
        self.num_frames = len(names)
        self.times = np.arange(self.num_frames) / FPS
        self._size: tuple[int, int] | None = None

    def read(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (T, H, W, 3), all of the size of the first one read."""
        return np.stack([self._picture(self._names[i]) for i in indices.tolist()])

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _picture(self, name: str) -> np.ndarray:
        from PIL import Image, ImageOps

        path = os.path.join(self._path, name)
        try:
            with Image.open(path) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
                self._size = self._size or scaled(*upright.size, self._short_side)
                if upright.size != self._size:
                    upright = upright.resize(self._size, Image.Resampling.BILINEAR)
                return np.asarray(upright)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DecodeError(self._path, f"frame {name}: {reason.lower()}") from None


def _natural(name: str) -> list:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
