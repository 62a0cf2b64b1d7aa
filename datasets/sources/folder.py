"""A folder of videos, or of pictures, with one folder for each class:

    root/train/<class>/*.mp4  root/val/<class>/*.mp4  root/test/<class>/*.mp4     as split on disk, or
    root/<class>/*.mp4                                                            split here, by a seed, or
    root/train.csv  root/val.csv  root/test.csv  root/classes.txt                 lists (manifest.py), or
    root/train/metadata.csv  root/train/*.mp4  root/val/...                       as on Hugging Face: file_name,label

Splits may have any of their usual names (`SPLIT_NAMES`), in upper or lower case. A folder of pictures counts as a
video, its frames in the order of the numbers in their names. Without val, the validation clips are split off from
train; without test, there is no test split. Class names are the folders' names, sorted, or in the order of a
classes.txt. Of pictures (`PICTURES`) each file is a clip of its own.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from softpool3d.datasets import say_divided
from softpool3d.datasets.lists import read_table
from softpool3d.datasets.manifest import LISTS, Clip, Manifest, read_classes, read_lists
from softpool3d.datasets.video.find import data_root, find_pictures, find_videos, is_hidden, is_video
from softpool3d.datasets.video.pictures import is_picture
from softpool3d.errors import UsageError
from softpool3d.text import note

T = TypeVar("T")
Parts = tuple[float, float, float]  # of train, val and test
Videos = dict[str, list[Path]]  # class name -> its videos, or pictures


class Kind(NamedTuple):
    """What a folder holds. find: yields those below a folder; is_one: whether a file's name says that it is one."""

    dataset: str
    name: str
    example: str
    find: Callable[[Path], Iterator[str]]
    is_one: Callable[[str], bool]


VIDEOS = Kind("folder", "videos", "*.mp4", find_videos, is_video)
PICTURES = Kind("pictures", "pictures", "*.jpg", find_pictures, is_picture)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
_TABLE = "metadata.csv"


