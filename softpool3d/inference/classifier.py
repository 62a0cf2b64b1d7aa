"""Classifies a video, or turns it into features; a weights file is all that is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.views import Views, as_frames, read_views, sample_views
from softpool3d.errors import UsageError
from softpool3d.evaluation.losses import average_views
from softpool3d.inference.embedder import Embedder, up_to
from softpool3d.inference.exported import ExportedNetwork
from softpool3d.inference.predictor import Predictor, finite
from softpool3d.inference.provenance import made_by
from softpool3d.inference.trained import Trained, load_trained
from softpool3d.runtime.devices import pick_device


@dataclass(frozen=True)
class Label:
    """A class and its probability, 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction(Sequence[Label]):
    """The likeliest labels of a video, as a sequence, likeliest first.

    file: the video's name; None for frames that were given in memory.
    views: number of views (clips times crops) that were averaged.
    duration: length of the video in seconds.
    seconds: time that decoding and the network took.
    damage: a sentence on what is missing of the video; empty if nothing is known to be missing.
    """

    labels: tuple[Label, ...]
    file: str | None
    views: int
    duration: float
    seconds: float
    damage: str = ""

    @property
    def label(self) -> str:
        """The name of the likeliest class."""
        return self.labels[0].name

    @property
    def score(self) -> float:
        """The probability of the likeliest class, 0 to 1."""
        return self.labels[0].probability

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index):
        return self.labels[index]

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)


