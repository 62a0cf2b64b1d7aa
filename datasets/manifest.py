"""The manifest: the one list of clips that every data set becomes.

On disk it is a list for each split (lists.py), with the names of the classes in order beside them:

    train.csv    path,label[,start,end]      label: a class name or its number; start, end: seconds
    classes.txt  one name a line

A column `labels` in place of `label` holds any number of classes for each clip, separated by semicolons.
Paths are relative to the list's own folder, or to another one (`data.path_prefix`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from softpool3d.datasets.labels import Labels, told_apart
from softpool3d.datasets.lists import Row, format_seconds, read_rows
from softpool3d.errors import UsageError
from softpool3d.files import write_atomically
from softpool3d.text import legible, read_text

SPLITS = ("train", "val", "test")
LISTS = (".csv", ".txt", ".list")


@dataclass(frozen=True)
class Clip:
    """One labelled video, or the part of it from `start` to `end` (seconds; None: from the beginning, to the end).

    Where clips may have several labels, `label` is a tuple of them, of any length. `line` is the line of the list that
    names the clip, 0 if none does; it does not count when clips are compared.
    """

    path: str
    label: int | tuple[int, ...]
    start: float | None = None
    end: float | None = None
    line: int = field(default=0, compare=False, repr=False)


class Clips(Sequence[Clip]):
    """Clips stored in a few arrays.

    Reading a Python object changes its reference count: a list of objects would be copied, page by page, into the
    memory of every worker that reads it.
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
        self._lines = np.array([clip.line for clip in clips], np.int64)
        self._times = np.array([(clip.start, clip.end) for clip in clips], np.float64).reshape(-1, 2)  # None is nan

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        path = os.fsdecode(self._paths[self._ends[index] : self._ends[index + 1]].tobytes())
        start, end = (None if np.isnan(time) else float(time) for time in self._times[index])
        return Clip(path, self._label(index), start, end, int(self._lines[index]))

    def _label(self, index: int) -> int | tuple[int, ...]:
        if self.multi_label:
            return tuple(self._labels[self._label_ends[index] : self._label_ends[index + 1]].tolist())
        return int(self._labels[index])

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Returns the number of clips of each class: int64 (num_classes,)."""
        return np.bincount(self._labels, minlength=num_classes)

    def paths(self) -> list[str]:
        """Returns the path of each clip, without making a `Clip` for each."""
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
    """The clips of one split; `Clip.label` is an index into `classes`.

    missing: clips that the data set names but that are not on the disk.
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
        """Returns the number of clips of each class: int64 (C,)."""
        return self.clips.class_counts(len(self.classes))

    def where(self, index: int) -> str:
        """Returns the list and the line that name a clip, as `train.csv:3`; the clip's path if no list does."""
        clip = self.clips[index]
        return f"{self.source}:{clip.line}" if clip.line else clip.path

    def without(self, paths: Container[str]) -> Manifest:
        """Returns the manifest without the clips of these files."""
        return replace(self, clips=[clip for clip in self.clips if clip.path not in paths])


def read_manifests_in(folder: str | Path, prefix: str | Path | None = None) -> dict[str, Manifest]:
    """Reads the lists train, val and test (.csv, .txt, .list) of a folder; "train" has to be there.

    Args:
        prefix: the folder where relative paths begin; None: the folder of the lists.

    Raises:
        UsageError: naming file and line of the first mistake.
    """
    folder = Path(folder)
    lists = {split: path for split in SPLITS if (path := find_list(folder, split)) is not None}
    if "train" not in lists:
        raise UsageError(f"data.root: no train.csv in {folder}")
    return read_lists(lists, read_classes(folder / "classes.txt"), prefix)


def find_list(folder: Path, split: str) -> Path | None:
    """Returns the path of the split's list in the folder, or None."""
    return next((p for ending in LISTS if (p := folder / f"{split}{ending}").is_file()), None)


