"""Metrics of scores: accuracies, calibration, confusion. Probabilities are float32 (N, C) throughout."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from softpool3d.evaluation.scores import Scores

CALIBRATION_BINS = 15  # as Guo et al., arXiv 1706.04599


@dataclass(frozen=True)
class ClassRow:
    """Metrics of one class. A share is None where its denominator is 0: no clips of the class, or none taken for it."""

    name: str
    clips: int
    top1: float | None = None
    top5: float | None = None
    precision: float | None = None
    average_precision: float | None = None  # where clips have several labels
    mistaken_for: str = ""  # the class that its clips are most often taken for
    mistakes: int = 0


@dataclass(frozen=True)
class Confusion:
    """`count` of the `clips` clips of `label` were taken for `prediction`."""

    label: str
    prediction: str
    count: int
    clips: int


@dataclass(frozen=True)
class Metrics:
    """summary: the numbers by name. confusion: int64 (C, C), rows are labels; None where clips have several labels."""

    summary: dict[str, Any]
    classes: list[ClassRow]
    confusion: Tensor | None


def measure(scores: Scores, classes: tuple[str, ...]) -> Metrics:
    """Returns the metrics of scores, which are of one clip at least."""
    correct = round(scores.accuracy() * len(scores.label))
    summary = {
        "videos": len(scores.label),
        "top1": scores.accuracy(),
        "top1_interval": list(share_interval(correct, len(scores.label))),
        "top5": scores.accuracy(5),
    }
    if scores.multi_label:
        rows = _multi_label_rows(scores, classes)
        without = sum(row.average_precision is None for row in rows)
        summary |= {"mean_average_precision": scores.mean_average_precision(), "classes_without_clips": without}
        return Metrics(summary | {"loss": scores.loss()}, rows, None)
    confusion = multiclass_confusion_matrix(scores.probabilities, scores.label, len(classes))
    rows = _rows(scores, classes, confusion)
    known = [row.top1 for row in rows if row.top1 is not None]
    summary |= {
        "mean_class_accuracy": _mean(known),
        "classes_without_clips": len(rows) - len(known),
        "calibration_error": float(
            multiclass_calibration_error(scores.probabilities, scores.label, len(classes), n_bins=CALIBRATION_BINS)
        ),
        "loss": scores.loss(),
    }
    return Metrics(summary, rows, confusion)


def share_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's score interval of correct / total (JASA 22, 1927), where `total` is 1 or more.

    Unlike a bootstrap it has a width where all clips are right, or none.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (correct + z * z / 2) / (total + z * z)
    half = z * sqrt(correct * (total - correct) / total + z * z / 4) / (total + z * z)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def most_confused(confusion: Tensor, classes: tuple[str, ...], most: int = 10) -> list[Confusion]:
    """Returns the wrong pairs of label and prediction with the most clips, in falling order."""
    wrong = confusion.clone().fill_diagonal_(0)
    counts, places = wrong.flatten().sort(descending=True, stable=True)
    pairs = []
    for count, place in zip(counts[:most].tolist(), places[:most].tolist(), strict=True):
        if count:
            label, prediction = divmod(place, len(classes))
            pairs.append(Confusion(classes[label], classes[prediction], count, int(confusion[label].sum())))
    return pairs


def _rows(scores: Scores, classes: tuple[str, ...], confusion: Tensor) -> list[ClassRow]:
    likeliest = scores.probabilities.topk(min(5, len(classes))).indices
    among = (likeliest == scores.label[:, None]).any(1)
    among = torch.bincount(scores.label[among], minlength=len(classes))
    taken, right, clips = confusion.sum(0), confusion.diagonal(), confusion.sum(1)
    mistakes, mistaken = confusion.clone().fill_diagonal_(0).max(1)
    return [
        ClassRow(
            name,
            int(clips[c]),
            _share(right[c], clips[c]),
            _share(among[c], clips[c]),
            _share(right[c], taken[c]),
            None,
            classes[mistaken[c]] if mistakes[c] else "",
            int(mistakes[c]),
        )
        for c, name in enumerate(classes)
    ]


def _multi_label_rows(scores: Scores, classes: tuple[str, ...]) -> list[ClassRow]:
    precision = scores.average_precision()
    clips = scores.label.long().sum(0).tolist()
    return [
        ClassRow(name, count, average_precision=float(value) if count else None)
        for name, count, value in zip(classes, clips, precision, strict=True)
    ]


def _share(part: Tensor, whole: Tensor) -> float | None:
    return float(part) / float(whole) if whole else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
