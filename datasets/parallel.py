"""Works on many files with all cores: results as they come, a progress bar, and no file that stops the others."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

Job = TypeVar("Job")
Each = Callable[..., Iterator[tuple[Any, Any]]]  # `each`, or what does the same elsewhere


class Crashed(Exception):
    """The result of a job whose process died."""

    def __init__(self) -> None:
        super().__init__("the process that decoded it died: the decoder crashed, memory ran out, or somebody killed it")


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool of spawned processes; they end with this process, or when the block is left."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start)
    processes = pool._processes  # a dict that fills up; gone after shutdown
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        for process in list(processes.values()):  # do not wait for their jobs
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def each(
    work: Callable[[Job], Any], jobs: Sequence[Job], description: str, workers: int | None = None
) -> Iterator[tuple[Job, Any]]:
    """Yields (job, its result or the exception that it raised), in the order in which jobs end.

    Args:
        work: a function of a module, as other processes have to import it. A job whose process dies gives `Crashed`.
        description: what the progress bar says.
        workers: the number of processes; None: one for each core.
    """
    from rich.progress import track

    results = _results(work, list(jobs), workers or cores())
    return iter(track(results, description, total=len(jobs), transient=True))


def _results(work: Callable[[Job], Any], jobs: list[Job], workers: int) -> Iterator[tuple[Job, Any]]:
    jobs = jobs[::-1]
    suspects: list[Job] = []
    while jobs or suspects:
        # after a crash, the jobs that were running go one at a time, to find the one that caused it
        queue, alone = (suspects, True) if suspects else (jobs, False)
        running: dict[Future, Job] = {}
        with process_pool(1 if alone else workers) as pool:
            while queue or running:
                while queue and len(running) < (1 if alone else 2 * workers):
                    job = queue.pop()
                    try:
                        running[pool.submit(work, job)] = job
                    except BrokenProcessPool:
                        queue.append(job)
                        break
                if not running:  # a worker died that had no job: go on with a new pool
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                broken = [f for f in done if isinstance(f.exception(), BrokenProcessPool)]
                for future in set(done) - set(broken):
                    yield running.pop(future), future.exception() or future.result()
                if broken:
                    left = list(running.values())
                    if alone:
                        yield left[0], Crashed()
                    else:
                        suspects = left
                    break


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the parent decides

    def watch() -> None:  # a worker whose parent was killed would wait for work for ever
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
