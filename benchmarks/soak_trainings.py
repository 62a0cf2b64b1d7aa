"""The soak's trainings: killed, stopped or left without a disk, they end with the bits of one that was not."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from shared import family, started

from softpool3d.runs.checkpoint import load_state, load_weights

ROOT = Path(__file__).parents[1]
_PATIENCE_S = 300.0
_DISK_MIB = 64
_SMALL = ["--cfg", "r3d_softpool", "--resume", "auto", "device=cpu", "data.motion_clips=[16,8,8]", "data.num_workers=0"]
_SMALL += ["model.width=4", "model.dropout=0.5", "train.batch_size=4", "train.epochs=3", "test.num_clips=1"]
_SMALL += ["train.timeout_minutes=1", "checkpoint.every_minutes=1e-9"]


@dataclass(frozen=True)
class Training:
    settings: list[str]
    processes: int = 1


@dataclass(frozen=True)
class _End:
    """How a process ended.

    told: what it printed on standard error.
    struck: whether the accident came before the end.
    """

    code: int
    seconds: float
    told: str
    struck: bool


_GRIDS = ["train.multigrid.short_cycle=true", "train.multigrid.long_shapes=[[0.5,0.7071],[1,1]]"]
_GRIDS += ["train.multigrid.long_cycles=[2]", "train.batch_size=2"]
TRAININGS = {
    "all that a run keeps": Training(["train.ema=0.9", "train.precise_norm=2", "train.mixup=0.8", "train.repeats=2"]),
    "multigrid": Training(_GRIDS),
    "two processes": Training(["train.global_batch=16", "train.ema=0.9"], processes=2),
}
TIMES = ("seconds", "clips_per_second", "waiting_for_data")  # columns of metrics.csv that differ each time


def rows(folder: Path) -> list[dict[str, str]]:
    """Returns what a run's metrics.csv says, without the times."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in TIMES and not k.endswith("_ms")} for row in csv.DictReader(file)
        ]


def differences(one: Path, other: Path) -> list[str]:
    """Returns what two runs do not have in common, to the bit: losses, weights, all that a checkpoint keeps."""
    kept = [_kept(folder) for folder in (one, other)]
    names = dict.fromkeys([*kept[0], *kept[1]])
    return [name for name in names if not _same(*(values.get(name) for values in kept))]


def _kept(folder: Path) -> dict[str, object]:
    """Returns the values of a run by name."""
    state = load_state(folder / "last" / "checkpoint.pt")
    best = load_weights(folder / "best.safetensors").state
    parts = {"model": state["model"], "parts": state["parts"], "best": best, "rows": rows(folder)}
    leaves, _ = torch.utils._pytree.tree_flatten_with_path(parts)
    return {torch.utils._pytree.keystr(path): value for path, value in leaves}


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


