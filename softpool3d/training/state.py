"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass
class State:
    """What `last/checkpoint.pt` holds, under the same names. The three at the end are filled in to be saved."""

    classes: list[str]
    epoch: int = 0  # epochs that are finished
    clips: int = 0  # of the epoch that is not, done by all processes
    train_clips: int | None = None  # the training split's
    meter: Tensor | None = None  # sums over the clips done: see Meter
    steps: int = 0  # batches done, of the whole run
    rows: int = 0  # of metrics.csv
    reported: int = 0  # batches that were done when the last of those was written
    lr: float = 0.0  # the last update's
    seconds: float = 0.0  # that the run took so far
    random: list[dict[str, Any]] = field(default_factory=list)  # what each process draws from
    bad: dict[str, dict[str, Any]] = field(default_factory=dict)  # split -> unreadable files: path -> index, reason
    processes: int = 1
    update_size: int = 0  # clips of an update
    config: dict[str, Any] | None = None
    model: dict[str, Tensor] | None = None
    parts: dict[str, Any] | None = None  # name -> state of the optimiser and whatever else changes as the run goes on

    @classmethod
    def of(cls, saved: dict[str, Any]) -> State:
        """Returns what a checkpoint holds of it."""
        return cls(**{field.name: saved[field.name] for field in fields(cls) if field.name in saved})
