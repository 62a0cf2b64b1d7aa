"""The geometry of poolings: sliding windows or the bins of adaptive pooling, and the mean and maximum over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from softpool3d.errors import UsageError
from softpool3d.ops.modules import (
    AdaptiveSoftPool1d,
    AdaptiveSoftPool2d,
    AdaptiveSoftPool3d,
    SoftPool1d,
    SoftPool2d,
    SoftPool3d,
)
from softpool3d.ops.reference import pooled_size

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """Sliding windows; each size is one int per dimension. Padding lies outside of the window, as in max pooling.

    `shrinks`: whether the kernel is cut to the input if that is smaller, as a network's head needs it.
    `after_max`: whether this replaces a max pooling; only `blur` asks.
    """

    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    ceil_mode: bool = False
    shrinks: bool = False
    after_max: bool = False

    @property
    def dims(self) -> int:
        return len(self.kernel)

    def on(self, x: Tensor) -> Window:
        """Returns the windows for an input of this size: shrunk, if they shrink."""
        if not self.shrinks:
            return self
        sizes = zip(self.kernel, x.shape[2:], self.padding, strict=True)
        return replace(self, kernel=tuple(min(k, n + 2 * p) for k, n, p in sizes))

    def covers(self, x: Tensor) -> bool:
        """Whether they shrink to one window over all of this input: then they are an adaptive pooling to 1."""
        sizes = zip(x.shape[2:], self.kernel, strict=True)
        return self.shrinks and not any(self.padding) and all(n <= k for n, k in sizes)

    def output_size(self, x: Tensor) -> Ints:
        each = zip(x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple(pooled_size(*sizes, self.ceil_mode) for sizes in each)

    def __str__(self) -> str:
        text = f"{_x(self.kernel)} / {_x(self.stride)}"
        return text + (f" pad {_x(self.padding)}" if any(self.padding) else "")


@dataclass(frozen=True)
class Bins:
    """The bins of an adaptive pooling: their number in each dimension; None keeps the input's size."""

    output_size: tuple[int | None, ...]

    @property
    def dims(self) -> int:
        return len(self.output_size)

    @property
    def is_global(self) -> bool:
        return all(n == 1 for n in self.output_size)

    def __str__(self) -> str:
        return (
            "global" if self.is_global else f"to {'x'.join('same' if n is None else str(n) for n in self.output_size)}"
        )


Geometry = Window | Bins


def _x(sizes: Ints) -> str:
    return "x".join(map(str, sizes))


def per_dimension(value, dims: int) -> tuple:
    """Returns one value per dimension, given one for all or one for each; numpy's integers become ints."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    values = tuple(None if v is None else int(v) for v in values)
    return values * dims if len(values) == 1 else values


class Pool(nn.Module):
    """Base of the poolings that torch lacks: it holds their geometry, and computes the mean over it.

    Input (N, C, *sizes) with as many sizes as the geometry has dimensions; output (N, C, *output sizes).
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        if isinstance(geometry, Window) and set(geometry.dilation) != {1}:
            raise UsageError(f"{type(self).__name__} has no dilation, and {_x(geometry.dilation)} was asked for")
        self.geometry = geometry

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, Proxy):
            return super().__call__(x)
        # What a pooling does depends on sizes; so torch.fx keeps it as one module, as it does torch's own.
        tracer = x.tracer

        def node(x: Proxy) -> Proxy:
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (x,), {})

        return tracer.call_module(self, node, (x,), {})

    def mean(self, x: Tensor) -> Tensor:
        return mean(x, self.geometry)

    def extra_repr(self) -> str:
        return str(self.geometry)


