"""SoftPool as nn.Modules, with a fixed or a learnable beta."""

import math

import torch
from torch import Tensor, nn

from softpool3d.ops import functional as F

# beta = exp(SPEED * raw_beta): with the learning rate that suits a network's weights beta itself would stay where it
# starts, because its gradient is small. A step of SGD moves log(beta) SPEED^2 times as far, one of Adam SPEED times.
SPEED = 10.0
_MOST = 10.0  # of |log(beta)|: beyond it the pool is average or max pooling, and exp would end at infinity


class _Pool(nn.Module):
    """What the pools share: beta, fixed, or learned with one value per channel."""

    dims: int

    def __init__(self, beta: float | str, num_channels: int | None, beta_start: float | None) -> None:
        super().__init__()
        name, beta = type(self).__name__, F.plain(beta)
        self._beta, self.raw_beta = 1.0, None
        if isinstance(beta, str) and beta == "learnable":
            if num_channels is None:
                raise ValueError(
                    f"{name}: a learnable beta has one value per channel; give their number, as in "
                    f'{name}(2, beta="learnable", num_channels=64)'
                )
            if num_channels < 1:
                raise ValueError(f"{name}: num_channels must be above 0, but got {num_channels}")
            start = 1.0 if beta_start is None else float(beta_start)
            if not math.exp(-_MOST) < start < math.exp(_MOST):
                raise ValueError(f"{name}: beta_start must lie between 0.0001 and 20000, but got {beta_start}")
            self.raw_beta = nn.Parameter(torch.full((num_channels,), math.log(start) / SPEED))
            return
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or math.isnan(beta):
            raise ValueError(f'{name}: beta must be a float or "learnable", but got {beta!r}')
        if num_channels is not None or beta_start is not None:
            key = "num_channels is the length" if beta_start is None else "beta_start is the start"
            raise ValueError(f'{name}: {key} of a beta that is "learnable", but beta is {beta}')
        self._beta = float(beta)

    @property
    def beta(self) -> float | Tensor:
        """The inverse temperature: a float, or where it is learned a tensor (num_channels,) with gradients."""
        return self._beta if self.raw_beta is None else (SPEED * self.raw_beta).clamp(-_MOST, _MOST).exp()

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta, self.raw_beta = float(value), None

    def share_beta(self, other: "_Pool") -> None:
        """Uses the beta of another pool: the same parameter where it is learned."""
        self._beta, self.raw_beta = other._beta, other.raw_beta

    def __prepare_scriptable__(self):
        F.refuse_script()

    def _beta_repr(self) -> str:
        if self.raw_beta is None:
            return f"beta={self._beta}"
        return f"beta=learnable, num_channels={len(self.raw_beta)}"


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
        beta_start: float | None = None,
    ) -> None:
        super().__init__(beta, num_channels, beta_start)
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
        beta: a float, or "learnable": one value per channel, exp(10 raw_beta) of the parameter `raw_beta`. Weight decay
            pulls it to 1.
        num_channels: the length of a learnable beta, C of the input.
        beta_start: where a learnable beta starts; 1 if not given.

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
    def __init__(
        self,
        output_size,
        beta: float | str = 1.0,
        num_channels: int | None = None,
        beta_start: float | None = None,
    ) -> None:
        super().__init__(beta, num_channels, beta_start)
        self.output_size = F.plain(output_size)

    def forward(self, input: Tensor) -> Tensor:
        pool = (F.adaptive_soft_pool1d, F.adaptive_soft_pool2d, F.adaptive_soft_pool3d)[self.dims - 1]
        return pool(input, self.output_size, self.beta)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, {self._beta_repr()}"


class AdaptiveSoftPool3d(_AdaptiveSoftPool):
    """`adaptive_soft_pool3d` as a module: (N, C, T, H, W) -> (N, C, *output_size); `output_size=1` is a network's head.

    `beta`, `num_channels` and `beta_start` as for `SoftPool3d`.
    """

    dims = 3


class AdaptiveSoftPool2d(_AdaptiveSoftPool):
    """`adaptive_soft_pool2d` as a module: (N, C, H, W) -> (N, C, *output_size)."""

    dims = 2


class AdaptiveSoftPool1d(_AdaptiveSoftPool):
    """`adaptive_soft_pool1d` as a module: (N, C, L) -> (N, C, output_size)."""

    dims = 1
