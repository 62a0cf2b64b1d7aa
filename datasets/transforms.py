"""Transforms of decoded clips. Clips are uint8 (T, C, H, W) until `normalize`, the last step, on the device.

Every random choice is drawn once for a clip, from a seed of its own, so that all its frames are treated alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from softpool3d.datasets.sampling import share_of
from softpool3d.datasets.video.pyav_reader import scaled
from softpool3d.errors import UsageError

if TYPE_CHECKING:
    from softpool3d.config import DataConfig

_DIRECTIONS = re.compile(
    r"(?<![a-z])(left(wards?)?|right(wards?)?|(counter|anti)?[-_ ]?clockwise|c?cw)(?![a-z])", re.IGNORECASE
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # turnLeft is two words, as turn_left is


def resize_short_side(clip: Tensor, size: int) -> Tensor:
    """Returns (T, C, H, W) uint8 with its shorter side `size` pixels, aspect ratio kept (bilinear, antialiased)."""
    height, width = clip.shape[-2:]
    if min(height, width) == size:
        return clip
    new_width, new_height = scaled(width, height, size)
    return TF.resize(clip, [new_height, new_width], antialias=True)


def crop_boxes(height: int, width: int, size: int, count: int) -> list[tuple[int, int]]:
    """Returns (top, left) of `count` square crops: the centre (1), or three along the longer side (3).

    The three are left, centre and right of a wide picture, and top, centre and bottom of a high one, to the pixel as in
    PySlowFast's `uniform_crop` (arXiv 1812.03982).
    """
    top, left = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    if count == 1:
        return [(top, left)]
    if height > width:
        return [(0, left), (top, left), (height - size, left)]
    return [(top, 0), (top, left), (top, width - size)]


class Recipe(NamedTuple):
    """The transform of one clip: its short side before cropping and the crop's side, in pixels, whether it may be
    flipped, and a seed for the rest."""

    short_side: int
    crop_size: int
    may_flip: bool
    seed: int


class TrainTransform:
    """Random scale, crop, flip, colour, policy and erasing, as `data` and `data.augment` ask.

    Args:
        classes: names; some of them forbid flipping.

    Raises:
        UsageError: if `data.no_flip_classes` names a class that is not there.
    """

    def __init__(self, data: DataConfig, classes: Sequence[str] = ()) -> None:
        self.data = data
        augment, fill = data.augment, [round(255 * mean) for mean in data.mean]
        self.never_flipped = frozenset(_never_flipped(data, classes))
        steps: list[v2.Transform] = []
        if any(augment.color_jitter):
            steps.append(v2.ColorJitter(*augment.color_jitter))
        if augment.policy == "randaugment":
            steps.append(
                v2.RandAugment(
                    augment.operations, augment.magnitude, interpolation=v2.InterpolationMode.BILINEAR, fill=fill
                )
            )
        if augment.policy == "augmix":
            steps.append(_AugMix(severity=augment.magnitude, mixture_width=augment.operations, fill=fill))
        if augment.erase_probability:
            steps.append(v2.RandomErasing(augment.erase_probability, value=fill))
        self._steps = steps

    def recipe(self, label: int | tuple[int, ...], rng: np.random.Generator, share: float = 1.0) -> Recipe:
        """Draws the transform of a clip, before decoding, so that frames are decoded at the size that they need.

        Args:
            share: the crop's side as a share of the usual one; it shows the same part of the picture.
        """
        low, high = self.data.train_short_side
        augment = self.data.augment
        if augment.crop == "area":
            short_side = high
        elif augment.inverse_scale:
            short_side = round(1 / rng.uniform(1 / high, 1 / low))
        else:
            short_side = int(rng.integers(low, high + 1))
        labels = (label,) if isinstance(label, int) else label
        may_flip = self.data.flip and not any(one in self.never_flipped for one in labels)
        crop_size = share_of(self.data.crop_size, share)
        short_side = max(share_of(short_side, share), crop_size)
        return Recipe(short_side, crop_size, may_flip, int(rng.integers(2**63)))

    def __call__(self, clip: Tensor, recipe: Recipe) -> Tensor:
        """Turns uint8 (T, C, H, W) into uint8 (T, C, recipe.crop_size, recipe.crop_size), on the clip's own device."""
        clip = resize_short_side(clip, recipe.short_side)
        augment = self.data.augment
        if augment.crop == "area":
            crop = v2.RandomResizedCrop(recipe.crop_size, tuple(augment.area), tuple(augment.ratio))
        else:
            crop = v2.RandomCrop(recipe.crop_size)
        with seeded(recipe.seed):
            clip = crop(clip)
            if recipe.may_flip and torch.rand(()) < 0.5:
                clip = clip.flip(-1)
            for step in self._steps:
                clip = step(clip)
        return clip


