"""Work on many files in processes of their own, which die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import wait

from videos import write_numbered

from softpool3d.datasets import parallel
from softpool3d.inference import work


def whose(job: int) -> int:
    return os.getpid()


def test_work_goes_on_after_a_worker_died_that_had_nothing_to_do(monkeypatch):
    """Between two files; nothing was running that could have told. It was waited for for ever, at full speed."""
    monkeypatch.setattr(parallel, "wait", lambda futures, return_when: wait(futures))
    done = []
    for job, worker in parallel.each(whose, range(4), "", workers=1):
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
        while not os.path.exists(mark):  # else the pool may break before job 1 has had its first try
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_costs_the_file_that_it_dies_of_and_no_other(tmp_path):
    jobs = [(number, str(tmp_path / "mark")) for number in range(4)]
    results = {number: result for (number, _), result in parallel.each(killed_once, jobs, "", workers=2)}
    assert isinstance(results.pop(2), parallel.Crashed) and results == {0: 0, 1: 1, 3: 3}


def test_classify_names_the_file_that_a_worker_is_killed_over(run, tmp_path, monkeypatch):
    read = work.Reader.__call__

    def killed(reader, clip):
        if clip.path.endswith("bad.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(reader, clip)

    monkeypatch.setattr(work.Reader, "__call__", killed)  # in the workers, which are forked
    files = [write_numbered(tmp_path / f"{name}.mp4", 20) for name in ("one", "bad", "two")]
    result = run("classify", *files, "--jobs", "1")
    assert result.returncode == 1 and [line.split()[-1] for line in result.stdout.splitlines()] == [
        str(files[0]),
        str(files[2]),
    ]
    assert f"error: cannot read {files[1]}: the process that decoded it died" in result.stderr
