"""Checks for which a run is refused before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from softpool3d.config import Config
from softpool3d.datasets.batches import TrainBatches
from softpool3d.datasets.manifest import Manifest
from softpool3d.datasets.overview import few
from softpool3d.datasets.sampling import share_of
from softpool3d.errors import UsageError
from softpool3d.models import check_clip


def check_size(config: Config, batches: TrainBatches, train: Manifest) -> None:
    """Raises UsageError if an update is larger than the training split, or clips are too small for the network."""
    grids = batches.multigrid.grids(config.train.epochs)
    most = max(grid.clips for grid in grids)
    if batches.update_size * most > len(train):
        repeats = config.train.repeats
        parts = "train.batch_size, train.accumulate, train.global_batch or the number of processes"
        of_multigrid = (
            f" ({most} times as many as usual, with the smallest clips of train.multigrid)" if most > 1 else ""
        )
        raise UsageError(
            f"train.batch_size={config.train.batch_size}: an update has {batches.update_size * most * repeats} clips"
            f"{of_multigrid} and the training split {len(train) * repeats}; lower {parts}"
        )
    for grid in grids:
        try:
            check_clip(
                config.model.name,
                share_of(config.data.num_frames, grid.frames),
                share_of(config.data.crop_size, grid.crop),
            )
        except UsageError as error:
            raise UsageError(f"train.multigrid: {error}") from None


def check_order(source: object, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Raises UsageError for the same classes in another order: the network's answers would name wrong classes."""
    if tuple(theirs) != tuple(ours) and sorted(theirs) == sorted(ours):
        at = next(n for n, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
        raise UsageError(
            f"{source} has the data set's classes in another order: number {at} is {theirs[at]!r} there and "
            f"{ours[at]!r} here; put the names in that order into the data set's classes.txt"
        )


def check_count(source: object, state: dict[str, Any], train: Manifest, force: bool) -> None:
    """Raises UsageError for an epoch that was interrupted with other training clips: some would come twice or never."""
    before = state.get("train_clips", len(train))
    if state["clips"] and before != len(train) and not force:
        raise UsageError(
            f"{source} is from the middle of an epoch of {before} training clips, and there are {len(train)} now: "
            "bring the data back to what it was, or add --force-resume (some of its clips then come twice or never)"
        )


def check_classes(source: object, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Raises UsageError for a checkpoint of other classes."""
    if tuple(theirs) != tuple(ours):
        raise UsageError(
            f"{source} was trained on {len(theirs)} classes ({few(theirs)}) and the data set has {len(ours)} "
            f"({few(ours)})"
        )
