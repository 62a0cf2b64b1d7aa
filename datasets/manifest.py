"""The manifest: the one list of clips that every data set becomes.

On disk it is a CSV file for each split, with a header, and the class names in order beside it:

    train.csv    path,label[,start,end]      label: a class name or its number; start, end: seconds
    classes.txt  one name a line

A column `labels` in place of `label` holds any number of classes for each clip, separated by semicolons.
Paths are relative to the file's own folder. PySlowFast's lists (`path label` and `path,label`, with numbers) are read
too.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from softpool3d.errors import UsageError
from softpool3d.files import write_atomically

SPLITS = ("train", "val", "test")
LISTS = (".csv", ".txt", ".list")


@dataclass(frozen=True)
class Clip:
    """One labelled video, or the part of it from `start` to `end` (seconds; None: from the beginning, to the end).

    Where clips may have several labels, `label` is a tuple of them, of any length.
    """

    path: str
    label: int | tuple[int, ...]
    start: float | None = None
    end: float | None = None


class Clips(Sequence[Clip]):
    """Clips in four arrays.

    Python objects would be counted, and so copied, page by page into the memory of every worker that looks at them.
    """

    def __init__(self, clips: Iterable[Clip]) -> None:
        clips = list(clips)
        paths = [os.fsencode(clip.path) for clip in clips]
        self._paths = np.frombuffer(b"".join(paths), np.uint8)
        self._ends = np.cumsum([0, *map(len, paths)])
        labels = [clip.label for clip in clips]
        self.multi_label = any(isinstance(label, tuple) for label in labels)
        if self.multi_label:
            self._label_ends = np.cumsum([0, *map(len, labels)])
            labels = [one for some in labels for one in some]
        self._labels = np.array(labels, np.int64)
        self._times = np.array([(clip.start, clip.end) for clip in clips], np.float64).reshape(-1, 2)  # None is nan

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        path = os.fsdecode(self._paths[self._ends[index] : self._ends[index + 1]].tobytes())
        start, end = (None if np.isnan(time) else float(time) for time in self._times[index])
        return Clip(path, self._label(index), start, end)

    def _label(self, index: int) -> int | tuple[int, ...]:
        if self.multi_label:
            return tuple(self._labels[self._label_ends[index] : self._label_ends[index + 1]].tolist())
        return int(self._labels[index])

    def class_counts(self, num_classes: int) -> np.ndarray:
        """How many clips each class has: int64 (num_classes,)."""
        return np.bincount(self._labels, minlength=num_classes)

    def paths(self) -> list[str]:
        """The path of each clip, without an object for each."""
        whole, ends = self._paths.tobytes(), self._ends.tolist()
        return [os.fsdecode(whole[begin:end]) for begin, end in pairwise(ends)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clips) and all(
            np.array_equal(mine, theirs, equal_nan=mine.dtype == np.float64)
            for mine, theirs in zip(self._arrays(), other._arrays(), strict=True)
        )

    __hash__ = None

    def _arrays(self) -> tuple[np.ndarray, ...]:
        label_ends = self._label_ends if self.multi_label else np.empty(0, np.int64)
        return self._paths, self._ends, self._labels, label_ends, self._times


@dataclass(frozen=True)
class Manifest:
    """The clips of one split; `Clip.label` counts into `classes`.

    missing: clips that the data set names and that are not on the disk.
    source: the file or folder that it was read from.
    """

    classes: tuple[str, ...]
    clips: Sequence[Clip]
    missing: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "clips", Clips(self.clips))

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def multi_label(self) -> bool:
        """Whether clips have any number of labels."""
        return self.clips.multi_label

    def class_counts(self) -> np.ndarray:
        """How many clips each class has: int64 (C,)."""
        return self.clips.class_counts(len(self.classes))

    def without(self, paths: Container[str]) -> Manifest:
        """The same, less the clips of these files."""
        return replace(self, clips=[clip for clip in self.clips if clip.path not in paths])


def read_manifests_in(folder: str | Path) -> dict[str, Manifest]:
    """The lists train, val and test (.csv, .txt, .list) of a folder; "train" has to be there.

    Raises:
        UsageError: naming file and line of the first mistake.
    """
    folder = Path(folder)
    lists = {split: path for split in SPLITS if (path := find_list(folder, split)) is not None}
    if "train" not in lists:
        raise UsageError(f"data.root: no train.csv in {folder}")
    return read_lists(lists, read_classes(folder / "classes.txt"))


def find_list(folder: Path, split: str) -> Path | None:
    """The split's list in the folder, if there is one."""
    return next((p for ending in LISTS if (p := folder / f"{split}{ending}").is_file()), None)


