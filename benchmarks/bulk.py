"""Compares `classify --engine ray` with `classify --jobs` on as many cores, and measures how it starts on long lists.

python benchmarks/bulk.py clip.mp4
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from shared import begin, family, run

from softpool3d.analysis.measuring import DOCUMENT, markdown_table, save_section
from softpool3d.datasets.sources.motion import FPS, NUM_FRAMES
from softpool3d.datasets.video.encoder import write_video

LEGEND = (
    "Rates: the files by which a long list is longer than a quarter of it, by the seconds that it takes longer; in "
    "brackets the seconds that both take besides. Medians of rounds in which the engines take turns, each in a process "
    "of its own that may use so many cores. The files are copies of the clip, labelled by the network that ships with "
    "the package. Lists: seconds to the first result, and the command's peak memory then, for lists of small files "
    "that repeat. Memory: of all processes of the cluster, after the first 500 small files, the most, and later."
)

_CHILD = """
import os, sys, time
began = time.perf_counter()
engine, cores, count, clip = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
from softpool3d.datasets.manifest import Clip
from softpool3d.inference.bulk import here
from softpool3d.inference.trained import load_trained
from softpool3d.inference.work import Failure, Labelling
if engine == "ray":
    from functools import partial
    from softpool3d.cluster.files import on_ray
    here = partial(on_ray, "local")
with here(load_trained("motion"), Labelling({"device": "cpu"}, 1)) as started:
    for number, result in enumerate(started.run(iter([Clip(clip, 0)] * count), cores), 1):
        assert not isinstance(result, Failure), result
        ended = time.perf_counter()
        if number % 500 == 0:
            print("results", number, flush=True)
print(ended - began)
"""


def rates(clip: Path, cores: int, count: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Returns for each engine files a second, and the seconds that it takes besides."""
    few, seconds = count // 4, {(engine, number): [] for engine in ("local", "ray") for number in (count // 4, count)}
    for _ in range(rounds):
        for (engine, number), measured in seconds.items():
            command = [sys.executable, "-c", _CHILD, engine, str(cores), str(number), str(clip)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured.append(float(done.stdout.splitlines()[-1]))
    found = {}
    for engine in ("local", "ray"):
        first, last = median(seconds[engine, few]), median(seconds[engine, count])
        rate = (count - few) / (last - first)
        found[engine] = rate, last - count / rate
    return found


def held_by(count: int, clip: Path) -> tuple[float, float, float]:
    """Returns the memory of a whole cluster on two cores, in GiB: after 500 results, the most later, and at the end."""
    command = [sys.executable, "-c", _CHILD, "ray", "2", str(count), str(clip)]
    driver, held = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), []
    for line in driver.stdout:
        if line.startswith("results"):
            held.append(sum(map(_share, family(driver.pid))))
    assert driver.wait() == 0
    return held[0], max(held[1:]), median(held[-len(held) // 4 :])


def _share(pid: int) -> float:
    """Returns a process's memory in GiB; of what it shares with others, such as Ray's object store, its share."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0.0
    return int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) / 2**20


def started_on(lines: int, folder: Path) -> tuple[float, float]:
    """Returns the seconds to the first result of a list of so many lines, and the driver's peak memory, in GiB."""
    paths = folder / f"{lines}.txt"
    with paths.open("w") as file:
        file.writelines(f"{folder}/{number % 64}.mp4\n" for number in range(lines))
    command = [
        sys.executable,
        "-m",
        "softpool3d",
        "classify",
        "--manifest",
        str(paths),
        "--weights",
        "motion",
        "--json",
    ]
    began = time.perf_counter()
    command += ["--json", "--engine", "ray", "--address", "local"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert json.loads(driver.stdout.readline())["label"]
    seconds = time.perf_counter() - began
    status = Path(f"/proc/{driver.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    driver.send_signal(signal.SIGINT)
    driver.communicate()
    return seconds, int(peak.split()[1]) / 2**20


def measure(
    clip: Annotated[Path, typer.Argument(help="A video of ten seconds or so.", exists=True, dir_okay=False)],
    save: Annotated[bool, typer.Option("--save", help="Write the tables to docs/benchmarks-bulk.md.")] = False,
    count: Annotated[int, typer.Option(min=4, help="Files of each measurement of a rate.")] = 480,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each measurement of a rate.")] = 3,
    longest: Annotated[int, typer.Option(min=1000, help="Lines of the longest list.")] = 10**6,
    steady: Annotated[int, typer.Option(min=2000, help="Files over which the cluster's memory is watched.")] = 10_000,
) -> None:
    """Compare `classify --engine ray` with `classify --jobs`, and measure how it starts on long lists."""
    about, say = begin()
    table, lists = [], []
    for cores in (1, 2):
        times = rates(clip.resolve(), cores, count, rounds)
        (local, start), (ray, later) = times["local"], times["ray"]
        table.append([str(cores), f"{local:.3g} ({start:.1f})", f"{ray:.3g} ({later:.1f})", f"{ray / local:.2f}"])
        say("  ".join(table[-1]))
    with tempfile.TemporaryDirectory() as name:
        pictures = (os.urandom(64 * 64 * 3) for _ in range(NUM_FRAMES))
        import numpy as np

        write_video(Path(name) / "0.mp4", (np.frombuffer(p, np.uint8).reshape(64, 64, 3) for p in pictures), FPS)
        for number in range(1, 64):
            (Path(name) / f"{number}.mp4").symlink_to("0.mp4")
        lines = 1000
        while lines <= longest:
            seconds, peak = started_on(lines, Path(name))
            lists.append([f"{lines:,}", f"{seconds:.1f}", f"{peak:.2f}"])
            say("  ".join(lists[-1]))
            lines *= 10
        first, most, last = held_by(steady, Path(name) / "0.mp4")
        memory = f"{steady:,} files: {first:.2f} GiB after 500, at most {most:.2f}, {last:.2f} in the last quarter"
        say(memory)
    if save:
        document = DOCUMENT.with_name("benchmarks-bulk.md")
        table = markdown_table(["cores", "--jobs, files/s", "--engine ray, files/s", "ratio"], table)
        lists = markdown_table(["lines", "first result, s", "its memory, GiB"], lists)
        body = "\n".join([about, "", LEGEND, "", table, "", lists, "", f"Memory: {memory}."])
        say(f"Written to {save_section('Many files', body, document)}")


if __name__ == "__main__":
    run(measure)