def read_folder(
    root: str | Path | None,
    split: Iterable[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    prefix: str | Path | None = None,
    kind: Kind = VIDEOS,
) -> dict[str, Manifest]:
    """Returns the splits that the folder holds: "train", "val" and, where there is one, "test".

    Args:
        root: the folder; or a list, which is split here.
        split: parts of train, val and test where the folder is not split on disk.
        seed: of that split; each class is split by itself.
        prefix: the folder where relative paths of lists begin; None: the folder of the lists.
        kind: VIDEOS or PICTURES.

    Raises:
        UsageError: if there is no such folder, no video in it, fewer than two classes, or a class without training; if
            folders of splits and of classes lie side by side, or videos of a split in no class.
    """
    if listed := list_at(root):
        whole = read_lists({"train": listed}, read_classes(listed.with_name("classes.txt")), prefix)["train"]
        return _divided(whole, tuple(split), seed)
    root = data_root(root, kind.dataset)
    train_part, val_part, test_part = split
    # without val, as much is split off from train as the other parts leave
    kept = train_part / (train_part + val_part) if val_part else 0.9
    off_train = (kept, 1 - kept, 0.0)

    def validated(found: dict[str, Manifest]) -> dict[str, Manifest]:
        if "val" not in found:
            return found | _divided(found["train"], off_train, seed)
        say_divided(root, split, seed)
        return found

    ordered = read_classes(root / "classes.txt")
    lists = _named_as_splits([p for p in _entries(root) if p.suffix.lower() in LISTS and p.is_file()], root)
    if "train" in lists:
        return validated(read_lists(lists, ordered, prefix))
    if _is_table(root / _TABLE):
        return validated(_read_table_of_all(root, ordered, prefix))
    folders = _split_folders(root, ordered or (), kind)
    tables = {name: folder / _TABLE for name, folder in folders.items() if _is_table(folder / _TABLE)}
    if tables:
        return validated(_read_tables(folders, tables, ordered, prefix))
    if folders:
        parts = {name: _videos(folder, kind) for name, folder in folders.items()}
        _check_split(folders, parts, kind)
        if "val" in parts:
            say_divided(root, split, seed)
        else:
            parts["train"], parts["val"], _ = _divide(parts["train"], off_train, seed)
    else:
        train, val, test = _divide(_videos(root, kind), (train_part, val_part, test_part), seed)
        parts = {"train": train, "val": val} | ({"test": test} if test_part else {})
    classes = _classes(root, parts["train"], ordered, kind)
    return _manifests(root, parts, folders, classes, (train_part, val_part, test_part), kind)


def list_at(root: str | Path | None) -> Path | None:
    """Returns the list of videos that `data.root` names; None where it names a folder, or nothing."""
    path = Path(root).expanduser() if root is not None else None
    return path if path and path.suffix.lower() in LISTS and path.is_file() else None


def _manifests(
    root: Path, parts: dict[str, Videos], folders: dict[str, Path], classes: tuple[str, ...], split: Parts, kind: Kind
) -> dict[str, Manifest]:
    manifests = {}
    for name, videos in parts.items():
        for label in videos:
            if label not in classes:
                near = [other for other in classes if other.casefold() == label.casefold()]
                hint = f" (there it is {near[0]!r})" if near else ""
                raise UsageError(
                    f"data.root: class {label!r} is in {folders[name]} but not in {folders['train']}{hint}"
                )
        clips = [Clip(str(path), i) for i, label in enumerate(classes) for path in videos.get(label, ())]
        if not clips:
            raise UsageError(
                f"data.root: too few {kind.name} in {root} to split off any for {name!r} (data.split={list(split)})"
                + ("; with data.split=[0.8,0.2,0] the validation clips are tested too" if name == "test" else "")
            )
        manifests[name] = Manifest(classes, clips, source=str(root))
    return manifests


def _classes(root: Path, train: Videos, ordered: tuple[str, ...] | None, kind: Kind) -> tuple[str, ...]:
    """Returns the names of the classes: sorted, or in the order of classes.txt."""
    classes = tuple(sorted(train))
    if ordered and classes:
        if sorted(ordered) != list(classes):
            odd = sorted(set(ordered) ^ set(classes))[0]
            what = f"has no folder of {kind.name}" if odd in ordered else "is missing"
            raise UsageError(f"{root / 'classes.txt'}: the class {odd!r} {what}")
        classes = ordered
    if not classes:
        raise UsageError(
            f"data.root: no {kind.name} in {root}{_astray(root, kind)}; it has to hold <class>/{kind.example}, or "
            f"train/<class>/{kind.example} and val/<class>/{kind.example}"
        )
    if len(classes) == 1:
        raise UsageError(f"data.root: {root} holds a single class, {classes[0]!r}; there have to be two at least")
    return classes


# --- splits on disk --------------------------------------------------------------------------------------------------


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _named_as_splits(paths: list[Path], root: Path) -> dict[str, Path]:
    """Returns for each split the folder, or the list, that has one of its names."""
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: LISTS.index(path.suffix.lower()) if path.is_file() else 0):
        stem = path.stem if path.is_file() else path.name
        split = next((split for split, names in SPLIT_NAMES.items() if stem.casefold() in names), None)
        if split is None:
            continue
        other = found.setdefault(split, path)
        if other != path and (path.is_dir() or other.stem != stem):  # val.csv goes before val.txt
            raise UsageError(
                f"data.root: {other.name} and {path.name} in {root} both mean the split {split!r}; keep one of them"
            )
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _split_folders(root: Path, classes: tuple[str, ...], kind: Kind) -> dict[str, Path]:
    """Returns the folder of each split. A folder that classes.txt names is a class, whatever its name.

    Raises:
        UsageError: if there is no training split, or class folders lie beside split folders that hold none.
    """
    there = _folders(root)
    if not {path.name for path in there}.issuperset(classes):
        classes = ()  # they lie in the split folders
    folders = _named_as_splits([path for path in there if path.name not in classes], root)
    if not folders:
        return {}
    others = [path for path in there if path not in folders.values() and any(kind.find(path))]
    names = _listed(folders.values())
    train = folders.get("train")
    if others and (train is None or not _is_table(train / _TABLE) and not _class_folders(train, kind)):
        raise UsageError(
            f"data.root: {root} holds {names}, named as splits are, beside {_listed(others)}; move the classes into "
            "train/ and val/, or, if a class is really called so, name all classes in a classes.txt there"
        )
    if others:
        note(f"the {kind.name} in {_listed(others)} are in no split: {root} is split into {names}")
    if train is None:
        raise UsageError(f"data.root: {root} holds {names}, but no training split: a folder train/ with class folders")
    return folders


def _class_folders(folder: Path, kind: Kind) -> list[Path]:
    return [path for path in _folders(folder) if any(kind.find(path))]


def _check_split(folders: dict[str, Path], parts: dict[str, Videos], kind: Kind) -> None:
    for name, folder in folders.items():
        if not parts[name]:
            raise UsageError(
                f"data.root: no {kind.name} in class folders of {folder}{_astray(folder, kind)}; it has to hold "
                f"<class>/{kind.example}, or a {_TABLE} with the columns file_name,label"
            )


