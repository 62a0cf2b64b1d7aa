"""Turns videos into features: a vector for each video, or for each window of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from softpool3d.datasets.views import Views
from softpool3d.errors import UsageError
from softpool3d.inference.exported import ExportedNetwork
from softpool3d.inference.layers import POOLS, UpTo
from softpool3d.inference.predictor import How, Predictor, finite
from softpool3d.inference.provenance import made_by
from softpool3d.inference.trained import Trained

if TYPE_CHECKING:
    from softpool3d.inference.classifier import Classifier


@dataclass(frozen=True)
class Features:
    """The features of a video.

    rows: (start, end, vector): seconds, and float32 (D,) on the CPU.
    damage: a sentence on what is missing of the video; empty if nothing is known to be missing.
    """

    file: str
    rows: Sequence[tuple[float, float, Tensor]]
    damage: str = ""


class Embedder:
    """A classifier's network up to one of its layers, with its preprocessing.

    Args:
        trained: the network, as `up_to` returns it.
        how: how it runs.
    """

    def __init__(self, classifier: Classifier, trained: Trained, how: How) -> None:
        self.config, self.read = classifier.config, classifier.read
        self.num_clips, self.num_crops = classifier.num_clips, classifier.num_crops
        self.clips_are_set = classifier.clips_are_set
        self.predictor = Predictor(trained, *how)
        self._trained, self._precision = trained, how[1]

    def average(self, rows: Tensor) -> Tensor:
        """Returns the mean, float32 (D,), of the features of views, (V, D).

        Raises:
            NoAnswer: if it is not finite.
        """
        return finite(rows.mean(0))

    def features(self, rows: Tensor, file: str, views: Views, seconds: float) -> Features:
        """Returns the features of a video, from those of its views, float32 (V, D)."""
        row = (views.start, views.start + views.duration, self.average(rows))
        return Features(file, (row,), views.damage)

    def about(self, window_s: float | None = None, hop_s: float | None = None) -> dict[str, Any]:
        """Returns what made the features, for the file that holds them: two files whose values are equal go together.

        Args:
            window_s, hop_s: of windows, in seconds; None for whole videos.
        """
        up_to = self._trained.network
        layer = up_to.layer
        return made_by(
            replace(self._trained, network=up_to.network),
            self,
            self._precision,
            self.num_clips if window_s is None or self.clips_are_set else 1,
            layer=layer or f"the input of {up_to.network.logits_layer()}",
            pool=up_to.pool if layer else "the network's own",
            window=window_s,
            hop=hop_s,
        )


def up_to(trained: Trained, layer: str | None, pool: str | None) -> Trained:
    """Returns the network up to a layer; `layer` and `pool` as for `Classifier.features`.

    Raises:
        UsageError: if there is no such layer or pooling, or the network is an exported one.
    """
    if isinstance(trained.network, ExportedNetwork):
        raise UsageError("an exported network has no layers to take features of; give the weights that it comes from")
    if layer is None and pool is not None:
        raise UsageError("--pool needs --layer: without one, features are what the network's own head has pooled")
    if pool not in (None, *POOLS):
        raise UsageError(f"--pool {pool}: it is one of {', '.join(POOLS)}")
    return replace(trained, network=UpTo(trained.network, layer, pool or "avg"))
