"""What a run says at its end: how sure its accuracy is, what it gets wrong, what may help, and what to type next."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from softpool3d.evaluation.metrics import Metrics, measure, most_confused

if TYPE_CHECKING:
    from softpool3d.training.trainer import Training

_SURE = 0.8  # of another class than the label: then the label may be wrong
_TRUSTED = 0.8  # of the clips that it is sure of, the share in which it has to be right
_WORST, _PAIRS, _SUSPECTS = 3, 3, 5


def closing_lines(training: Training) -> list[str]:
    """Returns the lines that a finished run ends with, beside its summary."""
    folder, lines = training.disk.folder, []
    scores = training.judged["test" if "test" in training.judged else "val"]
    if len(scores.label) and not scores.multi_label:
        metrics = measure(scores, training.classes)
        lines += [*_accuracy(metrics), *_suspects(training), *_advice(training, metrics)]
    shown = min(os.path.relpath(folder), str(folder), key=len)
    verbs = (f"  softpool3d {verb} --weights {shown}" for verb in ("classify FILE", "test", "explain FILE"))
    return [*lines, "next:", *verbs]


def _accuracy(metrics: Metrics) -> Iterator[str]:
    low, high = metrics.summary["top1_interval"]
    clips = metrics.summary["videos"]
    yield f"with other clips like these top-1 would be {low:.1%} to {high:.1%} (95%, {clips} clips)"
    rows = sorted((row for row in metrics.classes if row.clips and row.top1 < 1), key=lambda row: row.top1)
    if rows:
        worst = ", ".join(f"{row.name} {row.top1:.0%} of {row.clips}" for row in rows[:_WORST])
        yield f"worst classes: {worst}"
    pairs = most_confused(metrics.confusion, tuple(row.name for row in metrics.classes), _PAIRS)
    if pairs:
        said = ", ".join(f"{p.label} for {p.prediction} ({p.count} of {p.clips})" for p in pairs)
        yield f"most often taken for another: {said}"


def _suspects(training: Training) -> Iterator[str]:
    """Yields the clips of which the network is sure that they are of another class than their label says.

    It yields none where the network is often sure and wrong: then its answers say nothing of the labels.
    """
    found, certain, classes = [], 0, training.classes
    for split, scores in training.judged.items():
        sure, guess = scores.probabilities.max(1)
        certain += int((sure >= _SURE).sum())
        for place in torch.nonzero((guess != scores.label) & (sure >= _SURE)).flatten().tolist():
            clip = training.manifests[split].clips[int(scores.index[place])]
            text = f"{clip.path}: labelled {classes[scores.label[place]]}, looks like {classes[guess[place]]}"
            found.append((float(sure[place]), f"{text} ({sure[place]:.0%})"))
    if found and len(found) <= (1 - _TRUSTED) * certain:
        found.sort(reverse=True)
        yield (
            f"labels worth a look: of {certain} clips that the network is sure of, {len(found)} are labelled as "
            "something else, such as"
        )
        yield from (f"  {text}" for _, text in found[:_SUSPECTS])


def _advice(training: Training, metrics: Metrics) -> Iterator[str]:
    """Yields what would help most, by what the curves say (docs/own-videos.md)."""
    config, rows, accuracy = training.config, training.disk.rows, metrics.summary["top1"]
    learned = float(rows[-1]["train_top1"]) if rows else 0.0
    count = len(training.manifests["train"]) / len(training.classes)
    if accuracy >= 0.95:
        return
    worst = min((row for row in metrics.classes if row.clips), key=lambda row: row.top1).name
    if learned - accuracy > 0.2:
        augment = "data.augment.policy=randaugment or optim.label_smoothing=0.1"
        yield (
            f"what may help: it knows {learned:.0%} of the clips it trained on and {accuracy:.0%} of others: more "
            f"clips (there are {count:.0f} of a class; {worst} needs them most), weights to start from "
            f"(model.weights), or {augment}"
        )
    elif learned < 0.6:
        frames = f"data.sampling={'uniform' if config.data.sampling == 'dense' else 'dense'}"
        yield (
            f"what may help: it knows only {learned:.0%} of the clips it trained on: train longer (train.epochs), see "
            f"more of each clip ({frames}, data.num_frames), larger (data.crop_size), or another optim.lr"
        )
    else:
        yield f"what may help: more clips of {worst}; train longer (train.epochs); a larger data.crop_size"