def _listed(paths: Iterable[Path]) -> str:
    return _some([f"{path.name}/" for path in paths])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# --- tables as on Hugging Face ---------------------------------------------------------------------------------------


def _is_table(path: Path) -> bool:
    return path.is_file() and "file_name" in read_table(path)[0]


def _read_tables(
    folders: dict[str, Path], tables: dict[str, Path], classes: tuple[str, ...] | None, prefix: str | Path | None
) -> dict[str, Manifest]:
    for name, folder in folders.items():
        if name not in tables:
            raise UsageError(f"data.root: no {_TABLE} (file_name,label) in {folder}, but one in {tables.popitem()[1]}")
    return read_lists(tables, classes, prefix)


def _read_table_of_all(root: Path, classes: tuple[str, ...] | None, prefix: str | Path | None) -> dict[str, Manifest]:
    """Reads one table for all splits: they are the folders of its files, where these are named as splits."""
    whole = read_lists({"train": root / _TABLE}, classes, prefix)["train"]
    splits: dict[str, list[Clip]] = {}
    for clip in whole.clips:
        folder = os.path.relpath(clip.path, prefix or root).split(os.sep)[0].casefold()
        split = next((split for split, names in SPLIT_NAMES.items() if folder in names), "")
        splits.setdefault(split, []).append(clip)
    if set(splits) == {""}:
        return {"train": whole}
    if "" in splits or "train" not in splits:
        raise UsageError(
            f"{root / _TABLE}: some of its files are in folders of splits, but not all, or none in train/ "
            f"({(splits.get('') or whole.clips)[0].path})"
        )
    return {
        split: Manifest(whole.classes, splits[split], source=whole.source) for split in SPLIT_NAMES if split in splits
    }


def _divided(train: Manifest, parts: Parts, seed: int) -> dict[str, Manifest]:
    """Returns the clips divided into train, val and, where it has a part, test."""
    times = Counter(train.clips)  # a row that is repeated stays on one side
    by_class: dict[str, list[Clip]] = {}
    for clip in times:
        name = " ".join(map(str, clip.label)) if train.multi_label else train.classes[clip.label]
        by_class.setdefault(name, []).append(clip)
    manifests = {}
    for name, share, part in zip(("train", "val", "test"), parts, _divide(by_class, parts, seed), strict=True):
        clips = [clip for some in part.values() for clip in some for _ in range(times[clip])]
        if share:
            manifests[name] = Manifest(train.classes, clips, source=train.source)
    return manifests


# --- class folders ---------------------------------------------------------------------------------------------------


def _videos(folder: Path, kind: Kind) -> Videos:
    """Returns the sorted videos of each class; notes name folders without videos, and videos outside of them."""
    found, empty = {}, []
    for directory in _folders(folder):
        paths = sorted(map(Path, kind.find(directory)))
        if paths:
            _check_name(directory)
            found[directory.name] = paths
        elif not directory.name.startswith("manifest"):  # of `prepare`
            empty.append(directory)
    if found and empty:
        note(f"no {kind.name} in {_listed(empty)} of {folder}: not taken for classes{_of_another_kind(folder, kind)}")
    if found and (astray := _in_no_class(folder, kind)):
        note(f"{kind.name} in no class folder of {folder} are left out: {_some(astray)}")
    return found


def _astray(folder: Path, kind: Kind) -> str:
    """Returns what lies one folder too high, or is of another kind, for a sentence; "" if nothing is."""
    ones = _in_no_class(folder, kind)
    return f", but {len(ones)} in no class folder ({ones[0]} first)" if ones else _of_another_kind(folder, kind)


def _in_no_class(folder: Path, kind: Kind) -> list[str]:
    return [path.name for path in _entries(folder) if kind.is_one(path.name) and path.is_file()]


def _of_another_kind(folder: Path, kind: Kind) -> str:
    other, what = VIDEOS, "data.dataset=folder takes those"
    if kind is VIDEOS:
        other, what = PICTURES, "a class folder holds folders of pictures; data.dataset=pictures takes each by itself"
    for directory in _folders(folder):
        if not any(kind.find(directory)) and any(other.is_one(path.name) for path in directory.iterdir()):
            return f" ({directory.name}/ holds {other.name}; {what})"
    return ""


def _check_name(directory: Path) -> None:
    try:
        directory.name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"data.root: the class folder {os.fsencode(directory)!r} is not named in UTF-8") from None


def _divide(videos: dict[str, list[T]], parts: Parts, seed: int) -> list[dict[str, list[T]]]:
    """Divides each class's videos into three parts. One above 0 gets a video at least, as long as train keeps one."""
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
