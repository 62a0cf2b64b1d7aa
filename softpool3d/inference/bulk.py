"""Runs many files through a network: workers decode while it runs, and a batch may hold clips of several files."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softpool3d.datasets.guarded import guarded
from softpool3d.datasets.manifest import Clip
from softpool3d.inference.trained import Trained
from softpool3d.inference.work import Decoded, Job, Reader, Result, Work


@dataclass(frozen=True)
class Started:
    """A job that was started.

    run: yields a result for each clip; its second argument is the number of processes that decode.
    about: returns what makes the results.
    """

    run: Callable[[Iterator[Clip], int], Iterator[Result]]
    about: Callable[[], dict[str, Any]]


Engine = Callable[[Trained, Job], AbstractContextManager[Started]]


@contextmanager
def here(trained: Trained, job: Job) -> Iterator[Started]:
    """Starts a job in this process: the engine of one machine."""
    work = job.work(trained)
    yield Started(partial(run_files, work), work.about)


def run_files(work: Work, clips: Iterable[Clip], jobs: int) -> Iterator[Result]:
    """Yields a result for each clip, in the order of the clips, as soon as it is known.

    Args:
        clips: read lazily, a few ahead of the results.
        jobs: number of processes that decode; with 0 this process decodes, between the network's batches.
    """
    predictor = work.predictor
    clips_left: deque[Tensor] = deque()  # views that the network has not seen yet
    known: deque[tuple[Tensor, float]] = deque()  # outputs for the views that it has seen, and seconds of each
    files: deque[Decoded] = deque()  # decoded, but not yet yielded as results

    def run(rest: bool) -> None:
        """Runs the views that wait, in full batches; with `rest` also the last, smaller batch."""
        while (count := sum(map(len, clips_left))) and (rest or count >= predictor.batch.next):
            size = min(predictor.batch.next, count)
            batch = _take(clips_left, size)
            began = time.perf_counter()
            rows = predictor(batch)
            seconds = (time.perf_counter() - began) / size
            known.extend((row, seconds) for row in rows)

    def results() -> Iterator[Result]:
        while files:
            count = files[0].views.count if files[0].views is not None else 0
            if len(known) < count:
                return
            rows = [known.popleft() for _ in range(count)]
            yield work.result(files.popleft(), [row for row, _ in rows], sum(seconds for _, seconds in rows))

    for decoded in decode(work.reader, iter(clips), jobs):
        files.append(decoded)
        if decoded.views is not None:
            clips_left.append(decoded.views.clips)
            run(rest=False)
        yield from results()
    run(rest=True)
    yield from results()


def _take(waiting: deque[Tensor], count: int) -> Tensor:
    """Removes the first `count` clips from the queue and returns them."""
    parts = []
    while count:
        first = waiting.popleft()
        parts.append(first[:count])
        if len(first) > count:
            waiting.appendleft(first[count:])
        count -= len(parts[-1])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def decode(reader: Reader, clips: Iterator[Clip], jobs: int) -> Iterator[Decoded]:
    """Yields the views of each clip, in order; `jobs` and clips that kill their decoder as in `guarded`."""
    return guarded(reader, clips, jobs, Decoded.crashed)
