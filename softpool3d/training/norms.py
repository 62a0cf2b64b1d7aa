"""Batch norm over all processes, over parts of a batch, and with running statistics of many batches."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from softpool3d.config import Config, MultigridConfig, TrainConfig
from softpool3d.datasets.loader import to_device, train_loader
from softpool3d.datasets.manifest import Manifest
from softpool3d.datasets.transforms import normalize
from softpool3d.runtime.devices import MEMORY_FORMATS

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it scripts functions with torch.jit, now deprecated
    from fvcore.nn.distributed import differentiable_all_reduce as all_reduce


class _AnyBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of clips and of pictures."""

    def _check_input_dim(self, input: Tensor) -> None: ...


class SplitBatchNorm(_AnyBatchNorm):
    """Batch norm that normalises each `clips` clips of a batch by themselves (sub-batch BN, arXiv 1912.00998)."""

    clips = 8

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) <= self.clips:
            return super().forward(input)
        return torch.cat([super(SplitBatchNorm, self).forward(part) for part in input.split(self.clips)])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, clips={self.clips}"


class ProcessesBatchNorm(_AnyBatchNorm):
    """nn.SyncBatchNorm for CPUs, which it does not support. Processes may have different numbers of clips."""

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
    """Returns the network with its batch norms as train.norm says; parameters, statistics and their names stay."""
    if config.norm == "sync" and device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.norm != "batch":
        for name, module in list(model.named_modules()):
            if type(module) in (nn.BatchNorm3d, nn.BatchNorm2d):
                model.set_submodule(name, _like(module, config))
    return model


def has_norms(model: nn.Module) -> bool:
    """Whether a network has batch norms."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _like(norm: nn.modules.batchnorm._BatchNorm, config: TrainConfig) -> _AnyBatchNorm:
    kind = ProcessesBatchNorm if config.norm == "sync" else SplitBatchNorm
    made = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    if kind is SplitBatchNorm:
        made.clips = config.norm_clips
    made._parameters, made._buffers = norm._parameters, norm._buffers
    return made.train(norm.training)


@torch.no_grad()
def precise_statistics(model: nn.Module, batches: Iterable[Tensor], count: int, accelerator: Accelerator) -> None:
    """Sets running statistics to those of all clips in `count` batches of every process (arXiv 2105.07576, appendix).

    The weights stay as they are. The result does not depend on how clips are divided into processes, batches and parts.

    Args:
        batches: inputs of the network, at least `count` of them.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    found = {norm: _Moments(norm) for norm in norms if norm.track_running_stats}
    tracked = [norm.num_batches_tracked.clone() for norm in found]
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()  # dropout draws nothing
    for norm in found:
        norm.train()
    # fvcore's update_bn_stats would be wrong here. It takes a batch's variance from the norm: with train.norm=sync that
    # of all processes, corrected as if it were of this process's clips; with split that of the batch's last part.
    hooks = [norm.register_forward_pre_hook(moments.add) for norm, moments in found.items()]
    with accelerator.autocast():
        for clips in itertools.islice(batches, count):
            model(clips)
    for hook in hooks:
        hook.remove()
    for module, training in was_training:
        module.training = training
    for (norm, moments), number in zip(found.items(), tracked, strict=True):
        moments.store(norm, accelerator)
        norm.num_batches_tracked.copy_(number)  # counts batches of training only


class _Moments:
    """Mean and variance of each channel over all inputs of a norm."""

    def __init__(self, norm: nn.Module) -> None:
        self._mean, self._variance = torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_var)
        self._count = torch.zeros_like(norm.running_mean[:1])

    def add(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        """Adds an input of the norm, (N, C, ...); called as a hook before its forward."""
        (x,) = inputs
        over = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x.to(self._mean.dtype), over, correction=0)
        self._count += x.numel() // x.shape[1]
        share = x.numel() / x.shape[1] / self._count
        step = mean - self._mean
        self._mean += share * step
        self._variance += share * (variance - self._variance) + share * (1 - share) * step.square()

    def store(self, norm: nn.Module, accelerator: Accelerator) -> None:
        """Writes those of all processes to the norm, in place: DistributedDataParallel knows buffers by identity."""
        total = accelerator.reduce(self._count, "sum")
        if not total:  # a norm that the network did not use
            return
        share = self._count / total
        mean = accelerator.reduce(share * self._mean, "sum")
        between = (self._mean - mean).square()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(accelerator.reduce(share * (self._variance + between), "sum"))


def clips_for_norms(config: Config, train: Manifest, accelerator: Accelerator) -> Iterator[Tensor]:
    """Yields batches of training clips, of the size that the network is evaluated at; the same at each call."""
    whole = config.train.model_copy(update={"multigrid": MultigridConfig()})
    config = config.model_copy(update={"train": whole})
    loader = train_loader(train, config, accelerator.process_index, accelerator.num_processes)
    memory_format = MEMORY_FORMATS[config.train.memory_format]
    while True:
        for batch in loader:
            if batch.video is not None:
                clips = normalize(to_device(batch, config.data, accelerator.device), config.data.mean, config.data.std)
                yield clips.contiguous(memory_format=memory_format)
