"""Kinetics-400, -600 and -700 (Kay et al., arXiv 1705.06950): clips of YouTube videos, as many as could be downloaded.

root/**/*train*.csv  *val*.csv  *test*.csv       label,youtube_id,time_start,time_end,split; or PySlowFast's lists
root/**/<id>_<start:06d>_<end:06d>.mp4           the clip, in class folders or all in one
root/**/<id>.mp4                                 the clip; or the whole video, of which [start, end) is the clip
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from softpool3d.datasets.lists import read_table
from softpool3d.datasets.manifest import (
    LISTS,
    Clip,
    Manifest,
    read_classes,
    read_lists,
)
from softpool3d.datasets.text import legible
from softpool3d.datasets.videos import data_root, in_folder, index_videos
from softpool3d.errors import UsageError

_NAMES = {"train": r"train", "val": r"val(id(ate|ation)?)?", "test": r"test"}


def read_kinetics(root: str | Path | None, classes: int = 400, path_prefix: str | None = None) -> dict[str, Manifest]:
    """The splits "train", "val" and, where its labels are there, "test".

    Videos that are named and not there are normal: they are counted in `Manifest.missing`.

    Args:
        classes: 400, 600 or 700: which of several lists below the folder.
        path_prefix: the folder where relative paths of PySlowFast's lists begin, if not in that of the lists.

    Raises:
        UsageError: if the lists are missing, or wrong in some line, or there is none of the videos.
    """
    root = data_root(root, f"kinetics{classes}")
    lists = {split: path for split in _NAMES if (path := _find_list(root, split, classes)) is not None}
    if "train" not in lists:
        raise UsageError(
            f"data.root: no list of training clips below {root}; it has to hold the official train.csv and val.csv "
            "(label,youtube_id,time_start,time_end,split), or PySlowFast's"
        )
    tables = {split: read_table(path) for split, path in lists.items()}
    if "youtube_id" not in tables["train"][0]:
        return read_lists(lists, read_classes(lists["train"].parent / "classes.txt"), path_prefix)
    return _official(root, lists, tables, f"kinetics{classes}")


def _official(root: Path, lists: dict[str, Path], tables: dict, dataset: str) -> dict[str, Manifest]:
    columns = {}
    for split, (header, _) in tables.items():
        columns[split] = {name: header.index(name) for name in header}
        for name in ("youtube_id", "time_start", "time_end"):
            if name not in columns[split]:
                raise UsageError(f"{lists[split]}:1: there is no column {name!r}")
    if "label" not in columns["train"]:
        raise UsageError(f"{lists['train']}:1: there is no column 'label'")
    records = {
        split: [(line, [legible(cell, lists[split], line) for cell in record]) for line, record in table[1]]
        for split, table in tables.items()
        if "label" in columns[split]
    }
    own = read_classes(root / "classes.txt")
    column = columns["train"]["label"]
    classes = own or tuple(sorted({record[column] for _, record in records["train"] if len(record) > column}))
    numbers = {name: number for number, name in enumerate(classes)}
    videos = index_videos(root)
    manifests = {}
    for split, lines in records.items():
        clips, missing = [], []
        for line, record in lines:
            where = f"{lists[split]}:{line}"
            try:
                label, identity, start, end = (
                    record[columns[split][name]] for name in ("label", "youtube_id", "time_start", "time_end")
                )
                times = float(start), float(end)
            except (IndexError, ValueError):
                raise UsageError(
                    f"{where}: {','.join(record)} is not label,youtube_id,time_start,time_end with times in seconds"
                ) from None
            if label not in numbers:
                source = "classes.txt" if own else lists["train"].name
                raise UsageError(f"{where}: {label!r} is none of the {len(classes)} classes of {source}")
            name = f"{identity}_{int(times[0]):06d}_{int(times[1]):06d}"
            if name in videos:
                clips.append(Clip(in_folder(videos[name], label), numbers[label]))
            elif identity in videos:
                clips.append(Clip(in_folder(videos[identity], label), numbers[label], *times))
            else:
                missing.append(name)
        if not clips and split == "train":
            raise UsageError(
                f"data.root: none of the {len(missing)} {split} videos of {dataset} is below {root} "
                f"(looked for <id>.mp4 and {', '.join(missing[:2])}, ...)"
            )
        if clips:
            manifests[split] = Manifest(classes, _cut_where_whole(clips), tuple(missing), str(lists[split]))
    if "val" not in manifests:
        raise UsageError(f"data.root: no validation clips of {dataset} below {root}: a list val.csv and its videos")
    return manifests


def _cut_where_whole(clips: list[Clip]) -> list[Clip]:
    """`<id>.mp4` is the clip itself in some downloads and the whole video in others; its length tells."""

    def cut(clip: Clip) -> Clip:
        if clip.start is None:
            return clip
        length = _seconds(clip.path)
        whole = length is not None and length > clip.end - clip.start + 1 and length > clip.start
        return clip if whole else Clip(clip.path, clip.label)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(cut, clips))


def _seconds(path: str) -> float | None:
    """From the file's header; None where it cannot be read."""
    import av

    try:
        with av.open(path, metadata_errors="replace") as container:
            return container.duration / av.time_base if container.duration else None
    except (av.error.FFmpegError, OSError, ValueError):
        return None


def _find_list(root: Path, split: str, classes: int) -> Path | None:
    """The list nearest to the root whose name says the split, and if any number the right one."""
    pattern = re.compile(rf"(^|[^a-z]){_NAMES[split]}([^a-z]|$)", re.IGNORECASE)
    found = [
        path
        for folder in (root, *sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("manifest")))
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in LISTS and pattern.search(path.stem) and path.is_file()
    ]
    other = {"400", "600", "700"} - {str(classes)}
    fitting = [p for p in found if not other & set(re.findall(r"\d{3}", f"{p.parent.name}/{p.stem}"))]
    fitting.sort(key=lambda p: str(classes) not in p.stem)
    return fitting[0] if fitting else None
