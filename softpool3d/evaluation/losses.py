"""What training minimises, and the probabilities that belong to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from softpool3d.config import Config
from softpool3d.datasets.manifest import Manifest
from softpool3d.errors import UsageError


def choose_loss(config: Config, train: Manifest) -> Config:
    """Returns `config`, with the binary loss if it sets none and clips have several labels."""
    if config.optim.loss is not None or not train.multi_label:
        return config
    return config.model_copy(update={"optim": config.optim.model_copy(update={"loss": "binary"})})


def build_loss(config: Config, train: Manifest, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the loss, a function of logits (N, C) and targets: int64 (N,), or float (N, C), a share of each class.

    A clip's loss depends on that clip alone, and the loss of a batch is the mean over its clips. So the batches of an
    update, weighted by their numbers of clips, add up to the loss of all its clips at once. torch's own cross entropy
    does not: it divides by the sum of the batch's class weights.

    cross_entropy: softmax cross entropy. Several labels of a clip share its target equally (arXiv 1805.00932). Class
        weights are scaled so that their mean over the labels of the training split is 1.
    binary: binary cross entropy of a sigmoid for each class, the mean over clips and classes.

    Raises:
        UsageError: for class weights that are not one for each class, or are 0 for every class with training clips.
    """
    smoothing, classes = config.optim.label_smoothing, len(train.classes)
    weights = _class_weights(config, train)
    if weights is not None:
        scaled = _scaled(weights, train)
        weights = (weights if config.optim.loss == "binary" else scaled).to(device)

    def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        if target.ndim == 2 and train.multi_label:
            target = target / target.sum(1, keepdim=True).clamp_min(1e-12)
        total = F.cross_entropy(logits.float(), target, weights, reduction="sum", label_smoothing=smoothing)
        return total / len(logits)

    def binary(logits: Tensor, target: Tensor) -> Tensor:
        target = F.one_hot(target, classes) if target.ndim == 1 else target
        target = target.float() * (1 - smoothing) + 0.5 * smoothing
        return F.binary_cross_entropy_with_logits(logits.float(), target, weights)

    return binary if config.optim.loss == "binary" else cross_entropy


def as_probabilities(logits: Tensor, config: Config) -> Tensor:
    """Returns probabilities, float32 (..., C): a sigmoid for each class if optim.loss is binary, else softmax."""
    logits = logits.float()
    return logits.sigmoid() if config.optim.loss == "binary" else logits.softmax(-1)


def average_views(logits: Tensor, config: Config) -> Tensor:
    """Returns probabilities, float32 (..., C): the mean over the views of logits (..., V, C).

    With `test.average: logits` the logits are averaged, else the probabilities of each view.
    """
    if config.test.average == "logits":
        return as_probabilities(logits.float().mean(-2), config)
    return as_probabilities(logits, config).mean(-2)


def _class_weights(config: Config, train: Manifest) -> Tensor | None:
    chosen, classes = config.optim.class_weights, len(train.classes)
    if chosen is None:
        return None
    if chosen == "balanced":  # every class has the same sum of weights over all clips
        counts = train.class_counts()
        return torch.from_numpy(counts.sum() / (classes * counts.clip(min=1))).float()
    if len(chosen) != classes:
        raise UsageError(f"optim.class_weights has {len(chosen)} numbers and the data set {classes} classes")
    return torch.tensor(chosen)


def _scaled(weights: Tensor, train: Manifest) -> Tensor:
    counts = torch.from_numpy(train.class_counts()).float()
    mean = (counts * weights).sum() / counts.sum().clamp_min(1)
    if not mean:
        raise UsageError("optim.class_weights are 0 for every class that has training clips: nothing would be learned")
    return weights / mean
