"""A function for each of many jobs, on the machines of a cluster: `each` of datasets/parallel.py, by Ray Data."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softpool3d.cluster.connection import check_identity, connected, identity, our_errors
from softpool3d.cluster.jobs import jobs_in, results_of, shared_out
from softpool3d.datasets.guarded import guarded
from softpool3d.datasets.parallel import Crashed, Each, Job

if TYPE_CHECKING:
    import pyarrow as pa

_TASK = 8  # jobs of one task: what a lost machine costs at most, for each of its cores


@contextmanager
def each_on_ray(address: str | None, folders: Sequence[Path]) -> Iterator[Each]:
    """Yields a function that does jobs on a Ray cluster, in the place of `each`.

    Args:
        address: as for `connected`.
        folders: which every machine has to see at the same path.

    Raises:
        UsageError: if one does not, and as `connected` does.
    """
    with connected(address, [*map(os.path.abspath, folders), os.getcwd()]) as cluster:

        def each(
            work: Callable[[Job], Any], jobs: Sequence[Job], description: str, workers: None = None
        ) -> Iterator[tuple[Job, Any]]:
            from rich.progress import track

            jobs = list(jobs)
            results = _results(work, jobs, cluster.cpus)
            return iter(track(results, description, total=len(jobs), transient=True))

        yield each


def _results(work: Callable[[Job], Any], jobs: list[Job], cpus: int) -> Iterator[tuple[Job, Any]]:
    if not jobs:
        return
    data = shared_out(jobs, _TASK, cpus)
    settings = {"work": work, "folder": os.getcwd(), "wanted": identity()}
    data = data.map_batches(_do, batch_size=None, batch_format="pyarrow", fn_kwargs=settings, num_cpus=1)
    with our_errors():
        for number, result in results_of(data):
            yield jobs[number], result


def _do(table: pa.Table, work: Callable[[Any], Any], folder: str, wanted: str) -> Iterator[dict[str, Any]]:
    check_identity(wanted)
    os.chdir(folder)  # paths may be relative
    numbers, jobs = jobs_in(table)
    results = guarded(partial(_caught, work), iter(jobs), 1, lambda job: Crashed())
    for number, result in zip(numbers, results, strict=True):
        yield {"number": [number], "result": [pickle.dumps(result)]}


def _caught(work: Callable[[Job], Any], job: Job) -> Any:
    """Returns what `work` returns, or the error that it raises."""
    try:
        return work(job)
    except Exception as error:
        return error
