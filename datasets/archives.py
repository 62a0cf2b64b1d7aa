"""The archives that data sets come in."""

from __future__ import annotations

import glob
import shutil
import subprocess
import zipfile
from pathlib import Path

from softpool3d.errors import UsageError, WorkError

_COMMANDS = {
    "unrar": lambda archive, folder: ["unrar", "x", "-o+", "-y", "-idq", str(archive), f"{folder}/"],
    "bsdtar": lambda archive, folder: ["bsdtar", "-x", "-f", str(archive), "-C", str(folder)],
}


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a .rar or .zip into a folder: what is in it appears there whole or not at all.

    Raises:
        UsageError: if no program that can is installed; it says what to type.
        WorkError: if the archive is damaged, or the folder cannot be written.
    """
    partial = folder / f".{archive.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as file:
                file.extractall(partial)
        else:
            _run(archive, partial)
        for item in partial.iterdir():
            target = folder / item.name
            if target.is_dir():  # an earlier attempt's, or another archive's
                shutil.copytree(item, target, dirs_exist_ok=True)
            else:
                item.replace(target)
    except (OSError, zipfile.BadZipFile) as error:
        raise WorkError(f"cannot unpack {archive}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run(archive: Path, folder: Path) -> None:
    program = next((name for name in _COMMANDS if shutil.which(name)), None)
    if program is None:
        raise UsageError(
            f"{archive} is not unpacked, and there is neither unrar nor bsdtar here; install one "
            "(`sudo apt install libarchive-tools`) and type the same command again, or unpack it by hand"
        )
    result = subprocess.run(_COMMANDS[program](archive, folder), capture_output=True, text=True, errors="replace")
    if result.returncode:
        reason = (result.stderr or result.stdout).strip().splitlines()[-1:] or [f"exit code {result.returncode}"]
        raise WorkError(f"cannot unpack {archive}: {program}: {reason[0]}")


def unpack_missing(root: Path, archives: list[tuple[str, str, str]]) -> list[Path]:
    """Unpacks those archives below `root` whose content is not there; returns them.

    Args:
        archives: (pattern of names, folder to unpack into, pattern of what is there afterwards), all relative to the
            root; `{stem}` is the archive's name without its ending.
    """
    unpacked = []
    for names, folder, content in archives:
        for archive in sorted(root.glob(names)):
            if not any(root.glob(content.format(stem=glob.escape(archive.stem)))):
                unpack(archive, root / folder)
                unpacked.append(archive)
    return unpacked
