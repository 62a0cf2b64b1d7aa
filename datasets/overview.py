"""Sums up what a data set holds, and what is odd about it, in a few lines; training and `prepare` print them.

folder: 26 classes (A, B, C, ...), from letters/train.csv
  train  240 clips of 26 classes: 8 (K) to 10 (A)
  val    52 clips of 26 classes: 2 of each
left out by their ending: 3 .heic, 1 .zip
"""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from softpool3d.datasets import prepared_folder
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.video.find import survey
from softpool3d.datasets.video.remote import is_address
from softpool3d.errors import UsageError

if TYPE_CHECKING:
    from softpool3d.config import DataConfig

UNUSED = "unused.csv"  # beside the manifest: the videos that `prepare` saw and put into no split
_ARCHIVED = ("hmdb51", "ucf101")  # these come in archives, which lie beside the videos


class Overview(NamedTuple):
    """A summary of a data set. lines: what it holds; notes: a sentence for each thing that is odd."""

    lines: tuple[str, ...]
    notes: tuple[str, ...]


def overview(manifests: dict[str, Manifest], data: DataConfig) -> Overview:
    """Returns the summary of the data that a training prints first.

    The root is searched once. It is not searched for a user's own lists: only the files that they name are looked for.

    Raises:
        UsageError: as `check_learnable`; or if more files are missing than `data.max_bad_fraction` allows.
    """
    check_learnable(manifests)
    if data.root is None or data.is_generated:
        sizes = ", ".join(f"{len(manifest)} {split}" for split, manifest in manifests.items())
        classes = manifests["train"].classes
        return Overview((f"{data.dataset}: {sizes} clips, {len(classes)} classes ({few(classes)})",), ())
    prepared, listed = prepared_folder(data), any(manifest.clips[0].line for manifest in manifests.values())
    videos, endings = survey(data.root, data.of_pictures) if prepared.is_dir() or not listed else ((), {})
    gone = _gone(manifests, videos) if listed else {}
    _check_gone(gone, manifests, data)
    notes = [*odd_labels(manifests), *odd_files(manifests), *left_out_note(endings, data)]
    if prepared.is_dir():
        notes += _changes(manifests, data, videos, gone)
    else:
        notes += [
            f"not on the disk: {len(lost)} of the {len(manifests[split])} {split} clips ({few(lost, 1)})"
            for split, lost in gone.items()
        ]
    return Overview(split_lines(manifests, data), tuple(notes))


