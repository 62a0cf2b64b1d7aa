"""Unpacks the archives in which data sets are distributed."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import subprocess
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from softpool3d.errors import UsageError, WorkError

_COMMANDS = {  # both get an option on passwords, so that they never ask for one
    "unrar": lambda archive, folder: ["unrar", "x", "-o+", "-y", "-idq", "-p-", str(archive), f"{folder}/"],
    "bsdtar": lambda archive, folder: ["bsdtar", "-x", "-f", str(archive), "-C", str(folder), "--passphrase", "none"],
}
_LEFT_FREE = 1 << 30  # bytes that an archive has to leave free on the disk

Known = Sequence[tuple[str, str, str]]  # (pattern of names, folder to unpack into, pattern of what is there afterwards)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a .rar or .zip into a folder: its content appears there whole or not at all.

    It is unpacked into a hidden folder, checked, and moved into place. A process that is killed leaves the hidden
    folder, which tells the next attempt to begin again.

    Raises:
        UsageError: if no program for it is installed; the message says what to type.
        WorkError: if the archive is damaged, does not fit on the disk, or holds links, devices or names that lead
            outside, which no data set needs; or if the folder cannot be written.
    """
    partial = _partial(archive, folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if archive.suffix.lower() == ".zip":
            _unzip(archive, partial)
        else:
            _run(archive, partial)
        _look_through(archive, partial)
        for item in partial.iterdir():
            target = folder / item.name
            if target.is_dir():  # an earlier attempt's, or another archive's
                shutil.copytree(item, target, dirs_exist_ok=True)
            else:
                item.replace(target)
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise WorkError(f"cannot unpack {archive}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(archive: Path, folder: Path) -> Path:
    return folder / f".{archive.name}.partial"


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise WorkError(f"cannot unpack {archive}: {member.filename!r} in it leads outside of the folder")
            if member.flag_bits & 1:
                raise WorkError(f"cannot unpack {archive}: it wants a password; unpack it by hand")
        size = sum(member.file_size for member in file.infolist())  # no member is unpacked beyond the size it states
        if size > _room(folder):
            raise WorkError(f"cannot unpack {archive}: its {size / 2**30:,.1f} GiB do not fit on the disk")
        file.extractall(folder)


def _run(archive: Path, folder: Path) -> None:
    program = next((name for name in _COMMANDS if shutil.which(name)), None)
    if program is None:
        raise UsageError(
            f"{archive} is not unpacked, and there is neither unrar nor bsdtar here; install one "
            "(`sudo apt install libarchive-tools`) and type the same command again, or unpack it by hand"
        )
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    words = {"text": True, "errors": "replace"}
    floor = shutil.disk_usage(folder).free - _room(folder)
    # a session of its own has no terminal, where it would ask for a password
    with subprocess.Popen(_COMMANDS[program](archive, folder), **quiet, **words, start_new_session=True) as process:
        try:
            while True:
                try:
                    said, _ = process.communicate(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    if shutil.disk_usage(folder).free < floor:
                        raise WorkError(f"cannot unpack {archive}: what is in it does not fit on the disk") from None
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        lines = [line for line in said.strip().splitlines() if "delayed from previous errors" not in line]
        reason = lines[-1] if lines else f"exit code {process.returncode}"
        raise WorkError(f"cannot unpack {archive}: {program}: {reason.removeprefix(f'{program}: ')}")


def _room(folder: Path) -> int:
    """Bytes that may be written there: all but a GiB, or half of what is free where that is less."""
    free = shutil.disk_usage(folder).free
    return max(free - _LEFT_FREE, free // 2)


def _look_through(archive: Path, folder: Path) -> None:
    """Raises WorkError for anything but files in folders: a link leads outside, a pipe hangs its reader."""
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            found = path.lstat()
            plain = stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)
            if not plain:
                kind = "a link" if stat.S_ISLNK(found.st_mode) or stat.S_ISREG(found.st_mode) else "a device or a pipe"
                raise WorkError(f"cannot unpack {archive}: {str(path.relative_to(folder))!r} in it is {kind}")


def unpack_missing(root: Path, archives: Known) -> list[Path]:
    """Unpacks the archives below `root` whose content is missing or incomplete, and returns their paths.

    Args:
        archives: paths and patterns are relative to the root; `{stem}` is the archive's name without its ending.
    """
    unpacked = []
    for names, folder, content in archives:
        for archive in sorted(root.glob(names)):
            broken_off = _partial(archive, root / folder).exists()
            if broken_off or not any(root.glob(content.format(stem=glob.escape(archive.stem)))):
                unpack(archive, root / folder)
                unpacked.append(archive)
    return unpacked


def check_unpacked(root: Path, archives: Known, dataset: str) -> None:
    """Raises UsageError if unpacking one of the archives was interrupted: part of the data set is missing then."""
    for names, folder, _ in archives:
        for archive in sorted(root.glob(names)):
            if _partial(archive, root / folder).exists():
                raise UsageError(
                    f"data.root: {archive} was not unpacked to the end; `softpool3d prepare {dataset} --root {root}` "
                    "begins again"
                )
