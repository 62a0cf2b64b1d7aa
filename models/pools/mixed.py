"""Mixed max-average pooling (Lee, Gallagher, Tu, AISTATS 2016, arXiv 1509.08985)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softpool3d.models.pools.geometry import Geometry, Pool, maximum


class MixedPool(Pool):
    """a max + (1 - a) mean, one learned a = sigmoid(mix) per layer (section 2.1), which starts at one half."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.mix = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.mix.sigmoid().to(x.dtype)
        return a * maximum(x, self.geometry) + (1 - a) * self.mean(x)
