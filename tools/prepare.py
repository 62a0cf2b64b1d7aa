"""Find the clips of a data set, check them, and write the manifest that training reads.

python tools/prepare.py hmdb51 --root /data/hmdb51 --split 1
python tools/prepare.py kinetics400 --root /data/k400 --verify
python tools/prepare.py folder --root videos --reencode --short-side 256 --gop 16
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from softpool3d.command import Asked
from softpool3d.errors import UsageError
from softpool3d.naming import address_of
from softpool3d.tools.classify import ADDRESS, ENGINE, EngineName, check_engine

if TYPE_CHECKING:
    from softpool3d.datasets.parallel import Each


class DatasetName(StrEnum):
    kinetics400 = "kinetics400"
    kinetics600 = "kinetics600"
    kinetics700 = "kinetics700"
    hmdb51 = "hmdb51"
    ucf101 = "ucf101"
    ssv2 = "ssv2"
    folder = "folder"
    pictures = "pictures"


def main(
    dataset: DatasetName = typer.Argument(help="The data set."),
    root: Path = typer.Option(help="The folder that holds its videos and lists."),
    path_prefix: str | None = typer.Option(
        None, help="Where relative paths of lists begin; without it beside the list."
    ),
    split: int = typer.Option(1, min=1, max=3, help="Official split of HMDB51 or UCF101."),
    verify: bool = typer.Option(False, "--verify", help="Decode every file; the bad ones are listed and left out."),
    reencode: bool = typer.Option(False, "--reencode", help="Make copies for training, and a manifest of them."),
    short_side: int = typer.Option(256, min=16, help="Of the copies, in pixels; never enlarged."),
    gop: int = typer.Option(16, min=1, help="Of the copies: frames from one key frame to the next."),
    crf: int = typer.Option(20, min=0, max=51, help="Of the copies: x264's quality, the lower the better."),
    max_missing: float = typer.Option(
        0.1, min=0, max=1, help="Share of a file that may be missing or undecodable; more of it, and the file is bad."
    ),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        help="Where to write; without it ROOT, and for copies ROOT-<short side>px.",
    ),
    workers: int | None = typer.Option(None, min=1, help="Processes; without it one for each core."),
    engine: EngineName = ENGINE,
    address: str | None = ADDRESS,
) -> None:
    """Find a data set's clips, check them, write the manifest that training reads."""
    asked = Asked(main, locals())
    asked.needs("--reencode", reencode, "short_side", "gop", "crf")
    asked.needs("--verify or --reencode", verify or reencode, "max_missing", "workers", "engine")
    check_engine(asked)
    if engine == "ray" and workers is not None:
        raise UsageError("--engine ray does not go together with --workers: a task runs on each core of the cluster")
    asked.needs("official splits: hmdb51, ucf101", dataset.value in ("hmdb51", "ucf101"), "split")
    asked.needs("lists: folder, pictures", dataset.value in ("folder", "pictures"), "path_prefix")
    _check_here({"--root": root, "--out": out, "--path-prefix": path_prefix})
    from softpool3d.datasets.video.find import data_root

    data_root(root, dataset.value)
    from softpool3d.config import DataConfig
    from softpool3d.datasets import official_manifests, prepared_folder, unpack_archives
    from softpool3d.datasets.overview import check_learnable
    from softpool3d.datasets.reencode import Encoding
    from softpool3d.datasets.reencode import reencode as make_copies
    from softpool3d.datasets.verify import bad_files, obviously_bad
    from softpool3d.runs.lock import claim
    from softpool3d.runtime.interrupt import Interrupted
    from softpool3d.signals import number_of

    if reencode and dataset is DatasetName.pictures:
        raise UsageError("--reencode makes videos; pictures are read as they are")
    if reencode and short_side % 2:
        raise UsageError(f"--short-side {short_side} has to be even: H.264 stores colours for squares of 2x2 pixels")
    frames = {"num_frames": 1} if dataset is DatasetName.pictures else {}
    data = DataConfig(dataset=dataset.value, root=str(root), official_split=split, path_prefix=path_prefix, **frames)
    root = Path(data.root)
    if out is None:
        out = root.with_name(f"{root.name}-{short_side}px") if reencode else root
    try:
        with claim(root, is_folder=True) if root.is_dir() else nullcontext():
            for archive in unpack_archives(data):
                print(f"unpacked {archive}")
        manifests = official_manifests(data)
        check_learnable(manifests)
        folder = prepared_folder(data.model_copy(update={"root": str(out)}))
        with claim(out if reencode else folder, is_folder=True), _engine(engine, address, root, out) as each:
            paths = {clip.path for manifest in manifests.values() for clip in manifest.clips}
            bad, damaged = obviously_bad(paths), {}
            limit = {"max_missing": max_missing, "on_damage": damaged.__setitem__, "each": each}
            if verify:
                bad |= bad_files(paths - bad.keys(), folder / "checked.csv", workers, **limit)
            manifests = {name: manifest.without(bad) for name, manifest in manifests.items()}
            if reencode:
                encoding = Encoding(short_side, gop, crf)
                manifests, undecodable = make_copies(manifests, root, out, encoding, workers, **limit)
                bad |= undecodable
            _write_lists(folder, manifests, bad, damaged)
            notes = _write_manifest(root, out, folder, manifests, bad, data)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped; the same command goes on where it was", number_of(stop)) from None
    _report(data, out, folder, manifests, bad, damaged, notes)


