"""Files that are there whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from softpool3d.errors import WorkError, os_reason

_OWNER = "owner"


@contextmanager
def replacing(path: str | Path, previous: str | Path | None = None) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with its suffix; at the end, what was written there replaces `path`.

        with replacing("plot.png") as temporary:
            figure.savefig(temporary)

    The new file is flushed to the disk and renamed. Whatever goes wrong, an earlier file at `path` stays.

    Args:
        previous: where an earlier file at `path` is kept.

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
        raise WorkError(f"cannot write {path}: {os_reason(error)}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes, previous: str | Path | None = None) -> None:
    """Replaces a file as a whole, or leaves it as it was; `previous` as for `replacing`.

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
    """Replaces a CSV file as a whole; the first row is its header. Names that are no UTF-8 keep their bytes.

    Where there are letters beyond ASCII, the file begins with a BOM, without which spreadsheets misread them.

    Raises:
        WorkError: if it cannot be written.
    """
    text = csv_text(rows)
    write_atomically(path, (b"" if text.isascii() else BOM_UTF8) + text.encode(errors="surrogateescape"))


def _keep(path: Path, previous: Path) -> None:
    """Keeps the file at `path` as `previous` too, by a link, so that `path` exists at every moment."""
    link = previous.with_name(f".{os.getpid()}.{previous.name}")
    try:
        os.link(path, link)
    except OSError:  # some file systems cannot
        path.replace(previous)
    else:
        link.replace(previous)
        link.unlink(missing_ok=True)  # renaming does nothing where both are names of one file, as after a kill


def remove_abandoned(folder: Path) -> None:
    """Removes the temporary files that killed processes left in a folder."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\.\d+\..+", path.name):
            with suppress(OSError):
                path.unlink()


def own(folder: Path) -> IO[str]:
    """Marks a folder as this process's own, and returns the open lock file.

    `is_abandoned` is false as long as that file is open, here or in a forked process. The mark is a lock and not a
    process id: the system releases a lock when its process ends, and containers use the same ids for different
    processes.
    """
    new = folder / f".{_OWNER}"
    lock = new.open("w", encoding="ascii")
    _try_lock(lock)
    new.rename(folder / _OWNER)  # nobody finds it without its lock
    return lock


def is_abandoned(folder: Path) -> bool:
    """Whether all processes that owned a folder have ended; False without an owner, as there may soon be one."""
    try:
        with (folder / _OWNER).open("r+", encoding="ascii") as lock:
            return _try_lock(lock)
    except OSError:  # somebody else's, or without
        return False


def disown(folder: Path) -> None:
    """Removes the mark of `own`: the folder is then never abandoned."""
    (folder / _OWNER).unlink()


def _try_lock(file: IO[str]) -> bool:
    """Locks a file; returns False if another process holds it.

    It is False too where there are no locks: nothing counts as abandoned then.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Flushes a folder to the disk, so that a new name in it survives a loss of power."""
    with suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
