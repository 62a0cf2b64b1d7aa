"""How well frozen features tell classes apart: a linear classifier and nearest neighbours, by scikit-learn."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from softpool3d.analysis.groups import GROUPS, read_groups
from softpool3d.analysis.statistics import grouped_interval
from softpool3d.datasets.inputs import clip_name
from softpool3d.datasets.manifest import read_classes, read_lists
from softpool3d.errors import UsageError
from softpool3d.evaluation.features import difference, open_features

LINEAR, NEIGHBOURS, MAJORITY = "linear probe", "nearest neighbours", "majority class"


@dataclass
class Videos:
    """Videos with their features.

    names: as the files of features name them. vectors: float32 (N, D). about: what made them.
    failed: number of videos that the files hold no features of.
    """

    names: list[str]
    vectors: np.ndarray
    about: dict[str, Any]
    failed: int


@dataclass
class Labelled:
    """The videos that have a label.

    index: int (N,), into `Videos`. labels: text (N,). groups: text (N,), or None.
    tested: bool (N,), the videos of a test list; None to cross-validate.
    notes: sentences on what was assumed or left out.
    """

    index: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None
    tested: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """What a classifier reached: the share of the tested videos that it is right about, and its interval of 95 %."""

    accuracy: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ClassFound:
    """A class in the linear probe: the share of its videos that are right, and what most others were taken for."""

    name: str
    videos: int
    recall: float
    taken_for: str | None


@dataclass(frozen=True)
class Probe:
    """The result of a probe. folds: 0 with a test list. tested, classes: numbers of videos and classes."""

    found: dict[str, Found]
    classes: list[ClassFound]
    folds: int
    tested: int


def read_videos(paths: Sequence[Path]) -> Videos:
    """Reads files of features. The rows of a video, its windows, are averaged.

    Raises:
        UsageError: if one cannot be read, or they were made by different networks or settings.
    """
    sums: dict[str, np.ndarray] = {}
    counts: Counter[str] = Counter()
    failed: set[str] = set()
    about: dict[str, Any] | None = None
    for path in paths:
        with open_features(path) as (made, rows):
            differs = difference(about, made) if about is not None else None
            if differs is not None:
                raise UsageError(f"{paths[0]} and {path}: features of two kinds do not mix, {differs}")
            about = about or made
            for row in rows:
                if row.features is None:
                    failed.add(row.file)
                    continue
                sums[row.file] = sums[row.file] + row.features if row.file in sums else row.features.astype(np.float64)
                counts[row.file] += 1
    if not sums:
        raise UsageError(f"{', '.join(map(str, paths))}: there are no features in it")
    vectors = np.stack([total / counts[name] for name, total in sums.items()]).astype(np.float32)
    return Videos(list(sums), vectors, about, len(failed - sums.keys()))


# --- labels and groups ------------------------------------------------------------------------------------------------


def label_by_folder(names: Sequence[str]) -> Labelled:
    """Labels videos by the folders that they lie in; groups are those of a groups.csv beside these folders."""
    labels = np.array([Path(name).parent.name for name in names])
    known: dict[str, str] = {}
    for root in {Path(name).parent.parent for name in names}:
        known |= read_groups(root / GROUPS)
    groups = [known.get(os.path.normpath(name)) for name in names]
    found = Labelled(np.arange(len(names)), labels, notes=["labels: the folders that the videos lie in"])
    return _with_groups(found, groups)


def label_by_list(names: Sequence[str], train: Path, test: Path | None = None) -> Labelled:
    """Labels videos by a list, or by one for training and one for testing.

    Raises:
        UsageError: if a list cannot be read, no row of it fits a video, a clip is in both lists, or clips have several
            labels.
    """
    lists = {"train": train} | ({"test": test} if test is not None else {})
    manifests = read_lists(lists, read_classes(train.parent / "classes.txt"))
    places = _Places(names)
    index, labels, groups, tested, notes = [], [], [], [], []
    seen: dict[int, str] = {}
    for split, manifest in manifests.items():
        path = lists[split]
        if manifest.multi_label:
            raise UsageError(f"{path}: clips have several labels each, and a probe is of one")
        known = read_groups(path.parent / GROUPS) | read_groups(path)
        absent = []
        for number, clip in enumerate(manifest.clips):
            at = places.find(clip_name(clip), path.parent)
            if at is None:
                absent.append(manifest.where(number))
            elif seen.get(at, split) != split:
                raise UsageError(f"{manifest.where(number)}: {clip.path} is in {train} too; test on other videos")
            elif at not in seen:
                seen[at] = split
                index.append(at)
                labels.append(manifest.classes[clip.label])
                groups.append(known.get(os.path.normpath(clip.path)))
                tested.append(split == "test")
        if len(absent) == len(manifest):
            raise UsageError(
                f"{path}: none of its {len(manifest)} rows names a video of the features, such as {names[0]}"
            )
        if absent:
            notes.append(f"{len(absent)} of {len(manifest)} rows of {path} name no video of the features: {absent[0]}")
    if len(index) < len(names):
        notes.append(f"{len(names) - len(index)} of {len(names)} videos have no label, and are left out")
    mask = np.array(tested) if test is not None else None
    found = _with_groups(Labelled(np.array(index), np.array(labels), None, mask, notes), groups)
    if mask is not None and found.groups is not None and (both := {*found.groups[mask]} & {*found.groups[~mask]}):
        notes.append(f"{len(both)} groups are in {train} and in {test}, such as {min(both)}: what is tested is easier")
    return found


class _Places:
    """Finds videos by their paths, which may begin in another folder than a list's."""

    def __init__(self, names: Sequence[str]) -> None:
        self._whole = {os.path.abspath(name): at for at, name in enumerate(names)}
        self._parts = [Path(name).parts for name in names]
        self._by_end: dict[int, dict[tuple[str, ...], int | None]] = {}

    def find(self, name: str, folder: Path) -> int | None:
        """Returns the place of a video: that of this path, or the only one that ends as the path in `folder` does."""
        at = self._whole.get(os.path.abspath(name))
        if at is not None:
            return at
        end = tuple(part for part in Path(os.path.relpath(name, folder)).parts if part != os.pardir)
        if len(end) not in self._by_end:
            ends: dict[tuple[str, ...], int | None] = {}
            for place, parts in enumerate(self._parts):
                key = parts[-len(end) :]
                ends[key] = None if key in ends else place
            self._by_end[len(end)] = ends
        return self._by_end[len(end)].get(end)


