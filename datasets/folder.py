"""A folder of videos, with one folder for each class:

    root/train/<class>/*.mp4  root/val/<class>/*.mp4  root/test/<class>/*.mp4     as split on disk, or
    root/<class>/*.mp4                                                            split here, by a seed, or
    root/train.csv  root/val.csv  root/test.csv  root/classes.txt                 lists (manifest.py)

A folder of pictures (JPEG, PNG) counts as a video, its frames in the order of the numbers in their names. Without val
the validation clips are split off from train; without test there is no test split. Class names are the folders' names,
in sorted order, or in that of a classes.txt.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from softpool3d.datasets.manifest import Clip, Manifest, find_list, read_classes, read_manifests_in
from softpool3d.datasets.videos import data_root, find_videos
from softpool3d.errors import UsageError

T = TypeVar("T")


def read_folder(
    root: str | Path | None, split: Iterable[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> dict[str, Manifest]:
    """The splits that the folder holds: "train", "val" and, where there is one, "test".

    Args:
        root: the folder.
        split: parts of train, val and test where the folder is not split on disk.
        seed: of that split; each class is split by itself.

    Raises:
        UsageError: if there is no such folder, no video in it, fewer than two classes, or a class without training.
    """
    root = data_root(root, "folder")
    train_part, val_part, test_part = split
    # without val, as much is split off from train as the other parts leave
    kept = train_part / (train_part + val_part) if val_part else 0.9
    if find_list(root, "train"):
        manifests = read_manifests_in(root)
        if "val" not in manifests:
            train = manifests["train"]
            by_class: dict[str, list[Clip]] = {}
            for clip in train.clips:
                name = " ".join(map(str, clip.label)) if train.multi_label else train.classes[clip.label]
                by_class.setdefault(name, []).append(clip)
            parts = _divide(by_class, (kept, 1 - kept, 0.0), seed)
            for name, part in zip(("train", "val"), parts[:2], strict=True):
                clips = [clip for some in part.values() for clip in some]
                manifests[name] = Manifest(train.classes, clips, source=train.source)
        return manifests
    if (root / "train").is_dir() and any(path.is_dir() for path in (root / "train").iterdir()):
        parts = {name: _videos(root / name) for name in ("train", "val", "test") if (root / name).is_dir()}
        if "val" not in parts:
            parts["train"], parts["val"], _ = _divide(parts["train"], (kept, 1 - kept, 0.0), seed)
    else:
        train, val, test = _divide(_videos(root), (train_part, val_part, test_part), seed)
        parts = {"train": train, "val": val} | ({"test": test} if test_part else {})

    classes = tuple(sorted(parts["train"]))
    ordered = read_classes(root / "classes.txt")
    if ordered and classes:
        if sorted(ordered) != list(classes):
            odd = sorted(set(ordered) ^ set(classes))[0]
            what = "has no folder of videos" if odd in ordered else "is missing"
            raise UsageError(f"{root / 'classes.txt'}: the class {odd!r} {what}")
        classes = ordered
    if not classes:
        raise UsageError(
            f"data.root: no videos in {root}; it has to hold <class>/*.mp4, or train/<class>/*.mp4 and "
            "val/<class>/*.mp4"
        )
    if len(classes) == 1:
        raise UsageError(f"data.root: {root} holds a single class, {classes[0]!r}; there have to be two at least")
    manifests = {}
    for name, videos in parts.items():
        for label in videos:
            if label not in classes:
                raise UsageError(f"data.root: class {label!r} is in {root / name} but not in {root / 'train'}")
        clips = [Clip(str(path), i) for i, label in enumerate(classes) for path in videos.get(label, ())]
        if not clips and (root / name).is_dir():
            raise UsageError(f"data.root: no videos in {root / name}")
        if not clips:
            raise UsageError(f"data.root: too few videos in {root} to split off any for {name!r} (data.split={split})")
        manifests[name] = Manifest(classes, clips, source=str(root))
    return manifests


def _videos(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its videos, sorted; classes without videos are left out."""
    found = {}
    for directory in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        paths = sorted(map(Path, find_videos(directory)))
        if paths:
            _check_name(directory)
            found[directory.name] = paths
    return found


def _check_name(directory: Path) -> None:
    try:
        directory.name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"data.root: the class folder {os.fsencode(directory)!r} is not named in UTF-8") from None


def _divide(videos: dict[str, list[T]], parts: tuple[float, float, float], seed: int) -> list[dict[str, list[T]]]:
    """Each class's videos in three disjoint parts; a part above 0 gets one video at least while train keeps one."""
    divided: list[dict[str, list[T]]] = [{}, {}, {}]
    for label, paths in videos.items():
        shuffled = sorted(paths, key=str)
        random.Random(f"{seed}/{label}").shuffle(shuffled)
        left = len(shuffled)
        for index in (1, 2):
            count = max(round(parts[index] * len(shuffled)), 1) if parts[index] else 0
            count = min(count, left - 1)
            divided[index][label] = sorted(shuffled[left - count : left], key=str)
            left -= count
        divided[0][label] = sorted(shuffled[:left], key=str)
    return divided
