"""The soak's long runs: memory must not grow with the number of clips.

As a script it is the process that is watched: python benchmarks/soak_memory.py classify 10000
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

WARM = 500  # clips after which memory has to stay
ALLOWED = 0.02  # of it
_EVERY = 50


def resident(pid: int | str = "self") -> float:
    """Returns the resident memory of a process, in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def soak_memory(count: int, ended: Callable[[], bool], say: Callable[[str], None]) -> tuple[dict[str, str], list[str]]:
    """Runs each way over so many clips.

    Returns:
        What was measured of each way, and the ways whose memory grew.
    """
    measured, faults = {}, []
    for way in _WAYS:
        samples = list(_samples(way, count, ended))
        warm = next((mib for clips, mib in samples if clips >= WARM), None)
        if warm is None:
            measured[way] = f"ended after {samples[-1][0] if samples else 0} clips"
            continue
        most = max(mib for clips, mib in samples if clips >= WARM)
        measured[way] = f"{samples[-1][0]:,} clips: {warm:.0f} MiB, {most / warm - 1:+.1%}"
        if most > (1 + ALLOWED) * warm:
            faults.append(f"{way}: {measured[way]}")
            say(faults[-1])
    return measured, faults


def _samples(way: str, count: int, ended: Callable[[], bool]) -> Iterator[tuple[int, float]]:
    command = [sys.executable, __file__, way, str(count)]
    watched = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        for line in watched.stdout:
            yield tuple(json.loads(line))
            if ended():
                return
        if watched.wait():
            raise AssertionError(f"{' '.join(command)}: exit code {watched.returncode}")
    finally:
        watched.kill()
        watched.wait()


# --- the process that is watched --------------------------------------------------------------------------------------


def _classify(count: int, folder: Path) -> Iterator[tuple[int, float]]:
    from softpool3d.inference.bulk import run_files
    from softpool3d.inference.trained import load_trained
    from softpool3d.inference.work import Labelling

    work = Labelling({"device": "cpu", "batch": 4}, 1).work(load_trained("motion"))
    for number, _ in enumerate(run_files(work, _clips(count, folder), 0), 1):
        yield number, resident()


def _load(count: int, folder: Path) -> Iterator[tuple[int, float]]:
    """Yields the memory of the worker that loads, not that of the process that it loads for."""
    from softpool3d.config_file import load_config
    from softpool3d.datasets.loader import train_loader
    from softpool3d.datasets.manifest import Manifest

    config = load_config("r3d_softpool", ["data.num_workers=1", "train.batch_size=10"])
    loader = train_loader(Manifest(("0",), list(_clips(count, folder))), config)
    for number, _ in enumerate(loader, 1):
        (worker,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        yield 10 * number, resident(worker)


def _clips(count: int, folder: Path) -> Iterator:
    from soak_files import whole_files

    from softpool3d.datasets.manifest import Clip

    files = whole_files(folder)
    return (Clip(str(files[number % len(files)]), 0) for number in range(count))


_WAYS = {"classify": _classify, "loader": _load}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for clips, mib in _WAYS[sys.argv[1]](int(sys.argv[2]), Path(name)):
            if clips % _EVERY == 0:
                print(json.dumps([clips, mib]), flush=True)
