"""An average of a network's weights over the updates of a training (train.ema)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Average(AveragedModel):
    """An exponential moving average of a network's weights. Its running statistics are the network's own.

    torch's own update asks the device in each update whether it is the first. This one asks once.

    Attributes:
        begun: False until the first update. That one copies the weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, device=next(network.parameters()).device)
        self.decay, self.begun = decay, False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, made: Tensor | None = None) -> None:
        """Moves the average towards the weights of `model`.

        Args:
            made: whether there was an update to average: bool (), on the device. The host does not wait for it. None
                is the same as True. The first update of an average cannot have it.
        """
        ours, theirs = list(self.module.parameters()), list(model.parameters())
        self.begun = self.begun or bool(self.n_averaged > 0)
        if not self.begun:
            for average, weight in zip(ours, theirs, strict=True):  # one by one: shards cannot be copied at once
                average.copy_(weight)
        elif made is None:
            torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        else:
            share = made * (1 - self.decay)
            for average, weight in zip(ours, theirs, strict=True):
                average.lerp_(weight, share.to(average))
        copy(list(self.module.buffers()), list(model.buffers()))
        self.n_averaged += 1 if made is None else made
        self.begun = True

    def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.begun = bool(state_dict["n_averaged"] > 0)
        return super().load_state_dict(state_dict, *args, **kwargs)


def copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies tensors to others in as few kernels as can be. There need not be any: a network may have no buffers."""
    if targets:
        torch._foreach_copy_(targets, sources)
