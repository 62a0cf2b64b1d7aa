"""An hour of what goes wrong: damaged files, kills, and what they leave. Everything is made here; nothing is fetched.

python benchmarks/soak.py
python benchmarks/soak.py --seconds 60 --only files
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from shared import begin, run
from soak_files import soak_files, whole_files
from soak_memory import soak_memory
from soak_ray import soak_ray
from soak_rows import soak_rows
from soak_stream import lacking_for_rtsp, soak_streams
from soak_trainings import soak_trainings

from softpool3d.analysis.measuring import DOCUMENT, markdown_table, save_section

HEADER = ["what", "tried", "faults", "measured"]
_FILES, _CLIPS, _LABELLED = 1000, 10_000, 2000  # damaged files; clips of each long run; files for a cluster
_KILLS, _ACCIDENTS = 25, 36  # of each command; of each kind of training
_ROUNDS = 5  # of each accident to a stream


class Part(str, Enum):
    files = "files"
    memory = "memory"
    streams = "streams"
    rows = "rows"
    trainings = "trainings"
    ray = "ray"


def soak(parts: list[Part], seconds: float, seed: int, say) -> tuple[list[list[str]], int]:
    """Returns the rows of the table, and the number of faults. The time left is shared equally."""
    table, faults, last = [], 0, time.monotonic() + seconds
    for number, part in enumerate(parts):
        now = time.monotonic()
        end = now + (last - now) / (len(parts) - number)

        def ended(end: float = end) -> bool:
            return time.monotonic() > end

        row, found = _PARTS[part](seed, ended, say)
        table.append(row)
        faults += found
        say("  ".join(row))
    return table, faults


def _files(seed: int, ended, say) -> tuple[list[str], int]:
    counts, faults = soak_files(_FILES, seed, ended, say)
    used, named = counts.get("used", 0), counts.get("named", 0)
    measured = (
        f"{used} used, {named} named; descriptors {counts['descriptors']:+d}, memory {counts['grown_mib']:+.0f} MiB"
    )
    return ["damaged files, each in five ways", f"{used + named + len(faults)}", f"{len(faults)}", measured], len(
        faults
    )


def _rows(seed: int, ended, say) -> tuple[list[str], int]:
    with tempfile.TemporaryDirectory() as folder:
        files = [path for path in whole_files(Path(folder)) if path.suffix != ".gif"] * 4
        kills, faults = soak_rows(files, _KILLS, seed, ended, say)
    measured = ", ".join(f"{number} of {name}" for name, number in kills.items())
    return ["kills of commands that go on", str(sum(kills.values())), str(len(faults)), measured], len(faults)


def _trainings(seed: int, ended, say) -> tuple[list[str], int]:
    accidents, faults = soak_trainings(_ACCIDENTS, seed, ended, say)
    measured = ", ".join(f"{number} of {name}" for name, number in accidents.items())
    return ["accidents of trainings that go on", str(sum(accidents.values())), str(len(faults)), measured], len(faults)


def _streams(seed: int, ended, say) -> tuple[list[str], int]:
    accidents, faults = soak_streams(_ROUNDS, seed, ended, say)
    measured = ", ".join(f"{number} of {name}" for name, number in accidents.items())
    if lacking_for_rtsp():
        measured += f"; no RTSP: {lacking_for_rtsp()}"
    return ["streams that go on", str(sum(accidents.values())), str(len(faults)), measured], len(faults)


def _ray(_: int, __: object, say) -> tuple[list[str], int]:
    kills, faults = soak_ray(_LABELLED, say)
    what = f"kills while {_LABELLED:,} files are labelled"
    measured = ", ".join(f"{number} of {name}" for name, number in kills.items())
    return [what, str(sum(kills.values())), str(len(faults)), measured], len(faults)


def _memory(seed: int, ended, say) -> tuple[list[str], int]:
    measured, faults = soak_memory(_CLIPS, ended, say)
    told = "; ".join(f"{way}: {what}" for way, what in measured.items())
    return ["long runs", str(len(measured)), str(len(faults)), told], len(faults)


_PARTS = {
    Part.files: _files,
    Part.rows: _rows,
    Part.trainings: _trainings,
    Part.streams: _streams,
    Part.memory: _memory,
    Part.ray: _ray,
}


def measure(
    seconds: Annotated[float, typer.Option(min=1.0, help="Time for all parts; none is begun anew after it.")] = 3600.0,
    only: Annotated[list[Part] | None, typer.Option(help="These parts alone; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn; by default another one each time.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Write the table to docs/reliability.md.")] = False,
) -> None:
    """Damage files and kill commands at random, and say what went wrong."""
    seed = random.randrange(10**6) if seed is None else seed
    about, say = begin(note=f" Seed {seed}.")
    table, faults = soak(only or list(Part), seconds, seed, say)
    if save:
        body = "\n".join([about, "", markdown_table(HEADER, table)])
        say(f"Written to {save_section('Soak', body, DOCUMENT.with_name('reliability.md'))}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    run(measure)