class EvalTransform:
    """Resizes, then takes the centre crop or three crops: the same in validation, testing and classification."""

    def __init__(self, short_side: int, crop_size: int, num_crops: int = 1) -> None:
        self.short_side = short_side
        self.crop_size = crop_size
        self.num_crops = num_crops

    def __call__(self, clip: Tensor) -> list[Tensor]:
        """Turns uint8 (T, C, H, W) into `num_crops` clips, uint8 (T, C, crop_size, crop_size) each."""
        clip = resize_short_side(clip, self.short_side)
        size = self.crop_size
        boxes = crop_boxes(*clip.shape[-2:], size, self.num_crops)
        return [clip[..., top : top + size, left : left + size] for top, left in boxes]


class BatchMix:
    """Mixes a batch by Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899); with both, each batch draws one.

    Args:
        mixup, cutmix: alpha of the beta distribution from which the share is drawn; 0 turns it off.
    """

    def __init__(self, num_classes: int, mixup: float, cutmix: float) -> None:
        self._mixes = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha and num_classes > 1
        ]

    def __call__(self, clips: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Returns mixed clips of the same shape, and targets: float32 (N, classes). Without mixing, returns its inputs.

        Args:
            clips: float (N, C, T, H, W).
            label: int64 (N,).
        """
        if not self._mixes:
            return clips, label
        with seeded(seed):
            mix = self._mixes[int(torch.randint(len(self._mixes), ()))]
            mixed, target = mix(tv_tensors.Video(clips), label)
        return mixed.as_subclass(Tensor), target


def normalize(clips: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turns uint8 (N, C, T, H, W) into float32 of the same shape: (x / 255 - mean) / std, channel by channel."""
    offset, scale = _constants(tuple(mean), tuple(std), clips.device)
    return (clips - offset).mul_(scale)  # two passes instead of three


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Made once for each device: to copy numbers to a GPU waits for it."""
    with torch.inference_mode(False):
        shape = (1, -1, 1, 1, 1)
        scale = 1 / (255 * torch.tensor(std, device=device).view(shape))
        return torch.tensor(mean, device=device).view(shape) * 255, scale


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's generator of the CPU, from which torchvision draws, and afterwards restores its state."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


class _AugMix(v2.AugMix):
    """AugMix of a clip: torchvision would mix each of its frames differently, and draw on the clip's device."""

    def forward(self, clip: Tensor) -> Tensor:
        return super().forward(tv_tensors.Video(clip)).as_subclass(Tensor)

    def _sample_dirichlet(self, params: Tensor) -> Tensor:
        return torch._sample_dirichlet(params.cpu()).to(params.device)


def tells_direction(name: str) -> bool:
    """Whether a class is named after a direction (left, clockwise, ...), which a mirrored clip would not show."""
    return _DIRECTIONS.search(_CAMEL.sub(" ", name)) is not None


def _never_flipped(data: DataConfig, classes: Sequence[str]) -> Iterator[int]:
    if data.no_flip_classes is None:
        yield from (number for number, name in enumerate(classes) if tells_direction(name))
        return
    for name in data.no_flip_classes:
        if name not in classes:
            raise UsageError(f"data.no_flip_classes: {name!r} is none of the {len(classes)} classes")
        yield classes.index(name)