class Classifier:
    """A trained network, with its classes and preprocessing.

        classifier = Classifier("runs/r3d_softpool/best.safetensors")
        result = classifier("clip.mp4")
        print(result.label, result.score)
        for label in result:
            print(label.name, label.probability)

    Args:
        weights: one of
            - a weights file, or a file that `softpool3d export` wrote (.onnx, .pt2);
            - a name like r3d_18:kinetics400, for torchvision's public weights;
            - a file that others published, such as X3D_M.pyth. Its network and classes are recognised, and `note` says
              how. Where its layers do not tell the network, name it: x3d_m:FILE;
            - motion, for the network that ships with the package. It knows the eight classes of that data set;
            - None, for Kinetics-400's where they can be had, else `motion`; `note` says which;
            - a network that `load_trained` returned.
        device: auto, cpu, cuda, cuda:1.
        num_clips, num_crops: clips along the video, and crops of each, to average over; by default as in the run's own
            test.
        precision: fp32, bf16 or fp16; by default as in training.
        compile: runs the network through torch.compile, which pays off for many files.
        batch: clips in a batch; by default the number with which a clip takes least time, as measured on the first
            ones. With 1, what a video gets does not depend in the last digit on the videos beside it.
        trust: loads a .pt2 file, which can run code (docs/security.md).
        max_missing: the share of a video, 0 to 1, that may be missing or undecodable; by default as in training.

    Raises:
        UsageError: if the weights cannot be used, or there is no such device.
        WorkError: if torchvision's weights cannot be fetched.
    """

    def __init__(
        self,
        weights: str | Path | Trained | None = None,
        device: str = "auto",
        *,
        num_clips: int | None = None,
        num_crops: int | None = None,
        precision: str | None = None,
        compile: bool = False,
        batch: int | None = None,
        trust: bool = False,
        max_missing: float | None = None,
    ) -> None:
        place = pick_device(device)
        trained = weights if isinstance(weights, Trained) else load_trained(weights, place, trust)
        if (compile or precision not in (None, "fp32")) and isinstance(trained.network, ExportedNetwork):
            option = "--compile" if compile else f"--precision {precision}"
            raise UsageError(
                f"{option}: {trained.network.path} is an exported network, which runs as it was exported, in fp32"
            )
        self.config, self.classes, self.note = trained.config, trained.classes, trained.note
        if max_missing is not None:
            data = self.config.data.model_copy(update={"max_missing": max_missing})
            self.config = self.config.model_copy(update={"data": data})
        self.clips_are_set = num_clips is not None
        self.num_clips = num_clips or self.config.test.num_clips
        self.num_crops = num_crops or self.config.test.num_crops
        self._trained, self._how = trained, (place, precision, compile, batch)
        self.predictor = Predictor(trained, place, precision, compile, batch)
        self._embedders: dict[tuple[str | None, str | None], Embedder] = {}

    @property
    def takes_pictures(self) -> bool:
        """Whether the network learned from pictures, so that a folder holds as many clips as pictures."""
        return self.config.data.of_pictures

    @property
    def device(self):
        return self.predictor.device

    @property
    def model(self):
        return self.predictor.network

    def __call__(self, video: str | Path | Tensor | Sequence[Any], top_k: int = 5) -> Prediction:
        """Returns the `top_k` likeliest classes of a video.

        Args:
            video: a file, a folder of frames, or an http(s) address; or frames: uint8 (T, 3, H, W), RGB; or a list of
                images: PIL, uint8 arrays (H, W, 3), or uint8 tensors (3, H, W); or, for a network of pictures, one PIL
                image.

        Raises:
            DecodeError: if the file cannot be read.
            NoAnswer: if the network's answer is not finite.
            ValueError: for frames of another shape or type.
        """
        began = time.perf_counter()
        views = self._views(video)
        logits = self.predictor(views.clips)
        file = str(video) if isinstance(video, (str, Path)) else None
        return self.prediction(logits, file, views, time.perf_counter() - began, top_k)

    def features(
        self, video: str | Path | Tensor | Sequence[Any], layer: str | None = None, pool: str | None = None
    ) -> Tensor:
        """Returns the features of a video, float32 (D,) on the CPU: the mean over its views.

        Args:
            video: as for a call.
            layer: stem, stage1 to stage4, or the path of a module of `model`. None: what the layer that makes the
                logits takes, which the network's own head has pooled.
            pool: avg, max or soft: how a layer's output is pooled over time and space; avg if not given.

        Raises:
            UsageError: if there is no such layer, or the network is an exported one.
            DecodeError, NoAnswer, ValueError: as for a call.
        """
        embedder = self.embedder(layer, pool)
        return embedder.average(embedder.predictor(self._views(video).clips))

    def embedder(self, layer: str | None = None, pool: str | None = None) -> Embedder:
        """Returns the network up to a layer; the arguments are those of `features`."""
        key = layer, pool
        if key not in self._embedders:
            self._embedders[key] = Embedder(self, up_to(self._trained, layer, pool), self._how)
        return self._embedders[key]

    def _views(self, video: str | Path | Tensor | Sequence[Any]) -> Views:
        return self.read(Clip(str(video), 0)) if isinstance(video, (str, Path)) else self.sample(as_frames(video))

    @property
    def read(self) -> Callable[[Clip], Views]:
        """A function that reads the views of a file, as in testing. It holds no network: workers receive it cheaply."""
        return partial(read_views, data=self.config.data, num_clips=self.num_clips, num_crops=self.num_crops)

    def sample(self, frames: Tensor) -> Views:
        """Returns the views of frames in memory, uint8 (T, 3, H, W), taken as from a file."""
        return sample_views(frames, self.config.data, self.num_clips, self.num_crops)

    def prediction(self, logits: Tensor, file: str | None, views: Views, seconds: float, top_k: int) -> Prediction:
        """Returns the prediction for a video, from its views' logits, float (V, classes)."""
        labels = self.labels(self.average(logits), top_k)
        return Prediction(labels, file, len(logits), views.duration, seconds, views.damage)

    def about(self) -> dict[str, Any]:
        """Returns what makes its labels: two results whose values are equal go together."""
        return made_by(self._trained, self, self._how[1], self.num_clips)

    def average(self, logits: Tensor) -> Tensor:
        """Returns probabilities, float (classes,), of the views' logits, float (V, classes), averaged as in testing.

        Raises:
            NoAnswer: if they are not finite.
        """
        return finite(average_views(logits, self.config))

    def labels(self, probabilities: Tensor, top_k: int) -> tuple[Label, ...]:
        """Returns the `top_k` likeliest classes, likeliest first, of probabilities, float (classes,)."""
        top = probabilities.topk(min(top_k, len(self.classes)))
        pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        return tuple(Label(self.classes[index], probability) for probability, index in pairs)
