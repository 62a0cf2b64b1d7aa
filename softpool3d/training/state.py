"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass
class State:
    """The fields of `last/checkpoint.pt`. `model` and `parts` are filled in when it is saved."""

    classes: list[str]
    epoch: int = 0  # epochs that are finished
    clips: int = 0  # of the current epoch, done by all processes
    train_clips: int | None = None  # clips of the training split
    meter: Tensor | None = None  # sums over the clips done: see Meter; saved: those of each process, (processes, 3)
    steps: int = 0  # batches done, of the whole run
    rows: int = 0  # of metrics.csv
    reported: int = 0  # `steps` when the last of those rows was written
    lr: float = 0.0  # of the last update
    seconds: float = 0.0  # the run's time so far
    cpu_seconds: float = 0.0  # of the first process, its threads together, without the loader's workers
    random: list[dict[str, Any]] = field(default_factory=list)  # each process's random state
    bad: dict[str, dict[str, Any]] = field(default_factory=dict)  # split -> unreadable files: path -> index, reason
    processes: int = 1
    update_size: int = 0  # clips of an update
    config: dict[str, Any] | None = None
    model: dict[str, Tensor] | None = None
    parts: dict[str, Any] | None = None  # name -> state of the optimiser and whatever else changes as the run goes on

    @classmethod
    def of(cls, saved: dict[str, Any]) -> State:
        """Returns the state that a checkpoint holds."""
        return cls(**{field.name: saved[field.name] for field in fields(cls) if field.name in saved})
