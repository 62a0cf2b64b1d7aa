"""SoftPool in plain PyTorch: the definition of the operator, which tests hold everything else against.

For an output position with window R (its in-bounds input positions; padding lies outside R, as in max pooling),

    w_i = exp(beta x_i) / sum_R exp(beta x_j),    y = sum_R w_i x_i        (arXiv 2101.00440, equations 1 and 2)

computed with the window's maximum subtracted. Autograd differentiates it as it stands, any number of times.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Returns the output size along one axis by max pooling's rule, for arguments that have been checked."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    # The last window has to start inside the input or its left padding.
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    return out


def soft_pool3d_reference(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    beta: float | Tensor = 1.0,
) -> Tensor:
    """Returns SoftPool of (N, C, T, H, W); the other arguments are checked (T, H, W) triples, beta a float or (C,).

    It takes the memory of the output times the window's volume: it is a specification, not a kernel.
    """
    axes = []
    for size, k, s, p, d in zip(input.shape[2:], kernel_size, stride, padding, dilation, strict=True):
        out = torch.arange(pooled_size(size, k, s, p, d, ceil_mode), device=input.device)
        positions = (out * s - p)[:, None] + torch.arange(k, device=input.device) * d
        axes.append((positions, (positions >= 0) & (positions < size)))
    return _soft_pool(input, axes, beta)


def adaptive_soft_pool3d_reference(input: Tensor, output_size: Sequence[int], beta: float | Tensor = 1.0) -> Tensor:
    """Pools (N, C, T, H, W) to (N, C, *output_size) over the bins of torch's adaptive pools."""
    axes = []
    for size, n in zip(input.shape[2:], output_size, strict=True):
        out = torch.arange(n, device=input.device)
        begin, end = out * size // n, ((out + 1) * size + n - 1) // n
        # No bin is longer than ceil(size / n) + 1.
        positions = begin[:, None] + torch.arange(-(-size // n) + 1, device=input.device)
        axes.append((positions, positions < end[:, None]))
    return _soft_pool(input, axes, beta)


def _soft_pool(input: Tensor, axes: list[tuple[Tensor, Tensor]], beta: float | Tensor) -> Tensor:
    """Pools; `axes` holds for T, H and W the input positions, (outputs, taps), and whether each of them counts."""
    x, inside = input, torch.ones((), dtype=torch.bool, device=input.device)
    for axis, (positions, valid) in enumerate(axes):
        dim = 2 + 2 * axis  # each axis before this one has become two: outputs and taps
        taken = positions.clamp(0, input.shape[2 + axis] - 1)
        x = x.index_select(dim, taken.flatten()).unflatten(dim, positions.shape)
        inside = inside[..., None, None] & valid
    # (N, C, To, kT, Ho, kH, Wo, kW) -> (N, C, To, Ho, Wo, window)
    x = x.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(-3)
    inside = inside.permute(0, 2, 4, 1, 3, 5).flatten(-3)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    if isinstance(beta, Tensor):
        beta = beta.to(wide)[:, None, None, None, None]
    return soft_average(x.to(wide), inside, beta).to(input.dtype)


def soft_average(x: Tensor, inside: Tensor, beta: float | Tensor) -> Tensor:
    """Returns the softmax-weighted mean of `x` over its last dimension, counting only where `inside`.

    Finite values of any size are exact. NaN gives NaN, in the gradients too; else +inf gives +inf; -inf has weight 0;
    only -inf gives -inf; no position at all gives 0. Where the result is infinite, no gradient is passed on. A beta
    beyond the type's range counts as the largest number.
    """
    counted = inside & ~torch.isinf(x)
    some = counted.any(-1, keepdim=True)

    # The pivot has weight exp(0): the largest value, or the smallest where beta is negative. Whatever constant it is,
    # y is the same function of x, so no gradient passes through it.
    def extreme(best, nothing: float) -> Tensor:
        return best(x.detach().masked_fill(~counted, nothing), -1, keepdim=True).masked_fill(~some, 0)

    top, bottom = extreme(torch.amax, -torch.inf), extreme(torch.amin, torch.inf)
    positive = beta >= 0
    pivot = torch.where(positive, top, bottom) if isinstance(positive, Tensor) else top if positive else bottom
    # Differences or sums of very large values may overflow, so such values are shrunk first.
    large, small = (2.0**900, 2.0**-100) if x.dtype == torch.float64 else (2.0**90, 2.0**-40)
    shrink = torch.where(torch.maximum(top, -bottom) > large, small, 1.0).to(x.dtype)
    distance = torch.where(counted, x, pivot) * shrink - pivot * shrink
    # Where a weight underflows, 0 stands for it from here on: its derivative would be 0 times a huge number.
    limit = torch.finfo(x.dtype).max
    scale = (beta / shrink).clamp(-limit, limit)
    counted = counted & (torch.exp((scale * distance).detach()) > 0)
    distance = torch.where(counted, distance, 0)
    weights = torch.exp(scale * distance) * counted
    total = weights.sum(-1, keepdim=True)
    y = (pivot * shrink + (weights * distance).sum(-1, keepdim=True) / total.masked_fill(~some, 1)) / shrink

    special = (inside & torch.isinf(x)).any(-1, keepdim=True)
    above = (inside & (x == torch.inf)).any(-1, keepdim=True)
    has_nan = (inside & torch.isnan(x)).any(-1, keepdim=True)
    y = torch.where(above & ~has_nan, torch.inf, y)
    # a sum with NaN as a factor: so are its derivatives
    poison = torch.where(has_nan | torch.isnan(scale), torch.nan, 0.0).to(x.dtype)
    y = y + (torch.where(inside & ~torch.isinf(x), x, 0) * poison).sum(-1, keepdim=True) + scale * poison
    return torch.where(special & ~some, torch.where(above, torch.inf, -torch.inf), y).squeeze(-1)
