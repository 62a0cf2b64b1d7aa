"""Reads text as other programs save it: lists, class names, tables.

It may be UTF-8, with or without a byte order mark, or UTF-16 with one. Bytes that are no UTF-8 may belong to the name
of a file, and are kept as Python keeps them in such names. `legible` makes text of them.
"""

from __future__ import annotations

import codecs
import functools
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from softpool3d.errors import UsageError, os_reason
from softpool3d.foreign import parse_json

_RAW = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_read_as_windows_1252: set[str] = set()


def read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8, with or without a byte order mark, or in UTF-16 with one; line ends stay.

    Bytes that are no UTF-8 come out as Python's file names have them: `legible` makes text of them.

    Raises:
        UsageError: if it cannot be read, or is no text.
    """
    with opened(path) as file:
        return "".join(lines_of(file, str(path)))


def read_json(path: Path) -> Any:
    """Returns the value that a JSON file holds.

    Raises:
        UsageError: if it cannot be read, naming the line of a mistake.
    """
    try:
        return parse_json(legible(read_text(path), path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except ValueError as error:  # nested too deeply, a number too long
        raise UsageError(f"{path}: its JSON cannot be read: {error}") from None


def legible(text: str, file: str | Path, line: int = 1) -> str:
    """Returns the text with bytes that are no UTF-8 read as Windows-1252, and prints a note once for each file.

    Args:
        file, line: where the text begins, for messages.

    Raises:
        UsageError: if they are not Windows-1252 either.
    """
    if not _RAW.search(text):
        return text
    number, odd = next((n, part) for n, part in enumerate(text.split("\n"), line) if _RAW.search(part))
    read = windows_1252(text)
    if read is None:
        raise UsageError(f"{file}:{number}: {_bytes(odd)!r} is neither UTF-8 nor Windows-1252; save the file as UTF-8")
    if str(file) not in _read_as_windows_1252:
        _read_as_windows_1252.add(str(file))
        note(f"{file} is not UTF-8; read as Windows-1252 (line {number}: {windows_1252(odd)!r})")
    return read


@functools.cache
def note(text: str) -> None:
    """Prints how something ambiguous was read: once, and on the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr, flush=True)


@contextmanager
def opened(path: Path | None) -> Iterator[BinaryIO]:
    """Opens a file, or for None standard input, to be read as bytes.

    Raises:
        UsageError: if it cannot be opened or read.
    """
    try:
        if path is None:
            yield sys.stdin.buffer
        else:
            with path.open("rb") as file:
                yield file
    except OSError as error:
        raise UsageError(f"cannot read {path or 'standard input'}: {os_reason(error)}") from None


def lines_of(file: BinaryIO, name: str) -> Iterator[str]:
    """Yields the lines of an open text file with their ends; bytes that are no UTF-8 as `read_text` has them.

    Raises:
        UsageError: if it is no text.
    """
    is_utf16 = file.peek(2).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = ("utf-16", "strict") if is_utf16 else ("utf-8-sig", "surrogateescape")
    text = io.TextIOWrapper(file, *encoding, newline="")
    try:
        for line in text:
            if "\0" in line:
                raise UsageError(
                    f"{name}: this is no text file, or it is UTF-16 without a byte order mark; save it as UTF-8"
                )
            yield line
    except UnicodeError:
        raise UsageError(f"{name}: it begins as UTF-16 does, and is not; save it as UTF-8") from None
    finally:
        text.detach()  # standard input stays open


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def windows_1252(text: str) -> str | None:
    """Returns a text with its bytes that are no UTF-8 read as Windows-1252; None if it has none or they are no text."""
    try:
        read = _bytes(text).decode("cp1252") if _RAW.search(text) else None
    except UnicodeError:
        return None
    return None if read is None or _CONTROL.search(read) else read


def shown(text: str, instead: str) -> str:
    """Returns `text` if the encoding of standard output has its letters, else `instead`."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeError:
        return instead
    return text
