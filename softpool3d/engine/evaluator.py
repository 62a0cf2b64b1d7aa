"""Scores of the clips of a split, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_accuracy

from softpool3d.config import Config
from softpool3d.datasets.decoder import DecodeError
from softpool3d.datasets.loader import to_device
from softpool3d.datasets.transforms import normalize
from softpool3d.engine.devices import MEMORY_FORMATS


@dataclass
class Scores:
    """Of a split: probabilities float32 (N, classes), label int64 (N,), index int64 (N,) into the manifest."""

    probabilities: Tensor
    label: Tensor
    index: Tensor

    def accuracy(self, top_k: int = 1) -> float:
        """Share of clips whose label is among the `top_k` likeliest classes; with fewer classes than that, it is 1."""
        classes = self.probabilities.shape[1]
        if not len(self.label):
            return 0.0
        top_k = min(top_k, classes)
        return float(multiclass_accuracy(self.probabilities, self.label, classes, average="micro", top_k=top_k))

    def loss(self) -> float:
        """Mean cross entropy."""
        return float(F.nll_loss(self.probabilities.clamp_min(1e-12).log(), self.label)) if len(self.label) else 0.0


@torch.inference_mode()
def view_probabilities(model: nn.Module, video: Tensor, config: Config) -> Tensor:
    """Softmax averaged over the views: uint8 (N, V, C, T, H, W), on the model's device -> float32 (N, classes).

    The network sees at most `config.test.batch_size` clips at a time, whatever N and V are.
    """
    probabilities = []
    for part in video.flatten(0, 1).split(config.test.batch_size):
        clips = normalize(part, config.data.mean, config.data.std)
        clips = clips.contiguous(memory_format=MEMORY_FORMATS[config.train.memory_format])
        probabilities.append(model(clips).float().softmax(-1))
    return torch.cat(probabilities).unflatten(0, video.shape[:2]).mean(1)


def evaluate(
    model: nn.Module,
    loader: DataLoader,
    config: Config,
    accelerator: Accelerator,
    on_batch: Callable[[], None] = lambda: None,
    on_bad: Callable[[list[DecodeError]], None] = lambda errors: None,
) -> Scores:
    """Scores of every clip of the loader, each counted once under any number of processes.

    Args:
        on_batch: called after each batch; may raise to stop.
        on_bad: called with the files of a batch that could not be read.
    """
    was_training = model.training
    model.eval()
    probabilities, labels, indices = [], [], []
    for batch in loader:
        if batch.bad:
            on_bad(batch.bad)
        if batch.video is not None:
            video = to_device(batch, config.data, accelerator.device, loader.dataset.num_crops)
            with accelerator.autocast():
                probabilities.append(view_probabilities(model, video, config).cpu())
            labels.append(batch.label)
            indices.append(batch.index)
        on_batch()
    model.train(was_training)
    mine = [tuple(torch.cat(part) for part in (probabilities, labels, indices))] if labels else []
    parts = gather_object(mine)
    if not parts:
        return Scores(torch.empty(0, 1), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    return Scores(*(torch.cat(part) for part in zip(*parts, strict=True)))
