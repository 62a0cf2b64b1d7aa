"""Reads all lists of clips: those of training, of `classify --manifest` and `@list`, and standard input.

    path,label[,start,end]      CSV with a header: commas, semicolons or tabs, "quotes" around what holds one of them
    path label                  without a header, a number after each path; `path,label`, `path;label` too (PySlowFast)
    path frames label           the same of folders of frames (mmaction2)
    path label label ...        the same with several labels (mmaction2)
    path                        no label: for `classify` alone

Text is UTF-8, with or without a byte order mark, or UTF-16 with one. A cell that is not valid UTF-8 is read as
Windows-1252, unless a file with exactly these bytes as its name exists. Lines that begin with # are comments. Rows are
read one at a time: a million of them take no memory.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from softpool3d.datasets.video.remote import is_address
from softpool3d.errors import UsageError
from softpool3d.text import legible, lines_of, opened, read_text, windows_1252

# names of columns, the usual one first: it wins over others in the same header
_PATHS = ("path", "file", "file_name", "filename", "video", "video_path")
_LABELS = ("label", "class", "class_name")  # class_name: always a name, never the number of a class
_SEVERAL = ("labels", "class_names")  # any number of labels, separated by semicolons
_KNOWN = {*_PATHS, *_LABELS, *_SEVERAL, "start", "end"}
_WANTED = (
    "a header path,label[,start,end] between commas, semicolons or tabs (for path also "
    f"{', '.join(_PATHS[1:])}; for label also {', '.join(_LABELS[1:])}; for several labels {' or '.join(_SEVERAL)})"
)
_CSV = ",;\t"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", " ": "spaces"}
_NUMBER = re.compile(r"[ \t]*([,; \t])[ \t]*(-?[0-9]+)\Z")  # the last one of a line, and what stands before it


class Row(NamedTuple):
    """One row of a list: a clip as the list describes it.

    where: the list and the line, `train.csv:3`.
    path: as written in the list, relative to the folder where its paths begin.
    labels: as text; in a list without a header, all numbers after the path.
    start, end: seconds.
    column: the header of the labels; empty in a list without a header.
    """

    where: str
    line: int
    path: str
    labels: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    column: str = ""

    @property
    def several(self) -> bool:
        """Whether the row may have any number of labels."""
        return self.column in _SEVERAL

    @property
    def named(self) -> bool:
        """Whether the labels can only be names, and not numbers of classes."""
        return self.column in ("class_name", "class_names")


def read_rows(path: Path | None, folder: Path, labelled: bool) -> Iterator[Row]:
    """Yields the rows of a list, or with None of standard input, in order; each is read when it is asked for.

    Paths on standard input may be separated by NUL, as `find -print0` writes them.

    Args:
        folder: where relative paths begin. If a line can be read in two ways, the files that exist there decide.
        labelled: whether each row has to have a label, as in training; otherwise labels are ignored.

    Raises:
        UsageError: naming file and line, for the first mistake.
    """
    name, begin = str(path or "standard input"), str(folder)
    with opened(path) as file, closing(lines_of(file, name)) as text:
        if (
            path is None
            and b"\0" in (head := file.peek())
            and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        ):
            for number, item in enumerate(_between_nuls(file), 1):
                yield Row(f"{name}:{number}", number, os.fsdecode(item))
            return
        lines = _Lines(text, name, begin)
        first = next(lines, None)
        if first is None:
            return
        header = _header(first, begin)
        if header is not None:
            yield from map(_checked, _table(lines, *header, begin, labelled))
        else:
            yield from map(_checked, _bare(lines, first, begin, labelled))


def read_table(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Returns the columns of a CSV file's header, in lower case, and its records, each with the line that it begins on.

    Raises:
        UsageError: if it cannot be read or a quote is not closed.
    """
    lines = _Lines(io.StringIO(read_text(path), newline=""), str(path))
    header = next(lines, "")
    separator = max(_CSV, key=header.count)
    return _columns(header, separator), _records(lines, separator)


def format_seconds(time: float | None) -> str:
    """Returns a time in as few digits as read back as the same number; "" for None."""
    return "" if time is None else np.format_float_positional(time, trim="-")