def mean(x: Tensor, geometry: Geometry) -> Tensor:
    """Returns the mean over each window's positions inside the input."""
    index = geometry.dims - 1
    if geometry.dims == 3 and x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16):
        return mean(x.float(), geometry).to(x.dtype)  # torch has no such kernel
    if isinstance(geometry, Bins):
        adaptive = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[index]
        size = tuple(n or x.shape[2 + i] for i, n in enumerate(geometry.output_size))
        return adaptive(x, size)
    if geometry.covers(x):
        return mean(x, Bins((1,) * geometry.dims))
    w = geometry.on(x)
    if w.ceil_mode:  # which may leave a window larger than the input; torch's average pooling, unlike max, refuses that
        sizes = zip(w.kernel, x.shape[2:], w.padding, strict=True)
        w = replace(w, kernel=tuple(min(k, n + 2 * p) for k, n, p in sizes))
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[index]
    if all(k <= n for k, n in zip(w.kernel, x.shape[2:], strict=True)):
        return pool(x, w.kernel, w.stride, w.padding, w.ceil_mode, count_include_pad=False)
    # it also refuses a window that padding alone makes large enough: pad first, and divide by what was inside
    padding = [p for p in reversed(w.padding) for _ in range(2)]
    inside = F.pad(torch.ones_like(x[:1, :1]), padding)
    y = pool(F.pad(x, padding), w.kernel, w.stride, 0, w.ceil_mode) / pool(inside, w.kernel, w.stride, 0, w.ceil_mode)
    return y[(..., *(slice(size) for size in w.output_size(x)))]


def maximum(x: Tensor, geometry: Geometry, return_indices: bool = False):
    """Returns the maximum over each window; with `return_indices` also its index in the flattened input."""
    index = geometry.dims - 1
    if isinstance(geometry, Bins):
        adaptive = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[index]
        size = tuple(n or x.shape[2 + i] for i, n in enumerate(geometry.output_size))
        return adaptive(x, size, return_indices=return_indices)
    w = geometry.on(x)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[index]
    return pool(x, w.kernel, w.stride, w.padding, w.dilation, w.ceil_mode, return_indices=return_indices)


def taps(x: Tensor, window: Window) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields for each position of the kernel its value in every window, and whether it lies inside the input.

    Yields:
        (N, C, *output sizes) and a mask that broadcasts to it.
    """
    window = window.on(x)
    out = window.output_size(x)
    padding: list[int] = []
    for n, k, s, p, o in zip(x.shape[2:], window.kernel, window.stride, window.padding, out, strict=True):
        padding = [p, max(0, (o - 1) * s + k - n - p), *padding]
    padded = F.pad(x, padding)
    inside = F.pad(torch.ones(x.shape[2:], dtype=torch.bool, device=x.device), padding)
    for offsets in product(*(range(k) for k in window.kernel)):
        steps = tuple(slice(at, at + (o - 1) * s + 1, s) for at, o, s in zip(offsets, out, window.stride, strict=True))
        yield padded[(slice(None), slice(None), *steps)], inside[steps]


_AVG = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_MAX = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_LP = (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)
_SOFT = (SoftPool1d, SoftPool2d, SoftPool3d)
_ADAPTIVE = (
    (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, AdaptiveSoftPool1d),
    (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, AdaptiveSoftPool2d),
    (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d, AdaptiveSoftPool3d),
)


def geometry_of(layer: nn.Module) -> Geometry | None:
    """Returns the geometry of a pooling layer, torch's or ours; None for other layers, and if it returns indices."""
    if isinstance(layer, Pool):
        return layer.geometry
    if getattr(layer, "return_indices", False):
        return None  # what comes after needs them
    for dims in (1, 2, 3):
        if isinstance(layer, _ADAPTIVE[dims - 1]):
            return Bins(per_dimension(layer.output_size, dims))
        if isinstance(layer, (_AVG[dims - 1], _MAX[dims - 1], _LP[dims - 1], _SOFT[dims - 1])):
            kernel = per_dimension(layer.kernel_size, dims)
            return Window(
                kernel=kernel,
                stride=kernel if layer.stride is None else per_dimension(layer.stride, dims),
                padding=per_dimension(getattr(layer, "padding", 0), dims),
                dilation=per_dimension(getattr(layer, "dilation", 1), dims),
                ceil_mode=layer.ceil_mode,
                after_max=isinstance(layer, _MAX),
            )
    return None


def strided(stride: Ints) -> Window:
    """Returns disjoint windows with as many outputs as a convolution of that stride: ceil(n / stride) for n inputs."""
    nothing, ones = (0,) * len(stride), (1,) * len(stride)
    return Window(stride, stride, nothing, ones, ceil_mode=True)
