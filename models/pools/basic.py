"""Average, maximum and Lp pooling: parameterless, and older than deep learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softpool3d.models.pools.geometry import Bins, Geometry, Pool, maximum


class AvgPool(Pool):
    """The mean of the positions inside the input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(x)


class MaxPool(Pool):
    """The maximum of each window."""

    def forward(self, x: Tensor) -> Tensor:
        return maximum(x, self.geometry)


class LpPool(Pool):
    """(mean |x|^p)^(1/p), the normalised Lp norm (arXiv 1311.1780, equation 1).

    p=1 is the mean of |x|, large p its maximum. A window of nothing but zeros, which is common after a ReLU, gives 0
    and passes no gradient.
    """

    def __init__(self, geometry: Geometry, p: float) -> None:
        super().__init__(geometry)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        power = self.mean(x.abs().pow(self.p))
        some = power > 0
        return torch.where(some, torch.where(some, power, 1).pow(1 / self.p), 0)

    def extra_repr(self) -> str:
        return f"{self.geometry}, p={self.p:g}"


def avg_pool(geometry: Geometry) -> nn.Module:
    """Makes an average pooling: torch's own for bins, `AvgPool` for windows."""
    if isinstance(geometry, Bins):
        kinds = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
        return kinds[geometry.dims - 1](geometry.output_size if geometry.dims > 1 else geometry.output_size[0])
    return AvgPool(geometry)


def max_pool(geometry: Geometry) -> nn.Module:
    """Makes a maximum pooling: torch's own, or `MaxPool` for windows that shrink."""
    if isinstance(geometry, Bins):
        kinds = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
        return kinds[geometry.dims - 1](geometry.output_size if geometry.dims > 1 else geometry.output_size[0])
    if geometry.shrinks:
        return MaxPool(geometry)
    w, kinds = geometry, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
    return kinds[w.dims - 1](w.kernel, w.stride, w.padding, w.dilation, ceil_mode=w.ceil_mode)
