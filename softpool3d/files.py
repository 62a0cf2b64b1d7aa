"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from softpool3d.errors import WorkError


def write_atomically(path: str | Path, content: bytes) -> None:
    """The file is replaced as a whole: a temporary one beside it is written, flushed to the disk and renamed.

    Raises:
        WorkError: if the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