def _with_groups(found: Labelled, groups: Sequence[str | None]) -> Labelled:
    """Adds the groups, if every video has one."""
    known = sum(group is not None for group in groups)
    if known == len(groups):
        found.groups = np.array(groups)
    elif known:
        found.notes.append(f"{known} of {len(groups)} videos have a group; without one for each, none is used")
    return found


# --- the probe --------------------------------------------------------------------------------------------------------


def probe(vectors: np.ndarray, labelled: Labelled, folds: int = 5, neighbours: int = 5) -> Probe:
    """Trains on some videos and tests on others, until each was tested once, or on the videos of the test list.

    Args:
        vectors: float32 (N, D), of all videos.
        folds: parts of the cross-validation. All videos of a group are in one part.
        neighbours: number of nearest neighbours that vote.

    Raises:
        UsageError: if there are too few classes, videos or groups, or scikit-learn is not installed.
    """
    labels, groups = labelled.labels, labelled.groups
    if len(set(labels)) < 2:
        raise UsageError(f"there is one class alone, {labels[0]}; a probe tells two or more apart (--labels)")
    vectors = vectors[labelled.index]
    splits = list(_splits(labelled, folds))
    answers: dict[str, np.ndarray] = {}
    for name, make in _classifiers(neighbours).items():
        answers[name] = np.empty_like(labels)
        for train, test in splits:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a solver that stops early: the accuracy says what it is worth
                answers[name][test] = make(len(train)).fit(vectors[train], labels[train]).predict(vectors[test])
    tested = np.sort(np.concatenate([test for _, test in splits]))
    alike = (groups if groups is not None else np.arange(len(labels)))[tested]
    found = {}
    for name, answer in answers.items():
        right = (answer == labels)[tested].astype(float)
        interval = None if name == MAJORITY else grouped_interval(right.tolist(), alike.tolist())
        found[name] = Found(float(right.mean()), interval)
    classes = _by_class(labels[tested], answers[LINEAR][tested])
    return Probe(found, classes, 0 if labelled.tested is not None else len(splits), len(tested))


def _splits(labelled: Labelled, folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    labels, groups = labelled.labels, labelled.groups
    if labelled.tested is not None:
        yield np.flatnonzero(~labelled.tested), np.flatnonzero(labelled.tested)
        return
    model_selection = _sklearn("model_selection")
    if groups is not None:
        count = min(folds, len(set(groups)))
        if count < 2:
            raise UsageError(f"all videos are of one group, {groups[0]}; give a --test list, or groups that differ")
        splitter = model_selection.StratifiedGroupKFold(count)
    else:
        count = min(folds, max(Counter(labels.tolist()).values()))
        if count < 2:
            raise UsageError("each class has one video alone; a probe trains on some and tests on others")
        splitter = model_selection.StratifiedKFold(count, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer videos than folds
        yield from splitter.split(labels, labels, groups)


def _classifiers(neighbours: int) -> dict[str, Any]:
    """Returns what makes each classifier, for a number of training videos."""
    scaled, pipeline = _sklearn("preprocessing").StandardScaler, _sklearn("pipeline").make_pipeline
    regression = _sklearn("linear_model").LogisticRegression
    nearest, majority = _sklearn("neighbors").KNeighborsClassifier, _sklearn("dummy").DummyClassifier
    return {
        LINEAR: lambda count: pipeline(scaled(), regression(max_iter=1000)),
        NEIGHBOURS: lambda count: pipeline(scaled(), nearest(min(neighbours, count), metric="cosine")),
        MAJORITY: lambda count: majority(strategy="most_frequent"),
    }


def _sklearn(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError:
        raise UsageError("a probe needs scikit-learn; pip install 'softpool3d[features]'") from None


def _by_class(labels: np.ndarray, answers: np.ndarray) -> list[ClassFound]:
    """Returns how each class fared, the worst first."""
    found = []
    for name in sorted(set(labels.tolist())):
        of = answers[labels == name]
        wrong = Counter(of[of != name].tolist()).most_common(1)
        found.append(ClassFound(name, len(of), float((of == name).mean()), wrong[0][0] if wrong else None))
    return sorted(found, key=lambda one: one.recall)
