"""Files of features that grow (growing_file.py): what `embed` appends to, and what becomes of it.

Each process appends JSON lines to a part file. The first says what made the features; then come the rows of a video,
and a line that ends it:

    {"about": {...}}
    {"file": "a.mp4", "start": 0.0, "end": 2.0, "features": "..."}      float32 in base64
    {"done": "a.mp4"}

So a video whose rows are not all there, because the work was stopped, is done again.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from softpool3d.datasets.inputs import clip_name
from softpool3d.datasets.manifest import Clip
from softpool3d.errors import UsageError
from softpool3d.evaluation.features import Row, check_format, difference, open_features, write_features
from softpool3d.foreign import parse_json
from softpool3d.inference.embedder import Features
from softpool3d.inference.growing_file import GrowingFile
from softpool3d.inference.work import Failure
from softpool3d.runs.lock import claim

_END = b'{"done": '


class FeaturesFile(GrowingFile):
    """One file for the features of many videos.

    Args:
        path, resume, overwrite, rank, world_size: as for `GrowingFile`.
        about: what makes the features, as `Embedder.about` returns it.

    Raises:
        UsageError: for an unknown format, for a file that exists or that other weights, layers or settings made, or if
            the format's library is missing.
    """

    def __init__(
        self,
        path: Path,
        about: dict[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_format("--out", path)
        self._about = about
        super().__init__(path, True, resume, overwrite, rank, world_size)

    def add(self, file: str, start: float, end: float, vector: Tensor) -> None:
        """Appends a row of a video that is not done yet; `write` ends it.

        Raises:
            WorkError: if it cannot be written.
        """
        features = base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
        self._write(_line({"file": file, "start": round(start, 4), "end": round(end, 4), "features": features}))

    def undo(self) -> None:
        """Removes the rows of the video that is not done yet."""
        if self._file is not None:
            self._file.truncate(self._file.seek(self._ended))

    def write(self, result: Features | Failure) -> None:
        """Appends the rest of a video's rows, and that it is done."""
        if isinstance(result, Failure):
            self._write(_line({"file": result.file, "error": result.reason}))
        else:
            for row in result.rows:
                self.add(result.file, *row)
        self._write(_line({"done": result.file}))
        self._ended = self._size()

    def remove(self) -> None:
        """Removes the part file, and what was appended to it."""
        self.close()
        self._own.unlink(missing_ok=True)

    def _open(self) -> None:
        super()._open()
        self._ended = self._size()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _header(self) -> str:
        return _line({"about": self._about})

    def _whole(self, path: Path) -> int:
        whole = position = 0
        with path.open("rb") as file:
            for number, line in enumerate(file):
                position += len(line)
                if line.endswith(b"\n") and (number == 0 or line.startswith(_END)):
                    whole = position
        return whole

    def _names(self, path: Path) -> Iterator[str]:
        return (row.file for row in self._rows(path))

    def _write_merged(self, target: Path, sources: list[Path]) -> None:
        rows = lambda: chain.from_iterable(self._rows(path) for path in sources)  # noqa: E731
        write_features(target, self.path.suffix.lower(), self._about, rows)

    def _rows(self, path: Path) -> Iterator[Row]:
        """Yields the rows of a file, or of a part up to the end of its last whole video."""
        if path == self.path:
            with open_features(path) as (about, rows):
                _check(path, about, self._about)
                yield from rows
            return
        end = self._whole(path)
        with path.open("rb") as file:
            number = 0
            while file.tell() < end:
                number += 1
                line = file.readline()
                try:
                    values = parse_json(line.decode(errors="surrogateescape"))
                    if "about" in values:
                        _check(path, values["about"], self._about)
                    elif "done" not in values:
                        yield _row(values)
                except (ValueError, KeyError, TypeError):
                    raise UsageError(f"{path}:{number}: this is no line of features") from None


class FeaturesFiles:
    """A file for each video, as `FeaturesFile` writes it.

    Args:
        pattern: for messages. targets: the file of each video.
        about, resume, overwrite: as for `FeaturesFile`. Resuming leaves out the videos whose file is there.

    Raises:
        UsageError: for an unknown format, or a file that other weights, layers or settings made.
    """

    def __init__(
        self, pattern: Path, targets: dict[str, Path], about: dict[str, Any], resume: bool, overwrite: bool
    ) -> None:
        check_format("--out", pattern)
        self.path = pattern
        self._targets, self._about, self._resume, self._overwrite = targets, about, resume, overwrite
        self._there = {video for video, path in targets.items() if path.exists()} if resume else set()
        for video in self._there:
            with open_features(targets[video]) as (made, _):
                _check(targets[video], made, about)
        self.done = len(self._there)
        self._current: FeaturesFile | None = None
        self._claim = ExitStack()

    def left(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        """Yields the videos that have no file yet."""
        return (clip for clip in clips if clip_name(clip) not in self._there)

    def add(self, video: str, start: float, end: float, vector: Tensor) -> None:
        self._file(video).add(video, start, end, vector)

    def undo(self) -> None:
        if self._current is not None:
            self._current.undo()

    def write(self, result: Features | Failure) -> None:
        """Writes a video's file. There is none for a failure."""
        file = self._file(result.file)
        if isinstance(result, Failure):
            file.remove()
        else:
            file.write(result)
            file.merge()
        self.close()

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
        self._current = None
        self._claim.close()

    def merge(self) -> None:
        """Does nothing: each video's file is whole once it is written."""

    def _file(self, video: str) -> FeaturesFile:
        if self._current is None:
            target = self._targets[video]
            self._claim.enter_context(claim(target, is_folder=False))
            self._current = FeaturesFile(target, self._about, self._resume, self._overwrite)
        return self._current


def features_row(result: Features | Failure) -> dict[str, Any]:
    """Returns the features of a whole video as a row of the table."""
    if isinstance(result, Failure):
        return Row(result.file, None, None, None, result.reason)._asdict()
    ((start, end, vector),) = result.rows
    return Row(result.file, round(start, 4), round(end, 4), vector.numpy())._asdict()


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def _row(values: dict[str, Any]) -> Row:
    if "error" in values:
        return Row(values["file"], None, None, None, values["error"])
    features = np.frombuffer(base64.b64decode(values["features"]), "<f4")
    return Row(values["file"], values["start"], values["end"], features)


def _check(path: Path, made: dict[str, Any], about: dict[str, Any]) -> None:
    differs = difference(made, about)
    if differs is not None:
        raise UsageError(
            f"--resume: {path} holds features of another kind than this run's: {differs}; name another file"
        )
