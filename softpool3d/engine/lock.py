"""One run, one training: the lock of a run's folder. The system gives it up when its process ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

from softpool3d.errors import UsageError
from softpool3d.foreign import parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held: dict[Path, IO[str]] = {}


def lock(folder: Path) -> None:
    """Holds the folder until this process ends. The lock file says who trains there, or did.

    A POSIX record lock: it works over NFS, and the workers that a killed process leaves for a moment do not hold it.

    Raises:
        UsageError: if another process holds it, naming that.
    """
    folder = folder.resolve()
    if fcntl is None or folder in _held:
        return
    file = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = owner_of(folder)
        file.close()
        if isinstance(error, (BlockingIOError, PermissionError)):
            raise UsageError(
                f"{folder} is being trained by process {owner.get('pid', '?')} on {owner.get('host', '?')}; wait for "
                "it or stop it, or start a run of another name"
            ) from None
        return  # a file system without locks
    _held[folder] = file
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "job": job()}))
    file.flush()


def release() -> None:
    """Gives up what this process holds, for those who train again in it."""
    while _held:
        _held.popitem()[1].close()


def owner_of(folder: Path) -> dict[str, object]:
    """Who holds the lock, or held it last: pid, host, job."""
    with suppress(OSError, ValueError):
        owner = parse_json((folder / ".lock").read_text(encoding="utf-8"))
        if isinstance(owner, dict):
            return owner
    return {}


def job() -> str | None:
    """What is the same for all processes that one torchrun starts, also when it starts them again; None without it."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    return f"{socket.gethostname()}:{os.getppid()}" if name == "none" else name
