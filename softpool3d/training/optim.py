"""The optimiser: which parameters it trains, in which groups, and at which rate in each step."""

from __future__ import annotations

import difflib
import inspect
import math
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from softpool3d.config import OptimConfig, TrainConfig
from softpool3d.errors import UsageError

_CHOSEN_HERE = ("params", "lr", "weight_decay", "named_parameters")  # set by other keys


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """Returns the optimiser that `config.name` names: one of torch.optim, or else of timm.

    Each of its groups has an `lr_scale`, by which the schedule multiplies the group's rate.

    Args:
        fused: update all parameters in one kernel, where the optimiser has one and `config.options` does not say how.

    Raises:
        UsageError: for an unknown name, or a keyword in `config.options` that the optimiser does not take.
    """
    kind = _find(config.name)
    taken = [name for name in inspect.signature(kind).parameters if name not in _CHOSEN_HERE]
    options: dict[str, Any] = dict(config.options)
    for name in options:
        if name not in taken:
            near = difflib.get_close_matches(name, taken, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(taken)}"
            raise UsageError(f"optim.options: {config.name} takes no {name}; {hint}")
    if config.name == "sgd":
        options = {"momentum": config.momentum, "nesterov": config.nesterov and config.momentum > 0} | options
    groups = parameter_groups(model, config.weight_decay, config.layer_decay, config.head_epochs)
    if fused and "fused" in taken and not {"fused", "foreach", "differentiable"} & set(options):
        options["fused"] = True
    try:
        return kind(groups, lr=config.lr, **options)
    except (TypeError, ValueError, IndexError, AssertionError) as error:
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        raise UsageError(f"optim: {config.name} refuses its settings ({given}): {error}") from None


def is_fused(config: TrainConfig, device: torch.device) -> bool:
    """Whether an optimiser should be fused: on a GPU, where it can also skip an update without the host (LossGuard).

    Not in shards, because torch has no fused SGD for them; not in fp16, because accelerate no longer knows then which
    updates the scaler skipped.
    """
    return device.type == "cuda" and not config.shard and config.precision != "fp16"


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, head_epochs: int = 0
) -> list[dict[str, Any]]:
    """Returns the trainable parameters in groups by weight decay and share of the rate; first those that decay.

    Norms, biases and a learnable beta of SoftPool, the parameters of one dimension, do not decay (arXiv 1812.01187).

    Args:
        layer_decay: the rate of each block is this factor times the rate of the block after it (arXiv 2106.08254); the
            head has the full rate.
        head_epochs: the epochs before which the groups of all layers but the head wait: their `waits`.

    Raises:
        UsageError: for a layer decay, or epochs of the head, of a network without stages.
    """
    depths, deepest = _depths(model) if layer_decay < 1 or head_epochs else ({}, 0)
    groups: dict[tuple[bool, float, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1
            depth = depths.get(name, deepest)
            scale, waits = layer_decay ** (deepest - depth), head_epochs if depth < deepest else 0
            group = {"params": [], "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale, "waits": waits}
            groups.setdefault((not decays, -scale, -waits), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """Returns the number of blocks before each parameter's block, and the head's depth: all blocks."""
    if not hasattr(model, "stages"):
        raise UsageError("optim.layer_decay and optim.head_epochs need a network whose stages are known")
    blocks = [block for stage in model.stages().values() for block in stage]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    depths = {names[id(p)]: depth for depth, block in enumerate(blocks) for p in block.parameters()}
    first = next(index for index, name in enumerate(names.values()) if name in depths)
    return {name: 0 for name in list(names.values())[:first]} | depths, len(blocks)


def _find(name: str) -> type[torch.optim.Optimizer]:
    own = {
        kind.__name__.lower(): kind
        for kind in vars(torch.optim).values()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    for unfit in ("lbfgs", "sparseadam", "muon"):  # they need a closure, sparse gradients, matrices
        own.pop(unfit, None)
    if name.lower() in own:
        return own[name.lower()]
    try:
        from timm.optim import get_optimizer_info, list_optimizers
    except ImportError:
        raise UsageError(
            f"optim.name: torch has no optimiser {name!r} ({', '.join(own)}); timm has more, lamb among them: "
            "pip install timm"
        ) from None
    if name.lower() not in list_optimizers():
        near = difflib.get_close_matches(name.lower(), sorted({*own, *list_optimizers()}), n=3)
        raise UsageError(
            f"optim.name: neither torch nor timm has an optimiser {name!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else f" (torch: {', '.join(own)})")
        )
    return get_optimizer_info(name.lower()).opt_class


class Schedule:
    """The learning rate: a linear warm-up, then half a cosine (arXiv 1608.03983), steps or a constant.

        peak                _--.
                          _/    `.                  peak: lr, times batch_size / base_batch if that is set
                        _/        `.                start: warmup_start * peak
        start         _/            `.              final: final_lr * peak
        final                         `--
                      warm-up   cosine

    It goes by epochs and fractions of them, so that an epoch may have any number of steps.

    Args:
        batch_size: clips of an update, over all processes and accumulated batches; the peak is proportional to it if
            there is an `optim.base_batch` (linear scaling, arXiv 1706.02677).
    """

    def __init__(self, config: OptimConfig, epochs: int, batch_size: int) -> None:
        self._config, self._epochs = config, epochs
        self.peak = config.lr * batch_size / config.base_batch if config.base_batch else config.lr

    def __call__(self, epoch: int, step: int, steps: int) -> float:
        """Returns the rate of update `step` of an epoch of `steps` updates; `epoch` and `step` count from 0."""
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
        """Sets the optimiser's groups to `times` the schedule's rate, each times its `lr_scale`; 0 for those that wait.

        Returns the rate before `lr_scale`.
        """
        rate = self(epoch, step, steps) * times
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0) * (epoch >= group.get("waits", 0))
        return rate


def freeze(model: nn.Module, patterns: list[str]) -> int:
    """Freezes parameters whose name, or module's name, fits a pattern (`stem*`, `layer1.*`); returns how many.

    Raises:
        UsageError: for a pattern that no parameter fits, or if all are frozen.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not found:
            parts = dict.fromkeys(name.partition(".")[0] for name in names)
            raise UsageError(f"optim.freeze: no parameter's name fits {pattern!r}; they begin with {', '.join(parts)}")
        frozen |= found
    if len(frozen) == len(names):
        raise UsageError(f"optim.freeze: {' '.join(patterns)} leaves nothing to train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return len(frozen)


def train_mode(model: nn.Module) -> None:
    """Puts a network into training mode, except frozen norms: they keep their running statistics too."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._NormBase) and own and not any(p.requires_grad for p in own):
            module.eval()
