"""Runs a study: trains what is not finished, several runs at a time, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from rich.console import Console

from softpool3d import __version__
from softpool3d.analysis.folders import MEASURES, RunRecord, read_run
from softpool3d.analysis.study import Trial
from softpool3d.analysis.study_results import Results, deciding
from softpool3d.config import differing
from softpool3d.datasets import read_manifests
from softpool3d.datasets.manifest import Manifest
from softpool3d.errors import SoftPool3dError
from softpool3d.files import write_atomically
from softpool3d.foreign import parse_json
from softpool3d.runs.provenance import FILE as PROVENANCE
from softpool3d.runtime.interrupt import Interrupt, Interrupted

DATA = "data.json"  # in a study's output: what its data sets held when it began
_LOOK_EVERY_S = 2.0  # at the runs' folders, to say where they stand
_END = 2**16  # bytes of a file's beginning and end that stand for its content


class Process(Protocol):
    """What is asked of a run's process, as subprocess.Popen has it."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


@dataclass(frozen=True)
class _Running:
    trial: Trial
    process: Process
    began: float


def run_study(
    trials: list[Trial],
    results: Results,
    console: Console,
    jobs: int = 1,
    start: Callable[[Trial, int], Process] | None = None,
) -> dict[str, str]:
    """Trains the runs that are not finished, `jobs` of them at a time; returns folder -> why its run failed.

    Args:
        results: what is known of finished runs, whose folders may be on another machine; takes up those of this one.
        start: starts a run, given how many run at a time; `start_training` if not given.

    Raises:
        Interrupted: after a signal; the runs that were under way have saved their state.
    """
    say = _line(console)
    failed = unusable(trials, results) | _of_other_data(trials, results)
    for folder, problem in failed.items():
        say(f"not trained: {folder}: {problem}")
    sound = [trial for trial in trials if str(trial.folder) not in failed]
    results.gather(sound)
    left = [trial for trial in sound if trial.config.name not in results.runs]
    waiting, running, looked = list(enumerate(left, 1)), [], 0.0
    with Interrupt() as interrupt, console.status("") as status:
        try:
            while (waiting or running) and not interrupt.requested:
                while waiting and len(running) < jobs:
                    number, trial = waiting.pop(0)
                    say(f"run {number} of {len(left)}: {trial.config.name}")
                    running.append(_Running(trial, (start or start_training)(trial, jobs), time.monotonic()))
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    if problem := _outcome(run, say):
                        failed[str(run.trial.folder)] = problem
                    else:
                        results.gather([run.trial])
                if console.is_terminal and time.monotonic() - looked > _LOOK_EVERY_S:
                    status.update("; ".join(_standing(run.trial) for run in running))
                    looked = time.monotonic()
                time.sleep(0.2)
            if interrupt.requested:
                _stop(running, status)
                raise Interrupted("stopped; the same command goes on where it was", interrupt.requested)
        finally:
            for run in running:
                run.process.kill()
    return failed


def unusable(trials: list[Trial], results: Results) -> dict[str, str]:
    """Returns folder -> why what is known of its run is not a run of this study."""
    problems = ((trial, _problem(trial) or results.problem(trial)) for trial in trials)
    return {str(trial.folder): problem for trial, problem in problems if problem}


def start_training(trial: Trial, jobs: int) -> subprocess.Popen:
    """Starts or goes on with a run, with its share of the cores, its output in a file beside its folder."""
    command = [sys.executable, "-m", "softpool3d", "train"]
    if trial.folder.exists():
        command += ["--resume", str(trial.folder)]
    else:
        command += ["--cfg", str(trial.file), *trial.overrides]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    trial.folder.parent.mkdir(parents=True, exist_ok=True)
    with _log(trial).open("ab") as log:
        # a session of its own: Ctrl-C reaches it by way of the study alone
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=threads | dict(os.environ),
            start_new_session=True,
        )


def _stop(running: list[_Running], status) -> None:
    for run in running:
        run.process.send_signal(signal.SIGTERM)
    status.update("stopping: the runs save their state; Ctrl-C again kills them")
    for run in running:
        run.process.wait()


