"""An hour of what goes wrong: damaged files, kills, and what they leave. Everything is made here; nothing is fetched.

python benchmarks/soak.py
python benchmarks/soak.py --seconds 60 --only files
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, fields
from enum import StrEnum
from functools import partial
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

_FILES, _CLIPS, _LABELLED = 1000, 10_000, 2000  # damaged files; clips of each long run; files for a cluster
_KILLS, _ACCIDENTS = 25, 36  # of each command; of each kind of training
_ROUNDS = 5  # of each accident to a stream


class Part(StrEnum):
    files = "files"
    clips = "clips"
    loader = "loader"
    timeline = "timeline"
    streams = "streams"
    rows = "rows"
    ray = "ray"
    trainings = "trainings"


@dataclass
class Found:
    """A line of the table; `faults` counts."""

    what: str
    tried: int
    faults: int
    measured: str


def soak(parts: list[Part], seconds: float, seed: int, say) -> list[Found]:
    """Returns what each part found. Each has an equal share of the time that is left."""
    table, last = [], time.monotonic() + seconds
    for number, part in enumerate(parts):
        now = time.monotonic()
        end = now + (last - now) / (len(parts) - number)
        table.append(_PARTS[part](seed, lambda end=end: time.monotonic() > end, say))
        say("  ".join(map(str, astuple(table[-1]))))
    return table


def _files(seed: int, ended, say) -> Found:
    counts, faults = soak_files(_FILES, seed, ended, say)
    used, named = counts.get("used", 0), counts.get("named", 0)
    left = f"descriptors {counts['descriptors']:+d}, memory {counts['growth']:+.1%}"
    tried = sum(counts[outcome] for outcome in counts if outcome not in ("descriptors", "growth"))
    return Found("damaged files, each in five ways", tried, len(faults), f"{used} used, {named} named; {left}")


def _memory(way: str, _: int, ended, say) -> Found:
    measured, grew = soak_memory(way, _CLIPS, ended)
    if grew:
        say(f"{way}: {measured}")
    return Found(f"a long run: {way}", 1, int(grew), measured)


def _streams(seed: int, ended, say) -> Found:
    accidents, faults = soak_streams(_ROUNDS, seed, ended, say)
    why = lacking_for_rtsp()
    return _counted("streams that go on", accidents, faults, f"; no RTSP: {why}" if why else "")


def _rows(seed: int, ended, say) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        files = [path for path in whole_files(Path(folder)) if path.suffix != ".gif"] * 4
        return _counted("kills of commands that go on", *soak_rows(files, _KILLS, seed, ended, say))


def _trainings(seed: int, ended, say) -> Found:
    accidents, faults = soak_trainings(_ACCIDENTS, seed, ended, say)
    measured = "; ".join(f"{of}: {_listed(happened)}" for of, happened in accidents.items())
    count = sum(sum(happened.values()) for happened in accidents.values())
    return Found("accidents of trainings that go on", count, len(faults), measured)


def _ray(_: int, __: object, say) -> Found:
    return _counted(f"kills while {_LABELLED:,} files are labelled", *soak_ray(_LABELLED, say))


def _counted(what: str, happened: dict[str, int], faults: list[str], more: str = "") -> Found:
    return Found(what, sum(happened.values()), len(faults), _listed(happened) + more)


def _listed(happened: dict[str, int]) -> str:
    return ", ".join(f"{number} of {name}" for name, number in happened.items())


_PARTS = {
    Part.files: _files,
    Part.clips: partial(_memory, "clips"),
    Part.loader: partial(_memory, "loader"),
    Part.timeline: partial(_memory, "timeline"),
    Part.streams: _streams,
    Part.rows: _rows,
    Part.ray: _ray,
    Part.trainings: _trainings,
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
    table = soak(only or list(Part), seconds, seed, say)
    if save:
        rows = [[str(value) for value in astuple(found)] for found in table]
        body = "\n".join([about, "", markdown_table([field.name for field in fields(Found)], rows)])
        say(f"Written to {save_section('Soak', body, DOCUMENT.with_name('reliability.md'))}")
    sys.exit(1 if any(found.faults for found in table) else 0)


if __name__ == "__main__":
    run(measure)
