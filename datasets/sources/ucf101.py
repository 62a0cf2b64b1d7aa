"""UCF101 (Soomro et al., arXiv 1212.0402): 13320 clips of 101 classes in three official splits.

    root/**/v_<Class>_g<group>_c<clip>.avi            in class folders or all in one
    root/**/classInd.txt                              1 ApplyEyeMakeup
    root/**/trainlist0<1|2|3>.txt                     ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
    root/**/testlist0<1|2|3>.txt                      ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi

There is no validation split: validation and test are both the official test split.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from softpool3d.datasets.archives import check_unpacked
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.sources.hmdb51 import official_splits
from softpool3d.datasets.video.find import data_root, find_named, in_folder, index_videos
from softpool3d.errors import UsageError
from softpool3d.text import legible, read_text

ARCHIVES = [  # as archives.py takes them
    ("UCF101.rar", ".", "UCF-101/*"),
    ("UCF101TrainTestSplits-RecognitionTask.zip", ".", "**/trainlist01.txt"),
]


def read_ucf101(root: str | Path | None, split: int = 1) -> dict[str, Manifest]:
    """Returns the splits "train", "val" and "test" (the same clips) of official split 1, 2 or 3.

    Raises:
        UsageError: if a split file is missing or one of its lines is wrong, or there are no videos.
    """
    root = data_root(root, "ucf101")
    check_unpacked(root, ARCHIVES, "ucf101")
    names = _class_names(_only(root, "classInd.txt"))
    numbers = {name: number for number, name in enumerate(names)}
    videos = index_videos(root)
    parts = []
    for part in ("train", "test"):
        path = _only(root, f"{part}list0{split}.txt")
        clips: list[Clip] = []
        missing: list[str] = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            name = re.sub(r"\s+\d+$", "", line.strip())
            if not name:
                continue
            label = name.replace("\\", "/").rpartition("/")[0]
            if label not in numbers:
                raise UsageError(
                    f"{path}:{number}: {line.strip()!r} is not `<class>/<video>` with a class of classInd.txt"
                )
            paths = videos.get(os.path.splitext(os.path.basename(name))[0], [])
            if paths:
                clips.append(Clip(in_folder(paths, label), numbers[label]))
            else:
                missing.append(name)
        parts += [clips, missing]
    return official_splits("ucf101", names, root, *parts)


def _class_names(path: Path) -> tuple[str, ...]:
    names = []
    for number, line in enumerate(legible(read_text(path), path).splitlines(), 1):
        if line.strip():
            match = re.fullmatch(r"(\d+)\s+(\S.*?)\s*", line)
            if match is None or int(match[1]) != len(names) + 1:
                raise UsageError(f"{path}:{number}: {line.strip()!r} is not `{len(names) + 1} <class>`")
            names.append(match[2])
    return tuple(names)


def _only(root: Path, name: str) -> Path:
    found = find_named(root, name)
    if not found:
        raise UsageError(
            f"data.root: no {name} below {root}; put ucfTrainTestlist/ there "
            "(unpack UCF101TrainTestSplits-RecognitionTask.zip)"
        )
    return found[0]
