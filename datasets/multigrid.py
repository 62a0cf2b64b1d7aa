"""Multigrid training (Wu et al., CVPR 2020, arXiv 1912.00998): batches of many small clips and of few large ones take
turns. Each costs about as much as a usual one, so that an epoch of small clips is cheaper."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from softpool3d.config import MultigridConfig


class Grid(NamedTuple):
    """The frames and the side of training clips, as shares of the usual ones. They show the same seconds of the video
    and the same part of the picture, more coarsely."""

    frames: float = 1.0
    crop: float = 1.0

    @property
    def clips(self) -> int:
        """How many of them cost about as much as a usual one."""
        return max(round(1 / (self.frames * self.crop**2)), 1)


@dataclass(frozen=True)
class Multigrid:
    """Which grid an update's clips have.

    Args:
        short_crops: the crops of the short cycle: one update after another has these, then its long cycle's own.
        long_shapes: the grids of a long cycle, each for as many updates as the others, coarse ones first.
        long_cycles: the epochs in which the long cycles end, one after another. Then clips are as usual.
    """

    short_crops: tuple[float, ...] = ()
    long_shapes: tuple[Grid, ...] = ()
    long_cycles: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: MultigridConfig) -> Multigrid:
        """As `train.multigrid` says."""
        return cls(
            tuple(config.short_crops) if config.short_cycle else (),
            tuple(Grid(*shape) for shape in config.long_shapes),
            tuple(config.long_cycles),
        )

    @functools.cached_property
    def spans(self) -> list[tuple[float, Grid]]:
        """What clips are like until which epoch, without the short cycle; after the last, they are as usual."""
        # an update of a grid takes grid.clips times as many of the epoch's clips
        shares = [sum(grid.clips for grid in self._turns(shape)) for shape in self.long_shapes]
        return [
            (begin + (end - begin) * sum(shares[: place + 1]) / sum(shares), shape)
            for begin, end in itertools.pairwise((0, *self.long_cycles))
            for place, shape in enumerate(self.long_shapes)
        ]

    def grid(self, epochs: float, update: int) -> tuple[Grid, int]:
        """Of an update that begins so many epochs into the run, as number `update` of its epoch: its clips, and what
        the learning rate is multiplied by: that of the long cycle, whose batches stay large for long (section 3.3)."""
        base = next((grid for end, grid in self.spans if epochs < end), Grid())
        turns = self._turns(base)
        return turns[update % len(turns)], base.clips

    def grids(self, epochs: int) -> set[Grid]:
        """All that a run of so many epochs has."""
        bases = list(self.long_shapes) if self.long_cycles else []
        if not self.long_cycles or self.long_cycles[-1] < epochs:
            bases.append(Grid())
        return {grid for base in bases for grid in self._turns(base)}

    def _turns(self, base: Grid) -> list[Grid]:
        return [Grid(base.frames, min(crop, base.crop)) for crop in self.short_crops] + [base]
