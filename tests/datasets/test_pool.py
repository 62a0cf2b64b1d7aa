"""Work on many files in processes of their own, which die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import wait

from softpool3d.datasets import pool


def whose(job: int) -> int:
    return os.getpid()


def test_work_goes_on_after_a_worker_died_that_had_nothing_to_do(monkeypatch):
    """Between two files; nothing was running that could have told. It was waited for for ever, at full speed."""
    monkeypatch.setattr(pool, "wait", lambda futures, return_when: wait(futures))
    done = []
    for job, worker in pool.each(whose, range(4), "", workers=1):
        done.append(job)
        if len(done) == 2:
            os.kill(worker, signal.SIGKILL)
            while worker in {child.pid for child in multiprocessing.active_children()}:
                time.sleep(0.01)
    assert sorted(done) == [0, 1, 2, 3]


def killed_once(job: tuple[int, str]) -> int:
    number, mark = job
    if number == 1 and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_costs_the_file_that_it_dies_of_and_no_other(tmp_path):
    jobs = [(number, str(tmp_path / "mark")) for number in range(4)]
    results = {number: result for (number, _), result in pool.each(killed_once, jobs, "", workers=2)}
    assert isinstance(results.pop(2), pool.Crashed) and results == {0: 0, 1: 1, 3: 3}
