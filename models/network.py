"""What all networks here share: a stem and four stages that run one after the other, then a head.

The classes of r3d.py, blocknet.py and so on are the original libraries' networks with `Staged` mixed in. They have the
same parameter names and outputs as the originals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Options:
    """The settings that every builder gets."""

    num_classes: int
    in_channels: int
    num_frames: int
    crop_size: int
    width: int
    dropout: float


class Staged(nn.Module):
    """A network in stages. These are what features_only, gradient checkpointing and temporal pooling work with.

    Attributes:
        features_only: whether forward returns the outputs of the stem and the four stages instead of logits.
        checkpointing: whether, in training, the activations of each block are computed again in the backward.
    """

    dims = 3
    head_pools: tuple[str, ...] = ()  # paths of the global pooling before the classifier
    untouched: tuple[str, ...] = ()  # paths whose pooling or stride is no downsampling of features
    attention_pools = False  # place `attention`: convolutions that pool queries, keys and values
    pools_time = True  # place `temporal`
    features_only = False
    checkpointing = False

    def stages(self) -> dict[str, list[nn.Module]]:
        """Returns for each of stem, stage1, ... stage4 the blocks that run one after the other."""
        raise NotImplementedError

    def classify(self, x: Any) -> Tensor:
        """Turns the last stage's output into logits (N, num_classes)."""
        raise NotImplementedError

    def logits_layer(self) -> str:
        """The path of the layer that makes the logits."""
        raise NotImplementedError

    def enter(self, clip: Tensor) -> Any:
        """Turns the clip into what the stem takes."""
        return clip

    def leave(self, x: Any) -> Any:
        """Turns a stage's output into what features_only returns."""
        return x

    def forward(self, clip: Tensor) -> Tensor | list[Any]:
        x, features = self.enter(clip), []
        temporal = self._modules.get("temporal") or {}
        for name, blocks in self.stages().items():
            if name in temporal:
                x = temporal[name](x)
            for block in blocks:
                x = self._run(block, x)
            if self.features_only:
                features.append(self.leave(x))
        return features if self.features_only else self.classify(x)

    def call(self, block: nn.Module, x: Any) -> Any:
        """Runs one block on the output of the block before it."""
        return block(x)

    def _run(self, block: nn.Module, x: Any) -> Any:
        # a layer by itself is cheap to keep, and may write into its input, which would be needed again
        is_layer = next(block.children(), None) is None
        if is_layer or not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return self.call(block, x)
        if torch.compiler.is_compiling():  # functional then: no statistics to protect
            return checkpoint(self.call, block, x, use_reentrant=False)
        contexts = lambda: (nullcontext(), _frozen_statistics(block))  # noqa: E731
        return checkpoint(self.call, block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Keeps the second computation of a block from counting its batch into the running statistics once more."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if batches is not None:
                norm.num_batches_tracked.copy_(batches)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network into eval mode for a while, and then each module back into its own mode."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
