"""SoftPool: softpool3d's own layers, in the geometry of the layer they stand for."""

from __future__ import annotations

from torch import Tensor, nn

from softpool3d.models.pools.geometry import Bins, Geometry, Pool
from softpool3d.ops.functional import (
    adaptive_soft_pool1d,
    adaptive_soft_pool2d,
    adaptive_soft_pool3d,
    soft_pool1d,
    soft_pool2d,
    soft_pool3d,
)
from softpool3d.ops.modules import (
    AdaptiveSoftPool1d,
    AdaptiveSoftPool2d,
    AdaptiveSoftPool3d,
    SoftPool1d,
    SoftPool2d,
    SoftPool3d,
)


class ShrinkingSoftPool(Pool):
    """SoftPool for heads: its kernel is cut to the input if that is smaller."""

    def __init__(self, geometry: Geometry, layer: nn.Module) -> None:
        super().__init__(geometry)
        self.soft = layer

    def forward(self, x: Tensor) -> Tensor:
        if self.geometry.covers(x):
            adaptive = (adaptive_soft_pool1d, adaptive_soft_pool2d, adaptive_soft_pool3d)[self.geometry.dims - 1]
            return adaptive(x, 1, self.soft.beta)
        w = self.geometry.on(x)
        pool = (soft_pool1d, soft_pool2d, soft_pool3d)[w.dims - 1]
        return pool(x, w.kernel, w.stride, w.padding, w.dilation, w.ceil_mode, self.soft.beta)


def soft_pool(geometry: Geometry, channels: int | None, beta: float | str, start: float = 1.0) -> nn.Module:
    """Makes a SoftPool layer. `beta` is a number, or "learnable": a value for each of `channels`, at first `start`."""
    learned = {"num_channels": channels, "beta_start": start} if beta == "learnable" else {}
    if isinstance(geometry, Bins):
        kinds = (AdaptiveSoftPool1d, AdaptiveSoftPool2d, AdaptiveSoftPool3d)
        size = geometry.output_size if geometry.dims > 1 else geometry.output_size[0]
        return kinds[geometry.dims - 1](size, beta=beta, **learned)
    w, kinds = geometry, (SoftPool1d, SoftPool2d, SoftPool3d)
    layer = kinds[w.dims - 1](w.kernel, w.stride, w.padding, w.dilation, w.ceil_mode, beta=beta, **learned)
    return ShrinkingSoftPool(w, layer) if w.shrinks else layer
