"""Locks: one training at a time in a run's folder, and one command for a folder or file of results. The system releases
a lock when its process ends, however it ends.

They are POSIX record locks. These work over NFS, between machines too if its lock service runs. Workers that outlive a
killed process for a moment do not hold them. Where a file system has no locks, nothing is refused.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from softpool3d.errors import UsageError
from softpool3d.foreign import parse_json
from softpool3d.naming import address_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_trained: dict[Path, IO[str]] = {}  # run's folder -> its lock


class Taken(UsageError):
    """Another process holds the lock, or the file exists. owner: what that process wrote about itself, if readable."""

    def __init__(self, message: str, owner: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.owner = owner or {}


def lock(folder: Path) -> None:
    """Locks a run's folder until this process ends. The lock file stays, and says who trains there, or last did.

    Raises:
        Taken: if another process holds it, naming that.
    """
    folder = folder.resolve()
    if folder not in _trained:
        file = _take(folder / ".lock", f"{folder} is being trained by", "start a run of another name", {})
        if file is not None:
            _trained[folder] = file


@contextmanager
def claim(path: Path, *, is_folder: bool, **about: object) -> Iterator[None]:
    """Locks a folder or file for the results of this command while the body runs; once at a time in a process.

    Args:
        is_folder: `path` is a folder, and is made if need be. A file whose folder is not there yet is not locked.
        about: further entries of the lock file, for whoever wants the lock too.

    Raises:
        UsageError: for an address: it is no file or folder of this machine.
        Taken: if another process holds the lock, naming that process.
    """
    if address := address_of(path):
        raise UsageError(
            f"{address} is an address, and this is written to this machine; name a place here, and copy it"
        )
    path = Path(path).absolute()
    file = path / ".lock" if is_folder else path.with_name(f".{path.name}.lock")
    if is_folder:
        with suppress(OSError):  # whoever writes there says what is wrong
            path.mkdir(parents=True, exist_ok=True)
    held = _take(file, f"{path} is being written by", "give another name", about)
    try:
        yield
    finally:
        if held is not None:
            file.unlink(missing_ok=True)
            held.close()


@contextmanager
def claim_files(paths: Iterable[Path | None], overwrite: bool) -> Iterator[None]:
    """Claims files that are about to be written.

    Raises:
        Taken: if one exists and `overwrite` is not set, or another process is writing it.
    """
    with ExitStack() as claims:
        for path in paths:
            if path is not None:
                claims.enter_context(claim(path, is_folder=False))
                if path.exists() and not overwrite:
                    raise Taken(f"{path} exists; give another name, or --overwrite")
        yield


def release() -> None:
    """Releases the runs that this process has locked, as it may train others later."""
    while _trained:
        _trained.popitem()[1].close()


def owner_of(folder: Path) -> dict[str, object]:
    """Returns who holds the lock of a run's folder, or held it last: pid, host, job."""
    return _read(folder / ".lock")


def job() -> str | None:
    """Returns a name that all processes of one torchrun share, restarted ones too; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    return f"{socket.gethostname()}:{os.getppid()}" if name == "none" else name


def _take(path: Path, held: str, instead: str, about: dict[str, object]) -> IO[str] | None:
    """Makes, locks and returns the file at `path`; None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError:  # whoever writes there says what is wrong
            return None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
            file.close()  # its owner removed it just now, and gave it up
        except OSError as error:
            owner = _read(path)
            file.close()
            if not isinstance(error, (BlockingIOError, PermissionError)):
                return None  # a file system without locks
            raise Taken(
                f"{held} process {owner.get('pid', '?')} on {owner.get('host', '?')}; wait for it or stop it, or "
                f"{instead}",
                owner,
            ) from None
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "job": job(), **about}))
    file.flush()
    return file


def _read(path: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        owner = parse_json(path.read_text(encoding="utf-8"))
        if isinstance(owner, dict):
            return owner
    return {}
