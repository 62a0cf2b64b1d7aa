"""What becomes of each file, wherever it is done: its views are read, a network sees them, a result is made of that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from softpool3d.datasets.inputs import clip_name, explain
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.parallel import Crashed
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.datasets.views import Views
from softpool3d.inference.classifier import Classifier, Prediction
from softpool3d.inference.embedder import Features
from softpool3d.inference.predictor import NoAnswer, Predictor
from softpool3d.inference.trained import Trained


@dataclass(frozen=True)
class Failure:
    """A file without a result.

    reason: why.
    failed: what could not be done with it: it was not to be read, or, once read, the network's output was not finite.
    """

    file: str
    reason: str
    failed: str = "read"

    def __str__(self) -> str:
        return f"cannot {self.failed} {self.file}: {self.reason}"


Result = Prediction | Features | Failure


@dataclass
class Decoded:
    """A clip's name and its views; or, without them, the reason why. seconds: what that took."""

    file: str
    views: Views | None
    reason: str = ""
    seconds: float = 0.0

    @classmethod
    def crashed(cls, clip: Clip) -> Decoded:
        """Returns what there is of a clip that killed the process which decoded it."""
        return cls(clip_name(clip), None, str(Crashed()))


class Reader:
    """Reads a clip's views, or says what is wrong with it. It is sent to workers, so it holds no network."""

    def __init__(self, read: Callable[[Clip], Views]) -> None:
        self._read = read

    def __call__(self, clip: Clip) -> Decoded:
        began = time.perf_counter()
        try:
            views, reason = self._read(clip), ""
        except DecodeError as error:
            views, reason = None, explain(error)
        return Decoded(clip_name(clip), views, reason, time.perf_counter() - began)


@dataclass(frozen=True)
class Work:
    """The work on one file, in its two stages: `reader`, and then `predictor` and `result`.

    make: makes the result from the network's output for the views, (V, ...), the clip's name, its views, and the
        seconds that they took; raises `NoAnswer` if the output is not finite.
    verb: what is done with a file, for the sentence about one that has no answer.
    about: returns what makes the results: those whose values are equal go together.
    """

    reader: Reader
    predictor: Predictor
    make: Callable[[Tensor, str, Views, float], Prediction | Features]
    verb: str
    about: Callable[[], dict[str, Any]]

    def result(self, decoded: Decoded, rows: list[Tensor], seconds: float) -> Result:
        """Returns a file's result.

        Args:
            rows: the network's output for each of its views; nothing if it has none.
            seconds: what the network took.
        """
        if decoded.views is None:
            return Failure(decoded.file, decoded.reason)
        try:
            return self.make(torch.stack(rows), decoded.file, decoded.views, decoded.seconds + seconds)
        except NoAnswer as error:
            return Failure(decoded.file, str(error), self.verb)


class Job(Protocol):
    """What is asked for: small enough to be sent to other machines."""

    @property
    def options(self) -> dict[str, Any]:
        """Those of `Classifier`."""

    def work(self, trained: Trained) -> Work:
        """Returns how it is done with a network, here."""


@dataclass(frozen=True)
class Labelling:
    """The job of `classify`. options: of `Classifier`. top_k: number of labels of each video."""

    options: dict[str, Any]
    top_k: int

    def work(self, trained: Trained) -> Work:
        classifier = Classifier(trained, **self.options)
        make = partial(classifier.prediction, top_k=self.top_k)
        return Work(Reader(classifier.read), classifier.predictor, make, "classify", classifier.about)


@dataclass(frozen=True)
class Embedding:
    """The job of `embed`. options: of `Classifier`. layer, pool: as for `Classifier.features`."""

    options: dict[str, Any]
    layer: str | None
    pool: str | None

    def work(self, trained: Trained) -> Work:
        embedder = Classifier(trained, **self.options).embedder(self.layer, self.pool)
        return Work(Reader(embedder.read), embedder.predictor, embedder.features, "embed", embedder.about)
