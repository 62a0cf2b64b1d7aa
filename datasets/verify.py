"""Whether the files of a data set can be decoded, all of them and to the end."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from softpool3d.datasets.decoder import DecodeError, check_file, open_video
from softpool3d.datasets.pool import Crashed, each
from softpool3d.errors import WorkError

_PORTION = 256  # frames read in one go


def obviously_bad(paths: Iterable[str]) -> dict[str, str]:
    """Path -> what is wrong with it, as far as it shows without decoding."""
    bad = {}
    for path in sorted(paths):
        try:
            check_file(path)
        except DecodeError as error:
            bad[path] = error.reason
    return bad


def bad_files(paths: Iterable[str], log: Path, workers: int | None = None) -> dict[str, str]:
    """Path -> what is wrong with it, of those that cannot be decoded.

    Args:
        log: a CSV file (path, size, modified, reason) that gets a line for each file as soon as it is done; files that
            stand there already, and have not changed since, are not decoded again.

    Raises:
        WorkError: if the log cannot be written.
    """
    known = _read_log(log)
    results: dict[str, str] = {}
    todo = []
    for path in sorted(set(paths)):
        reason = known.get((path, *_state(path)))
        if reason is None:
            todo.append(path)
        else:
            results[path] = reason
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            file.write("\n" if file.tell() else "")  # after what a killed run left of its last line
            for path, reason in each(decode_whole, todo, "Decoding every file", workers):
                if isinstance(reason, Crashed):
                    reason = "decoding it crashes the decoder"
                elif isinstance(reason, Exception):
                    reason = f"{type(reason).__name__}: {reason}"
                results[path] = reason
                writer.writerow([path, *_state(path), reason])
                file.flush()
    except OSError as error:
        raise WorkError(f"cannot write {log}: {(error.strerror or str(error)).lower()}") from None
    return {path: reason for path, reason in results.items() if reason}


def decode_whole(path: str) -> str:
    """Decodes every frame; what is wrong, or nothing."""
    try:
        with open_video(path, short_side=32) as video:
            for first in range(0, video.num_frames, _PORTION):
                video.frames(range(first, min(first + _PORTION, video.num_frames)))
    except DecodeError as error:
        return error.reason
    return ""


def _state(path: str) -> tuple[int, int]:
    try:
        file = os.stat(path)
        return file.st_size, file.st_mtime_ns
    except OSError:
        return -1, -1


def _read_log(log: Path) -> dict[tuple[str, int, int], str]:
    if not log.is_file():
        return {}
    known = {}
    with log.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.reader(file):
            with suppress(ValueError):  # the last line of a run that was killed
                path, size, modified, reason = row
                known[path, int(size), int(modified)] = reason
    return known
