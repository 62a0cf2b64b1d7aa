"""Finds video files and folders of frames on a disk, or pictures that are each by itself."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from softpool3d.datasets.video.picture_folder import frames_among, is_beside_frames
from softpool3d.datasets.video.pictures import is_moving_webp, is_picture
from softpool3d.errors import UsageError
from softpool3d.text import note

EXTENSIONS = frozenset(
    [".3g2", ".3gp", ".apng", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv"]
    + [".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm"]
    + [".wmv", ".y4m"]
)
_ENDINGS = EXTENSIONS | {".webp"}  # a .webp is a video if it moves
# what lies beside videos and is none: lists, labels, subtitles, notes
_COMPANIONS = frozenset(
    [".ass", ".csv", ".htm", ".html", ".ini", ".json", ".jsonl", ".list", ".log", ".md", ".nfo", ".py", ".sh", ".srt"]
    + [".ssa", ".sub", ".toml", ".tsv", ".txt", ".vtt", ".xml", ".yaml", ".yml"]
)
# made by macOS, Windows and network disks; a preview in one of them looks like a clip
_SYSTEM = frozenset(["__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "thumbs.db"])


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or made by macOS (`._clip.mp4`), Windows or a network disk."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def is_video(name: str) -> bool:
    """Whether a file's name says that it is a video."""
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in EXTENSIONS


def find_videos(folder: str | Path) -> Iterator[str]:
    """Yields the paths of the videos below a folder, in no order: files by their ending, folders that hold pictures.

    Each comes once, however many links lead to its folder. A folder that is named like a video and holds none comes,
    too: reading it says what is wrong. Hidden files and folders are left out.
    """
    for paths, _, _ in _walk(folder):
        yield from paths


def find_pictures(folder: str | Path) -> Iterator[str]:
    """Yields the paths of the pictures below a folder, in no order, each by itself; as `find_videos` else."""
    for parent, _, names in _visited(folder):
        yield from (os.path.join(parent, name) for name in _stills(parent, names))


def left_out(folder: str | Path) -> dict[str, int]:
    """Returns how many files below a folder are no videos, by their ending (".zip"; "no ending"), the most first.

    Pictures that lie beside frames and are none go by the pattern of their names ("flow_x_*.jpg", "flow_x/*.jpg").
    Hidden files and texts are not counted.
    """
    return survey(folder)[1]


def survey(folder: str | Path, pictures: bool = False) -> tuple[list[str], dict[str, int]]:
    """Returns what `find_videos` and `left_out` give, from one pass through the folder.

    Args:
        pictures: returns the pictures, each by itself, instead of the videos, and counts all other files.
    """
    found: list[str] = []
    counts: Counter[str] = Counter()
    if pictures:
        for parent, _, names in _visited(folder):
            stills = _stills(parent, names)
            found += [os.path.join(parent, name) for name in stills]
            counts.update(_kinds(set(names).difference(stills)))
    else:
        for paths, beside, others in _walk(folder):
            found += paths
            counts.update(_kinds(others))
            if beside:
                counts.update(_beside(*beside))
    return found, dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def videos_in(folder: str | Path) -> list[str]:
    """Returns the sorted paths of the videos below a folder that a user names.

    Without any it returns the folder's own path, as it may be a folder of frames. A note says what is left out.
    """
    videos, kinds = survey(folder)
    if not videos:
        pictures = [name for name in os.listdir(folder) if is_picture(name)]
        kinds = _beside("", pictures) if pictures else {}
    _note_left_out(folder, kinds)
    return sorted(videos) or [str(folder)]


def pictures_in(folder: str | Path) -> list[str]:
    """Returns the sorted paths of the pictures below a folder that a user names; a note says what is left out.

    Without any it returns the folder's own path, so that reading it says so.
    """
    pictures, kinds = survey(folder, pictures=True)
    _note_left_out(folder, kinds)
    return sorted(pictures) or [str(folder)]