def read_lists(lists: dict[str, Path], classes: tuple[str, ...] | None = None) -> dict[str, Manifest]:
    """Manifests from one list each. Without `classes`, they are the labels of the lists: names in order, or 0, 1, ...

    Raises:
        UsageError: naming file and line of the first mistake.
    """
    rows = {split: list(_rows(path)) for split, path in lists.items()}
    if classes is None:
        labels = {label for some in rows.values() for row in some for label in row.labels}
        if all(re.fullmatch(r"\d+", label) for label in labels):
            classes = tuple(str(n) for n in range(max(map(int, labels)) + 1))
        else:
            classes = tuple(sorted({label for row in rows["train"] for label in row.labels}))
    numbers = {name: number for number, name in enumerate(classes)}
    manifests = {}
    if len({row.several for some in rows.values() for row in some}) > 1:
        raise UsageError(f"{', '.join(map(str, lists.values()))}: one has a column label, another a column labels")
    for split, path in lists.items():
        clips = []
        seen: dict[tuple, str] = {}
        for row in rows[split]:
            key = (row.path, row.start, row.end)
            if key in seen:
                raise UsageError(f"{row.where}: {row.path} stands on line {seen[key]} already")
            seen[key] = row.where.rpartition(":")[2]
            place = os.path.normpath(path.parent / row.path)
            found = tuple(_label(row.where, label, classes, numbers) for label in row.labels)
            clips.append(Clip(place, tuple(sorted(set(found))) if row.several else found[0], row.start, row.end))
        if not clips:
            raise UsageError(f"{path}: there are no clips in it")
        manifests[split] = Manifest(classes, tuple(clips), source=str(path))
    return manifests


def write_manifests(folder: Path, manifests: dict[str, Manifest]) -> None:
    """Writes `classes.txt` and a list for each split; paths below the folder's own parent become relative.

    Raises:
        UsageError: for a class whose name has a line break.
        WorkError: if the folder cannot be written.
    """
    classes = next(iter(manifests.values())).classes
    for name in classes:
        if "\n" in name or "\r" in name:
            raise UsageError(
                f"the class name {name!r} has a line break, so it cannot stand in a classes.txt; rename it"
            )
    parent = os.path.abspath(folder.parent)
    write_atomically(folder / "classes.txt", "".join(f"{name}\n" for name in classes).encode())
    for split, manifest in manifests.items():
        timed = any(clip.start is not None or clip.end is not None for clip in manifest.clips)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        column = "labels" if manifest.multi_label else "label"
        writer.writerow(["path", column, "start", "end"] if timed else ["path", column])
        for clip in manifest.clips:
            path = os.path.abspath(clip.path)
            if os.path.commonpath([path, parent]) == parent:
                path = os.path.relpath(path, os.path.abspath(folder))
            times = ["" if time is None else f"{time:g}" for time in (clip.start, clip.end)] if timed else []
            labels = clip.label if manifest.multi_label else (clip.label,)
            writer.writerow([path, ";".join(classes[label] for label in labels), *times])
        write_atomically(folder / f"{split}.csv", text.getvalue().encode(errors="surrogateescape"))


