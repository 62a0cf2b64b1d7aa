"""SoftPool as nn.Modules."""

from torch import Tensor, nn

from softpool3d import functional as F


class _SoftPool(nn.Module):
    dims: int

    def __init__(self, kernel_size=2, stride=None, padding=0, dilation=1, ceil_mode=False, beta=1.0) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode
        self.beta = beta

    def forward(self, input: Tensor) -> Tensor:
        pool = (F.soft_pool1d, F.soft_pool2d, F.soft_pool3d)[self.dims - 1]
        return pool(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.beta)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}, beta={self.beta}"
        )


class SoftPool1d(_SoftPool):
    """`soft_pool1d` as a module: (N, C, L) -> (N, C, Lo)."""

    dims = 1


class SoftPool2d(_SoftPool):
    """`soft_pool2d` as a module: (N, C, H, W) -> (N, C, Ho, Wo)."""

    dims = 2


class SoftPool3d(_SoftPool):
    """`soft_pool3d` as a module: (N, C, T, H, W) -> (N, C, To, Ho, Wo)."""

    dims = 3


class _AdaptiveSoftPool(nn.Module):
    dims: int

    def __init__(self, output_size, beta=1.0) -> None:
        super().__init__()
        self.output_size = output_size
        self.beta = beta

    def forward(self, input: Tensor) -> Tensor:
        pool = (F.adaptive_soft_pool1d, F.adaptive_soft_pool2d, F.adaptive_soft_pool3d)[self.dims - 1]
        return pool(input, self.output_size, self.beta)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, beta={self.beta}"


class AdaptiveSoftPool1d(_AdaptiveSoftPool):
    """`adaptive_soft_pool1d` as a module."""

    dims = 1


class AdaptiveSoftPool2d(_AdaptiveSoftPool):
    """`adaptive_soft_pool2d` as a module."""

    dims = 2


class AdaptiveSoftPool3d(_AdaptiveSoftPool):
    """`adaptive_soft_pool3d` as a module."""

    dims = 3
