"""HMDB51 (Kuehne et al., ICCV 2011): 6766 clips of 51 classes, in three official splits of 3570 and 1530.

    root/**/<class>/<name>.avi                                    the unpacked hmdb51_org.rar
    root/**/<class>_test_split<1|2|3>.txt                         the unpacked test_train_splits.rar
        <name>.avi <0: unused | 1: train | 2: test>

There is no validation split: validation and test are both the official test split.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from softpool3d.datasets.archives import check_unpacked
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.video.find import data_root, find_named, in_folder, index_videos
from softpool3d.errors import UsageError
from softpool3d.text import read_text

ARCHIVES = [  # as archives.py takes them: a RAR of RARs, and the splits
    ("hmdb51_org.rar", "hmdb51_org", "hmdb51_org/*"),
    ("hmdb51_org/*.rar", "hmdb51_org", "hmdb51_org/{stem}/*"),
    ("test_train_splits.rar", ".", "**/*_test_split1.txt"),
]


def read_hmdb51(root: str | Path | None, split: int = 1) -> dict[str, Manifest]:
    """Returns the splits "train", "val" and "test" (the same clips) of official split 1, 2 or 3.

    Raises:
        UsageError: if split files or videos are missing altogether, or a line of a split file is wrong.
    """
    root = data_root(root, "hmdb51")
    check_unpacked(root, ARCHIVES, "hmdb51")
    lists = find_named(root, f"*_test_split{split}.txt")
    if not lists:
        raise UsageError(
            f"data.root: no *_test_split{split}.txt of HMDB51 below {root}; put testTrainMulti_7030_splits/ there "
            "(unpack test_train_splits.rar, or let `softpool3d prepare hmdb51` do it)"
        )
    videos = index_videos(root)
    classes = tuple(sorted({path.name.removesuffix(f"_test_split{split}.txt") for path in lists}))
    parts: dict[str, tuple[list[Clip], list[str]]] = {"1": ([], []), "2": ([], [])}
    for path in lists:
        label = path.name.removesuffix(f"_test_split{split}.txt")
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            match = re.fullmatch(r"(.+?)\s+([012])\s*", line)
            if match is None:
                raise UsageError(f"{path}:{number}: {line.strip()!r} is not `<video> <0, 1 or 2>`")
            name, use = match.groups()
            if use == "0":
                continue
            clips, missing = parts[use]
            paths = videos.get(os.path.splitext(name)[0], [])
            if paths:
                clips.append(Clip(in_folder(paths, label), classes.index(label)))
            else:
                missing.append(f"{label}/{name}")
    return official_splits("hmdb51", classes, root, *parts["1"], *parts["2"])


def official_splits(
    dataset: str,
    classes: tuple[str, ...],
    root: Path,
    train: list[Clip],
    train_missing: list[str],
    test: list[Clip],
    test_missing: list[str],
) -> dict[str, Manifest]:
    """Returns the manifests of a data set whose test split is its validation split, too."""
    for name, clips, missing in (("train", train, train_missing), ("test", test, test_missing)):
        if not clips:
            raise UsageError(
                f"data.root: none of the {len(missing)} {name} videos of {dataset} is below {root} "
                f"(looked for {', '.join(missing[:2])}, ...)"
            )
    tested = Manifest(classes, test, tuple(test_missing), str(root))
    return {"train": Manifest(classes, train, tuple(train_missing), str(root)), "val": tested, "test": tested}
