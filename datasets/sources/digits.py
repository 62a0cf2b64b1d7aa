"""`digits`: 1797 handwritten digits, 8x8 pixels in grey, that come inside of scikit-learn: real pictures without a
download (Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998; the test set there).

They are written as PNG files, once, into the cache folder, and read as `pictures` are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from softpool3d.datasets.manifest import Manifest
from softpool3d.datasets.sources.folder import PICTURES, read_folder
from softpool3d.datasets.sources.generated import made_once
from softpool3d.errors import UsageError


def read_digits(split: Iterable[float], seed: int) -> dict[str, Manifest]:
    """Returns the manifests "train", "val" and "test", which a seed divides each of the ten digits into.

    Raises:
        UsageError: if scikit-learn is not installed.
        WorkError: if the cache folder cannot be written.
    """
    return read_folder(made_once("digits", "digits-v1", _write), split, seed, kind=PICTURES)


def _write(folder: Path) -> None:
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(f"data.dataset=digits needs scikit-learn ({error}); pip install scikit-learn") from None
    found = load_digits()
    for number, (picture, digit) in enumerate(zip(found.images, found.target, strict=True)):
        place = folder / str(digit)
        place.mkdir(exist_ok=True)
        grey = np.round(picture * (255 / 16)).astype(np.uint8)  # 0 to 16
        Image.fromarray(grey).save(place / f"{number:04d}.png")