# --- lines and records ------------------------------------------------------------------------------------------------


def _between_nuls(file: BinaryIO) -> Iterator[bytes]:
    rest = b""
    while block := file.read1():
        *items, rest = (rest + block).split(b"\0")
        yield from filter(None, items)
    if rest:
        yield rest


class _Lines(Iterator[str]):
    """Yields the lines of a text and counts them; skips empty lines and comments before a record.

    folder: where paths begin, because the name of a file may begin with #, too; None if there are no comments.
    """

    def __init__(self, lines: Iterable[str], name: str, folder: str | None = None) -> None:
        self.name, self._lines, self._folder = name, iter(lines), folder
        self.first = self._number = 0
        self.begins = True  # a record, with the next line

    @property
    def where(self) -> str:
        """The text and the line where the last record begins."""
        return f"{self.name}:{self.first}"

    def __next__(self) -> str:
        for line in self._lines:
            self._number += 1
            if self.begins:
                if not line.strip() or (line.startswith("#") and self._is_comment(line)):
                    continue
                self.first, self.begins = self._number, False
            return line
        raise StopIteration

    def _is_comment(self, line: str) -> bool:
        path = re.split(r"[,;\t]|\s+[0-9]+\s*$", line)[0]
        return self._folder is not None and not any(_is_there(self._folder, name) for name in (line.strip(), path))


