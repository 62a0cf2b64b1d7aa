"""Trainings in processes of their own that start at once: this one has all imported that they need, and forks.

Reads a job a line from stdin, answers with the exit codes of its processes:

    {"overrides": [...], "resume": FOLDER or null, "processes": 1, "missing": 0, "at": [RANK, N, SIGNAL, NAME],
     "after": [RANK, SECONDS, SIGNAL], "nan": [STEP, ...], "nan_of": RANK or null, "on_device": false, "log": PATH}

`at`: a process is sent a signal at the n-th of the points before and after what changes its state or the disk, or with
a name, as "evaluate", before and after that alone. `after`: at any moment. `nan`: batches whose loss is NaN, by their
number in this process, the first being 0; with `nan_of`, those of one process alone. `on_device`: the verdicts on
updates stay on the device, as on a GPU, until three wait.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import av  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import torch
import torch.utils.tensorboard  # noqa: F401
import torchmetrics.functional.classification  # noqa: F401
from torch.distributed import TCPStore

from softpool3d.config_file import load_config
from softpool3d.errors import SoftPool3dError
from softpool3d.runs.run import Run
from softpool3d.training import guard, setup, trainer


class Network(torch.nn.Sequential):
    def stages(self) -> dict[str, list[torch.nn.Module]]:
        return {"stem": [self[0]]}


def network(config, num_classes: int) -> Network:
    """Small; with batch norm only if its width is 8, so that others learn the same in any number of processes."""
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm3d(4) if config.model.width == 8 else torch.nn.Identity()
    return Network(
        torch.nn.Conv3d(3, 4, 3, stride=4),
        norm,
        torch.nn.ReLU(),
        torch.nn.Dropout(config.model.dropout),
        torch.nn.AdaptiveAvgPool3d((1, 4, 4)),
        torch.nn.Flatten(),
        torch.nn.Linear(64, num_classes),
    )


def signal_at(number: int, signal: int, only: str | None = None) -> None:
    passed = 0

    def point() -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal)

    def around(owner: object, name: str) -> None:
        work = getattr(owner, name)

        def watched(*arguments, **options):
            point()
            result = work(*arguments, **options)
            point()
            return result

        setattr(owner, name, watched)

    write = Path.write_bytes

    def half_then_all(path: Path, content: bytes) -> int:
        write(path, content[: len(content) // 2])
        point()
        return write(path, content)

    if only is None:
        Path.write_bytes = half_then_all
    for owner, name in ((os, "fsync"), (os, "replace"), (trainer.Meter, "add"), (trainer, "evaluate"), (Run, "log")):
        if only in (None, name):
            around(owner, name)


def poison(numbers: list[int]) -> None:
    """The losses of these batches become NaN."""
    build, batch = setup.build_loss, itertools.count()

    def poisoned(*arguments):
        criterion = build(*arguments)
        return lambda *given: criterion(*given) * (float("nan") if next(batch) in numbers else 1)

    setup.build_loss = poisoned


def leave_verdicts_on_the_device() -> None:
    """As on a GPU; a CPU's fused optimisers skip updates, too."""
    answers = guard.LossGuard._answers_on_device

    def on_any_device(self, optimizer: torch.optim.Optimizer) -> bool:
        accelerator = self._accelerator
        self._accelerator = SimpleNamespace(device=torch.device("cuda"), scaler=None)
        try:
            return answers(self, optimizer)
        finally:
            self._accelerator = accelerator

    guard.LossGuard._answers_on_device = on_any_device
    guard._UNREAD = 3


def child(job: dict, rank: int) -> int:
    log = os.open(f"{job['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if job["processes"] > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["processes"]))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]))
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    if job["at"] and job["at"][0] == rank:
        signal_at(*job["at"][1:])
    setup.build_model = network
    if job["on_device"]:
        leave_verdicts_on_the_device()
    if job["nan"] and job["nan_of"] in (None, rank):
        poison(job["nan"])
    torch.set_num_threads(1)
    try:
        if job["resume"]:
            run, config = Run.open(job["resume"], job["overrides"])
        else:
            run, config = None, load_config("r3d_softpool", job["overrides"])
        trainer.train(config, run)
        code = 0
    except SoftPool3dError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main() -> None:
    for line in sys.stdin:
        job = {"processes": 1, "missing": 0, "resume": None, "at": None, "after": None, **json.loads(line)}
        job = {"nan": [], "nan_of": None, "on_device": False, **job}
        pids, meeting, (ports, told) = [], None, os.pipe()
        for rank in range(job["processes"] - job["missing"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                job["port"] = int(os.read(ports, 5))
                os._exit(child(job, rank))
        if job["processes"] > 1:
            # Held here, as torchrun holds the store of its processes: a port that is free, and stays theirs. Opened
            # after the forks, because it has a thread: a process forked beside it may inherit a lock that is held.
            meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(told, (b"%05d" % (meeting.port if meeting else 0)) * len(pids))
        if job["after"]:
            rank, seconds, signal = job["after"]
            time.sleep(seconds)
            os.kill(pids[rank], signal)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        del meeting  # and its thread, before the next job's forks
        os.close(ports)
        os.close(told)
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
