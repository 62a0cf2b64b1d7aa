"""The soak's kills of commands that work through many files: whatever kills them, no file is lost or done twice."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from shared import started

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class Case:
    """A command that goes on where it was.

    command: after `softpool3d`.
    out: what it writes: a file or a folder.
    names: returns the names of the files that are done, each as often as it is done.
    """

    command: list[str]
    out: Path
    names: Callable[[], list[str]]

    def clear(self) -> None:
        """Removes what it wrote, and what is left beside it."""
        for place in self.out.parent.iterdir():
            shutil.rmtree(place) if place.is_dir() else place.unlink()


def cases(videos: Path, out: Path) -> dict[str, Case]:
    """Returns the commands, by name. Each reads `videos`, folders of classes, and writes to a folder of its own."""
    own = [str(videos), "--weights", "motion", "--device", "cpu", "--jobs", "2", "--resume"]
    prepare = [
        "prepare",
        "folder",
        "--root",
        str(videos),
        "--reencode",
        "--short-side",
        "32",
        "--workers",
        "2",
        "--out",
    ]
    commands = {
        "classify, .csv": (["classify", *own], "labels.csv", _of_csv),
        "classify, .jsonl": (["classify", *own], "labels.jsonl", _of_lines),
        "embed, .npz": (["embed", *own], "features.npz", _of_arrays),
        "prepare": (prepare, "copies", partial(_of_copies, videos)),
    }
    found = {}
    for number, (name, (command, file, names)) in enumerate(commands.items()):
        place = out / str(number) / file
        place.parent.mkdir(parents=True)
        found[name] = Case([*command, str(place)], place, partial(names, place))
    return found


def _of_csv(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [row["file"] for row in csv.DictReader(file)]


def _of_lines(path: Path) -> list[str]:
    return [json.loads(line)["file"] for line in path.read_text().splitlines()]


def _of_arrays(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as file:
        return [*file["file"].tolist(), *file["failed"].tolist()]


def _of_copies(videos: Path, copies: Path) -> list[str]:
    """Returns the originals whose copies are there, and whatever else lies among the copies."""
    found = [path for path in copies.rglob("*") if path.is_file() and "manifest" not in path.parts]
    originals = [str(videos / path.relative_to(copies)) for path in found if path.name not in _OWN]
    return [name if Path(name).exists() else name.removesuffix(".mp4") for name in originals]  # a.mp4, a.mkv.mp4


_OWN = ("reencoding.json", ".lock")


def soak_rows(
    files: list[Path], kills: int, seed: int, ended: Callable[[], bool], say: Callable[[str], None]
) -> tuple[dict[str, int], list[str]]:
    """Kills each command so often, in turns, and compares what it wrote with the files whenever it came to its end.

    Args:
        files: videos, which are copied into folders of classes.

    Returns:
        The kills of each command, and what went wrong, as sentences.
    """
    rng, done, faults = np.random.default_rng(seed), Counter(), []
    with tempfile.TemporaryDirectory() as name:
        videos = Path(name) / "videos"
        for number, file in enumerate(files):
            split, label = ("train", "train", "val", "test")[number % 4], str(number // 4 % 2)
            (videos / split / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, videos / split / label / f"{number}{file.suffix}")
        expected = sorted(str(path) for path in videos.rglob("*") if path.is_file())
        every = cases(videos, Path(name) / "out")
        longest = {}

        def compare(case_name: str, case: Case) -> None:
            found = sorted(case.names())
            if found != expected:
                lost, more = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
                faults.append(f"{case_name}: lost {sorted(lost)}, twice or strange {sorted(more)}")
                say(faults[-1])
            left = [path.name for path in case.out.parent.iterdir() if path != case.out and path.suffix != ".lock"]
            if left:
                faults.append(f"{case_name}: left over {left}")
                say(faults[-1])
            case.clear()

        for case_name, case in every.items():
            longest[case_name], _ = _run(case, None)
            compare(case_name, case)
        while not ended() and (left := [one for one in every if done[one] < kills]):
            for case_name in left:
                case, sign = every[case_name], SIGNALS[done[case_name] % len(SIGNALS)]
                _, killed = _run(case, (float(rng.uniform(0.5, 1.1) * longest[case_name]), sign))
                done[case_name] += killed
                if not killed:
                    compare(case_name, case)
        for case_name, case in every.items():
            _run(case, None)
            compare(case_name, case)
    return dict(done), faults


def _run(case: Case, end: tuple[float, signal.Signals] | None) -> tuple[float, bool]:
    """Runs a command, to its end or for so many seconds; returns the seconds, and whether it was killed."""
    began = time.monotonic()
    process = started(["-m", "softpool3d", *case.command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if end is not None:
        try:
            process.wait(end[0])
        except subprocess.TimeoutExpired:
            process.send_signal(end[1])
    _, told = process.communicate(timeout=_PATIENCE_S)
    if "Traceback" in told:
        raise AssertionError(told)
    return time.monotonic() - began, process.returncode != 0
