"""A file of results that grows as work goes on: a killed run keeps what it has, and another one goes on with it.

Each video's lines are appended as soon as they are known. With several processes, and for a format that cannot grow by
lines, each process appends to its own part file, such as `results.csv.part0`. At the end the parts are merged into one
file. Resuming reads that file and all the parts that exist.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from softpool3d.datasets.inputs import clip_name
from softpool3d.datasets.manifest import Clip
from softpool3d.errors import UsageError, WorkError, os_reason


def part_of(path: Path, rank: int) -> Path:
    """Returns the part file that the process of this rank appends to."""
    return path.with_name(f"{path.name}.part{rank}")


class GrowingFile:
    """A file that is appended to. A subclass says what its lines are, and how parts become one file.

    Args:
        path: its ending gives the format.
        in_parts: whether the process appends to a part of its own.
        resume: goes on with the file; `left` then leaves out the videos that are done.
        overwrite: replaces an existing file, once there is a first result.
        rank, world_size: number of this process, and of all processes that share the work.

    Raises:
        UsageError: for a file that exists.
    """

    def __init__(
        self,
        path: Path,
        in_parts: bool,
        resume: bool = False,
        overwrite: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.path = path
        self._is_first = rank == 0
        self._in_parts = in_parts
        self._own = part_of(path, rank) if in_parts else path
        there = [path for path in (path, *self._parts()) if path.exists()]
        # other processes may have begun theirs already
        ranks = range(world_size) if in_parts else ()
        others = {part_of(path, other) for other in ranks if other != rank}
        self._stale = [path for path in there if path not in others] if rank == 0 else [self._own]
        left = [path for path in there if path not in others]
        if left and not (resume or overwrite):
            raise UsageError(f"--out: {left[0]} exists; --resume {path} goes on with it, --overwrite replaces it")
        self._done = np.empty(0, np.uint64)
        self._file: io.FileIO | None = None
        self._goes_on, self._replaces = resume, overwrite and not resume
        if resume:
            if not path.is_file() and path.exists():
                raise UsageError(f"--resume {path}: this is no file")
            if self._own.exists():
                os.truncate(self._own, self._whole(self._own))
            names = chain.from_iterable(self._names(path) for path in there)
            self._done = np.unique(np.fromiter(map(_hash, names), np.uint64))

    def left(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        """Yields the clips that are not done yet."""
        return (clip for clip in clips if not self._is_done(clip_name(clip)))

    def _is_done(self, name: str) -> bool:
        key = _hash(name)
        place = int(np.searchsorted(self._done, np.uint64(key)))
        return place < len(self._done) and int(self._done[place]) == key

    @property
    def done(self) -> int:
        """The number of videos that the file held when it was opened."""
        return len(self._done)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def merge(self) -> None:
        """Merges the parts into one file. Only the first process does so, when all processes have finished.

        Raises:
            WorkError: if it cannot be written; the parts stay then.
        """
        self.close()
        if not self._in_parts or not self._is_first:
            return
        sources = [path for path in (self.path, *self._parts()) if path.exists()]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self._write_merged(temporary, sources)
            temporary.replace(self.path)
        except OSError as error:
            raise self._cannot_write(error) from None
        finally:
            temporary.unlink(missing_ok=True)
        for part in self._parts():
            part.unlink()

    # --- what a subclass defines --------------------------------------------------------------------------------------

    def _header(self) -> str:
        """Returns the first line of a file, if it has one."""
        return ""

    def _whole(self, path: Path) -> int:
        """Returns the bytes up to the end of the last whole record; a kill or a full disk may have torn the next one.

        The file is one that lines were appended to.
        """
        raise NotImplementedError

    def _names(self, path: Path) -> Iterator[str]:
        """Yields the names of the videos that a file, or a part, holds the results of."""
        raise NotImplementedError

    def _write_merged(self, target: Path, sources: list[Path]) -> None:
        """Writes what several files hold as one."""
        raise NotImplementedError

    # --- what it does with lines --------------------------------------------------------------------------------------

    def _write(self, lines: str) -> None:
        """Appends lines.

        Raises:
            WorkError: if they cannot be written, as on a full disk.
        """
        try:
            if self._file is None:
                self._open()
            self._append(lines)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _parts(self) -> list[Path]:
        prefix = f"{self.path.name}.part"
        if not self.path.parent.is_dir():
            return []
        found = (p for p in self.path.parent.iterdir() if p.name.startswith(prefix))
        return sorted((p for p in found if p.name[len(prefix) :].isdigit()), key=lambda p: int(p.name[len(prefix) :]))

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._replaces:
            for path in self._stale:
                path.unlink(missing_ok=True)
        # "xb": a file that has appeared since then belongs to another command
        self._file = self._own.open("ab" if self._goes_on else "xb", buffering=0)
        if not self._own.stat().st_size:
            self._append(self._header())

    def _append(self, lines: str) -> None:
        data = lines.encode(errors="surrogateescape")
        while data:  # a disk that fills up writes a part first, and then fails
            data = data[self._file.write(data) :]

    def _cannot_write(self, error: OSError) -> WorkError:
        return WorkError(f"cannot write {self._own}: {os_reason(error)}")


def _hash(name: str) -> int:
    """Returns a hash of 64 bits. Among a million names, two have the same one with a probability of 1 in 40 million."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "big")