def soak_trainings(
    accidents: int, seed: int, ended: Callable[[], bool], say: Callable[[str], None]
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Makes so many accidents happen to trainings of each kind, in turns, and compares each that comes to its end with
    one that was left alone.

    Returns:
        How often each accident happened to each kind, and what went wrong, as sentences.
    """
    rng, done, faults = np.random.default_rng(seed), {of: Counter() for of in TRAININGS}, []
    with tempfile.TemporaryDirectory() as name, _disk(Path(name) / "disk") as (disk, is_small):
        seconds = {}
        for of, training in TRAININGS.items():
            whole = _run(training, Path(name) / of)
            if whole.code != 0:
                raise AssertionError(whole.told)
            seconds[of] = whole.seconds

        def compare(of: str) -> None:
            note(of, _unlike(TRAININGS[of], disk / of, Path(name) / of))

        def note(where: str, wrong: list[str]) -> None:
            for what in wrong:
                faults.append(f"{where}: {what}")
                say(faults[-1])

        while not ended() and (left := [of for of, happened in done.items() if happened.total() < accidents]):
            for of in left:
                training = TRAININGS[of]
                kinds = {**ACCIDENTS, **(_OF_SEVERAL if training.processes > 1 else {})}
                kinds |= _ON_A_SMALL_DISK if is_small else {}
                kind = list(kinds)[done[of].total() % len(kinds)]
                moment = float(rng.uniform(0.4, 1.1)) * seconds[of]
                end = _run(training, disk / of, kinds[kind], moment)
                done[of][kind] += end.struck
                note(f"{of}, {kind} after {moment:.1f} s", _wrong(training, end))
                if end.code == 0:
                    compare(of)
        for of in TRAININGS:
            compare(of)
    return {of: dict(happened) for of, happened in done.items()}, faults


def _run(training: Training, output: Path, accident: Accident | None = None, moment: float = 0.0) -> _End:
    """Begins a training or goes on with it, lets an accident happen after so many seconds, and waits for the end."""
    command = ["-m", "softpool3d", "train", *_SMALL, *training.settings, f"output={output}"]
    if training.processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={training.processes}"]
        command = ["-m", *torchrun, *command]
    output.mkdir(exist_ok=True)
    began = time.monotonic()
    process = started(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    mend, struck = None, False
    if accident is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is None:
            mend, struck = accident(process, output), True
    try:
        _, told = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        _killed(process, output)
        _, told = process.communicate()
        told += f"\nTraceback: it hung for {_PATIENCE_S:.0f} s"
    finally:
        if mend is not None:
            mend()
    return _End(process.returncode, time.monotonic() - began, told, struck)


def _wrong(training: Training, end: _End) -> list[str]:
    """Returns what a training said that it should not have said, or should have."""
    # torchrun shows a traceback of its own where a process failed
    trace = "Traceback" if training.processes == 1 else f'File "{ROOT}/(softpool3d|datasets|models|tools)/|it hung'
    if re.search(trace, end.told):
        return [end.told]
    # the last two are torchrun's words
    if end.code == 1 and not re.search("error: |SignalException|SIGKILL", end.told):
        return [f"no word of why it ended: {end.told}"]
    return []


def _unlike(training: Training, output: Path, whole: Path) -> list[str]:
    """Lets the training in `output` end, and returns how it differs from the whole one. Then it is removed."""
    end = _run(training, output)
    runs = [summary.parent for summary in output.glob("*/summary.json")]
    if end.code != 0 or len(runs) != 1:
        return [f"exit code {end.code}, {len(runs)} runs: {end.told}"]
    (reference,) = [summary.parent for summary in whole.glob("*/summary.json")]
    wrong = [f"not the bits of a whole run: {name}" for name in differences(runs[0], reference)[:3]]
    wrong += [f"left over: {path}" for path in output.rglob(".*") if path.name != ".lock"]
    for run in output.iterdir():
        shutil.rmtree(run)
    return wrong


# --- accidents --------------------------------------------------------------------------------------------------------

# is given the process and the folder of its runs; returns what mends it after the process's end
Accident = Callable[[subprocess.Popen, Path], Callable[[], None] | None]


def _killed(process: subprocess.Popen, _: Path) -> None:
    for number in family(process.pid):  # torchrun puts what it starts into sessions of their own
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def _lost_first(process: subprocess.Popen, _: Path) -> None:
    """Kills torchrun, which was started."""
    process.kill()


def _told_to_stop(process: subprocess.Popen, _: Path) -> None:
    process.send_signal(signal.SIGTERM)


def _ctrl_c(process: subprocess.Popen, _: Path) -> None:
    os.killpg(process.pid, signal.SIGINT)


def _lost_one(process: subprocess.Popen, _: Path) -> None:
    """Kills the last process that torchrun started."""
    with suppress(ProcessLookupError):
        os.kill(family(process.pid)[-1], signal.SIGKILL)


def _full_disk(process: subprocess.Popen, output: Path) -> Callable[[], None]:
    filler = output.parent / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1))
    return filler.unlink


def _read_only(process: subprocess.Popen, output: Path) -> Callable[[], None]:
    """Nothing can be created or renamed in the folders, which for root needs more than their permissions."""
    folders = [path for path in [output, *output.rglob("*")] if path.is_dir()]
    _allow(folders, writing=False)
    return lambda: _allow(folders, writing=True)


def _allow(folders: list[Path], writing: bool) -> None:
    if os.geteuid() == 0:
        subprocess.run(["chattr", "-i" if writing else "+i", *map(str, folders)], check=True)
    else:
        for folder in folders:
            folder.chmod(0o755 if writing else 0o555)


ACCIDENTS = {
    "SIGKILL": _killed,
    "SIGTERM": _told_to_stop,
    "Ctrl-C": _ctrl_c,
    "read-only folder": _read_only,
}
_OF_SEVERAL = {"one process lost": _lost_one, "torchrun lost": _lost_first}
_ON_A_SMALL_DISK = {"full disk": _full_disk}


@contextmanager
def _disk(place: Path) -> Iterator[tuple[Path, bool]]:
    """Yields a folder on a disk of its own, and whether it is one: only root may make a disk."""
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "none", place], capture_output=True
        ).returncode
    )
    (place / "runs").mkdir()
    try:
        yield place / "runs", mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", place], check=True)
