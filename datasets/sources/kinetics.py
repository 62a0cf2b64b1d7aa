"""Kinetics-400, -600 and -700 (Kay et al., arXiv 1705.06950): clips of YouTube videos, as many as could be downloaded.

root/**/*train*.csv  *val*.csv  *test*.csv       label,youtube_id,time_start,time_end,split; or PySlowFast's lists
root/**/kinetics*.json  *train*.json             in their place, JSON as ActivityNet, DeepMind or Hara have it
root/**/<id>_<start:06d>_<end:06d>.mp4           the clip, in class folders or all in one; also <id>_10_20.mp4,
                                                 <id>_10.0_20.0.mp4, <id>_000010_000020.mp4.mkv
root/**/<id>.mp4                                 the clip; or the whole video, of which [start, end) is the clip
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from softpool3d.datasets.lists import read_table
from softpool3d.datasets.manifest import LISTS, Clip, Manifest, read_classes, read_lists
from softpool3d.datasets.sources.kinetics_lists import (
    SUBSETS,
    Entry,
    Lists,
    find_lists,
    read_annotations,
    read_official,
    timed,
)
from softpool3d.datasets.video.containers import open_file
from softpool3d.datasets.video.find import data_root, in_folder, index_videos
from softpool3d.errors import UsageError


def read_kinetics(root: str | Path | None, classes: int = 400, path_prefix: str | None = None) -> dict[str, Manifest]:
    """Returns the splits "train", "val" and, where its labels are there, "test".

    It is normal that some videos are not there: `Manifest.missing` holds their names. CSV goes before JSON.

    Args:
        classes: 400, 600 or 700; tells which lists to read if there are several below the folder.
        path_prefix: the folder where relative paths of PySlowFast's lists begin; None: the folder of the lists.

    Raises:
        UsageError: if the lists are missing, or wrong in some line, or none of the videos is there.
    """
    root = data_root(root, f"kinetics{classes}")
    found = {split: find_lists(root, LISTS, classes, word) for split, word in SUBSETS.items()}
    paths = {split: some[0] for split, some in found.items() if some}
    if "train" in paths:
        tables = {split: read_table(path) for split, path in paths.items()}
        if "youtube_id" not in tables["train"][0]:
            return read_lists(paths, read_classes(paths["train"].parent / "classes.txt"), path_prefix)
        lists = read_official(paths, tables)
    else:
        lists = read_annotations(root, classes)
    if lists is None:
        raise UsageError(
            f"data.root: no list of training clips below {root}; it has to hold the official train.csv and val.csv "
            "(label,youtube_id,time_start,time_end), PySlowFast's, or a kinetics.json as of ActivityNet"
        )
    return _manifests(root, lists, f"kinetics{classes}")


def _manifests(root: Path, lists: Lists, dataset: str) -> dict[str, Manifest]:
    own = read_classes(root / "classes.txt")
    classes = own or lists.classes or tuple(sorted({entry.label for entry in lists.entries["train"]}))
    numbers = {name: number for number, name in enumerate(classes)}
    videos = _Videos(root)
    manifests = {}
    for split, entries in lists.entries.items():
        clips, missing = [], []
        for entry in entries:
            if entry.label not in numbers:
                source = "classes.txt" if own else lists.sources["train"].name
                raise UsageError(f"{entry.where}: {entry.label!r} is none of the {len(classes)} classes of {source}")
            clip = videos.find(entry, numbers[entry.label])
            if clip is None:
                missing.append(entry.name)
            else:
                clips.append(clip)
        if not clips and split == "train":
            raise UsageError(
                f"data.root: none of the {len(missing)} {split} videos of {dataset} is below {root} "
                f"(looked for <id>.mp4 and {', '.join(missing[:2])}, ...)"
            )
        if clips:
            manifests[split] = Manifest(classes, _cut_where_whole(clips), tuple(missing), str(lists.sources[split]))
    if "val" not in manifests:
        raise UsageError(f"data.root: no validation clips of {dataset} below {root}: a list val.csv and its videos")
    return manifests


class _Videos:
    """The videos below a folder, by what they are called."""

    def __init__(self, root: Path) -> None:
        self._whole = index_videos(root)
        self._cut: dict[tuple[str, float, float], list[str]] = {}
        for name, paths in self._whole.items():
            if key := timed(name):
                self._cut.setdefault(key, []).extend(paths)

    def find(self, entry: Entry, label: int) -> Clip | None:
        """Returns the clip, or None. It has times where it may have to be cut out of a longer video."""
        if entry.start is not None:
            for times in ((entry.start, entry.end), (int(entry.start), int(entry.end))):
                if paths := self._cut.get((entry.identity, *times)):
                    return Clip(in_folder(paths, entry.label), label)
        if paths := self._whole.get(entry.identity):
            return Clip(in_folder(paths, entry.label), label, entry.start, entry.end)
        return None


def _cut_where_whole(clips: list[Clip]) -> list[Clip]:
    """Removes the times of clips whose file is the clip itself, and not the whole video; its length tells."""

    def cut(clip: Clip) -> Clip:
        if clip.start is None:
            return clip
        length = _seconds(clip.path)
        if length is None or length <= clip.end - clip.start + 1 or length <= clip.start:
            return Clip(clip.path, clip.label)
        # Official times are whole seconds: the last clip of a video may end a little after it.
        end = None if length < clip.end <= length + 1 else clip.end
        return Clip(clip.path, clip.label, clip.start, end)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(cut, clips))


def _seconds(path: str) -> float | None:
    """Returns the length in the file's header; None if it cannot be read."""
    import av

    try:
        with open_file(path) as container:
            return container.duration / av.time_base if container.duration else None
    except (av.error.FFmpegError, OSError, ValueError):
        return None
