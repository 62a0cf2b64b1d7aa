"""Data sets that are made here: once, in the cache folder, each as a whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from softpool3d.errors import WorkError
from softpool3d.files import disown, is_abandoned, own


def made_once(dataset: str, name: str, make: Callable[[Path], None]) -> Path:
    """Returns the folder `name` of the cache folder, which `make` fills if it is not there yet.

    Args:
        make: gets a folder beside it, which is renamed when it is whole.

    Raises:
        WorkError: if the cache folder cannot be written.
    """
    root = cache_folder() / name
    if not root.is_dir():
        try:
            _make(root, make)
        except OSError as error:
            raise WorkError(
                f"cannot write the data set `{dataset}` to {root}: {error.strerror or error}; "
                "set SOFTPOOL3D_HOME to a folder that can be written"
            ) from None
    return root


def cache_folder() -> Path:
    """Returns $SOFTPOOL3D_HOME, else `softpool3d` in the user's cache folder."""
    home = os.environ.get("SOFTPOOL3D_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softpool3d"


def _make(root: Path, make: Callable[[Path], None]) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root)
    partial = root.with_name(f"{root.name}.partial-{secrets.token_hex(8)}")
    partial.mkdir()
    owner = own(partial)
    try:
        make(partial)
        disown(partial)
        try:
            partial.rename(root)
        except OSError:
            if not root.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        owner.close()


def remove_abandoned(root: Path) -> None:
    """Removes the unfinished folders of processes that were killed."""
    for partial in root.parent.glob(f"{root.name}.partial-*"):
        if is_abandoned(partial):
            shutil.rmtree(partial, ignore_errors=True)
