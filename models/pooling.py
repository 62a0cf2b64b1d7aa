"""The kinds of pooling by name, and the places in a network where they can go.

    soft    softmax-weighted sum of the window (arXiv 2101.00440)
    avg     its mean
    max     its maximum

    existing     each pooling layer that the network has, its head's included: kernel, stride and padding are kept
    downsample   each strided convolution: it gets stride 1 and the pooling takes over the stride,
                 behind the convolution in the main path, before the 1x1 convolution of a shortcut
    head         the global pooling before the classifier

Names and shapes of parameters stay as they are, so weights fit with or without.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from softpool3d.config import PoolConfig
from softpool3d.errors import UsageError
from softpool3d.modules import AdaptiveSoftPool3d, SoftPool3d

Triple = tuple[int, int, int]


class _AvgPool3d(nn.AvgPool3d):
    """Average pooling that, as max and soft pooling do with ceil_mode, takes an input smaller than its kernel."""

    def forward(self, input: Tensor) -> Tensor:
        kernel = [
            min(k, size + 2 * p) for k, size, p in zip(self.kernel_size, input.shape[-3:], self.padding, strict=True)
        ]
        return F.avg_pool3d(input, kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


# kind -> (kernel, stride, padding, ceil_mode, beta) -> layer, and kind -> (output size, beta) -> layer
_POOLS: dict[str, Callable[[Triple, Triple, Triple, bool, float], nn.Module]] = {
    "soft": lambda k, s, p, ceil, beta: SoftPool3d(k, s, p, ceil_mode=ceil, beta=beta),
    # padding is outside of the window, as in soft and max pooling
    "avg": lambda k, s, p, ceil, beta: _AvgPool3d(k, s, p, ceil_mode=ceil, count_include_pad=False),
    "max": lambda k, s, p, ceil, beta: nn.MaxPool3d(k, s, p, ceil_mode=ceil),
}
_ADAPTIVE: dict[str, Callable[[Triple | int, float], nn.Module]] = {
    "soft": lambda size, beta: AdaptiveSoftPool3d(size, beta=beta),
    "avg": lambda size, beta: nn.AdaptiveAvgPool3d(size),
    "max": lambda size, beta: nn.AdaptiveMaxPool3d(size),
}


class PooledConv3d(nn.Conv3d):
    """A strided convolution whose stride a pooling layer has taken over; its parameters are the convolution's own."""

    def __init__(self, conv: nn.Conv3d, pool: nn.Module) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=1,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.pool = pool
        # pooling first is the same size, and cheaper, where the convolution looks at one position only
        self.pool_first = prod(conv.kernel_size) == 1

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.pool(input)) if self.pool_first else self.pool(super().forward(input))


def place_pooling(network: nn.Module, pool: PoolConfig, name: str) -> nn.Module:
    """Puts `pool.kind` into each place of `pool.where`, in place; returns the network.

    Raises:
        UsageError: for a place that the network does not have.
    """
    where = set(pool.where)
    head = network.head_pool
    swaps: dict[str, tuple[str, nn.Module]] = {}
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv3d) and prod(module.stride) > 1:
            stride = tuple(module.stride)
            # ceil_mode gives the strided convolution's output size: ceil(n / stride) of the n positions at stride 1
            layer = _POOLS[pool.kind](stride, stride, (0, 0, 0), True, pool.beta)
            swaps[path] = ("downsample", PooledConv3d(module, layer))
        elif _is_pool(path, module):
            swaps[path] = ("head" if path == head else "existing", _like(module, pool))
    has = {place for place, _ in swaps.values()} | {"existing"}
    for place in pool.where:
        if place not in has:
            raise UsageError(f"model.pool.where: {name} has no place {place!r} (it has {', '.join(sorted(has))})")
    for path, (place, layer) in swaps.items():
        if place in where or (place == "head" and "existing" in where):
            network.set_submodule(path, layer)
    return network


def _is_pool(path: str, module: nn.Module) -> bool:
    # X3D's output_pool averages logits, behind the classifier: that is no downsampling of features
    pools = (nn.AvgPool3d, nn.MaxPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)
    return isinstance(module, pools) and not path.endswith("output_pool")


def _like(layer: nn.Module, pool: PoolConfig) -> nn.Module:
    """A layer of kind `pool.kind` with the geometry of `layer`."""
    if isinstance(layer, (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)):
        return _ADAPTIVE[pool.kind](layer.output_size, pool.beta)
    geometry = (_triple(layer.kernel_size), _triple(layer.stride), _triple(layer.padding))
    return _POOLS[pool.kind](*geometry, layer.ceil_mode, pool.beta)


def _triple(value: int | Triple) -> Triple:
    # pytorchvideo leaves numpy integers in there
    return (value, value, value) if isinstance(value, int) else tuple(int(v) for v in value)
