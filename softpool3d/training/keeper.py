"""Which weights of a run are kept (the last, the best, the best few), with what scores; and when to stop early."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from softpool3d.config import Config
from softpool3d.datasets.manifest import Manifest
from softpool3d.evaluation.scores import Scores, VideoScores
from softpool3d.runs.checkpoint import save_weights


class Keeper:
    """Writes `last`, `best` and `kept/` of one set of weights into a run's folder.

    Args:
        suffix: a part of the files' names, as `_ema` in best_ema.safetensors.
    """

    def __init__(self, folder: Path, config: Config, classes: tuple[str, ...], suffix: str = "") -> None:
        self.best = folder / f"best{suffix}.safetensors"
        self.last = folder / f"last{suffix}.safetensors"
        self._scores = folder / f"scores{suffix}.npz"
        self._kept = folder / f"kept{suffix}"
        self._config, self._classes = config, classes
        self._state: dict[str, Any] = {"best": [], "without": 0}  # best: [key, name in kept/], best first

    @property
    def top1(self) -> float:
        """The validation top-1 of the best weights so far; -inf before the first evaluation."""
        return self._state["best"][0][0][-2] if self._state["best"] else -math.inf

    @property
    def mean_average_precision(self) -> float:
        """The validation mAP of the best weights so far, where clips have several labels."""
        return self._state["best"][0][0][0] if self._state["best"] else -math.inf

    def patience_is_over(self) -> bool:
        """Whether the last train.patience evaluations were no better than the best before; False if it is 0."""
        return 0 < self._config.train.patience <= self._state["without"]

    def offer(self, weights: dict[str, Tensor], scores: Scores, name: str, write: bool) -> bool:
        """Writes evaluated weights; returns whether they are the best so far.

        Weights are ranked by top-1, then by loss; where clips have several labels, by mAP before both. Every process
        has to call it.

        Args:
            name: the file's name in kept/, where train.keep_best is more than one.
            write: whether this process writes the files.
        """
        key = [scores.accuracy(), -scores.loss()]
        if scores.multi_label:
            key.insert(0, scores.mean_average_precision())
        ranked = sorted([*self._state["best"], [key, name]], key=lambda entry: entry[0], reverse=True)
        ranked = ranked[: self._config.train.keep_best]
        better = ranked[0][1] == name
        if write:
            save_weights(self.last, weights, self._config, self._classes)
            if better:
                save_weights(self.best, weights, self._config, self._classes)
            self._keep(weights, name, [kept for _, kept in ranked])
        self._state = {"best": ranked, "without": 0 if better else self._state["without"] + 1}
        return better

    def write_scores(self, scores: Scores, manifest: Manifest, split: str, views: tuple[int, int]) -> None:
        """Writes the best weights' scores of a split, for each of its clips.

        Args:
            views: how many clips of each video, and crops of each clip, were averaged.
        """
        data, (num_clips, num_crops) = self._config.data, views
        about = {"dataset": data.dataset, "split": split, "weights": str(self.best), "num_clips": num_clips}
        about |= {"num_crops": num_crops, "average": self._config.test.average, "spacing": data.test_spacing}
        VideoScores.of(scores, manifest.clips, self._classes, about).save(self._scores)

    def _keep(self, weights: dict[str, Tensor], name: str, names: list[str]) -> None:
        if self._config.train.keep_best == 1:
            return
        if name in names:
            save_weights(self._kept / f"{name}.safetensors", weights, self._config, self._classes)
        for file in self._kept.glob("*.safetensors"):
            if file.stem not in names:
                file.unlink()

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state
