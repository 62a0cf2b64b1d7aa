"""Pictures that tests make: three classes, by colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("blue", "green", "red")


def coloured(colour: str, seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A noisy picture of a colour; size: width and height."""
    pixels = np.random.default_rng(seed).integers(0, 100, (size[1], size[0], 3))
    pixels[..., 2 - COLOURS.index(colour)] += 150
    return Image.fromarray(pixels.astype(np.uint8))


def write_pictures(root: Path, **counts: int) -> Path:
    """Class folders of pictures, so many of each colour in each split."""
    for split, count in counts.items():
        for colour in COLOURS:
            folder = root / split / colour
            folder.mkdir(parents=True)
            for number in range(count):
                ending = ("jpg", "png", "JPEG")[number % 3]
                coloured(colour, 100 * len(split) + number).save(folder / f"{number}.{ending}")
    return root
