"""Runs many files through a network: workers decode while it runs, and a batch may hold clips of several files."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softpool3d.datasets.loader import Loader, start_worker, worker_died
from softpool3d.datasets.manifest import Clip
from softpool3d.inference.trained import Trained
from softpool3d.inference.work import Decoded, Job, Reader, Result, Work

_PREFETCH = 2  # videos that each worker has ready


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
    """Yields the views of each clip, in order. A clip that kills the process which decodes it does not stop the others.

    Args:
        jobs: number of processes; with 0 this process decodes, and such a clip ends it.
    """
    if not jobs:
        yield from map(reader.__getitem__, clips)
        return
    while True:
        sent: deque[Clip] = deque()

        def keys(sent: deque[Clip] = sent) -> Iterator[Clip]:
            for clip in clips:
                sent.append(clip)
                yield clip

        try:
            for decoded in _loader(reader, keys(), jobs):
                sent.popleft()
                yield decoded
            return
        except RuntimeError as error:
            if not worker_died(error):
                raise
        for clip in sent:  # each in a process of its own, to find the one that kills it
            try:
                yield from _loader(reader, [clip], 1)
            except RuntimeError as error:
                if not worker_died(error):
                    raise
                yield Decoded.crashed(clip)


def _loader(reader: Reader, clips: Iterable[Clip], jobs: int) -> Loader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about more workers than cores: --jobs decides
        return Loader(
            reader,
            sampler=clips,
            batch_size=None,
            num_workers=jobs,
            prefetch_factor=_PREFETCH,
            collate_fn=_as_it_is,
            worker_init_fn=start_worker,
            generator=torch.Generator(),
        )


def _as_it_is(decoded: Decoded) -> Decoded:
    return decoded
