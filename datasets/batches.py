"""Which clips make a batch, of which process, in which order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from softpool3d.datasets.multigrid import Grid, Multigrid


class TrainKey(NamedTuple):
    """What a training sample depends on, besides the seed."""

    epoch: int
    index: int  # into the manifest
    grid: Grid = Grid()


class _Update(NamedTuple):
    begin: int  # places in the epoch's order
    end: int
    grid: Grid
    rate: int


class TrainBatches(Sampler):
    """Batches of keys in an order that depends on (seed, epoch) alone; each clip comes once an epoch.

    The epoch's clips are dealt out to as few updates of the optimiser as can be, with sizes at most one apart, or in
    the proportions that `multigrid` gives them. The same clips make an update under any number of processes and
    accumulated steps: each process takes its share of them, in `accumulate` parts.

    Args:
        update_size: clips of an update at most, of all processes and steps together; those of a smaller grid have
            `Grid.clips` times as many.
        accumulate: steps of an update.
    """

    def __init__(
        self,
        count: int,
        update_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        multigrid: Multigrid | None = None,
    ) -> None:
        self.count, self.update_size, self.seed, self.accumulate = count, update_size, seed, accumulate
        self.rank, self.world_size, self.multigrid = rank, world_size, multigrid or Multigrid()
        self.set_position(0)

    def set_position(self, epoch: int, done: int = 0) -> None:
        """The epoch to draw next, and how many of its clips were drawn before an interruption, by all processes."""
        self.epoch, self._done = epoch, done
        whole = self._plan(epoch)
        self._updates = tuple(update for update in whole if update.begin >= done)
        if done and done not in [update.end for update in whole]:  # drawn by updates of another size
            self._updates = self._plan(epoch, done)
        self.first = (len(whole) - len(self._updates)) * self.accumulate

    def steps_in(self, epoch: int) -> int:
        """Steps of a whole epoch."""
        return len(self._plan(epoch)) * self.accumulate

    def done(self, step: int) -> int:
        """Clips of the epoch that all processes have drawn after `step` steps of it, whole updates alone."""
        number = (step - self.first) // self.accumulate
        return self._updates[number - 1].end if number else self._done

    def weight(self, step: int) -> float:
        """What the mean loss of this process's step counts for, so that the mean over the processes of the sum over an
        update's steps is the mean over its clips."""
        update = self._update(step)
        return len(self._share(update, step)) * self.world_size / (update.end - update.begin)

    def rate(self, step: int) -> int:
        """What the learning rate of the step's update is multiplied by."""
        return self._update(step).rate

    def __len__(self) -> int:
        """Steps from the position on."""
        return len(self._updates) * self.accumulate

    def __iter__(self) -> Iterator[list[TrainKey]]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.count).tolist()
        for step in range(self.first, self.first + len(self)):
            update = self._update(step)
            # no step is empty: where there are fewer clips than processes, some draw one that has no weight
            places = self._share(update, step) or [update.begin]
            yield [TrainKey(epoch, order[place], update.grid) for place in places]

    def _plan(self, epoch: int, done: int = 0) -> tuple[_Update, ...]:
        # without long cycles all epochs are alike, and one plan is kept for them
        epoch = epoch if self.multigrid.long_cycles else 0
        return _plan(self.multigrid, epoch, self.count, done, self.update_size)

    def _update(self, step: int) -> _Update:
        return self._updates[(step - self.first) // self.accumulate]

    def _share(self, update: _Update, step: int) -> range:
        mine = range(update.begin + self.rank, update.end, self.world_size)
        part = step % self.accumulate
        return mine[len(mine) * part // self.accumulate : len(mine) * (part + 1) // self.accumulate]


@functools.lru_cache(maxsize=4)
def _plan(multigrid: Multigrid, epoch: int, count: int, done: int, update_size: int) -> tuple[_Update, ...]:
    """The updates of an epoch from clip `done` on."""
    ends, grids = [0], []
    while done + ends[-1] < count:
        grid, rate = multigrid.grid(epoch + (done + ends[-1]) / count, len(grids))
        grids.append((grid, rate))
        ends.append(ends[-1] + update_size * grid.clips)
    # all a little smaller, rather than a last one of a few clips
    places = [done - (-(count - done) * end // max(ends[-1], 1)) for end in ends]
    bounds = itertools.pairwise(places)
    return tuple(_Update(begin, end, *grid) for (begin, end), grid in zip(bounds, grids, strict=True))


class EvalBatches(Sampler):
    """Every clip once, in order, dealt out to the processes in turn.

    All processes have as many batches, so that they can agree on something after each; the last may be empty.
    """

    def __init__(self, count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        mine, most = range(rank, count, world_size), len(range(0, count, world_size))
        self.batches = [mine[i : i + batch_size] for i in range(0, most, batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(0, index) for index in batch] for batch in self.batches)
