"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from softpool3d.errors import WorkError


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


def _sync_folder(folder: Path) -> None:
    """After a loss of power the new name is there too."""
    with suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
