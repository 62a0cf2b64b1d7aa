"""A folder of results, here or in a bucket, for lists of any length: a Parquet file for each block of the list.

    labels/
      _about.json                   what made the results
      00000000-1f9a3c2e.parquet     those of the list's first 512 clips, in its order
      00000001-77d0b9a4.parquet     ...

A file is there once all results of its block are known, whole or not at all, whatever is killed. The second part of its
name is a hash of the block's clips: another list does not pass for this one. Only the blocks that are being worked on
are in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softpool3d.datasets.inputs import ListChanged, clip_name
from softpool3d.datasets.manifest import Clip
from softpool3d.errors import UsageError, WorkError, first_line
from softpool3d.evaluation.features import difference
from softpool3d.files import remove_abandoned, write_atomically
from softpool3d.foreign import parse_json
from softpool3d.inference.work import Result

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 512  # clips of one file
ABOUT = "_about.json"  # readers of Parquet leave out what begins with _
_PART = re.compile(r"(\d{8})-[0-9a-f]{8}\.parquet")


def is_folder(out: str | Path) -> bool:
    """Whether results go to a folder: an address of a bucket, a name that ends with /, or a folder that is there."""
    return "://" in str(out) or str(out).endswith("/") or Path(out).is_dir()


class Folder:
    """A folder here, or in a bucket: s3://bucket/labels, gs://..., whatever pyarrow.fs opens."""

    def __init__(self, out: str) -> None:
        if find_spec("pyarrow") is None:
            raise UsageError(f"--out {out}: a folder of results needs pyarrow; pip install 'softpool3d[parquet]'")
        from pyarrow import fs

        self.name = out.rstrip("/")
        self._here = "://" not in out
        try:
            self._system, self._path = (fs.LocalFileSystem(), self.name) if self._here else fs.FileSystem.from_uri(out)
            self._path = self._path.rstrip("/")
        except (OSError, ValueError) as error:
            raise UsageError(f"--out {out}: {first_line(error)}") from None

    def tidy(self) -> None:
        """Removes what killed commands left unfinished; in a bucket, an unfinished file does not exist."""
        if self._here:
            remove_abandoned(Path(self._path))

    def names(self) -> set[str]:
        """Returns the names of its files."""
        from pyarrow import fs

        with self._errors("read"):
            found = self._system.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return {info.base_name for info in found if info.is_file}

    def read(self, name: str) -> bytes:
        with self._errors("read"), self._system.open_input_stream(f"{self._path}/{name}") as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, whole or not at all."""
        if self._here:
            return write_atomically(Path(self._path) / name, content)
        with self._errors("write"), self._system.open_output_stream(f"{self._path}/{name}") as file:
            file.write(content)

    def remove(self, name: str) -> None:
        with self._errors("write"):
            self._system.delete_file(f"{self._path}/{name}")

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WorkError(f"cannot {verb} {self.name}: {first_line(error)}") from None


@dataclass
class _Block:
    """The results of a block of the list, as far as they are known, as rows of the table."""

    name: str
    size: int
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)


class Parts:
    """The folder that results are written to.

    Args:
        out: its path or address.
        about: what makes the results; a folder that is gone on with has to be made by the same.
        schema: of the table.
        row: returns a result as a row of the table.
        resume: goes on with what is there.
        overwrite: replaces what is there, once there is a first block.

    Raises:
        UsageError: for a folder that holds results, or those of other weights or settings.
        WorkError: if it cannot be written.
    """

    def __init__(
        self,
        out: str,
        about: dict[str, Any],
        schema: pa.Schema,
        row: Callable[[Result], dict[str, Any]],
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._folder, self._about, self._schema, self._row = Folder(out), about, schema, row
        self.path, self.done = self._folder.name, 0
        self._folder.tidy()
        there = self._folder.names()
        parts = {name for name in there if _PART.fullmatch(name)}
        if parts and not (resume or overwrite):
            raise UsageError(f"--out: {out} holds results; --resume {out} goes on with them, --overwrite replaces them")
        if resume and ABOUT in there:
            self._check(parse_json(self._folder.read(ABOUT).decode()))
        self._stale = set() if resume else parts
        self._there = parts - self._stale
        self._numbers = {name[:8] for name in self._there}
        if not self._stale:
            self._write_about()
        self._places: dict[str, deque[tuple[_Block, int]]] = {}  # where results go that are not known yet, by name

    def left(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        """Yields the clips of the blocks that are not there yet.

        Raises:
            UsageError: if the folder was made from another list.
            WorkError: if the list was changed while it was read.
        """
        try:
            yield from self._left(clips)
        except ListChanged as error:
            raise WorkError(f"{error.what}; {self.path} holds parts of the old list: name another folder") from None

    def _left(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        clips, number = iter(clips), 0
        while some := list(islice(clips, BLOCK)):
            names = [clip_name(clip) for clip in some]
            name = f"{number:08d}-{_hash(names)}.parquet"
            if name in self._there:
                self.done += len(some)
            elif name[:8] in self._numbers:
                first = number * BLOCK + 1
                raise UsageError(
                    f"{self.path} was made from another list: its part {number} is not of the clips {first} to "
                    f"{first + len(some) - 1} of this one; name another folder"
                )
            else:
                block = _Block(name, len(some))
                for place, clip in enumerate(names):
                    self._places.setdefault(clip, deque()).append((block, place))
                yield from some
            number += 1

    def write(self, result: Result) -> None:
        """Takes a result; with the last one of its block, the block's file is written.

        Raises:
            WorkError: if it cannot be written.
        """
        waiting = self._places[result.file]
        block, place = waiting.popleft()
        if not waiting:
            del self._places[result.file]
        block.rows[place] = self._row(result)
        if len(block.rows) == block.size:
            self._save(block)

    def close(self) -> None:
        """Leaves out the blocks that are not complete."""

    def merge(self) -> None:
        """Does nothing: a part is whole once it is there."""

    def _save(self, block: _Block) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([row for _, row in sorted(block.rows.items())], self._schema)
        content = io.BytesIO()
        pq.write_table(table, content)
        if self._stale:
            for name in self._stale:
                self._folder.remove(name)
            self._stale = set()
            self._write_about()
        self._folder.write(block.name, content.getvalue())

    def _write_about(self) -> None:
        self._folder.write(ABOUT, json.dumps(self._about, ensure_ascii=False, indent=1).encode())

    def _check(self, made: dict[str, Any]) -> None:
        differs = difference(made, self._about)
        if differs is not None:
            raise UsageError(
                f"--resume: {self.path} holds results of another kind than this run's: {differs}; name another folder"
            )


def _hash(names: list[str]) -> str:
    content = "\0".join(names).encode(errors="surrogateescape")
    return hashlib.blake2b(content, digest_size=4).hexdigest()
