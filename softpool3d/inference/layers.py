"""A network whose output is a vector of features: what one of its layers gives, pooled over time and space."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softpool3d.errors import UsageError
from softpool3d.models.network import Staged
from softpool3d.ops.functional import adaptive_soft_pool1d

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean(2),
    "max": lambda x: x.amax(2),
    "soft": lambda x: adaptive_soft_pool1d(x, 1).squeeze(2),
}
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)


class UpTo(nn.Module):
    """Maps clips to the features of one layer, float32 (N, D).

    Args:
        network: it runs whole; hooks read what the layer gives.
        layer: stem, stage1 to stage4, or the path of a module. None: what the layer that makes the logits takes, which
            the network's own head has pooled.
        pool: avg, max or soft: how each channel becomes one number. Where a layer gives several tensors, as SlowFast's
            pathways, their features follow each other.

    Raises:
        UsageError: if there is no such layer.
    """

    def __init__(self, network: Staged, layer: str | None = None, pool: str = "avg") -> None:
        super().__init__()
        self.network, self.layer, self.pool = network, layer, pool
        self._runs = False  # the hooks stay, and do nothing while others use the network
        self._features: Tensor | None = None
        if layer is None:
            network.get_submodule(network.logits_layer()).register_forward_hook(self._pass_on)
        else:
            module, leave = _found(network, layer)
            module.register_forward_hook(lambda module, _, output: self._note(module, leave, output))

    def forward(self, clips: Tensor) -> Tensor:
        """Raises UsageError if the layer does not run, or gives no tensor."""
        self._runs, self._features = True, None
        try:
            output = self.network(clips)
        finally:
            self._runs = False
        if self.layer is None:
            return output
        found, self._features = self._features, None
        if found is None:
            raise UsageError(
                f"--layer {self.layer}: this module gives no tensor of its own; take one of those that it holds"
            )
        return found

    def _pass_on(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Lets the layer that makes the logits give what it takes."""
        return inputs[0] if self._runs else None

    def _note(self, module: nn.Module, leave: Callable[[Any], Any], output: Any) -> None:
        """Pools what a layer gives, at once, because later layers may write into it."""
        if self._runs:
            parts = [POOLS[self.pool](_channels_first(module, x)) for x in _tensors(leave(output))]
            self._features = torch.cat(parts, 1) if parts else None


def _found(network: Staged, layer: str) -> tuple[nn.Module, Callable[[Any], Any]]:
    """Returns the module whose output is a layer's, and what turns that output into feature maps."""
    stages = {name: blocks for name, blocks in network.stages().items() if blocks}
    if layer in stages:
        return stages[layer][-1], network.leave
    modules = {name: module for name, module in network.named_modules() if name}
    if layer not in modules:
        near = difflib.get_close_matches(layer, modules, 2) or list(modules)[-2:]
        raise UsageError(
            f"--layer {layer}: there is no such layer; there are {', '.join(stages)}, and modules by their paths, "
            f"such as {' and '.join(near)}"
        )
    return modules[layer], lambda output: output


def _tensors(output: Any) -> list[Tensor]:
    parts = [output] if isinstance(output, Tensor) else output if isinstance(output, (list, tuple)) else []
    return [x for x in parts if isinstance(x, Tensor) and x.ndim >= 2]


def _channels_first(module: nn.Module, x: Tensor) -> Tensor:
    """Returns an output as float32 (N, C, positions). Transformers' tokens are (N, tokens, C)."""
    if x.ndim > 2 and (x.ndim == 3 or isinstance(module, _CHANNELS_LAST)):
        x = x.movedim(-1, 1)
    return x.float().reshape(*x.shape[:2], -1)
