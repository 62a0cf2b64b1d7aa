"""Video files, and folders of frames, as they lie on a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from softpool3d.datasets.picture_folder import is_picture
from softpool3d.errors import UsageError

EXTENSIONS = frozenset(
    [".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"]
    + [".mts", ".ogv", ".ts", ".webm", ".wmv", ".y4m"]
)


def is_video(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def find_videos(folder: str | Path) -> Iterator[str]:
    """Paths of the videos below a folder, in no order: files by their ending, folders that hold pictures.

    Each is there once, however many links lead to its folder. A folder named like a video that holds none is there too:
    whoever reads it says what is wrong with it. Hidden files and folders are left out.
    """
    seen_folders, seen_files = set(), set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen_folders:
            folders.clear()
            continue
        seen_folders.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        videos = [name for name in names if is_video(name)]
        for name in videos:
            file = os.path.join(real, name)
            if file not in seen_files:
                seen_files.add(file)
                yield os.path.join(parent, name)
        if parent == str(folder) or videos or folders:
            continue
        if any(map(is_picture, names)) or is_video(os.path.basename(parent)):
            yield parent


def index_videos(folder: str | Path) -> dict[str, list[str]]:
    """Name without its ending -> the videos of that name below the folder."""
    index: dict[str, list[str]] = {}
    for path in find_videos(folder):
        name = os.path.basename(path)
        stem = os.path.splitext(name)[0] if is_video(name) else name
        index.setdefault(stem, []).append(path)
    return {stem: sorted(paths) for stem, paths in index.items()}


def in_folder(paths: list[str], folder: str) -> str:
    """Of several videos of the same name, the one that lies in a folder of that name; else the first one."""

    def plain(name: str) -> str:
        return name.replace("_", " ").casefold()

    wanted = plain(folder)
    return next((path for path in paths if wanted in map(plain, Path(path).parts[:-1])), paths[0])


def data_root(root: str | Path | None, dataset: str) -> Path:
    """The data set's folder.

    Raises:
        UsageError: if it is not set, or not there.
    """
    if root is None:
        raise UsageError(f"data.root is not set: data.dataset={dataset} needs the folder that holds the videos")
    root = Path(root).expanduser()
    if not root.exists():
        raise UsageError(f"data.root: no folder {root}")
    if not root.is_dir():
        raise UsageError(f"data.root: {root} is a file; it has to be the folder of the data set {dataset}")
    return root
