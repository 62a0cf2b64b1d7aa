"""Labels of lists: what the numbers after a path are, and which class a label means."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from softpool3d.datasets.lists import Row
from softpool3d.errors import UsageError
from softpool3d.text import note

_MOST_CLASSES = 100_000  # without a list of their names; a larger number is taken for a mistake
_LOOKED_AT = 5  # files whose frames are counted


def told_apart(rows: dict[str, list[Row]], folders: dict[str, Path]) -> dict[str, list[Row]]:
    """Returns the rows of each split, with the numbers in mmaction2's lists told apart.

    `path 32 0` is `path frames label` if the path is a folder of frames, or a video of 32 frames; the number of frames
    is then left out. Otherwise it is `path label label`. A note says which it is. If any row has several labels then,
    all rows get the column `labels`.

    Args:
        rows: split -> its rows.
        folders: split -> the folder where its relative paths begin.

    Raises:
        UsageError: if the files do not tell which it is.
    """
    longer = [(row, folders[split]) for split, some in rows.items() for row in some if _is_bare(row, 2)]
    if not longer:
        return rows
    counted = _counts_frames(longer)
    list_of = longer[0][0].where.rpartition(":")[0]
    note(f"{list_of}: read as mmaction2's {'`path frames label`' if counted else '`path label label ...`'}")
    if counted:
        rows = {split: [_without_count(row) if _is_bare(row) else row for row in some] for split, some in rows.items()}
    if not any(_is_bare(row, 2) for row in chain(*rows.values())):
        return rows
    return {
        split: [row._replace(column="labels") if _is_bare(row) else row for row in some] for split, some in rows.items()
    }


def _is_bare(row: Row, least: int = 1) -> bool:
    """Whether a row is of a list without a header, and has `least` numbers or more."""
    return not row.column and len(row.labels) >= least


def _without_count(row: Row) -> Row:
    if len(row.labels) == 1:
        raise UsageError(f"{row.where}: one number after the path, where other lines have `path frames label`")
    return row._replace(labels=row.labels[1:])


def _counts_frames(rows: Iterable[tuple[Row, Path]]) -> bool:
    """Whether the first number after a path counts frames, judged by the first files that exist."""
    from softpool3d.datasets.video.decoder import DecodeError, open_video

    first, said = None, []
    for row, folder in rows:
        first = first or row
        path = os.path.join(folder, row.path)
        if not os.path.exists(path):
            continue
        try:
            with open_video(path) as video:
                said.append(os.path.isdir(path) or abs(video.num_frames - int(row.labels[0])) <= 1)
        except DecodeError:
            continue
        if len(said) == _LOOKED_AT:
            break
    if len(set(said)) == 1:
        return said[0]
    why = "some files have as many frames and others not" if said else f"no file is there ({first.path} is the first)"
    raise UsageError(
        f"{first.where}: {' '.join(first.labels)} may be labels, or the number of frames and a label, and the files do "
        f"not tell: {why}; write a header path,label, or path,labels with semicolons between labels"
    )


class Labels:
    """The classes of a data set; reads labels as their names, or as their numbers from 0.

    Args:
        rows: split -> its rows; "train" is among the splits.
        classes: names; if None, the classes are the labels themselves: sorted names, or the numbers 0, 1, ...

    Raises:
        UsageError: if names of classes are numbers, and labels may be names or numbers.
    """

    def __init__(self, rows: dict[str, list[Row]], classes: tuple[str, ...] | None) -> None:
        self.classes = classes or _classes(rows)
        self._numbers = {name: number for number, name in enumerate(self.classes)}
        self._by_name, self._by_number = self._readings(list(chain(*rows.values())))

    def of(self, row: Row) -> tuple[int, ...]:
        """Returns the numbers of a row's classes, ascending, each once.

        Raises:
            UsageError: for a label that is none of the classes.
        """
        return tuple(sorted({self._number(row, label) for label in row.labels}))

    @staticmethod
    def column(classes: tuple[str, ...], several: bool) -> str:
        """Returns the header of a column of these classes' names, so that no name is read as a number."""
        if _misnumbered(classes):
            return "class_names" if several else "class_name"
        return "labels" if several else "label"

    def _number(self, row: Row, label: str) -> int:
        if label in self._numbers and (self._by_name or row.named):
            return self._numbers[label]
        if _is_number(label) and self._by_number and not row.named:
            number, count = int(label), len(self.classes)
            if 0 <= number < count:
                return number
            hint = "; if the list's labels begin at 1, subtract 1 from each" if number == count else ""
            raise UsageError(f"{row.where}: label {number} is out of range: there are {count} classes, from 0{hint}")
        raise UsageError(f"{row.where}: {label!r} is none of the {len(self.classes)} classes")

    def _readings(self, rows: list[Row]) -> tuple[bool, bool]:
        """Returns whether labels may be names, and whether numbers; both unless a name is another class's number."""
        odd = _misnumbered(self.classes)
        labels = {label for row in rows if not row.named for label in row.labels}
        if not odd or not labels or all(self._numbers.get(label) == int(label) for label in filter(_is_number, labels)):
            return True, True
        names = labels <= self._numbers.keys()
        numbers = all(_is_number(label) and 0 <= int(label) < len(self.classes) for label in labels)
        if names and numbers:
            raise UsageError(
                f"{rows[0].where}: classes are called by numbers (number {self._numbers[odd[0]]} is {odd[0]!r}), so "
                "whether labels are names or numbers of classes cannot be told; call the column class_name if they are "
                "names, or rename the classes in classes.txt, or remove it"
            )
        if numbers:
            note(f"labels are numbers of classes, from 0, and not their names: 0 is the class {self.classes[0]!r}")
        return not numbers, numbers


def _classes(rows: dict[str, list[Row]]) -> tuple[str, ...]:
    every = list(chain(*rows.values()))
    if any(row.named or not all(map(_is_number, row.labels)) for row in every):
        return tuple(sorted({label for row in rows["train"] for label in row.labels}))
    last = max((row for row in every if row.labels), key=lambda row: max(map(int, row.labels)), default=None)
    most = max(map(int, last.labels)) if last else 0
    if most >= _MOST_CLASSES:
        raise UsageError(f"{last.where}: label {most}: without a classes.txt, labels are numbers of classes, from 0")
    return tuple(map(str, range(most + 1)))


def _misnumbered(classes: tuple[str, ...]) -> list[str]:
    """Returns the names that are numbers, but not the number of their own class."""
    return [name for number, name in enumerate(classes) if _is_number(name) and int(name) != number]


def _is_number(label: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", label) is not None
