"""Labels for videos, from a weights file alone."""

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
from softpool3d.errors import UsageError, WorkError
from softpool3d.evaluation.losses import average_views
from softpool3d.inference.exported import ExportedNetwork
from softpool3d.inference.predictor import Predictor
from softpool3d.inference.trained import load_trained
from softpool3d.runtime.devices import pick_device


class NoAnswer(WorkError):
    """The network answered with what is no number: there is no likeliest class."""


@dataclass(frozen=True)
class Label:
    """A class and its probability, 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction(Sequence[Label]):
    """The likeliest labels of a video, likeliest first; it is their sequence.

    file: the video's name; None for frames that came in memory.
    views: how many clips and crops were averaged.
    duration: seconds of video.
    seconds: what it took, decoding and network.
    damage: what is missing of the video, as a sentence; empty where nothing is known to be.
    """

    labels: tuple[Label, ...]
    file: str | None
    views: int
    duration: float
    seconds: float
    damage: str = ""

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.labels[0].name

    @property
    def score(self) -> float:
        """Its probability."""
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
        weights: a weights file, or what `softpool3d export` wrote (.onnx, .pt2); a name like r3d_18:kinetics400 for
            torchvision's; a file that others published, X3D_M.pyth, whose network and classes are recognised (`note`
            says how), x3d_m:FILE where its layers do not tell; None for the network that ships with the package, which
            knows the eight classes of the data set `motion`.
        device: auto, cpu, cuda, cuda:1.
        num_clips, num_crops: views whose probabilities are averaged; as in the run's own test if not given.
        precision: fp32, bf16, fp16; as in training if not given.
        compile: runs the network through torch.compile: worth it for many files.
        trust: load a .pt2 file, which can run code (docs/security.md).
        max_missing: the share of a video that may be missing or undecodable; as in training if not given.

    Raises:
        UsageError: if the weights cannot be used, or there is no such device.
        WorkError: if torchvision's weights cannot be fetched.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str = "auto",
        num_clips: int | None = None,
        num_crops: int | None = None,
        *,
        precision: str | None = None,
        compile: bool = False,
        trust: bool = False,
        max_missing: float | None = None,
    ) -> None:
        place = pick_device(device)
        trained = load_trained(weights, place, trust)
        if (compile or precision not in (None, "fp32")) and isinstance(trained.network, ExportedNetwork):
            option = "--compile" if compile else f"--precision {precision}"
            raise UsageError(f"{option}: {weights} is an exported network, which runs as it was exported, in fp32")
        self.config, self.classes, self.note = trained.config, trained.classes, trained.note
        if max_missing is not None:
            data = self.config.data.model_copy(update={"max_missing": max_missing})
            self.config = self.config.model_copy(update={"data": data})
        self.clips_are_set = num_clips is not None
        self.num_clips = num_clips or self.config.test.num_clips
        self.num_crops = num_crops or self.config.test.num_crops
        self.predictor = Predictor(trained, place, precision, compile)

    @property
    def device(self):
        return self.predictor.device

    @property
    def model(self):
        return self.predictor.network

    def __call__(self, video: str | Path | Tensor | Sequence[Any], top_k: int = 5) -> Prediction:
        """The `top_k` likeliest classes of a video.

        Args:
            video: a file, a folder of pictures, or an http(s) address; or frames: uint8 (T, 3, H, W), RGB; or a list of
                images: PIL, uint8 arrays (H, W, 3), or uint8 tensors (3, H, W).

        Raises:
            DecodeError: if the file cannot be read.
            NoAnswer: if the network's answer is not finite.
            ValueError: for frames of another shape or type.
        """
        began = time.perf_counter()
        if isinstance(video, (str, Path)):
            file, views = str(video), self.read(Clip(str(video), 0))
        else:
            file, views = None, self.sample(as_frames(video))
        logits = self.predictor(views.clips)
        return self.prediction(logits, file, views, time.perf_counter() - began, top_k)

    @property
    def read(self) -> Callable[[Clip], Views]:
        """Reads the views of a file, as in testing; knows nothing of the network, so that it is cheap to send away."""
        return partial(read_views, data=self.config.data, num_clips=self.num_clips, num_crops=self.num_crops)

    def sample(self, frames: Tensor) -> Views:
        """The same of frames at hand, uint8 (T, 3, H, W)."""
        return sample_views(frames, self.config.data, self.num_clips, self.num_crops)

    def prediction(self, logits: Tensor, file: str | None, views: Views, seconds: float, top_k: int) -> Prediction:
        """A typed result of the views' logits, float (V, classes)."""
        labels = self.labels(self.average(logits), top_k)
        return Prediction(labels, file, len(logits), views.duration, seconds, views.damage)

    def average(self, logits: Tensor) -> Tensor:
        """Probabilities, float (classes,), of the views' logits, float (V, classes), averaged as in testing.

        Raises:
            NoAnswer: if they are no numbers.
        """
        probabilities = average_views(logits, self.config)
        if not probabilities.isfinite().all():
            raise NoAnswer(
                "the network's answer is not finite: its weights hold NaN or inf, or its precision is too low"
            )
        return probabilities

    def labels(self, probabilities: Tensor, top_k: int) -> tuple[Label, ...]:
        """The `top_k` likeliest classes of float (classes,), likeliest first."""
        top = probabilities.topk(min(top_k, len(self.classes)))
        pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        return tuple(Label(self.classes[index], probability) for probability, index in pairs)
