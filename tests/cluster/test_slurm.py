"""examples/cluster/train.sbatch on a SLURM of two nodes."""

import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gate import SLURM, lacking_for_slurm
from soak_trainings import rows
from watched import (
    CLIPS,
    EPOCHS,
    SETTINGS,
    UPDATE,
    assert_each_clip_comes_once,
    batches,
    environment,
    last_start,
    until,
)

from softpool3d.runs.checkpoint import load_state
from softpool3d.runs.lock import lock, release

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "cluster" / "train.sbatch"


class Slurm:
    """A cluster whose head runs commands, in a folder."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work, self.noted, self.jobs = folder, work, work / "noted", 0
        self.environment = {**environment(self.noted), "SLURM_CONF": str(folder / "slurm.conf")}
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [SLURM, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        said = self.process.stdout.readline()
        assert said == "ready\n", said + (folder / "log").read_text()

    def __call__(self, *command: object) -> str:
        pid = self.process.pid
        inside = ["nsenter", f"--target={pid}", "--mount", "--uts", "--net", f"--pid=/proc/{pid}/ns/pid_for_children"]
        command = [*inside, f"--wd={self.work}", *map(str, command)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        return re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))[1]

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture
def slurm(tmp_path):
    if lacking_for_slurm():
        pytest.skip(lacking_for_slurm())
    (tmp_path / "work").mkdir()
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        cluster = Slurm(Path(folder), tmp_path / "work")
        yield cluster
        cluster.stop()


def never_stopped(folder: Path) -> int:
    """Trains in two processes at once; returns torchrun's exit code."""
    command = ["torchrun", "--standalone", "--nproc-per-node=2", "--no-python", "softpool3d", "train"]
    with (folder / "whole.log").open("w") as log:
        command += [*SETTINGS, "name=whole"]
        return subprocess.call(command, cwd=folder, env=environment(folder / "noted"), stdout=log, stderr=log)


def test_a_job_goes_on_until_it_is_cancelled(slurm, tmp_path):
    """A process is killed, the time is over, a node falls silent: it goes on from what was saved, with the losses of a
    run that was never stopped. Cancelled, it saves its state, ends, and is not queued again."""
    noted, begun, run = slurm.noted, time.monotonic(), slurm.work / "runs" / "job"
    (noted / "slow").touch()
    command = ["sbatch", "--parsable", "--nodes=2", "--gpus-per-node=1", "--cpus-per-task=1", "--time=60", SCRIPT]
    job = slurm(*command, *SETTINGS, "name=job")
    log = slurm.work / f"slurm-{job}.out"

    def wait(condition):
        until(condition, log)

    def trains_again(after, updates=2):
        """Waits for that many updates of both nodes in a later start; returns that start's batches."""
        wait(lambda: {b["host"] for b in batches(noted) if b["start"] > after} == {"node1", "node2"})
        wait(lambda: len(last_start(noted)) >= 2 * updates)
        return last_start(noted)

    def begins(noted):
        """How many clips the run had done before the first of these batches; `ends`: after the last."""
        return min(batch["epoch"] * CLIPS + batch["done"] for batch in noted)

    def ends(noted):
        return max(batch["epoch"] * CLIPS + batch["done"] for batch in noted) + UPDATE

    def saved():
        state = load_state(run / "last" / "checkpoint.pt")
        return state["epoch"] * CLIPS + state["clips"]

    # a process of the second node is killed: torchrun starts all again
    first = trains_again(after=0)
    pid = next(path.name for path in noted.glob("node2-*")).removeprefix("node2-")
    slurm("srun", f"--jobid={job}", "--overlap", "--nodelist=node2", "bash", "-c", f"kill -KILL {pid}")
    second = trains_again(after=first[0]["start"])

    # SLURM looks at its clock every 30 s: time for a run that is never stopped
    whole = ThreadPoolExecutor(1).submit(never_stopped, tmp_path)

    # the time is over: saved, queued again, and gone on with where it was
    slurm("scontrol", "update", f"jobid={job}", f"timelimit={int(time.monotonic() - begun) // 60 + 3}")
    wait(lambda: slurm.state(job) == "PENDING")
    slurm("scontrol", "update", f"jobid={job}", "timelimit=60")
    assert "stopped; go on with: softpool3d train --resume runs/job" in log.read_text()
    stopped = saved()
    assert stopped == ends(last_start(noted))
    third = trains_again(after=second[0]["start"])
    assert begins(third) == stopped

    # the second node falls silent
    slurm("bash", "-c", f"ip link set node2 down && kill -KILL $(cat {slurm.folder}/node2.pid)")
    slurm("scontrol", "update", "nodename=node2", "state=down", "reason=silent")
    wait(lambda: slurm.state(job) == "PENDING")
    slurm(SLURM, slurm.folder, "node", "2")
    fourth = trains_again(after=third[0]["start"], updates=5)
    assert stopped <= begins(fourth) <= ends(third)

    slurm("scancel", job)
    wait(lambda: slurm.state(job) == "CANCELLED" and not slurm("squeue", "--noheader"))
    assert saved() == ends(last_start(noted))
    assert "softpool3d" not in slurm("ps", "ax")
    lock(run)
    release()
    slurm.stop()
    assert str(slurm.folder) not in subprocess.run(["ps", "ax"], capture_output=True, text=True).stdout

    assert_each_clip_comes_once(noted, saved() // CLIPS)
    assert [path.name for path in run.parent.iterdir()] == ["job"]
    assert whole.result() == 0, (tmp_path / "whole.log").read_text()
    assert 0 < len(rows(run)) < EPOCHS and rows(run) == rows(tmp_path / "runs" / "whole")[: len(rows(run))]