def read_classes(path: Path) -> tuple[str, ...] | None:
    """Class names, one a line; None if there is no such file.

    Raises:
        UsageError: for a name that stands there twice.
    """
    if not path.is_file():
        return None
    names: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name = line.strip()
        if name in names:
            raise UsageError(f"{path}:{number}: the class {name!r} stands on line {names[name]} already")
        if name:
            names[name] = number
    if not names:
        raise UsageError(f"{path}: there are no class names in it")
    return tuple(names)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark, lines ending in LF or CRLF.

    Bytes that are no UTF-8 in the path of a file come out as Python's file names have them.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def read_table(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Columns of a CSV file's header, and its records with the line that each begins on; empty ones are left out.

    Raises:
        UsageError: if it cannot be read or a quote is not closed.
    """
    records = _records(path, read_text(path))
    _, header = next(records, (1, []))
    return [name.strip().lower() for name in header], records


@dataclass(frozen=True)
class _Row:
    where: str
    path: str
    labels: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    several: bool = False  # any number of labels


def _rows(path: Path) -> Iterator[_Row]:
    text = read_text(path)
    if "\0" in text:
        raise UsageError(f"{path}: this is no text file, but a list of clips is one")
    columns, records = read_table(path)
    if "path" in columns or "label" in columns or "labels" in columns:
        several = "labels" in columns
        for name in ("path", "labels" if several else "label"):
            if name not in columns:
                raise UsageError(f"{path}:1: there is no column {name!r}; the header has to be path,label[,start,end]")
        for line, record in records:
            where = f"{path}:{line}"
            if len(record) != len(columns):
                raise UsageError(
                    f"{where}: {len(record)} values, but the header has {len(columns)} columns "
                    '(a path with a comma stands in "quotes")'
                )
            values = dict(zip(columns, record, strict=True))
            times = (parse_seconds(values.get(name, ""), f"{where}: {name}") for name in ("start", "end"))
            if several:
                labels = tuple(label.strip() for label in values["labels"].split(";") if label.strip())
            else:
                labels = (values["label"].strip(),)
            yield _checked(_Row(where, values["path"], labels, *times, several))
        return
    spaced = next((line for line in text.splitlines() if line.strip()), "")
    if re.search(r"\s\d+\s*$", spaced) and not re.search(r",\s*\d+\s*$", spaced):  # `path label`, and a path has spaces
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                name, _, label = line.strip().rpartition(" " if "\t" not in line else "\t")
                yield _checked(_Row(f"{path}:{number}", name.strip(), (label,)))
        return
    for number, record in _records(path, text):
        where = f"{path}:{number}"
        if len(record) != 2 or not record[1].strip().isdigit():
            raise UsageError(
                f"{where}: neither `path label` nor `path,label` with a number, and no header path,label before it"
            )
        yield _checked(_Row(where, record[0].strip(), (record[1].strip(),)))


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    before = 0
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UsageError(f"{path}:{before + 1}: not valid CSV ({error})") from None
        if any(value.strip() for value in record):
            yield before + 1, record
        before = reader.line_num


def parse_seconds(text: str, where: str) -> float | None:
    """The cell of a list; None if it is empty.

    Raises:
        UsageError: saying `where`, if it is no number, below 0 or infinite.
    """
    try:
        seconds = float(text) if text.strip() else None
    except ValueError:
        seconds = -1.0
    if seconds is not None and not 0 <= seconds < float("inf"):
        raise UsageError(f"{where} = {text!r} is not a number of seconds")
    return seconds


def _checked(row: _Row) -> _Row:
    if not row.path or not all(row.labels):
        raise UsageError(f"{row.where}: the {'label' if row.path else 'path'} is missing")
    if row.start is not None and row.end is not None and row.start >= row.end:
        raise UsageError(f"{row.where}: start {row.start:g} is not before end {row.end:g}")
    return row


def _label(where: str, label: str, classes: tuple[str, ...], numbers: dict[str, int]) -> int:
    if label in numbers:
        return numbers[label]
    if re.fullmatch(r"-?\d+", label):
        number = int(label)
        if 0 <= number < len(classes):
            return number
        raise UsageError(f"{where}: label {number} is out of range: there are {len(classes)} classes, from 0")
    raise UsageError(f"{where}: {label!r} is none of the {len(classes)} classes")
