"""Learned downsampling: a strided depthwise convolution in a pooling's place (arXiv 1412.6806)."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softpool3d.models.pools.geometry import Pool, Window


class ConvPool(Pool):
    """A depthwise convolution with the window's kernel and stride; starts as average pooling, with zeros as padding."""

    def __init__(self, geometry: Window, channels: int) -> None:
        super().__init__(geometry)
        self.weight = nn.Parameter(torch.full((channels, 1, *geometry.kernel), 1 / prod(geometry.kernel)))

    def forward(self, x: Tensor) -> Tensor:
        w = self.geometry
        padding: list[int] = []
        each = zip(x.shape[2:], w.kernel, w.stride, w.padding, w.output_size(x), strict=True)
        for n, k, s, p, out in each:
            padding = [p, max(0, (out - 1) * s + k - n - p), *padding]
        conv = (F.conv1d, F.conv2d, F.conv3d)[w.dims - 1]
        y = conv(F.pad(x, padding), self.weight, stride=w.stride, groups=len(self.weight))
        return y[(..., *(slice(out) for out in w.output_size(x)))]
