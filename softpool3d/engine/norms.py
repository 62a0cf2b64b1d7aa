"""Batch norm over other batches than a process's own: of all processes, of parts, of many for its statistics."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from softpool3d.config import TrainConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it scripts functions with torch.jit, now deprecated
    from fvcore.nn.distributed import differentiable_all_reduce as all_reduce
    from fvcore.nn.precise_bn import update_bn_stats


class SplitBatchNorm(nn.BatchNorm3d):
    """Each `clips` clips of a batch are normalised by themselves (sub-batch BN, arXiv 1912.00998)."""

    clips = 8

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) <= self.clips:
            return super().forward(input)
        return torch.cat([super(SplitBatchNorm, self).forward(part) for part in input.split(self.clips)])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, clips={self.clips}"


class ProcessesBatchNorm(nn.BatchNorm3d):
    """nn.SyncBatchNorm for devices that it does not know: CPUs. Processes may have different numbers of clips."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        over = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        count = all_reduce(input.new_tensor(input.numel() / input.shape[1]))
        mean = all_reduce(input.sum(over)) / count
        centred = input - mean.view(shape)
        variance = all_reduce(centred.square().sum(over)) / count
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        return normalised * self.weight.view(shape) + self.bias.view(shape) if self.affine else normalised


def convert_norms(model: nn.Module, config: TrainConfig, device: torch.device) -> nn.Module:
    """The network with its batch norms as train.norm says; parameters, statistics and their names stay."""
    if config.norm == "sync" and device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.norm != "batch":
        for name, module in list(model.named_modules()):
            if type(module) is nn.BatchNorm3d:
                model.set_submodule(name, _like(module, config))
    return model


def _like(norm: nn.BatchNorm3d, config: TrainConfig) -> nn.BatchNorm3d:
    kind = ProcessesBatchNorm if config.norm == "sync" else SplitBatchNorm
    made = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    if kind is SplitBatchNorm:
        made.clips = config.norm_clips
    made._parameters, made._buffers = norm._parameters, norm._buffers
    return made.train(norm.training)


def precise_statistics(model: nn.Module, batches: Iterable[Tensor], count: int, accelerator: Accelerator) -> None:
    """Running statistics as the mean over `count` batches of every process (arXiv 2105.07576), the weights as they are.

    Args:
        batches: what the network takes, `count` of them at least.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    before = [(norm.running_mean, norm.running_var, norm.num_batches_tracked.clone()) for norm in norms]
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()  # dropout draws nothing
    for norm in norms:
        norm.train()
    with accelerator.autocast():
        update_bn_stats(model, batches, count)
    for module, training in was_training:
        module.training = training
    for norm, (mean, variance, tracked) in zip(norms, before, strict=True):
        # in place: DistributedDataParallel knows the buffers by identity
        mean.copy_(accelerator.reduce(norm.running_mean, "mean"))
        variance.copy_(accelerator.reduce(norm.running_var, "mean"))
        norm.running_mean, norm.running_var = mean, variance
        norm.num_batches_tracked.copy_(tracked)  # batches of training alone, however often it is evaluated
