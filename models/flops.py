"""Counts operations with fvcore, SoftPool included."""

from __future__ import annotations

import logging
import warnings
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from softpool3d.models.network import evaluating

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it scripts functions with torch.jit, now deprecated
    from fvcore.nn import FlopCountAnalysis


def count_flops(network: nn.Module, clip: Tensor | list[Tensor]) -> FlopCountAnalysis:
    """Returns fvcore's count for one forward in eval mode; `.total()` is multiply-adds, as papers count FLOPs.

    SoftPool counts two for each element of each window: its weight, and the multiply-add with it. fvcore counts
    nothing for average and max pooling.
    """
    with warnings.catch_warnings(), evaluating(network), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing says that shapes become constants
        counted = FlopCountAnalysis(network, (clip,)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counted.set_op_handle("softpool3d::soft_pool3d", _soft_pool)
        counted.set_op_handle("softpool3d::adaptive_soft_pool3d", _adaptive_soft_pool)
        logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
        counted.total()
    return counted


def published_part(counted: FlopCountAnalysis) -> int:
    """Returns what papers count: convolutions and matrix products, without norms and poolings."""
    operators = counted.by_operator()
    return sum(operators[name] for name in ("conv", "linear", "matmul", "einsum", "bmm", "addmm"))


def training_total(counted: FlopCountAnalysis) -> int:
    """Returns the total in training mode, where an element of a batch norm is five operations, and not two."""
    return counted.total() + counted.by_operator()["batch_norm"] * 3 // 2


def _soft_pool(inputs: list[Any], outputs: list[Any]) -> int:
    kernel = [size.toIValue() for size in inputs[3].node().inputs()]
    return 2 * prod(kernel) * prod(outputs[0].type().sizes())


def _adaptive_soft_pool(inputs: list[Any], outputs: list[Any]) -> int:
    return 2 * prod(inputs[0].type().sizes())  # bins that do not overlap, as those of a global pooling
