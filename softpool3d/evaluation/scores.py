"""Scores of the videos of a split, and the file that keeps them.

The file is an npz: NumPy reads it without this package and without running code. A table format such as parquet would
need a further library for the same arrays.

    probabilities  float32 (N, C)
    labels         int64 (N,), or uint8 (N, C) where a video may have several
    videos         text (N,): paths below the split's common folder, with #start-end for a part of a video
    classes        text (C,)
    about          text (): JSON; data set, split, weights, views
"""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from softpool3d.datasets.lists import format_seconds
from softpool3d.datasets.manifest import Clip
from softpool3d.errors import UsageError, WorkError
from softpool3d.files import write_atomically
from softpool3d.foreign import parse_json

FILE = "scores.npz"


@dataclass
class Scores:
    """A network's probabilities for the clips of a split, and their labels.

    probabilities: float32 (N, classes). label: int64 (N,). index: int64 (N,), into the manifest.
    Where a video may have several labels, `label` is 0 or 1 of each class, (N, classes).
    """

    probabilities: Tensor
    label: Tensor
    index: Tensor

    @property
    def multi_label(self) -> bool:
        return self.label.ndim == 2

    def accuracy(self, top_k: int = 1) -> float:
        """Returns the share of clips with a label among the `top_k` likeliest classes; 1 with fewer classes."""
        classes = self.probabilities.shape[1]
        if not len(self.label):
            return 0.0
        top_k = min(top_k, classes)
        if self.multi_label:
            likeliest = self.probabilities.topk(top_k).indices
            return float((self.label.gather(1, likeliest) > 0).any(1).float().mean())
        from torchmetrics.functional.classification import multiclass_accuracy  # takes half a second to import

        return float(multiclass_accuracy(self.probabilities, self.label, classes, average="micro", top_k=top_k))

    def average_precision(self) -> Tensor:
        """Returns average precisions, float32 (classes,), where clips have several labels; NaN without clips."""
        from torchmetrics.functional.classification import multilabel_average_precision

        if not len(self.label):
            return torch.full((self.probabilities.shape[1],), torch.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that no clip has
            precision = multilabel_average_precision(
                self.probabilities, self.label.long(), self.probabilities.shape[1], average="none"
            )
        return precision.where((self.label > 0).any(0), torch.nan)

    def mean_average_precision(self) -> float:
        """Returns the mAP, the mean over the classes that clips have; 0 if there are none."""
        return float(self.average_precision().nanmean().nan_to_num(0))

    def loss(self) -> float:
        """Returns the mean cross entropy; for clips with several labels the binary one, also averaged over classes."""
        if not len(self.label):
            return 0.0
        if self.multi_label:
            return float(F.binary_cross_entropy(self.probabilities, self.label.float()))
        return float(F.nll_loss(self.probabilities.clamp_min(1e-12).log(), self.label))


def check_finite(scores: Scores, name_of: Callable[[int], str]) -> None:
    """Checks that all probabilities are finite: the likeliest class of NaN would be the first.

    Args:
        name_of: returns a video's name, given its place in `scores`.

    Raises:
        WorkError: if some are not.
    """
    finite = scores.probabilities.isfinite().all(1)
    if not finite.all():
        first = name_of(int(finite.int().argmin()))
        raise WorkError(
            f"the network's answers for {int((~finite).sum())} of {len(finite)} videos are not finite (the first: "
            f"{first}); its weights hold NaN or inf, or train.precision is too low for it"
        )


@dataclass(frozen=True)
class Miss:
    """A video whose likeliest class, `prediction` with `score`, is not its label, to which it gave `probability`."""

    video: str
    label: str
    probability: float
    prediction: str
    score: float


@dataclass
class VideoScores:
    """Scores with the names of videos and classes, as a file holds them. `about` says where they come from."""

    scores: Scores
    videos: tuple[str, ...]
    classes: tuple[str, ...]
    about: dict[str, Any]

    @classmethod
    def of(cls, scores: Scores, clips: Sequence[Clip], classes: tuple[str, ...], about: dict[str, Any]) -> VideoScores:
        """Returns the scores of a manifest's clips, or of some of them, with their names."""
        names = video_names(clips)
        return cls(scores, tuple(names[index] for index in scores.index.tolist()), classes, about)

    def worst(self, most: int = 10) -> list[Miss]:
        """Returns the videos that were taken for another class, the ones least sure of their label first.

        None are returned where a video may have several labels.
        """
        if self.scores.multi_label:
            return []
        given, (top, likeliest) = self.scores.probabilities, self.scores.probabilities.max(1)
        own = given.gather(1, self.scores.label[:, None])[:, 0]
        wrong = [n for n in own.argsort(stable=True).tolist() if likeliest[n] != self.scores.label[n]]
        return [
            Miss(
                self.videos[n],
                self.classes[int(self.scores.label[n])],
                float(own[n]),
                self.classes[int(likeliest[n])],
                float(top[n]),
            )
            for n in wrong[:most]
        ]

    def save(self, path: str | Path) -> None:
        content = io.BytesIO()
        label = self.scores.label
        np.savez_compressed(
            content,
            probabilities=self.scores.probabilities.numpy(),
            labels=(label.to(torch.uint8) if self.scores.multi_label else label).numpy(),
            videos=np.array(self.videos, dtype=np.str_),
            classes=np.array(self.classes, dtype=np.str_),
            about=np.array(json.dumps(self.about, ensure_ascii=False)),
        )
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> VideoScores:
        """Reads a file that `save` wrote.

        Raises:
            UsageError: if there is no such file, it is damaged, or its arrays do not fit together.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"no file of scores {path}")
        try:
            with np.load(path, allow_pickle=False) as file:
                probabilities, labels = torch.from_numpy(file["probabilities"]), torch.from_numpy(file["labels"])
                videos, classes = tuple(file["videos"].tolist()), tuple(file["classes"].tolist())
                about = parse_json(str(file["about"]))
        except KeyError as error:
            raise UsageError(f"{path} is no file of scores: {error.args[0]}") from None
        except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise UsageError(f"{path} is no file of scores, or it is damaged ({error})") from None
        shapes = probabilities.shape, labels.shape[:1], labels.shape[1:]
        if shapes not in (((len(videos), len(classes)), (len(videos),), own) for own in ((), (len(classes),))):
            raise UsageError(
                f"{path}: probabilities {tuple(probabilities.shape)}, labels {tuple(labels.shape)}, {len(videos)} "
                f"videos and {len(classes)} classes do not fit together"
            )
        if labels.ndim == 1 and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise UsageError(f"{path}: a label lies outside of the {len(classes)} classes")
        return cls(Scores(probabilities.float(), labels, torch.arange(len(videos))), videos, classes, about)


def video_names(clips: Sequence[Clip]) -> list[str]:
    """Returns the clips' names, which are the same on machines that have the data in different folders."""
    paths = [clip.path for clip in clips]
    common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    names = [os.path.relpath(path, common or ".") for path in paths]
    return [f"{name}{_part(clip)}" for name, clip in zip(names, clips, strict=True)]


def _part(clip: Clip) -> str:
    whole = clip.start is None and clip.end is None
    return "" if whole else f"#{format_seconds(clip.start)}-{format_seconds(clip.end)}"
