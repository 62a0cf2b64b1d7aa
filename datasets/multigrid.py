"""Multigrid training (Wu et al., CVPR 2020, arXiv 1912.00998): batches of many small clips alternate with batches of
few large ones. All batches cost about the same, so small clips make an epoch cheaper."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from softpool3d.config import MultigridConfig


class Grid(NamedTuple):
    """The size of training clips: their frames and their side, as shares of the usual ones.

    Smaller clips show the same seconds of the video and the same part of the picture, more coarsely.
    """

    frames: float = 1.0
    crop: float = 1.0

    @property
    def clips(self) -> int:
        """How many such clips cost about as much as one of the usual size."""
        return max(round(1 / (self.frames * self.crop**2)), 1)


@dataclass(frozen=True)
class Multigrid:
    """The schedule of grids: which size the clips of each update have.

    Args:
        short_crops: the sides of the short cycle, one for each update in turn; the long cycle's own side comes last.
        long_shapes: the grids of a long cycle, coarse ones first; each is used for the same number of updates.
        long_cycles: the epochs in which the long cycles end, ascending. After the last, clips have the usual size.
    """

    short_crops: tuple[float, ...] = ()
    long_shapes: tuple[Grid, ...] = ()
    long_cycles: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: MultigridConfig) -> Multigrid:
        """Returns the schedule that `train.multigrid` asks for."""
        return cls(
            tuple(config.short_crops) if config.short_cycle else (),
            tuple(Grid(*shape) for shape in config.long_shapes),
            tuple(config.long_cycles),
        )

    @functools.cached_property
    def spans(self) -> list[tuple[float, Grid]]:
        """(epoch in which it ends, grid) for each grid of the long cycles, in order; then clips have the usual size."""
        # an update takes grid.clips times as many clips, so its grid needs a larger share of the cycle
        shares = [sum(grid.clips for grid in self._turns(shape)) for shape in self.long_shapes]
        return [
            (begin + (end - begin) * sum(shares[: place + 1]) / sum(shares), shape)
            for begin, end in itertools.pairwise((0, *self.long_cycles))
            for place, shape in enumerate(self.long_shapes)
        ]

    def grid(self, epochs: float, update: int) -> tuple[Grid, int]:
        """Returns the grid of an update, and the factor of its learning rate.

        The factor is `Grid.clips` of the long cycle, whose batches stay large for long (section 3.3). The short cycle
        does not change the rate.

        Args:
            epochs: where the update begins, in epochs from the run's beginning.
            update: its number in its epoch.
        """
        base = next((grid for end, grid in self.spans if epochs < end), Grid())
        turns = self._turns(base)
        return turns[update % len(turns)], base.clips

    def grids(self, epochs: int) -> set[Grid]:
        """Returns all grids that occur in a run of so many epochs."""
        bases = list(self.long_shapes) if self.long_cycles else []
        if not self.long_cycles or self.long_cycles[-1] < epochs:
            bases.append(Grid())
        return {grid for base in bases for grid in self._turns(base)}

    def _turns(self, base: Grid) -> list[Grid]:
        return [Grid(base.frames, min(crop, base.crop)) for crop in self.short_crops] + [base]
