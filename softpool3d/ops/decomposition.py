"""SoftPool in standard operators, which stand in exported networks in place of the compiled operator.

The average is taken along one axis after the other. For each position, three values pass from axis to axis: the largest
exponent m so far, and the sums of exp(beta x - m) and of exp(beta x - m) x (the merge of Milakov and Gimelshein,
"Online normalizer calculation for softmax", arXiv 1805.02867, algorithm 3). A window of 3x3x3 takes nine slices that
way, not 27, and nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from softpool3d.ops.reference import pooled_size

# the largest exponent, the sum of weighted values, the sum of weights (None: every weight is 1)
_Sums = tuple[Tensor, Tensor, Tensor | None]


def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """Returns the table for `torch.export.ExportedProgram.run_decompositions`; empty if no library is compiled.

        program = torch.export.export(network.eval(), (clip,)).run_decompositions(softpool3d.decompositions())
        torch.onnx.export(program, f="network.onnx")

    The program then holds standard operators only. For finite inputs up to a hundredth of the type's largest value
    (3e36 in float32) it gives the values of the compiled operator. Infinite inputs give NaN. A plain
    `torch.onnx.export(network, (clip,))` takes the same operators, and needs no table.
    """
    from softpool3d.ops import library

    if not library.build_info()["cpu"]["loaded"]:
        return {}  # what was exported is plain PyTorch already
    operators = torch.ops.softpool3d
    return {
        operators.soft_pool3d.default: soft_pool3d,
        operators.adaptive_soft_pool3d.default: adaptive_soft_pool3d,
    }


def soft_pool3d(
    input: Tensor,
    betas: Tensor | None,
    beta: float,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """Computes `softpool3d::soft_pool3d` of (N, C, T, H, W), with checked (T, H, W) triples, beta (C,) or a float."""
    sizes, outside = input.shape[2:], reach(stride, padding, ceil_mode)
    sums = _start(input, betas, beta, outside)
    for axis in (2, 1, 0):
        n, k, s, p, d = sizes[axis], kernel_size[axis], stride[axis], padding[axis], dilation[axis]
        out = pooled_size(n, k, s, p, d, ceil_mode)
        if isinstance(n, int) and k == n and p == 0 and d == 1:  # a traced n is not compared, and stays free
            sums = _merge_all(sums, 2 + axis)
        elif k > 1 or s > 1 or any(outside[4 - 2 * axis : 6 - 2 * axis]):
            sums = _merge(sums, 2 + axis, taps(out, k, s, d))
    return _finish(sums, input)


def adaptive_soft_pool3d(input: Tensor, betas: Tensor | None, beta: float, output_size: Sequence[int]) -> Tensor:
    """Computes `softpool3d::adaptive_soft_pool3d`, over the bins of torch's adaptive pools."""
    sums = _start(input, betas, beta, [0] * 6)
    for axis in (2, 1, 0):
        n, out, dim = input.shape[2 + axis], output_size[axis], 2 + axis
        if out == 1:  # tested first, and without n: a traced n stays free
            sums = _merge_all(sums, dim)
        elif out != n:
            cuts = [partial(torch.narrow, dim=dim, start=begin, length=end - begin) for begin, end in bins(n, out)]
            parts = [_merge_all(_each(sums, cut), dim) for cut in cuts]
            sums = tuple(torch.cat(column, dim) for column in zip(*parts, strict=True))
    return _finish(sums, input)


def reach(stride: Sequence[int], padding: Sequence[int], ceil_mode: bool) -> list[int]:
    """Returns how far windows reach beyond the input, as `F.pad` wants it.

    With a remainder under ceil_mode that is beyond the padding.
    """
    outside: list[int] = []
    for s, p in zip(stride, padding, strict=True):
        outside = [p, p + (s - 1 if ceil_mode else 0), *outside]
    return outside


def taps(out: int, kernel: int, stride: int, dilation: int) -> list[slice]:
    """Returns for each position of the kernel the places along a padded axis that `out` windows see there."""
    firsts = (j * dilation for j in range(kernel))
    return [slice(first, first + (out - 1) * stride + 1, stride) for first in firsts]


def bins(size: int, out: int) -> list[tuple[int, int]]:
    """Returns where each of the `out` bins of torch's adaptive pools begins and ends."""
    return [(i * size // out, ((i + 1) * size + out - 1) // out) for i in range(out)]


def _start(input: Tensor, betas: Tensor | None, beta: float, outside: list[int]) -> _Sums:
    x = input if input.dtype in (torch.float32, torch.float64) else input.float()
    exponent = x * betas[:, None, None, None] if betas is not None else x if beta == 1 else x * beta
    if any(outside):
        # Outside, the exponent is lower than any inside. A window with nothing inside averages zeros.
        exponent = F.pad(exponent, outside, value=torch.finfo(x.dtype).min)
        x = F.pad(x, outside)
    return exponent, x, None


def _finish(sums: _Sums, input: Tensor) -> Tensor:
    _, value, weight = sums
    y = value.clone() if weight is None else value / weight
    return y if y.dtype == input.dtype else y.to(input.dtype)


def _each(sums: _Sums, change: Callable[[Tensor], Tensor]) -> _Sums:
    return tuple(None if part is None else change(part) for part in sums)


def _merge_all(sums: _Sums, dim: int) -> _Sums:
    exponent, value, weight = sums
    top = exponent.amax(dim, keepdim=True)
    factor = torch.exp(exponent - top)
    return (
        top,
        (factor * value).sum(dim, keepdim=True),
        (factor if weight is None else factor * weight).sum(dim, keepdim=True),
    )


def _merge(sums: _Sums, dim: int, places: list[slice]) -> _Sums:
    """Merges what lies along `dim` at `places`, which `taps` returned."""
    columns = [_each(sums, lambda t, tap=tap: t[(slice(None),) * dim + (tap,)]) for tap in places]
    top = columns[0][0]
    for exponent, _, _ in columns[1:]:
        top = torch.maximum(top, exponent)
    values, weights = [], []
    for exponent, value, weight in columns:
        factor = torch.exp(exponent - top)
        values.append(factor * value)
        weights.append(factor if weight is None else factor * weight)
    return top, sum(values[1:], values[0]), sum(weights[1:], weights[0])
