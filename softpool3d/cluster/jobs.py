"""Jobs as rows of Ray Data: their number, and what is to be done, pickled."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


def shared_out(jobs: Sequence[Any], most: int, cpus: int) -> Dataset:
    """Returns the jobs in blocks, of which each is one task.

    Args:
        most: jobs of one task.
        cpus: of the cluster; few jobs are shared out so that all of them have some.
    """
    import ray.data

    size = min(most, max(1, len(jobs) // (4 * cpus)))
    rows = [{"number": number, "job": pickle.dumps(job)} for number, job in enumerate(jobs)]
    return ray.data.from_items(rows, override_num_blocks=-(-len(jobs) // size))


def jobs_in(table: pa.Table) -> tuple[list[int], list[Any]]:
    """Returns the numbers of a task's jobs, and the jobs."""
    return table["number"].to_pylist(), [pickle.loads(job) for job in table["job"].to_pylist()]


def results_of(data: Dataset, *more: str) -> Iterator[tuple[Any, ...]]:
    """Yields (number, result, ...) of each job as soon as it is known; `more` names further columns."""
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        columns = [batch[name].to_pylist() for name in ("number", "result", *more)]
        for number, content, *others in zip(*columns, strict=True):
            yield number, pickle.loads(content), *others
