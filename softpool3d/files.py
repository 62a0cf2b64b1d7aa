"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from softpool3d.errors import WorkError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its ending, to be written to: flushed to the disk and renamed at the end.

        with replacing("plot.png") as temporary:
            figure.savefig(temporary)

    The file is replaced as a whole; whatever goes wrong, one that was there before stays.

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
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes) -> None:
    """The file is replaced as a whole, or stays as it was.

    Raises:
        WorkError: if it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)
