"""Finds the clips that a user names on the command line: files, folders, globs, lists, standard input, addresses.

Lists and standard input (lists.py) are read a line at a time: a million lines cost no memory.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from softpool3d.datasets.lists import format_seconds, read_rows
from softpool3d.datasets.manifest import LISTS, Clip
from softpool3d.datasets.video.find import pictures_in, videos_in
from softpool3d.datasets.video.frame_index import DecodeError
from softpool3d.datasets.video.pictures import is_picture
from softpool3d.datasets.video.remote import is_address
from softpool3d.errors import UsageError, WorkError
from softpool3d.naming import check_files


class ListChanged(WorkError):
    """A list was changed while it was read. what: that, as the beginning of a sentence."""

    def __init__(self, path: Path) -> None:
        self.what = f"{path} changed while it was read"
        super().__init__(f"{self.what}; the same command with --resume goes on with the new list")


@dataclass(frozen=True)
class Inputs:
    """Yields clips in the order in which they were named; their label is always 0.

    named: files, folders (searched recursively), globs in quotes, `@list.txt`, `-` for standard input, addresses.
    manifest: a list, as lists.py reads them; with a header it may have columns `start` and `end`, in seconds.
    pictures: of a folder, each picture is a clip; else its videos are, and its folders of frames.
    """

    named: Sequence[str]
    manifest: Path | None = None
    pictures: bool = False

    def check(self, verb: str = "classify") -> None:
        """Raises UsageError if a list is not there, or nothing was named, or none of the files that were named is.

        Args:
            verb: what is done with files, for messages.
        """
        for path in self._lists():
            if not path.is_file():
                raise UsageError(f"no list {path}")
        if self.manifest is None and not self.named:
            raise UsageError(f"name files to {verb}, or give --manifest")
        if self.manifest is None and not any(
            name == "-" or name.startswith("@") or is_address(name) for name in self.named
        ):
            check_files(self.named)

    def count(self) -> int | None:
        """Returns the most clips that there can be; None with standard input, whose length is unknown.

        Raises:
            UsageError: naming file and line of the first mistake in a list.
        """
        lists = sum(1 for path in self._lists() for _ in read_rows(path, path.parent, labelled=False))
        if "-" in self.named:
            return None
        return lists + sum(len(self._expanded(name)) for name in self.named if not name.startswith("@"))

    def __iter__(self) -> Iterator[Clip]:
        seen: set[str] = set()  # of what was named, not of what lists hold
        for name in self.named:
            if name == "-":
                yield from _listed(None)
            elif name.startswith("@"):
                yield from _listed(Path(name[1:]))
            else:
                for path in self._expanded(name):
                    if path not in seen:
                        seen.add(path)
                        yield Clip(path, 0)
        if self.manifest is not None:
            yield from _listed(self.manifest)

    def _lists(self) -> list[Path]:
        lists = [Path(name[1:]) for name in self.named if name.startswith("@")]
        return lists + ([self.manifest] if self.manifest is not None else [])

    def _expanded(self, name: str) -> list[str]:
        """Returns the files that one argument names; if there are none, the argument, so that reading it fails."""
        if is_address(name) or os.path.isfile(name):
            return [name]
        if os.path.isdir(name):
            return pictures_in(name) if self.pictures else videos_in(name)
        found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
        return [path for path in found if not os.path.isdir(path) or not self.pictures and _frames(path)] or [name]


def clip_name(clip: Clip) -> str:
    """Returns the clip's path; for a part of a file followed by its seconds, as a W3C media fragment: a.mp4#t=1.5,4."""
    if clip.start is None and clip.end is None:
        return clip.path
    end = "" if clip.end is None else f",{format_seconds(clip.end)}"
    return f"{clip.path}#t={format_seconds(clip.start)}{end}"


def explain(error: DecodeError) -> str:
    """Returns the error's reason; if the file looks like a list of videos, with advice."""
    path = error.path
    if os.path.splitext(path)[1].lower() in LISTS and os.path.isfile(path):
        return f"{error.reason} (a list of videos is given as @{path})"
    return error.reason


def _frames(folder: str) -> bool:
    return any(is_picture(entry.name) for entry in os.scandir(folder))


def _listed(path: Path | None) -> Iterator[Clip]:
    """Yields the clips of a list, whose relative paths begin in its folder; with None those of standard input.

    Raises:
        ListChanged: at its end, if it changed meanwhile: reading may have taken hours.
    """
    folder, was = path.parent if path else Path(), _state(path)
    for row in read_rows(path, folder, labelled=False):
        name = row.path if is_address(row.path) or folder == Path() else os.path.join(folder, row.path)
        yield Clip(name, 0, row.start, row.end, row.line)
    if _state(path) != was:
        raise ListChanged(path)


def _state(path: Path | None) -> tuple[int, int, int] | None:
    """Returns what tells whether a list was changed or replaced."""
    if path is None or not path.is_file():
        return None
    file = path.stat()
    return file.st_ino, file.st_size, file.st_mtime_ns
