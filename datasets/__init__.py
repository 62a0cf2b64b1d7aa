"""Makes batches of clips from a folder on disk: manifest -> choose frames -> decode -> transform -> batch.

sources/        data sets as they are distributed -> manifests; video/: one file, read or written
manifest.py     the one list of clips that every data set becomes; lists.py, labels.py read lists
overview.py     a summary of a data set, printed before training
inputs.py       files that are named on a command line         views.py       the clips of one video
sampling.py     which frames                                   transforms.py  resize, crop, flip on uint8
loader.py       data set, collation                            batches.py     which clips make a batch
multigrid.py    the size of a batch's clips                    cache.py       copies that are faster to read
parallel.py     work on all cores                              verify.py, reencode.py, archives.py: `softpool3d prepare`
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from softpool3d.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from softpool3d.config import DataConfig
    from softpool3d.datasets.manifest import Manifest


def read_manifests(data: DataConfig) -> dict[str, Manifest]:
    """Returns the splits of the configured data set: "train", "val" and, where there is one, "test".

    A manifest that `softpool3d prepare` wrote into the root is read if there is one, else the data set's own files.

    Raises:
        UsageError: for an unknown data set, or a folder that is not what the data set needs.
    """
    if data.root is not None and data.dataset in _READERS and not data.is_generated:
        prepared = prepared_folder(data)
        if prepared.is_dir():
            from softpool3d.datasets.manifest import read_manifests_in

            if data.path_prefix is not None:
                raise UsageError(f"data.path_prefix: {prepared} is read, whose paths are complete; leave the key out")
            if data.dataset in ("folder", "pictures"):
                say_divided(prepared, data.split, data.split_seed)
            return read_manifests_in(prepared)
    return official_manifests(data)


def official_manifests(data: DataConfig) -> dict[str, Manifest]:
    """Returns the splits as `read_manifests` does, but always reads the data set's own files."""
    try:
        read = _READERS[data.dataset]
    except KeyError:
        near = difflib.get_close_matches(data.dataset, _READERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"data.dataset: unknown data set {data.dataset!r}{hint} (known: {', '.join(_READERS)})"
        ) from None
    manifests = read(data)
    if data.path_prefix is not None and not manifests["train"].clips[0].line:
        raise UsageError(f"data.path_prefix: {data.dataset} is not read from lists of paths here; leave the key out")
    return _found(manifests, data.path_prefix)


def _found(manifests: dict[str, Manifest], prefix: str | None) -> dict[str, Manifest]:
    """Returns the manifests. Raises UsageError if none of their files exists: relative paths then begin elsewhere."""
    if any(os.path.lexists(path) for manifest in manifests.values() for path in manifest.clips.paths()):
        return manifests
    train = manifests["train"]
    begin = f"in {prefix}" if prefix else "in the folder of their list"
    raise UsageError(
        f"{train.where(0)}: no file {train.clips[0].path}, and none of the others is there; relative paths begin "
        f"{begin}, and data.path_prefix=FOLDER sets another one"
    )


def say_divided(where: Path, split: Iterable[float], seed: int) -> None:
    """Prints a note on a division that was asked for, of a data set that is divided already."""
    from softpool3d.config import DataConfig
    from softpool3d.text import note

    for key, value in (("split", list(split)), ("split_seed", seed)):
        if value != DataConfig.model_fields[key].default:
            note(f"data.{key}={value} has no effect: {where} is divided into train and val already")


def unpack_archives(data: DataConfig) -> list[Path]:
    """Unpacks the data set's archives that lie in the root and are not unpacked yet; returns their paths."""
    from softpool3d.datasets import archives
    from softpool3d.datasets.sources import hmdb51, ucf101
    from softpool3d.datasets.video.find import data_root

    known = {"hmdb51": hmdb51.ARCHIVES, "ucf101": ucf101.ARCHIVES}.get(data.dataset, [])
    return archives.unpack_missing(data_root(data.root, data.dataset), known)


def prepared_folder(data: DataConfig) -> Path:
    """Where `softpool3d prepare` keeps the manifest: root/manifest, or root/manifest-split<N> of official split N."""
    name = f"manifest-split{data.official_split}" if data.dataset in ("hmdb51", "ucf101") else "manifest"
    return Path(data.root).expanduser() / name


def _motion(data: DataConfig) -> dict[str, Manifest]:
    from softpool3d.datasets.sources.motion import read_motion

    return read_motion(tuple(data.motion_clips), data.motion_seed)


def _folder(data: DataConfig) -> dict[str, Manifest]:
    from softpool3d.datasets.sources.folder import read_folder

    return read_folder(data.root, data.split, data.split_seed, data.path_prefix)


def _pictures(data: DataConfig) -> dict[str, Manifest]:
    from softpool3d.datasets.sources.folder import PICTURES, read_folder

    return read_folder(data.root, data.split, data.split_seed, data.path_prefix, PICTURES)


def _digits(data: DataConfig) -> dict[str, Manifest]:
    from softpool3d.datasets.sources.digits import read_digits

    return read_digits(data.split, data.split_seed)


def _kinetics(data: DataConfig) -> dict[str, Manifest]:
    from softpool3d.datasets.sources.kinetics import read_kinetics

    return read_kinetics(data.root, int(data.dataset.removeprefix("kinetics")), data.path_prefix)


def _hmdb51(data: DataConfig) -> dict[str, Manifest]:
    from softpool3d.datasets.sources.hmdb51 import read_hmdb51

    return read_hmdb51(data.root, data.official_split)


def _ucf101(data: DataConfig) -> dict[str, Manifest]:
    from softpool3d.datasets.sources.ucf101 import read_ucf101

    return read_ucf101(data.root, data.official_split)


def _ssv2(data: DataConfig) -> dict[str, Manifest]:
    from softpool3d.datasets.sources.ssv2 import read_ssv2

    return read_ssv2(data.root)


_READERS = {
    "motion": _motion,
    "folder": _folder,
    "pictures": _pictures,
    "digits": _digits,
    "kinetics400": _kinetics,
    "kinetics600": _kinetics,
    "kinetics700": _kinetics,
    "hmdb51": _hmdb51,
    "ucf101": _ucf101,
    "ssv2": _ssv2,
}