def _note_left_out(folder: str | Path, kinds: dict[str, int]) -> None:
    if kinds:
        note(f"left out of {folder}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")


def _walk(folder: str | Path) -> Iterator[tuple[list[str], tuple[str, list[str]] | None, list[str]]]:
    """Yields for each folder the paths of its videos, or its own path if it is a folder of frames; its name and its
    pictures, if it holds pictures and no videos; and its other files."""
    for parent, folders, names in _visited(folder):
        videos = {name for name in names if is_video(name) or is_moving_webp(os.path.join(parent, name))}
        others = [name for name in names if name not in videos]
        if parent == str(folder) or videos or folders:
            yield [os.path.join(parent, name) for name in names if name in videos], None, others
            continue
        name, pictures = os.path.basename(parent), [name for name in others if is_picture(name)]
        is_clip = (pictures or is_video(name)) and not is_beside_frames(name)
        others = [name for name in others if not is_picture(name)]
        yield [parent] if is_clip else [], (name, pictures) if pictures else None, others


def _visited(folder: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields what os.walk does, each folder once however many links lead to it, without what is hidden."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield parent, folders, [name for name in names if not is_hidden(name)]


def _stills(parent: str, names: list[str]) -> list[str]:
    """Returns the names of a folder's files that are pictures."""
    return [name for name in names if is_picture(name) and not is_moving_webp(os.path.join(parent, name))]


def _beside(folder: str, pictures: list[str]) -> dict[str, int]:
    """Returns how many pictures of a folder are no frames, by pattern: optical flow and thumbnails."""
    ending = os.path.splitext(pictures[0])[1].lower()
    if is_beside_frames(folder):
        return {f"{folder}/*{ending}": len(pictures)}
    try:
        return {f"{pattern}{ending}": count for pattern, count in frames_among(pictures)[1].items()}
    except ValueError:  # of several kinds, as reading the folder will say
        return {}


def _kinds(names: Iterable[str]) -> list[str]:
    """Returns the endings of files that are no videos, without those of texts."""
    endings = [os.path.splitext(name)[1].lower() or "no ending" for name in names]
    return [ending for ending in endings if ending not in _COMPANIONS]


def index_videos(folder: str | Path) -> dict[str, list[str]]:
    """Returns the videos below the folder by their names without ending."""
    index: dict[str, list[str]] = {}
    for path in find_videos(folder):
        name = os.path.basename(path)
        stem, ending = os.path.splitext(name)
        while ending.lower() in _ENDINGS:  # several in `<id>.mp4.mkv`
            name = stem
            stem, ending = os.path.splitext(name)
        index.setdefault(name, []).append(path)

    def rank(path: str) -> tuple[bool, str]:  # frames before the optical flow of the same video
        return any(map(is_beside_frames, Path(path).parts)), path

    return {stem: sorted(paths, key=rank) for stem, paths in index.items()}


def find_named(folder: Path, pattern: str) -> list[Path]:
    """Returns the files below a folder whose name matches `pattern`, sorted; without any in hidden folders."""
    found = folder.rglob(pattern)
    return sorted(path for path in found if not any(map(is_hidden, path.relative_to(folder).parts)))


def in_folder(paths: list[str], folder: str) -> str:
    """Returns the one of several videos of the same name that lies in a folder of that name; else the first one."""

    def plain(name: str) -> str:
        return name.replace("_", " ").casefold()

    wanted = plain(folder)
    return next((path for path in paths if wanted in map(plain, Path(path).parts[:-1])), paths[0])


def data_root(root: str | Path | None, dataset: str) -> Path:
    """Returns the data set's folder.

    Raises:
        UsageError: if it is not set, or not there.
    """
    if root is None:
        raise UsageError(f"data.root is not set: data.dataset={dataset} needs the folder that holds its files")
    root = Path(root).expanduser()
    if not root.exists():
        raise UsageError(f"data.root: no folder {root}")
    if not root.is_dir():
        raise UsageError(f"data.root: {root} is a file; it has to be the folder of the data set {dataset}")
    return root
