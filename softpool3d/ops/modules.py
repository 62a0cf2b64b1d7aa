"""SoftPool as nn.Modules, with a fixed or a learnable beta."""

import math

import torch
from torch import Tensor, nn

from softpool3d.ops import functional as F


class _Pool(nn.Module):
    """What the pools share: beta, a float or a parameter with one value per channel."""

    dims: int
    beta: float | nn.Parameter

    def __init__(self, beta: float | str, num_channels: int | None) -> None:
        super().__init__()
        name, beta = type(self).__name__, F.plain(beta)
        if isinstance(beta, str) and beta == "learnable":
            if num_channels is None:
                raise ValueError(
                    f"{name}: a learnable beta has one value per channel; give their number, as in "
                    f'{name}(2, beta="learnable", num_channels=64)'
                )
            if num_channels < 1:
                raise ValueError(f"{name}: num_channels must be above 0, but got {num_channels}")
            self.beta = nn.Parameter(torch.ones(num_channels))
            return
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or math.isnan(beta):
            raise ValueError(f'{name}: beta must be a float or "learnable", but got {beta!r}')
        if num_channels is not None:
            raise ValueError(f'{name}: num_channels is the length of a beta that is "learnable", but beta is {beta}')
        self.beta = float(beta)

    def __prepare_scriptable__(self):
        F.refuse_script()

    def _beta_repr(self) -> str:
        if isinstance(self.beta, float):
            return f"beta={self.beta}"
        return f"beta=learnable, num_channels={len(self.beta)}"


class _SoftPool(_Pool):
    def __init__(
        self,
        kernel_size=2,
        stride=None,
        padding=0,
        dilation=1,
        ceil_mode: bool = False,
        beta: float | str = 1.0,
        num_channels: int | None = None,
    ) -> None:
        super().__init__(beta, num_channels)
        self.kernel_size = F.plain(kernel_size)
        self.stride = self.kernel_size if stride is None else F.plain(stride)
        self.padding = F.plain(padding)
        self.dilation = F.plain(dilation)
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        pool = (F.soft_pool1d, F.soft_pool2d, F.soft_pool3d)[self.dims - 1]
        return pool(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.beta)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}, {self._beta_repr()}"
        )


class SoftPool3d(_SoftPool):
    """`soft_pool3d` as a module: (N, C, T, H, W) -> (N, C, To, Ho, Wo).

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as for `soft_pool3d` and `nn.MaxPool3d`.
        beta: a float, or "learnable": a parameter `beta` with one value per channel that starts at 1. Weight decay
            pulls it to 0, which is average pooling.
        num_channels: the length of a learnable beta, C of the input.

    Raises:
        ValueError: if beta is neither a float nor "learnable", or num_channels is missing where it is learnable, or
            given where it is not.
    """

    dims = 3


class SoftPool2d(_SoftPool):
    """`soft_pool2d` as a module: (N, C, H, W) -> (N, C, Ho, Wo). Arguments as for `SoftPool3d`."""

    dims = 2


class SoftPool1d(_SoftPool):
    """`soft_pool1d` as a module: (N, C, L) -> (N, C, Lo). Arguments as for `SoftPool3d`."""

    dims = 1


class _AdaptiveSoftPool(_Pool):
    def __init__(self, output_size, beta: float | str = 1.0, num_channels: int | None = None) -> None:
        super().__init__(beta, num_channels)
        self.output_size = F.plain(output_size)

    def forward(self, input: Tensor) -> Tensor:
        pool = (F.adaptive_soft_pool1d, F.adaptive_soft_pool2d, F.adaptive_soft_pool3d)[self.dims - 1]
        return pool(input, self.output_size, self.beta)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, {self._beta_repr()}"


class AdaptiveSoftPool3d(_AdaptiveSoftPool):
    """`adaptive_soft_pool3d` as a module: (N, C, T, H, W) -> (N, C, *output_size); `output_size=1` is a network's head.

    `beta` and `num_channels` as for `SoftPool3d`.
    """

    dims = 3


class AdaptiveSoftPool2d(_AdaptiveSoftPool):
    """`adaptive_soft_pool2d` as a module: (N, C, H, W) -> (N, C, *output_size)."""

    dims = 2


class AdaptiveSoftPool1d(_AdaptiveSoftPool):
    """`adaptive_soft_pool1d` as a module: (N, C, L) -> (N, C, output_size)."""

    dims = 1
