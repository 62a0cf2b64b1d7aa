"""AdaPool and its kernels (Stergiou, Poppe, IEEE TIP 2023, arXiv 2111.00772)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softpool3d.errors import UsageError
from softpool3d.models.pools.geometry import Bins, Geometry, Pool, mean, taps
from softpool3d.models.pools.soft import soft_pool


class EdscwPool(Pool):
    """sum exp(d_i) x_i / sum exp(d_i) with d_i = 2 |x_i m| / (x_i^2 + m^2), m the window's mean: eDSCW.

    The exponent is the Dice-Soerensen coefficient of a value and the mean, element by element as in the authors' code.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        if isinstance(geometry, Bins) and not geometry.is_global:
            raise UsageError(f"pooling by eDSCW goes over windows or over all positions, not {geometry}")

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centre = mean(wide, self.geometry)
        if isinstance(self.geometry, Bins):
            weights = _likeness(wide, centre)
            total = weights.flatten(2).sum(-1).view(centre.shape)
            return ((weights * wide).flatten(2).sum(-1).view(centre.shape) / total).to(x.dtype)
        above, total = torch.zeros_like(centre), torch.zeros_like(centre)
        for values, inside in taps(wide, self.geometry):
            weights = _likeness(values, centre) * inside
            above = above + weights * values
            total = total + weights
        return (above / total).to(x.dtype)


def _likeness(x: Tensor, centre: Tensor) -> Tensor:
    tiny = torch.finfo(x.dtype).tiny  # zero beside zero counts as unlike, and so does every other position then
    return torch.exp(2 * (x * centre).abs() / (x.square() + centre.square() + tiny))


class AdaPool(Pool):
    """b eDSCW(x) + (1 - b) SoftPool(x) with a learned b in [0, 1], one half at first (equation 9).

    The authors learn b for each output position, which ties a network to one input size; here it is one per channel.
    """

    def __init__(self, geometry: Geometry, channels: int) -> None:
        super().__init__(geometry)
        self.mix = nn.Parameter(torch.full((channels,), 0.5))
        self.edscw = EdscwPool(geometry)
        self.soft = soft_pool(geometry, None, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        b = self.mix.clamp(0, 1).to(x.dtype).view(-1, *[1] * self.geometry.dims)
        return b * self.edscw(x) + (1 - b) * self.soft(x)
