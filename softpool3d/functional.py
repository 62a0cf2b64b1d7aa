"""SoftPool as functions. 1-D and 2-D are views of 3-D."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from softpool3d.reference import soft_average, soft_pool3d_reference

Size = int | Sequence[int]


def backend(tensor: Tensor) -> str:
    """The implementation that will run for `tensor`: "reference", or that of a compiled library."""
    return "reference"


def soft_pool3d(
    input: Tensor,
    kernel_size: Size = 2,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    beta: float | Tensor = 1.0,
) -> Tensor:
    """3D SoftPool: the softmax-weighted sum over each window (arXiv 2101.00440, equations 1 and 2).

    Args:
        input: (N, C, T, H, W) or (C, T, H, W); float64, float32, float16 or bfloat16.
        kernel_size, stride, padding, dilation: an int or (T, H, W); `stride` defaults to `kernel_size`.
        ceil_mode: round the output size up, as in max pooling.
        beta: inverse temperature; 0 is average pooling, large is max pooling. A tensor holds one value per channel.

    Returns:
        (N, C, To, Ho, Wo) or (C, To, Ho, Wo), sizes as `torch.nn.functional.max_pool3d` has them.

    Raises:
        RuntimeError: for the arguments for which `max_pool3d` raises it, with the same text.
    """
    return _soft_pool(input, 3, kernel_size, stride, padding, dilation, ceil_mode, beta)


def soft_pool2d(
    input: Tensor,
    kernel_size: Size = 2,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    beta: float | Tensor = 1.0,
) -> Tensor:
    """2D SoftPool of (N, C, H, W) or (C, H, W); otherwise as `soft_pool3d`."""
    return _soft_pool(input, 2, kernel_size, stride, padding, dilation, ceil_mode, beta)


def soft_pool1d(
    input: Tensor,
    kernel_size: Size = 2,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    beta: float | Tensor = 1.0,
) -> Tensor:
    """1D SoftPool of (N, C, L) or (C, L); otherwise as `soft_pool3d`."""
    return _soft_pool(input, 1, kernel_size, stride, padding, dilation, ceil_mode, beta)


def adaptive_soft_pool3d(input: Tensor, output_size: Size, beta: float | Tensor = 1.0) -> Tensor:
    """SoftPool to a given (T, H, W), with the bins of torch's adaptive pools; 1 pools the whole clip."""
    return _adaptive(input, 3, output_size, beta)


def adaptive_soft_pool2d(input: Tensor, output_size: Size, beta: float | Tensor = 1.0) -> Tensor:
    """SoftPool to a given (H, W); otherwise as `adaptive_soft_pool3d`."""
    return _adaptive(input, 2, output_size, beta)


def adaptive_soft_pool1d(input: Tensor, output_size: Size, beta: float | Tensor = 1.0) -> Tensor:
    """SoftPool to a given L; otherwise as `adaptive_soft_pool3d`."""
    return _adaptive(input, 1, output_size, beta)


def _tuple(value: Size, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _soft_pool(input, dims, kernel_size, stride, padding, dilation, ceil_mode, beta) -> Tensor:
    kernel_size = _tuple(kernel_size, dims)
    stride = kernel_size if stride is None else _tuple(stride, dims)
    padding, dilation = _tuple(padding, dims), _tuple(dilation, dims)
    # Output sizes and argument errors are max pooling's own: asked of it on a tensor without data.
    max_pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
    meta = torch.empty(input.shape, device="meta")
    out = max_pool(meta, kernel_size, stride, padding, dilation, ceil_mode).shape[-dims:]
    front = (1,) * (3 - dims)
    x = input.unsqueeze(0) if input.dim() == dims + 1 else input
    x = x.reshape(*x.shape[:2], *front, *x.shape[2:])
    y = soft_pool3d_reference(
        x,
        front + kernel_size,
        front + stride,
        (0,) * (3 - dims) + padding,
        front + dilation,
        front + tuple(out),
        beta,
    )
    return y.reshape(*input.shape[:-dims], *out)


def _adaptive(input, dims, output_size, beta) -> Tensor:
    output_size = _tuple(output_size, dims)
    sizes = input.shape[-dims:]
    bins = [
        [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
        for size, out in zip(sizes, output_size, strict=True)
    ]
    wide = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
    if isinstance(beta, Tensor):
        beta = beta.to(wide).reshape(-1, 1)
    cells = []
    import itertools

    for cell in itertools.product(*bins):
        x = input[(..., *(slice(a, b) for a, b in cell))].flatten(-dims).to(wide)
        cells.append(soft_average(x, torch.ones_like(x, dtype=torch.bool), beta))
    y = torch.stack(cells, dim=-1).to(input.dtype)
    return y.reshape(*input.shape[:-dims], *output_size)
