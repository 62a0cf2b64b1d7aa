"""Video files, and folders of frames, as they lie on a disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from softpool3d.datasets.picture_folder import is_picture
from softpool3d.errors import UsageError

EXTENSIONS = frozenset(
    [".3g2", ".3gp", ".apng", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv"]
    + [".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm"]
    + [".wmv", ".y4m"]
)
# what lies beside videos and is none: lists, labels, subtitles, notes
_COMPANIONS = frozenset(
    [".ass", ".csv", ".htm", ".html", ".ini", ".json", ".jsonl", ".list", ".log", ".md", ".nfo", ".py", ".sh", ".srt"]
    + [".ssa", ".sub", ".toml", ".tsv", ".txt", ".vtt", ".xml", ".yaml", ".yml"]
)
# made by macOS, Windows and network disks; a preview in one of them looks like a clip
_SYSTEM = frozenset(["__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "thumbs.db"])


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, or of macOS (`._clip.mp4`), Windows or a network disk."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def is_video(name: str) -> bool:
    """Whether a file's name says that it is a video."""
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in EXTENSIONS


def find_videos(folder: str | Path) -> Iterator[str]:
    """Paths of the videos below a folder, in no order: files by their ending, folders that hold pictures.

    Each is there once, however many links lead to its folder. A folder named like a video that holds none is there too:
    whoever reads it says what is wrong with it. Hidden files and folders are left out.
    """
    for paths, _ in _walk(folder):
        yield from paths


def left_out(folder: str | Path) -> dict[str, int]:
    """How many files below a folder are no videos, by their ending (".zip"; "no ending"), the most first.

    Hidden files, pictures of a folder of frames, and texts beside videos are not counted.
    """
    return survey(folder)[1]


def survey(folder: str | Path) -> tuple[list[str], dict[str, int]]:
    """What `find_videos` and `left_out` say, from one look through the folder."""
    videos: list[str] = []
    counts: Counter[str] = Counter()
    for paths, names in _walk(folder):
        videos += paths
        endings = (os.path.splitext(name)[1].lower() for name in names)
        counts.update(ending or "no ending" for ending in endings if ending not in _COMPANIONS)
    return videos, dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _walk(folder: str | Path) -> Iterator[tuple[list[str], list[str]]]:
    """Of each folder: paths of its videos, or itself where it is one; names of its other files."""
    seen_folders, seen_files = set(), set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen_folders:
            folders.clear()
            continue
        seen_folders.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        names = [name for name in names if not is_hidden(name)]
        videos = [name for name in names if is_video(name)]
        others = [name for name in names if not is_video(name)]
        new = [name for name in videos if os.path.join(real, name) not in seen_files]
        seen_files.update(os.path.join(real, name) for name in new)
        if parent != str(folder) and not videos and not folders:
            pictures = [name for name in others if is_picture(name)]
            if pictures or is_video(os.path.basename(parent)):
                yield [parent], [name for name in others if name not in pictures]
                continue
        yield [os.path.join(parent, name) for name in new], others


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