def read_lists(
    lists: dict[str, Path], classes: tuple[str, ...] | None = None, prefix: str | Path | None = None
) -> dict[str, Manifest]:
    """Reads a manifest from each list.

    Without `classes`, the labels of the lists are the classes: sorted names, or 0, 1, ... A clip may be in a list
    several times, to be seen more often.

    Raises:
        UsageError: naming file and line of the first mistake.
    """
    folders = {split: Path(prefix or path.parent) for split, path in lists.items()}
    rows = {split: list(read_rows(path, folders[split], labelled=True)) for split, path in lists.items()}
    for split, path in lists.items():
        if not rows[split]:
            raise UsageError(f"{path}: there are no clips in it")
    rows = told_apart(rows, folders)
    if len({row.several for some in rows.values() for row in some}) > 1:
        raise UsageError(f"{', '.join(map(str, lists.values()))}: one has a column label, another a column labels")
    labels = Labels(rows, classes)
    return {
        split: Manifest(labels.classes, _clips(rows[split], folders[split], labels), source=str(path))
        for split, path in lists.items()
    }


def _clips(rows: list[Row], folder: Path, labels: Labels) -> list[Clip]:
    clips = []
    seen: dict[tuple, Clip] = {}
    for row in rows:
        found = labels.of(row)
        place = os.path.normpath(folder / row.path)
        clip = Clip(place, found if row.several else found[0], row.start, row.end, row.line)
        first = seen.setdefault((place, row.start, row.end), clip)
        if first.label != clip.label:
            raise UsageError(f"{row.where}: {row.path} stands on line {first.line} already, with another label")
        clips.append(clip)
    return clips


def write_manifests(folder: Path, manifests: dict[str, Manifest]) -> None:
    """Writes `classes.txt` and a list for each split; paths below the folder's own parent become relative.

    Raises:
        UsageError: for a class name with a line break, or with a semicolon where clips have several labels.
        WorkError: if the folder cannot be written.
    """
    classes = next(iter(manifests.values())).classes
    several = any(manifest.multi_label for manifest in manifests.values())
    for name in classes:
        if "\n" in name or "\r" in name:
            raise UsageError(
                f"the class name {name!r} has a line break, so it cannot stand in a classes.txt; rename it"
            )
        if several and ";" in name:
            raise UsageError(
                f"the class name {name!r} has a semicolon, which separates the labels of a clip; rename it"
            )
    write_atomically(folder / "classes.txt", "".join(f"{name}\n" for name in classes).encode())
    for split, manifest in manifests.items():
        text = "".join(f"{line}\n" for line in _written(manifest, folder))
        write_atomically(folder / f"{split}.csv", text.encode(errors="surrogateescape"))


def _written(manifest: Manifest, folder: Path) -> Iterator[str]:
    """Yields the lines of a list that read_lists reads as the same manifest."""
    parent = os.path.abspath(folder.parent)
    timed = any(clip.start is not None or clip.end is not None for clip in manifest.clips)
    column = Labels.column(manifest.classes, manifest.multi_label)
    yield f"path,{column},start,end" if timed else f"path,{column}"
    for clip in manifest.clips:
        path = os.path.abspath(clip.path)
        if os.path.commonpath([path, parent]) == parent:
            path = os.path.relpath(path, os.path.abspath(folder))
        labels = clip.label if manifest.multi_label else (clip.label,)
        times = [format_seconds(clip.start), format_seconds(clip.end)] if timed else []
        yield ",".join(map(_cell, [path, ";".join(manifest.classes[label] for label in labels), *times]))


def _cell(text: str) -> str:
    """Quotes a text for CSV where it has to be; a line that begins with # would be a comment."""
    return '"{}"'.format(text.replace('"', '""')) if re.search(r'[",\r\n]|^#', text) else text


def read_classes(path: Path) -> tuple[str, ...] | None:
    """Reads class names, one a line; returns None if there is no such file.

    Raises:
        UsageError: for a name that stands there twice.
    """
    if not path.is_file():
        return None
    names: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name = legible(line.strip(), path, number)
        if name in names:
            raise UsageError(f"{path}:{number}: the class {name!r} stands on line {names[name]} already")
        if name:
            names[name] = number
    if not names:
        raise UsageError(f"{path}: there are no class names in it")
    return tuple(names)