def _outcome(run: _Running, say: Callable[[str], None]) -> str:
    """Says how a run ended; returns why it failed, or "" if it is finished."""
    code, record = run.process.wait(), read_run(run.trial.folder)
    if code == 0 and record.finished:
        spent = time.monotonic() - run.began
        say(f"{run.trial.config.name}: test {MEASURES[record.measure]} {record.test():.1%}, {spent:.0f} s")
        return ""
    problem = _last_error(_log(run.trial)) or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
    say(f"failed: {run.trial.config.name}: {problem}")
    return problem


def _standing(trial: Trial) -> str:
    rows = len(read_run(trial.folder).epochs)
    return f"{trial.config.name}: epoch {min(rows + 1, trial.config.train.epochs)}/{trial.config.train.epochs}"


def _log(trial: Trial) -> Path:
    return trial.folder.with_name(f"{trial.folder.name}.log")


def _last_error(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
    return ""


def _line(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def _problem(trial: Trial) -> str:
    """Returns why the folder of a trial cannot be used: it is no run's, or another run's; "" if it can."""
    if not trial.folder.exists():
        return ""
    record = read_run(trial.folder)
    if record.problem:
        return f"{record.problem}; move it away, and the study trains that run anew"
    for key in deciding(differing([trial.config, record.config]), trial.config):
        return f"it is a run with another {key}; move it away, or give the study another output=..."
    version = _version(record)
    if version != __version__:
        return f"softpool3d {version} made it, and this is {__version__}; move it away, or give another output=..."
    return ""


def _version(record: RunRecord) -> str:
    """Returns the version of softpool3d that a run was last started by; this one's if the run does not say."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return parse_json((record.folder / PROVENANCE).read_text(encoding="utf-8"))[-1]["versions"]["softpool3d"]
    return __version__


def _of_other_data(trials: list[Trial], results: Results) -> dict[str, str]:
    """Returns folder -> problem of the runs whose data set is no longer what it was; notes what the new ones hold."""
    if not any(trial.data_set for trial in trials):
        return {}
    path = Path(trials[0].config.output) / DATA
    known: dict[str, str] = {}
    with suppress(OSError, ValueError):
        known = parse_json(path.read_text(encoding="utf-8"))
    known |= results.data
    problems = {}
    for name in dict.fromkeys(trial.data_set for trial in trials):
        mine = [trial for trial in trials if trial.data_set == name]
        try:
            now = content_digest(read_manifests(mine[0].config.data))
        except SoftPool3dError as error:
            problems |= {str(trial.folder): str(error) for trial in mine}
            continue
        begun = any(trial.folder.exists() or trial.config.name in results.runs for trial in mine)
        if known.get(name, now) != now and begun:
            root = mine[0].config.data.root
            problem = f"{root} holds other clips than when this study began; give it another output=... and --out"
            problems |= {str(trial.folder): problem for trial in mine}
        else:
            known[name] = results.data[name] = now
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(known, indent=2, ensure_ascii=False).encode())
    return problems


def content_digest(manifests: dict[str, Manifest]) -> str:
    """Returns a digest of clips, labels and files, by their beginning, end and size: SHA-256, hexadecimal."""
    digest = hashlib.sha256()
    for split, manifest in sorted(manifests.items()):
        root = os.path.commonpath([os.path.dirname(path) for path in manifest.clips.paths()])
        for clip in manifest.clips:
            named = [split, os.path.relpath(clip.path, root), clip.start, clip.end]
            label = clip.label if isinstance(clip.label, tuple) else (clip.label,)
            digest.update(json.dumps([*named, [manifest.classes[i] for i in label]]).encode())
            with suppress(OSError), open(clip.path, "rb") as file:  # a folder of frames has no bytes of its own
                _add_ends(digest, file)
    return digest.hexdigest()


def _add_ends(digest, file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    digest.update(str(size).encode())
    for start in sorted({0, max(size - _END, 0)}):
        file.seek(start)
        digest.update(file.read(_END))
