"""SoftPool in plain PyTorch and little memory: what runs where no compiled library does, and the second derivative.

It has the values of reference.py, for inputs of any size, infinities and NaN. As in decomposition.py one axis is pooled
after the other, so that a window of 3x3x3 takes nine slices, not 27. Autograd differentiates it as it stands.

Of the positions that have been merged, a `_Part` is all that counts. With z = beta's sign times x / 2, which no
difference of two values makes overflow, the weights are exp(scale z), scale = 2 |beta|, and the largest z weighs most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from softpool3d.ops.decomposition import bins, reach, taps
from softpool3d.ops.reference import pooled_size


class _Part(NamedTuple):
    pivot: Tensor  # the largest z that is finite
    distance: Tensor  # the weighted mean of z - pivot
    weight: Tensor  # the mean of exp(scale (z - pivot)), or in proportion to it; 0 where nothing finite was seen
    above: Tensor  # whether +inf was seen in x

    def at(self, cut: Callable[[Tensor], Tensor]) -> _Part:
        return _Part(*map(cut, self))


_Source = Callable[..., _Part]  # returns a cut of what has been merged so far


def soft_pool3d_fallback(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    beta: float | Tensor = 1.0,
) -> Tensor:
    """Returns SoftPool of (N, C, T, H, W); the other arguments are checked (T, H, W) triples, beta a float or (C,)."""
    outside = reach(stride, padding, ceil_mode)
    x = F.pad(input, outside, value=-torch.inf) if any(outside) else input  # -inf has no weight
    source, sign, scale = _start(x, beta)
    filled = []
    for axis in (2, 1, 0):
        n, k, s, p, d = input.shape[2 + axis], kernel_size[axis], stride[axis], padding[axis], dilation[axis]
        out, at = pooled_size(n, k, s, p, d, ceil_mode), (slice(None),) * (2 + axis)
        # With windows of one position, one axis is merged all the same: then beta's derivative is 0, not none.
        single = axis == 2 and max(kernel_size) == 1
        if k > 1 or s > 1 or single or any(outside[4 - 2 * axis : 6 - 2 * axis]):
            source = _merge(source, [lambda t, at=(*at, tap): t[at] for tap in taps(out, k, s, d)], scale).at
        if d > 1:  # then a window's positions may all be outside
            first = torch.arange(out, device=input.device) * s - p
            positions = first[:, None] + torch.arange(k, device=input.device) * d
            filled.append(((positions >= 0) & (positions < n)).any(1).view(-1, *(1,) * (2 - axis)))
    y = _finish(source, sign)
    for inside in filled:
        y = torch.where(inside, y, 0)
    return y.to(input.dtype)


def adaptive_soft_pool3d_fallback(input: Tensor, output_size: Sequence[int], beta: float | Tensor = 1.0) -> Tensor:
    """Pools (N, C, T, H, W) to (N, C, *output_size) over the bins of torch's adaptive pools."""
    source, sign, scale = _start(input, beta)
    for axis in (2, 1, 0):
        n, out, dim = input.shape[2 + axis], output_size[axis], 2 + axis
        if out != n or (axis == 2 and tuple(output_size) == tuple(input.shape[2:])):  # as above
            parts = [_merge_run(source, dim, begin, end - begin, scale) for begin, end in bins(n, out)]
            source = _Part(*(torch.cat(column, dim) for column in zip(*parts, strict=True))).at
    return _finish(source, sign).to(input.dtype)


def _start(x: Tensor, beta: float | Tensor) -> tuple[_Source, float | Tensor, float | Tensor]:
    """Returns each position as a part of its own, the sign of beta, and the scale."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, limit = x.to(wide), torch.finfo(wide).max
    if isinstance(beta, Tensor):
        beta = beta.to(wide)[:, None, None, None]
        sign = torch.where(beta >= 0, 1.0, -1.0).to(wide)
        scale = (beta * (2 * sign)).clamp(max=limit)
    else:
        sign = 1.0 if beta >= 0 else -1.0
        scale = min(2 * sign * beta, limit)

    def source(cut: Callable[[Tensor], Tensor]) -> _Part:
        z = cut(x) * (sign / 2)
        counted = ~torch.isinf(z)
        pivot = torch.where(counted, z, -limit / 2)
        return _Part(pivot, torch.zeros_like(pivot), counted, cut(x) == torch.inf)

    return source, sign, scale


def _merge(source: _Source, cuts: Sequence, scale: float | Tensor) -> _Part:
    """Merges cuts of the same shape. Each is made twice, and lives as short as autograd lets it."""
    pivot = above = None
    for cut in cuts:
        part = source(cut)
        # A constant: y is the same function of x whatever it is.
        pivot = part.pivot.detach() if pivot is None else torch.maximum(pivot, part.pivot.detach())
        above = part.above if above is None else above | part.above
    distance, total, count = 0, 0, len(cuts)
    least = math.log(torch.finfo(pivot.dtype).tiny)
    for cut in cuts:
        part = source(cut)
        shift = part.pivot - pivot
        # Where a weight underflows, 0 stands for it from here on: its derivative would be 0 times a huge number.
        nothing = (scale * shift < least) | (part.weight == 0)
        shift = shift.masked_fill(nothing, 0)
        share = (torch.exp(scale * shift) * part.weight).masked_fill(nothing, 0)
        total = total + share
        distance = distance + share * ((part.distance + shift).masked_fill(nothing, 0) / count)
    # Sums of the largest numbers would overflow, were they not divided by the count, and weights that grew with it.
    distance = distance / total.masked_fill(total == 0, 1) * count
    return _Part(pivot, distance, total / count, above)


def _merge_run(source: _Source, dim: int, begin: int, length: int, scale: float | Tensor) -> _Part:
    """Merges `length` positions along `dim`, half with half."""
    count, rest = 1, []  # of how many positions a weight is the mean; what was left over where the length was odd
    while length > 1:
        half = length // 2
        if length % 2:
            rest.append((source(partial(torch.narrow, dim=dim, start=begin + length - 1, length=1)), count))
        halves = [partial(torch.narrow, dim=dim, start=at, length=half) for at in (begin, begin + half)]
        source = _merge(source, halves, scale).at
        begin, length, count = 0, half, 2 * count
    whole = source(partial(torch.narrow, dim=dim, start=begin, length=1))
    parts = [whole, *(part._replace(weight=part.weight * (n / count)) for part, n in rest)]
    return _merge(parts.__getitem__, range(len(parts)), scale) if rest else whole


def _finish(source: _Source, sign: float | Tensor) -> Tensor:
    part = source(lambda t: t)
    y = (part.pivot + part.distance) * (2 * sign)
    y = torch.where(part.weight == 0, -torch.inf, y)
    return torch.where(part.above & ~torch.isnan(y), torch.inf, y)