def _records(lines: _Lines, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line that each record begins on, and the record; those of empty cells alone are left out."""
    reader = csv.reader(lines, strict=True, delimiter=separator)
    while True:
        lines.begins = True
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UsageError(f"{lines.where}: not valid CSV ({error})") from None
        if any(map(str.strip, record)):
            yield lines.first, record


def _columns(line: str, separator: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([line], delimiter=separator), [])]


def _header(line: str, folder: str) -> tuple[str, list[str]] | None:
    """Returns the separator and the columns, in lower case; None if the line is a row and no header."""
    best, known = None, 0
    for separator in _CSV:
        columns = _columns(line, separator)
        count = 0 if any(re.fullmatch(r"-?[0-9]+", name) for name in columns) else len(_KNOWN.intersection(columns))
        if count > known:
            best, known = (separator, columns), count
    if known == 1 and len(best[1]) == 1 and _is_there(folder, line.strip()):
        return None  # a file that is called `video`
    return best


def _table(lines: _Lines, separator: str, columns: list[str], folder: str, labelled: bool) -> Iterator[Row]:
    """Yields the rows of a list with a header."""
    path_at = _column(lines.where, columns, ("path",), _PATHS)
    labels_at = _column(lines.where, columns, ("labels", "label"), (*_LABELS, *_SEVERAL)) if labelled else None
    column = "" if labels_at is None else columns[labels_at]
    times_at = [(name, columns.index(name)) for name in ("start", "end") if name in columns]
    for line, record in _records(lines, separator):
        where = f"{lines.name}:{line}"
        if len(record) != len(columns):
            raise UsageError(
                f"{where}: {len(record)} values, but the header has {len(columns)} columns between "
                f'{_SEPARATORS[separator]} (what holds one, as a path may, stands in "quotes")'
            )
        times = {name: parse_seconds(record[at], f"{where}: {name}") for name, at in times_at}
        labels: tuple[str, ...] = ()
        if labels_at is not None:
            cell = legible(record[labels_at], lines.name, line)
            labels = tuple(filter(None, map(str.strip, cell.split(";")))) if column in _SEVERAL else (cell.strip(),)
        yield Row(where, line, _named(record[path_at], folder), labels, **times, column=column)


def _column(where: str, columns: list[str], usual: tuple[str, ...], names: tuple[str, ...]) -> int:
    """Returns the index of the column with the first usual name found, else of the only one with another name."""
    first = next((name for name in usual if name in columns), None)
    found = [name for name in columns if name == first or (first is None and name in names)]
    if not found:
        raise UsageError(f"{where}: there is no column {usual[-1]!r}; there has to be {_WANTED}")
    if len(found) > 1:
        raise UsageError(f"{where}: the columns {' and '.join(found)} mean the same; rename one of them")
    return columns.index(found[0])


def _bare(lines: _Lines, line: str | None, folder: str, labelled: bool) -> Iterator[Row]:
    """Yields the rows of a list without a header: a path followed by numbers."""
    usual = first = None  # what stands before the last number, and the line where it was seen first
    while line is not None:
        where = lines.where
        path, numbers, separator = _split(line.strip("\r\n"), folder, int(labelled), where)
        if labelled:
            if usual == " " and not numbers:  # a name among numbers
                path, _, label = path.rstrip().rpartition("\t" if "\t" in path else " ")
                numbers, separator = (legible(label, lines.name, lines.first),), " "
            if not numbers:
                raise UsageError(
                    f"{where}: neither `path label` nor `path,label` with a number; for labels that are names there "
                    f"has to be {_WANTED}"
                )
            usual, first = usual or separator, first or lines.first
            if separator != usual:
                raise UsageError(
                    f"{where}: {_SEPARATORS[separator]} before the label, and in line {first} {_SEPARATORS[usual]}"
                )
        yield Row(where, lines.first, _named(path, folder), numbers)
        lines.begins = True
        line = next(lines, None)


def _split(line: str, folder: str, least: int, where: str) -> tuple[str, tuple[str, ...], str]:
    """Returns the path, the numbers after it, and what separates them: a comma, a semicolon or a space.

    The path of a folder may end in a number itself. So the longest path that exists is taken, but without the last
    `least` numbers; if none exists, the shortest.
    """
    found = _last_number(line)
    if found is None:
        return _unquoted(line), (), ""
    paths, numbers, separator = [line], [], ""  # paths: without 0, 1, ... of the numbers
    while found:
        before = " " if found[1] == "\t" else found[1]
        if numbers and not before == separator == " ":
            break
        separator = before
        numbers.insert(0, found[2])
        paths.append(line[: found.start()])
        found = _last_number(paths[-1])
    paths = list(map(_unquoted, paths))
    count = next((n for n in range(least, len(numbers)) if _is_there(folder, paths[n])), len(numbers))
    if found and count and found[1] in ",;" and not _is_there(folder, paths[count]):
        raise UsageError(f"{where}: more than `path,label`; there has to be {_WANTED}")
    return paths[count], tuple(numbers[len(numbers) - count :]), separator


def _last_number(line: str) -> re.Match[str] | None:
    line = line.rstrip()
    path = line.rstrip("0123456789").removesuffix("-")
    if path[-1:] not in (" ", "\t", ",", ";"):
        return None  # quickly: most lines of long lists have none
    return _NUMBER.search(line, len(path.rstrip(" \t,;")))


def _unquoted(path: str) -> str:
    bare = path.strip()
    return bare[1:-1].replace('""', '"') if len(bare) > 2 and bare[0] == bare[-1] == '"' else path


def _is_there(folder: str, path: str) -> bool:
    return os.path.lexists(os.path.join(folder, path))


def _named(path: str, folder: str) -> str:
    """Returns the path as written, or without spaces around it, or read as Windows-1252: the first that exists."""
    bare = path.strip()
    if path == bare and path.isascii():
        return path
    tries = {path: None, bare: None}
    if read := windows_1252(path):
        tries |= {read: None, read.strip(): None}
    if len(tries) == 1:
        return path
    if is_address(bare):
        return bare
    return next((name for name in tries if _is_there(folder, name)), path)


def parse_seconds(text: str, where: str) -> float | None:
    """Returns the seconds in a cell of a list; None if it is empty.

    Raises:
        UsageError: if it is no number, below 0 or infinite; begins with `where`.
    """
    try:
        seconds = float(text) if text.strip() else None
    except ValueError:
        seconds = -1.0
    if seconds is not None and not 0 <= seconds < float("inf"):
        raise UsageError(f"{where} = {text!r} is not a number of seconds")
    return seconds


def _checked(row: Row) -> Row:
    if not row.path or not all(row.labels):
        raise UsageError(f"{row.where}: the {'label' if row.path else 'path'} is missing")
    if row.start is not None and row.end is not None and row.start >= row.end:
        start, end = format_seconds(row.start), format_seconds(row.end)
        raise UsageError(f"{row.where}: start {start} is not before end {end}")
    return row