def _check_here(folders: dict[str, Path | str | None]) -> None:
    """Raises UsageError for an option that names an address: files are read and written on this machine."""
    for option, folder in folders.items():
        if folder is not None and (address := address_of(folder)):
            raise UsageError(f"{option} {address} is an address, and this has to be a folder of this machine")


@contextmanager
def _engine(name: EngineName, address: str | None, root: Path, out: Path) -> Iterator[Each]:
    """Yields what does the work on each file."""
    if name == "ray":
        from softpool3d.cluster.each import each_on_ray

        with each_on_ray(address, [root, out]) as each:
            yield each
    else:
        from softpool3d.datasets.parallel import each

        yield each


def _write_lists(folder: Path, manifests: dict, bad: dict[str, str], damaged: dict[str, str]) -> None:
    """Writes the lists of missing, bad and damaged files.

    Raises:
        UsageError: if a split has no clips left.
    """
    from softpool3d.files import write_csv

    for file, header, rows in (
        ("missing.csv", ["split", "clip"], [(s, clip) for s, m in manifests.items() for clip in m.missing]),
        ("bad_files.csv", ["path", "reason"], sorted(bad.items())),
        ("damaged.csv", ["path", "what"], sorted(damaged.items())),
    ):
        write_csv(folder / file, [header, *rows])
    for name, manifest in manifests.items():
        if not len(manifest):
            raise UsageError(f"none of the {name} clips can be used; see {folder / 'bad_files.csv'}")


def _write_manifest(root: Path, out: Path, folder: Path, manifests: dict, bad: dict[str, str], data) -> list[str]:
    """Writes the manifest, and the list of videos in no split; returns notes about files that were left out."""
    from softpool3d.datasets.manifest import write_manifests
    from softpool3d.datasets.overview import UNUSED, check_learnable, few, left_out_note, unused_videos
    from softpool3d.datasets.video.find import survey
    from softpool3d.files import write_csv

    check_learnable(manifests)
    videos, endings = survey(root, data.of_pictures)
    unused = unused_videos(out, videos if out == root else survey(out, data.of_pictures)[0], manifests)
    write_csv(folder / UNUSED, [["path"], *([path] for path in unused)])
    write_manifests(folder, manifests)
    unnamed = [path for path in unused if os.path.abspath(out / path) not in bad]
    note = [f"in no split: {len(unnamed)} of the videos below {out} ({few(unnamed, 1)})"] if unnamed else []
    return [*left_out_note(endings, data), *note]


def _report(
    data, out: Path, folder: Path, manifests: dict, bad: dict[str, str], damaged: dict[str, str], notes: list[str]
) -> None:
    from softpool3d.datasets.overview import odd_files, odd_labels, split_lines

    print(*split_lines(manifests, data), *odd_labels(manifests), *odd_files(manifests), *notes, sep="\n")
    if any(manifest.missing for manifest in manifests.values()):
        print(f"the missing ones are listed in {folder / 'missing.csv'}")
    if bad:
        path, reason = sorted(bad.items())[0]
        print(f"{len(bad)} bad files left out ({path}: {reason}), all listed in {folder / 'bad_files.csv'}")
    if damaged:
        path, what = sorted(damaged.items())[0]
        print(f"{len(damaged)} damaged files are used ({path}: {what}), all listed in {folder / 'damaged.csv'}")
    print(f"written: {folder}")
    overrides = [f"data.dataset={data.dataset}", f"data.root={out}"]
    if data.dataset in ("hmdb51", "ucf101") and data.official_split != 1:
        overrides.append(f"data.official_split={data.official_split}")
    print(f"train with: softpool3d train --cfg CONFIG {shlex.join(overrides)}")


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
