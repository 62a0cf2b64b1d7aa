"""SoftPool in plain PyTorch: the definition of the operator, and what runs where no compiled library does.

For an output position with window R (its in-bounds input positions; padding lies outside R, as in max pooling),

    w_i = exp(beta x_i) / sum_R exp(beta x_j),    y = sum_R w_i x_i        (arXiv 2101.00440, equations 1 and 2)

computed with the window's maximum subtracted. Autograd differentiates it as it stands, any number of times.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_pool3d_reference(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_size: Sequence[int],
    beta: float | Tensor = 1.0,
) -> Tensor:
    """SoftPool of (N, C, T, H, W) to (N, C, *output_size); all geometry arguments are (T, H, W) triples.

    Memory is the window's volume times the output: this is a specification, not a kernel.
    """
    if input.numel() == 0:
        return input.new_empty((*input.shape[:2], *output_size)) + input.sum()
    dtype = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
    # What the last windows reach beyond the input (ceil_mode) is padding as well.
    pad: list[int] = []
    for size, k, s, p, d, out in zip(input.shape[2:], kernel_size, stride, padding, dilation, output_size, strict=True):
        reach = (out - 1) * s + (k - 1) * d + 1
        pad = [p, max(0, reach - p - size), *pad]
    x = F.pad(input.to(dtype), pad)
    inside = F.pad(torch.ones(input.shape[2:], dtype=torch.bool, device=input.device), pad)

    def windows(t: Tensor) -> Tensor:
        """(..., T, H, W) -> (..., To, Ho, Wo, window volume)."""
        taps = []
        for offset in itertools.product(*(range(k) for k in kernel_size)):
            index = [...]
            for o, s, d, out in zip(offset, stride, dilation, output_size, strict=True):
                index.append(slice(o * d, o * d + (out - 1) * s + 1, s))
            taps.append(t[tuple(index)])
        return torch.stack(taps, dim=-1)

    x, inside = windows(x), windows(inside)
    if isinstance(beta, Tensor):
        beta = beta.to(dtype).reshape(-1, 1, 1, 1, 1)
    return soft_average(x, inside, beta).to(input.dtype)


def soft_average(x: Tensor, inside: Tensor, beta: float | Tensor) -> Tensor:
    """The softmax-weighted mean of `x` over its last dimension, counting only where `inside`.

    -inf has weight 0 and adds nothing, unless a window holds nothing else; an empty window gives 0.
    """
    counted = inside & (x != -torch.inf)
    logits = (beta * x.masked_fill(~counted, 0)).masked_fill(~counted, -torch.inf)
    top = logits.amax(dim=-1, keepdim=True).detach()
    weights = torch.exp(logits - top.masked_fill(top == -torch.inf, 0))
    y = (weights * x.masked_fill(~counted, 0)).sum(-1) / weights.sum(-1).clamp_min(1e-30)
    y = torch.where((x == torch.inf).logical_and(inside).any(-1) & ~torch.isnan(x).any(-1), torch.inf, y)
    only_minus_inf = (inside & ~counted).any(-1) & ~counted.any(-1)
    return torch.where(only_minus_inf, -torch.inf, y)
