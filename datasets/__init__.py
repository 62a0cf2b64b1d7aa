"""Clips: a folder on disk -> manifest -> decode -> sample frames -> transform -> batch.

manifest.py    the one list of clips that every data set becomes
folder.py      class folders of videos              motion.py   the embedded data set
decoder.py     frames of a file, by decord or PyAV  encoder.py  frames to a file
sampling.py    which frames
transforms.py  resize, crop, flip on uint8          loader.py   data set, sampler, batches
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from softpool3d.errors import UsageError

if TYPE_CHECKING:
    from softpool3d.config import DataConfig
    from softpool3d.datasets.manifest import Manifest


def read_manifests(data: DataConfig) -> dict[str, Manifest]:
    """The splits of the data set that the configuration names: "train", "val" and, where there is one, "test".

    Raises:
        UsageError: for an unknown data set, or a folder that is not what the data set needs.
    """
    try:
        read = _READERS[data.dataset]
    except KeyError:
        near = difflib.get_close_matches(data.dataset, _READERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"data.dataset: unknown data set {data.dataset!r}{hint} (known: {', '.join(_READERS)})"
        ) from None
    return read(data)


def _motion(data: DataConfig) -> dict[str, Manifest]:
    from softpool3d.datasets.motion import read_motion

    return read_motion(tuple(data.motion_clips), data.motion_seed)


def _folder(data: DataConfig) -> dict[str, Manifest]:
    from softpool3d.datasets.folder import read_folder

    if data.root is None:
        raise UsageError("data.root is not set: data.dataset=folder needs the folder that holds the videos")
    return read_folder(data.root, data.split, data.split_seed)


_READERS = {"motion": _motion, "folder": _folder}
