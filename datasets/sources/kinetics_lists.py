"""Reads the lists of Kinetics: the official CSV files, or JSON as ActivityNet, DeepMind and Hara's 3D-ResNets have it.

label,youtube_id,time_start,time_end,split
{"<id>": {"subset": "train", "annotations": {"label": "abseiling", "segment": [95.0, 105.0]}}}
{"labels": [...], "database": {"<id>_<start:06d>_<end:06d>": {"subset": "training", "annotations": {...}}}}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softpool3d.datasets.video.find import is_hidden
from softpool3d.errors import UsageError
from softpool3d.text import legible, read_json

SUBSETS = {"train": r"train(ing)?", "val": r"val(id(ate|ation)?)?", "test": r"test(ing)?"}
_TIMED = re.compile(r"(.+)_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)")
_ID_LENGTH = 11  # of YouTube: shorter ones may end in two numbers themselves


@dataclass(frozen=True)
class Entry:
    """A clip in a list.

    where: the list and the place in it, for messages.
    identity: the id of the video, or the name of the clip's own file.
    start, end: seconds; None if the clip is not a part of a longer video.
    """

    where: str
    label: str
    identity: str
    start: float | None = None
    end: float | None = None

    @property
    def name(self) -> str:
        """The official name of its file, without the ending."""
        return self.identity if self.start is None else f"{self.identity}_{int(self.start):06d}_{int(self.end):06d}"


@dataclass(frozen=True)
class Lists:
    """The lists of a data set.

    sources: split -> its file.
    entries: split -> its clips.
    classes: names in order, if the file orders them.
    """

    sources: dict[str, Path]
    entries: dict[str, list[Entry]]
    classes: tuple[str, ...] | None = None


def timed(name: str) -> tuple[str, float, float] | None:
    """Returns id, start and end of `<id>_000010_000020`, `<id>_10_20`, `<id>_10.0_20.0`; None for another name."""
    match = _TIMED.fullmatch(name)
    return (match[1], float(match[2]), float(match[3])) if match else None


def find_lists(root: Path, endings: tuple[str, ...], classes: int, pattern: str) -> list[Path]:
    """Returns the files in a folder and its folders whose name has the word that `pattern` matches.

    Files that are named for another number of classes are left out; those named for the right one come first.
    """
    word = re.compile(rf"(^|[^a-z]){pattern}([^a-z]|$)", re.IGNORECASE)
    other = {"400", "600", "700"} - {str(classes)}
    folders = (p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith("manifest"))
    found = [
        path
        for folder in (root, *(folder for folder in folders if not is_hidden(folder.name)))
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in endings and not is_hidden(path.name) and word.search(path.stem) and path.is_file()
    ]
    fitting = [p for p in found if not other & set(re.findall(r"\d{3}", f"{p.parent.name}/{p.stem}"))]
    return sorted(fitting, key=lambda p: str(classes) not in p.stem)


def read_official(paths: dict[str, Path], tables: dict[str, tuple]) -> Lists:
    """Reads the official CSV files; a split without labels is left out.

    Raises:
        UsageError: naming file and line of the first mistake.
    """
    entries = {}
    for split, (header, records) in tables.items():
        columns = {name: header.index(name) for name in header}
        wanted = ["youtube_id", "time_start", "time_end", *(["label"] if split == "train" else [])]
        if missing := [name for name in wanted if name not in columns]:
            raise UsageError(f"{paths[split]}:1: there is no column {missing[0]!r}")
        if "label" in columns:
            entries[split] = [_entry(paths[split], line, record, columns) for line, record in records]
    return Lists(paths, entries)


def _entry(path: Path, line: int, record: list[str], columns: dict[str, int]) -> Entry:
    record = [legible(cell, path, line) for cell in record]
    try:
        label, identity, start, end = (
            record[columns[name]] for name in ("label", "youtube_id", "time_start", "time_end")
        )
        return Entry(f"{path}:{line}", label, identity, float(start), float(end))
    except (IndexError, ValueError):
        raise UsageError(
            f"{path}:{line}: {','.join(record)} is not label,youtube_id,time_start,time_end with times in seconds"
        ) from None


# --- JSON ------------------------------------------------------------------------------------------------------------


def read_annotations(root: Path, classes: int) -> Lists | None:
    """Reads JSON files: each split from the first file with labelled clips of it; None without a training split.

    Raises:
        UsageError: if one is no JSON, or an entry has no label or times where it should.
    """
    sources, entries, ordered = {}, {}, None
    for path in find_lists(root, (".json",), classes, r"(kinetics|k\d00|activity_?net|annotations?|train|val\w*|test)"):
        data = read_json(path)
        database = data.get("database", data) if isinstance(data, dict) else None
        if not isinstance(database, dict) or not all(isinstance(v, dict) and "subset" in v for v in database.values()):
            continue  # of something else
        for split, found in _by_split(path, database).items():
            if split not in entries:
                sources[split], entries[split] = path, found
                if split == "train" and isinstance(data.get("labels"), list):
                    ordered = tuple(map(str, data["labels"]))
    return Lists(sources, entries, ordered) if "train" in entries else None


def _by_split(path: Path, database: dict[str, dict]) -> dict[str, list[Entry]]:
    """Returns labelled clips by split. If all segments begin at 1, they count frames of cut clips, as Hara's do."""
    splits: dict[str, list[tuple[str, dict]]] = {}
    for key, value in database.items():
        split = next((name for name, words in SUBSETS.items() if re.fullmatch(words, str(value["subset"]), re.I)), None)
        if split is None:
            raise UsageError(
                f"{path}: {key!r}: the subset {value['subset']!r} is none of training, validation, testing"
            )
        splits.setdefault(split, []).extend((key, part) for part in _annotations(path, key, value))
    segments = [part.get("segment") for parts in splits.values() for _, part in parts]
    in_frames = all(isinstance(segment, list) and segment and segment[0] == 1 for segment in segments)
    return {
        split: [_of_json(f"{path}: {key!r}", key, part, in_frames) for key, part in parts]
        for split, parts in splits.items()
        if parts
    }


def _annotations(path: Path, key: str, value: dict) -> Iterator[dict]:
    """Yields the labelled parts of a video: one in Kinetics, any number in ActivityNet, none without labels."""
    annotations = value.get("annotations") or []
    for part in annotations if isinstance(annotations, list) else [annotations]:
        if not isinstance(part, dict):
            raise UsageError(f"{path}: {key!r}: annotations is not an object with label and segment")
        if "label" in part:
            yield part


def _of_json(where: str, key: str, part: dict, in_frames: bool) -> Entry:
    label, segment, cut = str(part["label"]), part.get("segment"), timed(key)
    if cut and len(cut[0]) >= _ID_LENGTH:
        return Entry(where, label, *cut)
    if in_frames or segment is None:
        return Entry(where, label, key)
    try:
        start, end = map(float, segment)
    except (TypeError, ValueError):
        raise UsageError(f"{where}: segment {segment!r} is not [start, end] in seconds") from None
    return Entry(where, label, key, start, end)
