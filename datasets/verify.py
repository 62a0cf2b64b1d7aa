"""Checks whether all files of a data set can be decoded to the end."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from softpool3d.datasets.parallel import Crashed, Each, each
from softpool3d.datasets.video.damage import MAX_MISSING, is_too_much
from softpool3d.datasets.video.decoder import DecodeError, check_file, open_video
from softpool3d.datasets.video.stream import FrameStream
from softpool3d.errors import WorkError, os_reason


def obviously_bad(paths: Iterable[str]) -> dict[str, str]:
    """Returns path -> what is wrong with the file, as far as it shows without decoding."""
    bad = {}
    for path in sorted(paths):
        try:
            check_file(path)
        except DecodeError as error:
            bad[path] = error.reason
    return bad


def bad_files(
    paths: Iterable[str],
    log: Path,
    workers: int | None = None,
    *,
    max_missing: float = MAX_MISSING,
    on_damage: Callable[[str, str], None] = lambda path, what: None,
    each: Each = each,
) -> dict[str, str]:
    """Decodes all files, and returns path -> what is wrong for those that are unreadable or miss too much.

    Args:
        log: a CSV file (path, size, modified, missing seconds, seconds, what) that gets a line for each file as soon as
            it is done. Files that are in it already, and have not changed since, are not decoded again.
        max_missing: the share of a file that may be missing (damage.py).
        on_damage: is called with the path of a file of which a part is missing, and a sentence.
        each: does the work on each file.

    Raises:
        WorkError: if the log cannot be written.
    """
    known = _read_log(log)
    results: dict[str, Checked] = {}
    todo = []
    for path in sorted(set(paths)):
        checked = known.get((path, *_state(path)))
        if checked is None:
            todo.append(path)
        else:
            results[path] = checked
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            file.write("\n" if file.tell() else "")  # a killed run may have left a part of its last line
            for path, checked in each(decode_whole, todo, "Decoding every file", workers):
                if isinstance(checked, Crashed):
                    checked = _unreadable(str(checked))
                elif isinstance(checked, Exception):
                    checked = _unreadable(f"{type(checked).__name__}: {checked}")
                results[path] = checked
                writer.writerow([path, *_state(path), *checked])
                file.flush()
    except OSError as error:
        raise WorkError(f"cannot write {log}: {os_reason(error)}") from None
    bad = {}
    for path, (missing_s, length_s, what) in results.items():
        if not length_s or is_too_much(missing_s, length_s, max_missing):
            bad[path] = what
        elif what:
            on_damage(path, what)
    return bad


Checked = tuple[float, float, str]  # seconds that are missing, seconds in all (0: nothing can be read), what is wrong


def decode_whole(path: str) -> Checked:
    """Decodes every frame of a file, and returns what is missing of it."""
    try:
        # no limit here: what is logged has to hold for any limit of the caller
        with open_video(path, short_side=32, max_missing=1.0) as video:
            if video.decoder == "pictures":
                for number in range(video.num_frames):
                    video.frames([number])
                return 0.0, video.num_frames / video.fps, ""
        with FrameStream(path, max_missing=1.0) as stream:
            for _ in stream:
                pass
        damage = stream.damage
        return damage.missing_s, damage.length_s, str(damage)
    except DecodeError as error:
        return _unreadable(error.reason)


def _unreadable(what: str) -> Checked:
    return 0.0, 0.0, what


def _state(path: str) -> tuple[int, int]:
    try:
        file = os.stat(path)
        return file.st_size, file.st_mtime_ns
    except OSError:
        return -1, -1


def _read_log(log: Path) -> dict[tuple[str, int, int], Checked]:
    if not log.is_file():
        return {}
    known = {}
    with log.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.reader(file):
            with suppress(ValueError):  # the last line of a run that was killed; a log of an earlier version
                path, size, modified, missing_s, length_s, what = row
                known[path, int(size), int(modified)] = float(missing_s), float(length_s), what
    return known
