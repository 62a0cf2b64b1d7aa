"""Copies of video files that are faster to read: in memory, or on a local disk before a slow network disk."""

from __future__ import annotations

import atexit
import hashlib
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from softpool3d.errors import WorkError, os_reason
from softpool3d.files import is_abandoned, own

if TYPE_CHECKING:
    from softpool3d.config import DataConfig

_PREFIX = "softpool3d-cache-"


class FileCache:
    """Copies files into a folder until it holds `limit` bytes; later files are read from where they lie.

    Nothing is evicted: an epoch visits every file once, and a cache of the most recent files would have lost each one
    before it is read again. All processes that share the folder share the copies and the limit.

    Raises:
        WorkError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "bytes").touch()
        except OSError as error:
            raise WorkError(f"data.cache_folder: cannot write {folder}: {os_reason(error)}") from None

    def path(self, original: str) -> str:
        """Returns the path to read: that of the file's copy, made now if there is none, or its own."""
        try:
            file = os.stat(original)
            if not os.path.isfile(original):  # a folder of pictures
                return original
            key = hashlib.sha1(
                f"{os.path.abspath(original)}\0{file.st_size}\0{file.st_mtime_ns}".encode(errors="replace")
            )
            name = key.hexdigest()
            copy = self.folder / name[:2] / (name + os.path.splitext(original)[1])
            if copy.exists():
                return str(copy)
            if not self._reserve(file.st_size):
                return original
        except OSError:
            return original  # reading it will say what is wrong
        partial = copy.with_name(f"{copy.name}.{secrets.token_hex(8)}")  # process numbers repeat in other containers
        try:
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(original, partial)
            partial.replace(copy)
            return str(copy)
        except OSError:  # the disk is full
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            self._reserve(-file.st_size)
            return original

    def _reserve(self, size: int) -> bool:
        """Adds `size` to the bytes that all processes have taken; False if that is over the limit."""
        with open(self.folder / "bytes", "r+", encoding="ascii") as file:
            with suppress(ImportError):  # without locks the limit is approximate
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            taken = int(file.read().strip() or 0) + size
            if taken > self.limit:
                return False
            file.seek(0)
            file.truncate()
            file.write(str(max(taken, 0)))
        return True


def make_cache(data: DataConfig) -> FileCache | None:
    """Returns the cache that `data.cache` asks for, or None.

    A cache in memory is removed when the process that calls this ends; its workers share it.

    Raises:
        WorkError: if the folder cannot be written.
    """
    limit = int(data.cache_gb * 2**30)
    if data.cache == "folder":
        return FileCache(Path(data.cache_folder), limit)
    if data.cache == "memory":
        return FileCache(_folder_in_memory(), limit)
    return None


@lru_cache
def _folder_in_memory() -> Path:
    """Returns this process's own folder in memory. All its loaders share it, and it is removed when the process ends.

    Containers that share /dev/shm leave each other's folders alone.
    """
    base = Path("/dev/shm")
    if not os.access(base, os.W_OK):
        base = Path(tempfile.gettempdir())
    for left in base.glob(f"{_PREFIX}*"):  # by processes that were killed
        if is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    folder, owner = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base)), os.getpid()
    lock = own(folder)

    def remove() -> None:
        if os.getpid() == owner:  # not at the end of its forked workers
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()

    atexit.register(remove)
    return folder
