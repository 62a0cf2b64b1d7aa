"""What happens to a clip after decoding. Clips are uint8 (T, C, H, W) until `normalize`, on the device, at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor


def resize_short_side(clip: Tensor, size: int) -> Tensor:
    """(T, C, H, W) uint8 with its shorter side `size` pixels, aspect ratio kept (bilinear, antialiased)."""
    height, width = clip.shape[-2:]
    if min(height, width) == size:
        return clip
    scale = size / min(height, width)
    new = [size, max(size, round(width * scale))] if height <= width else [max(size, round(height * scale)), size]
    return TF.resize(clip, new, antialias=True)


def crops_along_longer_side(clip: Tensor, size: int, count: int) -> list[Tensor]:
    """Square crops: the centre (1), or start, centre and end of the longer side (3), as in arXiv 1812.03982."""
    height, width = clip.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    if count == 1:
        corners = [(top, left)]
    elif height > width:
        corners = [(0, left), (top, left), (height - size, left)]
    else:
        corners = [(top, 0), (top, left), (top, width - size)]
    return [clip[..., y : y + size, x : x + size] for y, x in corners]


class TrainTransform:
    """Random scale, random crop, random flip; the same for every frame of a clip, drawn anew for every clip."""

    def __init__(self, short_side: Sequence[int], crop_size: int, flip: bool) -> None:
        self.short_side = tuple(short_side)
        self.crop_size = crop_size
        self.flip = flip

    def __call__(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        """(T, C, H, W) uint8 -> (T, C, crop_size, crop_size) uint8."""

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        clip = resize_short_side(clip, draw(*self.short_side))
        size = self.crop_size
        top, left = draw(0, clip.shape[-2] - size), draw(0, clip.shape[-1] - size)
        clip = clip[..., top : top + size, left : left + size]
        if self.flip and draw(0, 1):
            clip = clip.flip(-1)
        return clip


class EvalTransform:
    """Resize, then the centre crop or three crops: the same in validation, testing and classification."""

    def __init__(self, short_side: int, crop_size: int, num_crops: int = 1) -> None:
        self.short_side = short_side
        self.crop_size = crop_size
        self.num_crops = num_crops

    def __call__(self, clip: Tensor) -> list[Tensor]:
        """(T, C, H, W) uint8 -> `num_crops` clips (T, C, crop_size, crop_size) uint8."""
        return crops_along_longer_side(resize_short_side(clip, self.short_side), self.crop_size, self.num_crops)


def normalize(clips: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (N, C, T, H, W) in [0, 255] -> float32 of the same shape: (x / 255 - mean) / std, channel by channel."""
    shape = (1, -1, 1, 1, 1)
    scale = 1 / (255 * torch.tensor(std, device=clips.device).view(shape))
    offset = torch.tensor(mean, device=clips.device).view(shape) * 255
    return (clips.float() - offset) * scale
