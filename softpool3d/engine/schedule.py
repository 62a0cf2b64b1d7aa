"""The learning rate of every step."""

from __future__ import annotations

import math

import torch

from softpool3d.config import OptimConfig


class Schedule:
    """Linear warm-up, then what `optim.schedule` says: half a cosine (arXiv 1608.03983), steps, or nothing.

    It goes by epochs, and fractions of them, so that an epoch may have any number of steps.

    Args:
        batch_size: of an update, over all processes and accumulated batches: what `optim.base_batch` is held against
            (linear scaling, arXiv 1706.02677).
    """

    def __init__(self, config: OptimConfig, epochs: int, batch_size: int) -> None:
        self._config, self._epochs = config, epochs
        self.peak = config.lr * batch_size / config.base_batch if config.base_batch else config.lr

    def __call__(self, epoch: int, step: int, steps: int) -> float:
        """Of update number `step` of the `steps` of an epoch; all count from 0."""
        config, at = self._config, epoch + step / steps
        warmup = config.warmup_epochs
        if at + 1e-9 < warmup:
            end = self._after_warmup(warmup) if config.cosine_from_start else self.peak
            start = config.warmup_start * self.peak
            return start + (end - start) * min((at + 1 / steps) / warmup, 1)
        return self._after_warmup(at)

    def _after_warmup(self, at: float) -> float:
        config = self._config
        if config.schedule == "cosine":
            begin = 0.0 if config.cosine_from_start else config.warmup_epochs
            done = (at - begin) / max(self._epochs - begin, 1e-9)
            final = config.final_lr
            return self.peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))
        if config.schedule == "multistep":
            return self.peak * config.gamma ** sum(at + 1e-9 >= milestone for milestone in config.milestones)
        return self.peak

    def set(self, optimizer: torch.optim.Optimizer, epoch: int, step: int, steps: int, times: int = 1) -> float:
        """Gives the optimiser's groups their rate, `times` that of the epoch and each times its `lr_scale`; returns the
        rate."""
        rate = self(epoch, step, steps) * times
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate
