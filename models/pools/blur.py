"""Anti-aliased downsampling (Zhang, ICML 2019, arXiv 1904.11486)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from softpool3d.models.pools.geometry import Pool, Window


class BlurPool(Pool):
    """A triangle filter, then subsampling; a max pooling is first evaluated at stride 1 (section 3.2, MaxBlurPool).

    The filter has 2 stride - 1 taps in each strided dimension (1 2 1 for stride 2) and sees the edge repeated.
    """

    def __init__(self, geometry: Window) -> None:
        super().__init__(geometry)
        for axis, stride in enumerate(geometry.stride):
            ramp = torch.arange(1.0, stride + 1)
            taps = torch.cat([ramp, ramp[:-1].flip(0)])
            shape = [1] * (2 + geometry.dims)
            shape[2 + axis] = -1
            self.register_buffer(f"filter{axis}", (taps / taps.sum()).view(shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        w = self.geometry.on(x)
        sizes = w.output_size(x)
        first = tuple((k - 1) // 2 - p for k, p in zip(w.kernel, w.padding, strict=True))  # centre of the first window
        if w.after_max:
            pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[w.dims - 1]
            x, first = pool(x, w.kernel, 1, w.padding), (0,) * w.dims
        conv = (F.conv1d, F.conv2d, F.conv3d)[w.dims - 1]
        channels = x.shape[1]
        for axis, (stride, size, begin) in enumerate(zip(w.stride, sizes, first, strict=True)):
            if stride == 1:
                x = x.narrow(2 + axis, max(0, begin), size)
                continue
            reach, length = stride - 1, x.shape[2 + axis]
            positions = torch.arange(begin - reach, begin + (size - 1) * stride + reach + 1, device=x.device)
            x = x.index_select(2 + axis, positions.clamp(0, length - 1))
            steps = [stride if i == axis else 1 for i in range(w.dims)]
            taps = self.get_buffer(f"filter{axis}").to(x.dtype).expand(channels, *[-1] * (1 + w.dims))
            x = conv(x, taps, stride=steps, groups=channels)
        return x
