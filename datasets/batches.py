"""Decides which clips make a batch, on which process, and in which order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from softpool3d.datasets.multigrid import Grid, Multigrid


class TrainKey(NamedTuple):
    """All that a training sample depends on, besides the seed."""

    epoch: int
    index: int  # into the manifest
    grid: Grid = Grid()


class _Update(NamedTuple):
    begin: int  # places in the epoch's order
    end: int
    grid: Grid
    rate: int


class TrainBatches(Sampler):
    """Yields batches of keys in an order that depends on (seed, epoch) alone; each clip comes once an epoch.

    An epoch is divided into as few updates of the optimiser as `update_size` allows. Their sizes differ by one clip at
    most, or are in the proportions that `multigrid` gives them. An update has the same clips under any number of
    processes and of accumulated steps:

        an update of 8 clips        0 1 2 3 4 5 6 7
        process 0 of 2, step 0      0   2
                        step 1              4   6
        process 1 of 2, step 0        1   3
                        step 1                5   7

    Args:
        count: clips of the manifest.
        update_size: the most clips of an update, over all processes and steps. An update of a smaller grid may have
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
        """Sets the epoch to draw next; `done` of its clips were drawn by all processes before an interruption."""
        self.epoch, self._done = epoch, done
        whole = self._plan(epoch)
        self._updates = tuple(update for update in whole if update.begin >= done)
        if done and done not in [update.end for update in whole]:  # the interrupted run had updates of another size
            self._updates = self._plan(epoch, done)
        self.first = (len(whole) - len(self._updates)) * self.accumulate

    def steps_in(self, epoch: int) -> int:
        """Returns the number of steps of a whole epoch."""
        return len(self._plan(epoch)) * self.accumulate

    def done(self, step: int) -> int:
        """Returns how many clips of the epoch all processes have drawn after `step` steps, in whole updates."""
        number = (step - self.first) // self.accumulate
        return self._updates[number - 1].end if number else self._done

    def weight(self, step: int) -> float:
        """Returns the factor of the mean loss of this process's step.

        With it, losses that are summed over an update's steps and averaged over the processes are the mean over the
        update's clips.
        """
        update = self._update(step)
        return len(self._share(update, step)) * self.world_size / (update.end - update.begin)

    def rate(self, step: int) -> int:
        """Returns the factor of the learning rate in the step's update."""
        return self._update(step).rate

    def __len__(self) -> int:
        """Returns the number of steps from the position on."""
        return len(self._updates) * self.accumulate

    def __iter__(self) -> Iterator[list[TrainKey]]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.count).tolist()
        for step in range(self.first, self.first + len(self)):
            update = self._update(step)
            # no step is empty: if there are fewer clips than processes, some draw a clip of weight 0
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
    """Returns the updates of an epoch, without its first `done` clips."""
    ends, grids = [0], []
    while done + ends[-1] < count:
        grid, rate = multigrid.grid(epoch + (done + ends[-1]) / count, len(grids))
        grids.append((grid, rate))
        ends.append(ends[-1] + update_size * grid.clips)
    # all updates get a little smaller, instead of the last one much smaller
    places = [done - (-(count - done) * end // max(ends[-1], 1)) for end in ends]
    bounds = itertools.pairwise(places)
    return tuple(_Update(begin, end, *grid) for (begin, end), grid in zip(bounds, grids, strict=True))


class EvalBatches(Sampler):
    """Yields every clip once, in order, dealt out to the processes in turn.

    All processes have the same number of batches, so that they can communicate after each; the last may be empty.
    """

    def __init__(self, count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        mine, most = range(rank, count, world_size), len(range(0, count, world_size))
        self.batches = [mine[i : i + batch_size] for i in range(0, most, batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(0, index) for index in batch] for batch in self.batches)
