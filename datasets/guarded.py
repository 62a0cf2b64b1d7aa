"""Calls a function in other processes, of which any may die: of a call that kills one, that is the result."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset

from softpool3d.datasets.loader import Loader, start_worker, worker_died

Job = TypeVar("Job")
Result = TypeVar("Result")

_PREFETCH = 2  # results that each process has ready


def guarded(
    work: Callable[[Job], Result], jobs: Iterator[Job], processes: int, crashed: Callable[[Job], Result]
) -> Iterator[Result]:
    """Yields what `work` returns for each job, in the order of the jobs, which are read a few ahead.

    Args:
        processes: number of processes; with 0 this one calls, and a job that kills it ends it.
        crashed: returns the result of a job that killed the process which did it. The others are done all the same.
    """
    if not processes:
        yield from map(work, jobs)
        return
    while True:
        sent: deque[Job] = deque()

        def keys(sent: deque[Job] = sent) -> Iterator[Job]:
            for job in jobs:
                sent.append(job)
                yield job

        try:
            for result in _loader(work, keys(), processes):
                sent.popleft()
                yield result
            return
        except RuntimeError as error:
            if not worker_died(error):
                raise
        for job in sent:  # each in a process of its own, to find the one that kills it
            try:
                yield from _loader(work, [job], 1)
            except RuntimeError as error:
                if not worker_died(error):
                    raise
                yield crashed(job)


class _Calls(Dataset):
    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def __getitem__(self, job: Any) -> Any:
        return self._work(job)


def _loader(work: Callable[[Job], Result], jobs: Iterable[Job], processes: int) -> Loader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about more workers than cores: --jobs decides
        return Loader(
            _Calls(work),
            sampler=jobs,
            batch_size=None,
            num_workers=processes,
            prefetch_factor=_PREFETCH,
            collate_fn=_as_it_is,
            worker_init_fn=start_worker,
            generator=torch.Generator(),
        )


def _as_it_is(result: Any) -> Any:
    return result
