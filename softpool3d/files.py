"""Files that are there whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from softpool3d.errors import WorkError

_OWNER = "owner"


@contextmanager
def replacing(path: str | Path, previous: str | Path | None = None) -> Iterator[Path]:
    """A temporary name beside `path`, with its ending, to be written to: flushed to the disk and renamed at the end.

        with replacing("plot.png") as temporary:
            figure.savefig(temporary)

    The file is replaced as a whole; whatever goes wrong, one that was there before stays.

    Args:
        previous: the name that the file that was there gets.

    Raises:
        WorkError: if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, Path(previous))
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise WorkError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes, previous: str | Path | None = None) -> None:
    """The file is replaced as a whole, or stays as it was.

    Raises:
        WorkError: if it cannot be written.
    """
    with replacing(path, previous) as temporary:
        temporary.write_bytes(content)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Returns rows as CSV; the lines end as on Unix."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]]) -> None:
    """Replaces a CSV file as a whole, its head being the first row; names that are no UTF-8 stay as they are.

    Raises:
        WorkError: if it cannot be written.
    """
    write_atomically(path, csv_text(rows).encode(errors="surrogateescape"))


def _keep(path: Path, previous: Path) -> None:
    """Gives the file its other name too, so that at no moment there is none of its own."""
    link = previous.with_name(f".{os.getpid()}.{previous.name}")
    try:
        os.link(path, link)
    except OSError:  # some file systems cannot
        path.replace(previous)
    else:
        link.replace(previous)
        link.unlink(missing_ok=True)  # renaming does nothing where both are names of one file, as after a kill


def remove_abandoned(folder: Path) -> None:
    """Temporary files of processes that were killed."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\.\d+\..+", path.name):
            with suppress(OSError):
                path.unlink()


def own(folder: Path) -> IO[str]:
    """Makes a folder this process's own: `is_abandoned` is false as long as the file that is returned is open, here or
    in a process that was forked from here.

    Whose it is says a lock, which the system gives up when a process ends, and not a process's number: containers have
    the same numbers for different processes.
    """
    new = folder / f".{_OWNER}"
    lock = new.open("w", encoding="ascii")
    _try_lock(lock)
    new.rename(folder / _OWNER)  # nobody finds it without its lock
    return lock


def is_abandoned(folder: Path) -> bool:
    """Whether the processes that made a folder their own have all ended. One without an owner may soon get it."""
    try:
        with (folder / _OWNER).open("r+", encoding="ascii") as lock:
            return _try_lock(lock)
    except OSError:  # somebody else's, or without
        return False


def disown(folder: Path) -> None:
    """Makes it a folder as any other."""
    (folder / _OWNER).unlink()


def _try_lock(file: IO[str]) -> bool:
    """False if another process holds it; also where there are no locks, so that nothing is known to be abandoned."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """After a loss of power the new name is there too."""
    with suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