def few(names: Sequence[str], most: int = 3) -> str:
    """Returns the first `most` names, joined for a sentence."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def check_learnable(manifests: dict[str, Manifest]) -> None:
    """Raises UsageError for a split without clips, or training clips that all have the same label."""
    for split, manifest in manifests.items():
        if not len(manifest):
            raise UsageError(f"data.root: the {split} split has no clips ({manifest.source})")
    train = manifests["train"]
    counts = train.class_counts()
    if train.multi_label and np.isin(counts, (0, len(train))).all():
        raise UsageError(f"{train.source}: every training clip has the same labels, so there is nothing to learn")
    if not train.multi_label and counts.max() == len(train):
        name, others = train.classes[int(counts.argmax())], len(train.classes) - 1
        rest = f" (of {others + 1}: {few([c for c in train.classes if c != name])} have none)" if others else ""
        raise UsageError(
            f"{train.source}: all {len(train)} training clips are of a single class, {name!r}{rest}; "
            "there have to be two at least"
        )


def split_lines(manifests: dict[str, Manifest], data: DataConfig) -> tuple[str, ...]:
    """Returns a line for the data set and one for each split, which names its smallest and largest class."""
    train = manifests["train"]
    lines = [f"{data.dataset}: {len(train.classes)} classes ({few(train.classes)}), from {train.source}"]
    test_is_val = _test_is_val(manifests)
    for split, manifest in manifests.items():
        if split == "test" and test_is_val:
            continue
        missing = f"; {len(manifest.missing)} missing" if manifest.missing else ""
        same = "; test is the same clips" if split == "val" and test_is_val else ""
        lines.append(f"  {split:5}  {len(manifest)} clips of {_spread(manifest)}{missing}{same}")
    return tuple(lines)


def _spread(manifest: Manifest) -> str:
    counts = manifest.class_counts()
    used = np.flatnonzero(counts)
    if not used.size:
        return "no class"
    smallest, largest = used[counts[used].argmin()], used[counts[used].argmax()]
    of = f"{len(used)} classes" if len(used) == len(counts) else f"{len(used)} of the {len(counts)} classes"
    if counts[smallest] == counts[largest]:
        return f"{of}: {counts[smallest]} of each"
    ends = (f"{counts[label]} ({manifest.classes[label]})" for label in (smallest, largest))
    return f"{of}: {' to '.join(ends)}"


def odd_labels(manifests: dict[str, Manifest]) -> list[str]:
    """Returns notes on classes without clips: in all splits, in training, or in another split."""
    classes = manifests["train"].classes
    counts = {split: manifest.class_counts() for split, manifest in manifests.items()}
    total = sum(counts.values())
    unlearned = np.flatnonzero((counts["train"] == 0) & (total > 0))
    notes = _unused_labels(classes, np.flatnonzero(total == 0))
    if unlearned.size:
        notes.append(f"without training clips, but in other splits: {_some(unlearned, classes)}")
    notes += [
        note
        for split, found in counts.items()
        if split != "train" and (note := absent_classes(split, classes, (found == 0) & (counts["train"] > 0)))
    ]
    return notes


def absent_classes(split: str, classes: Sequence[str], absent: np.ndarray) -> str:
    """Returns a sentence on the classes of which a split has no clips; "" if there are none. absent: bool (C,)."""
    return f"{split} has no clips of {_some(np.flatnonzero(absent), classes)}" if absent.any() else ""


def _some(labels: np.ndarray, classes: Sequence[str]) -> str:
    return f"{labels.size} of the {len(classes)} classes ({few([classes[label] for label in labels[:4]])})"


def _unused_labels(classes: Sequence[str], unused: np.ndarray) -> list[str]:
    """Returns notes on classes without clips in any split. The network has an output for them all the same."""
    if not unused.size:
        return []
    numbered = tuple(classes) == tuple(map(str, range(len(classes))))
    if numbered and np.array_equal(unused, np.arange(unused.size)):
        which = "class 0 has" if unused.size == 1 else f"classes 0 to {unused.size - 1} have"
        advice = "if your list counts from 1, subtract 1" if unused.size == 1 else "number them from 0"
        return [f"labels start at {unused.size}: {which} no clips, and an output of the network; {advice}"]
    if numbered:
        used = len(classes) - unused.size
        return [
            f"labels have gaps: of 0 to {len(classes) - 1} only {used} have clips, and each has an output of the "
            f"network; number them from 0 to {used - 1}, or write names"
        ]
    return [f"without clips in any split: {_some(unused, classes)}"]


def odd_files(manifests: dict[str, Manifest]) -> list[str]:
    """Returns notes on files that are in two splits, or in one split with two labels."""
    notes = []
    test_is_val = _test_is_val(manifests)
    paths = {
        split: manifest.clips.paths() for split, manifest in manifests.items() if split != "test" or not test_is_val
    }
    sets = {split: set(some) for split, some in paths.items()}
    for one, other in combinations(paths, 2):
        both = sets[one] & sets[other]
        mine, theirs = (_clips_of(both, paths[split], manifests[split]) for split in (one, other))
        same = sorted(path for path in both if any(_overlap(a, b) for a in mine[path] for b in theirs[path]))
        parts = sorted(both.difference(same))
        if same:
            notes.append(f"in {one} and in {other}: {_some_files(same)}")
        if parts:
            notes.append(f"in {one} and in {other}, with other times: {_some_files(parts)}")
    for split, some in paths.items():
        twice = _two_labels(some, manifests[split]) if len(sets[split]) < len(some) else []
        if twice:
            notes.append(f"in {split} with two labels: {_some_files(twice)}")
    return notes


def _test_is_val(manifests: dict[str, Manifest]) -> bool:
    """Whether test and val are the same clips, as in HMDB51 and UCF101."""
    return "test" in manifests and manifests["test"].clips == manifests["val"].clips


def _some_files(paths: Sequence[str]) -> str:
    return f"{len(paths)} file{'s' if len(paths) > 1 else ''} ({few(paths, 1)})"


def _two_labels(paths: list[str], manifest: Manifest) -> list[str]:
    """Returns the files of which the same part is listed with two labels, sorted."""
    seen: set[str] = set()
    again = {path for path in paths if path in seen or seen.add(path)}
    found = []
    for path, clips in _clips_of(again, paths, manifest).items():
        labels: dict[tuple, set] = {}
        for clip in clips:
            labels.setdefault((clip.start, clip.end), set()).add(clip.label)
        if any(len(some) > 1 for some in labels.values()):
            found.append(path)
    return sorted(found)


def _clips_of(wanted: set[str], paths: list[str], manifest: Manifest) -> dict[str, list[Clip]]:
    """Returns the clips of the wanted paths; no others, because a data set has a quarter of a million."""
    found: dict[str, list[Clip]] = {path: [] for path in wanted}
    for index, path in enumerate(paths if wanted else ()):
        if path in found:
            found[path].append(manifest.clips[index])
    return found


def _overlap(a: Clip, b: Clip) -> bool:
    ends = (float("inf") if clip.end is None else clip.end for clip in (b, a))
    return (a.start or 0) < next(ends) and (b.start or 0) < next(ends)


def left_out_note(endings: dict[str, int], data: DataConfig) -> list[str]:
    """Returns a note on files that are left out: by their ending they are neither videos nor texts beside them."""
    counted = [
        f"{count} {ending}"
        for ending, count in endings.items()
        if not (data.dataset in _ARCHIVED and ending in (".rar", ".zip"))
    ]
    return [f"left out by their ending: {few(counted, 6)}"] if counted else []


def unused_videos(root: str | Path, videos: Iterable[str], manifests: dict[str, Manifest]) -> list[str]:
    """Returns the videos that no split names, relative to the root that they lie below, sorted."""
    named = {os.path.abspath(path) for manifest in manifests.values() for path in manifest.clips.paths()}
    return sorted(os.path.relpath(path, root) for path in map(os.path.abspath, videos) if path not in named)


def _gone(manifests: dict[str, Manifest], there: Iterable[str]) -> dict[str, list[str]]:
    """Returns the paths of clips that are not on the disk, by split; splits without any are left out.

    Folders are listed, instead of each file looked up: there are a thousand times fewer of them.

    Args:
        there: paths that are known to exist.
    """
    known, listed = set(there), {}
    lost: dict[str, list[str]] = {}
    for split, manifest in manifests.items():
        for path in manifest.clips.paths():
            if path in known or is_address(path):
                continue
            folder, name = os.path.split(path)
            if folder not in listed:
                listed[folder] = _names(folder)
            if name not in listed[folder] and not os.path.lexists(path):  # the disk may not tell a.MP4 from a.mp4
                lost.setdefault(split, []).append(path)
    return lost


def _names(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _check_gone(gone: dict[str, list[str]], manifests: dict[str, Manifest], data: DataConfig) -> None:
    prefix = "data.path_prefix=FOLDER sets where relative paths begin"
    advice = f"run {_prepare_again(data)}" if prepared_folder(data).is_dir() else prefix
    for split, lost in gone.items():
        source, total = manifests[split].source, len(manifests[split])
        if len(lost) == total:
            raise UsageError(f"{source}: none of its {total} clips is on the disk (no file {lost[0]}); {advice}")
        if len(lost) > data.max_bad_fraction * total:
            raise UsageError(
                f"{source}: {len(lost)} of its {total} clips are not on the disk (no file {lost[0]}), more than "
                f"data.max_bad_fraction={data.max_bad_fraction:g} allows; bring them back, or {advice}"
            )


def _prepare_again(data: DataConfig) -> str:
    if (Path(data.root) / "reencoding.json").is_file():
        return "the `softpool3d prepare --reencode` that made the copies"
    command = ["softpool3d", "prepare", data.dataset, "--root", data.root]
    command += ["--split", str(data.official_split)] if data.dataset in _ARCHIVED and data.official_split != 1 else []
    return shlex.join(command)


def _paths_in(table: Path) -> set[str]:
    with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        return {row[0] for row in csv.reader(file) if row}


def _changes(
    manifests: dict[str, Manifest], data: DataConfig, videos: Iterable[str], gone: dict[str, list[str]]
) -> list[str]:
    """Returns a note on the files that came or went since `prepare` wrote its manifest."""
    folder = prepared_folder(data)
    changes = []
    lost = sorted({path for some in gone.values() for path in some})
    if lost:
        changes.append(f"{len(lost)} gone ({few(lost, 1)})")
    if (folder / UNUSED).is_file():
        before = _paths_in(folder / UNUSED)
        new = [path for path in unused_videos(data.root, videos, manifests) if path not in before]
        if new:
            changes.append(f"{len(new)} new ({few(new, 1)})")
    if not changes:
        return []
    return [f"files since `softpool3d prepare`: {', '.join(changes)}; to take that up: {_prepare_again(data)}"]
