"""`motion`: an embedded data set of real encoded videos whose labels are in the motion and nowhere else.

A textured object over a textured background: it moves left, right, up or down, rotates one way or the other, or grows
or shrinks, while the background drifts by itself. Appearance, start, speed and lighting are random. Position, angle and
size go round in circles: an object that leaves on the left comes in again on the right, and one that has grown to the
largest size starts again at the smallest. Each circle starts at a random phase, so a single frame is distributed in the
same way for all eight classes. Class 2k played backwards is class 2k + 1.

The videos are H.264, 32 frames of 112x112 at 25 fps, made once and kept in the cache folder.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from softpool3d.datasets.manifest import Manifest
from softpool3d.datasets.parallel import each
from softpool3d.datasets.sources.folder import read_folder
from softpool3d.datasets.sources.generated import made_once
from softpool3d.datasets.video.encoder import write_video
from softpool3d.errors import WorkError

CLASSES = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "rotating clockwise",
    "rotating counterclockwise",
    "zooming in",
    "zooming out",
)
NUM_FRAMES, SIZE, FPS = 32, 112, 25
_PERIOD = 128  # of the textures, in pixels
VERSION = 1  # of the generator: a change of its pictures makes new sets


def opposite(label: int) -> int:
    """The class of the same clip played backwards."""
    return label ^ 1


def read_motion(clips: tuple[int, int, int] = (400, 80, 80), seed: int = 0) -> dict[str, Manifest]:
    """Returns the manifests "train", "val" and "test"; makes the videos in the cache folder if they are not there.

    Args:
        clips: the number of clips of train, val and test; the classes take turns.
        seed: the same seed gives the same pixels, whatever the number of clips.

    Raises:
        WorkError: if the cache folder cannot be written.
    """
    name = f"motion-v{VERSION}-seed{seed}-{'-'.join(map(str, clips))}"
    return read_folder(made_once("motion", name, lambda folder: _generate(folder, clips, seed)))


def render(label: int, rng: np.random.Generator) -> np.ndarray:
    """Renders one clip of class `label`: uint8 (32, 112, 112, 3)."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    # The middle of the clip is the origin of time, so that a clip and its reversal are drawn alike.
    time = (np.arange(NUM_FRAMES, dtype=np.float32) - (NUM_FRAMES - 1) / 2)[:, None, None]

    drift_x, drift_y, from_x, from_y = _draw(rng, (-0.25, 0.25), (-0.25, 0.25), (0, 128), (0, 128))
    texture = _texture(rng, contrast=0.3)
    picture = texture[_whole(y - drift_y * time + from_y), _whole(x - drift_x * time + from_x)]
    _draw_object(picture, x, y, time, label, rng)

    direction, slope, light = _draw(rng, (0, 2 * np.pi), (0, 0.4), (0.8, 1.1))
    shade = slope * ((x / SIZE - 0.5) * math.cos(direction) + (y / SIZE - 0.5) * math.sin(direction))
    picture *= (255 * light * (1 + shade))[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def _draw_object(picture, x, y, time, label: int, rng: np.random.Generator) -> None:
    """Draws one object that moves as `label` says into float32 (32, 112, 112, 3)."""
    x0, y0, angle, phase = _draw(rng, (0, SIZE), (0, SIZE), (0, 2 * np.pi), (0, 1))
    # from frame to frame: pixels, radians, part of the circle of sizes
    pixels, radians, growth = _draw(rng, (0.7, 1.5), (0.04, 0.09), (0.8 / NUM_FRAMES, 1 / NUM_FRAMES))
    pair, sign = (
        label // 2,
        1 if label % 2 == 0 else -1,
    )  # the even class of a pair, backwards, is the odd one
    centre_x = x0 - sign * pixels * time if pair == 0 else x0
    centre_y = y0 - sign * pixels * time if pair == 1 else y0
    if pair == 2:
        angle = angle + sign * radians * time  # y points down: a growing angle turns clockwise
    if pair == 3:
        phase = phase + sign * growth * time
    radius = 30 * 1.8 ** np.float32(phase % 1)  # 30 to 54 pixels

    dx = (x - centre_x + SIZE / 2) % SIZE - SIZE / 2  # on a torus
    dy = (y - centre_y + SIZE / 2) % SIZE - SIZE / 2
    cos, sin = np.cos(angle, dtype=np.float32), np.sin(angle, dtype=np.float32)
    u, v = (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius  # in the object's own frame
    lobes, depth = int(rng.integers(2, 6)), _draw(rng, (0.15, 0.35))[0]
    outline = 0.8 * (1 + depth * np.cos(lobes * np.arctan2(v, u)))
    inside = np.clip((outline - np.sqrt(u * u + v * v)) * radius + 0.5, 0, 1)  # an edge one pixel soft
    texture = _texture(rng, contrast=1.0)
    where = np.nonzero(inside)
    colour = texture[_whole(40 * v[where]), _whole(40 * u[where])]
    picture[where] += inside[where][:, None] * (colour - picture[where])


def _draw(rng: np.random.Generator, *ranges: tuple[float, float]) -> tuple[float, ...]:
    # Python's floats, because numpy's own would make the pictures float64
    return tuple(float(rng.uniform(low, high)) for low, high in ranges)


def _whole(coordinate: np.ndarray) -> np.ndarray:
    return np.floor(coordinate).astype(np.int32) % _PERIOD


def _texture(rng: np.random.Generator, contrast: float) -> np.ndarray:
    """A random periodic texture of two scales between two random colours: float32 (128, 128, 3) in [0, 1]."""
    field = np.zeros((_PERIOD, _PERIOD), np.float32)
    for cells, weight in ((6, 0.6), (12, 0.4)):
        knots = rng.random((cells, cells), dtype=np.float32)
        at = np.arange(_PERIOD, dtype=np.float32) * cells / _PERIOD
        low = at.astype(int)
        high = (low + 1) % cells
        t = at - low
        t = t * t * (3 - 2 * t)
        rows = knots[low] * (1 - t)[:, None] + knots[high] * t[:, None]
        field += weight * (rows[:, low] * (1 - t) + rows[:, high] * t)
    field = (field - field.min()) / (field.max() - field.min())
    dark, bright = rng.uniform(0, 0.35, 3), rng.uniform(0.65, 1, 3)
    bright = dark + contrast * (bright - dark)
    if rng.random() < 0.5:
        dark, bright = bright, dark
    return (dark + field[..., None] * (bright - dark)).astype(np.float32)


def _generate(folder: Path, clips: tuple[int, int, int], seed: int) -> None:
    jobs = []
    for number, (split, count) in enumerate(zip(("train", "val", "test"), clips, strict=True)):
        for label in CLASSES:
            (folder / split / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            label = index % len(CLASSES)
            path = folder / split / CLASSES[label] / f"{index:05d}.mp4"
            jobs.append((str(path), label, (seed, number, index)))
    for _, failure in each(_render_to_file, jobs, "Generating the data set `motion`"):
        if failure is not None:
            raise failure if isinstance(failure, OSError) else WorkError(f"cannot make `motion`: {failure}")


def _render_to_file(job: tuple[str, int, tuple[int, int, int]]) -> None:
    path, label, seed = job
    write_video(path, render(label, np.random.default_rng(seed)), FPS, crf=12)
