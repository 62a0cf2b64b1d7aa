"""What a user names on the command line -> clips, one by one: files, folders, globs, lists, standard input, addresses.

Lists and standard input are read while work goes on: a million lines cost no memory.
"""

from __future__ import annotations

import csv
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from softpool3d.datasets.frame_index import DecodeError
from softpool3d.datasets.manifest import Clip, parse_seconds
from softpool3d.datasets.picture_folder import is_picture
from softpool3d.datasets.remote import is_address
from softpool3d.datasets.videos import find_videos
from softpool3d.errors import UsageError


@dataclass(frozen=True)
class Inputs:
    """Clips in the order in which they were named. The clip's label means nothing.

    named: files, folders (searched recursively), globs in quotes, `@list.txt`, `-` for standard input, addresses.
    manifest: a CSV file with a column `path` and, where it has them, `start` and `end` in seconds; or a list.
    """

    named: Sequence[str]
    manifest: Path | None = None

    def check(self) -> None:
        """Raises UsageError for a list that is not there."""
        for path in self._lists():
            if not path.is_file():
                raise UsageError(f"no list {path}")
        if self.manifest is None and not self.named:
            raise UsageError("name files to classify, or give --manifest")

    def count(self) -> int | None:
        """How many there are, at most; None where only the end of standard input will tell."""
        if "-" in self.named:
            return None
        lists = sum(_lines(path) for path in self._lists())
        return lists + sum(len(_expanded(name)) for name in self.named if not name.startswith("@"))

    def __iter__(self) -> Iterator[Clip]:
        seen: set[str] = set()  # of what was named, not of what lists hold
        for name in self.named:
            if name == "-":
                yield from _from_list(sys.stdin, None)
            elif name.startswith("@"):
                yield from _read_list(Path(name[1:]))
            else:
                for path in _expanded(name):
                    if path not in seen:
                        seen.add(path)
                        yield Clip(path, 0)
        if self.manifest is not None:
            yield from _read_list(self.manifest)

    def _lists(self) -> list[Path]:
        lists = [Path(name[1:]) for name in self.named if name.startswith("@")]
        return lists + ([self.manifest] if self.manifest is not None else [])


def clip_name(clip: Clip) -> str:
    """The path; for a part of a file with its seconds, as W3C's media fragments have them: a.mp4#t=1.5,4."""
    if clip.start is None and clip.end is None:
        return clip.path
    start = "" if clip.start is None else f"{clip.start:g}"
    end = "" if clip.end is None else f",{clip.end:g}"
    return f"{clip.path}#t={start}{end}"


def explain(error: DecodeError) -> str:
    """The error's reason, with what to do where the file looks like a list of videos."""
    path = error.path
    if os.path.splitext(path)[1].lower() in (".txt", ".csv", ".list") and os.path.isfile(path):
        return f"{error.reason} (a list of videos is given as @{path})"
    return error.reason


def _expanded(name: str) -> list[str]:
    """The files that one argument names; itself where it names none, for whoever reads it to say so."""
    if is_address(name) or os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        videos = sorted(find_videos(name))
        # a folder of pictures is a video
        return videos or [name]
    if glob.has_magic(name):
        found = sorted(path for path in glob.glob(name, recursive=True) if not os.path.isdir(path) or _pictures(path))
        return found or [name]
    return [name]


def _pictures(folder: str) -> bool:
    return any(is_picture(entry.name) for entry in os.scandir(folder))


def _read_list(path: Path) -> Iterator[Clip]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _from_list(file, path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def _from_list(file: TextIO, path: Path | None) -> Iterator[Clip]:
    """A path a line, or CSV with a header; relative paths are relative to the list's own folder.

    PySlowFast's lists, `path label` and `path,label` with a number, are read too.
    """
    folder = path.parent if path else Path()
    header: list[str] | None = None
    for number, line in enumerate(file, 1):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        if number == 1 and path is not None:
            columns = [name.strip().lower() for name in line.split(",")]
            if "path" in columns:
                header = columns
                continue
        yield _clip(line, header, folder, f"{path or 'standard input'}:{number}")


def _clip(line: str, header: list[str] | None, folder: Path, where: str) -> Clip:
    start = end = None
    if header is not None:
        record = next(csv.reader([line]))
        if len(record) != len(header):
            raise UsageError(
                f"{where}: {len(record)} values, but the header has {len(header)} columns (a path with a comma stands "
                'in "quotes")'
            )
        values = dict(zip(header, record, strict=True))
        name = values["path"]
        start, end = (parse_seconds(values.get(key, ""), f"{where}: {key}") for key in ("start", "end"))
    else:
        name = line
        for separator in (",", "\t", " "):  # a label behind the path
            before, found, label = line.rpartition(separator)
            if found and label.strip().isdigit() and not os.path.exists(folder / line):
                name = before
                break
    name = name.strip() if header else name
    beside = name if is_address(name) or folder == Path() else os.path.join(folder, name)
    return Clip(beside, 0, start, end)


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
