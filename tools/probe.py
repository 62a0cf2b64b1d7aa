"""Ask whether a network's features are any good for your classes: train on some videos' features, test on others.

python tools/probe.py features.npz                          # classes: the folders that the videos lie in
python tools/probe.py features.npz --labels train.csv --test test.csv
python tools/probe.py a.parquet b.parquet --labels groups.csv --json
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from softpool3d.command import Asked
from softpool3d.errors import UsageError

if TYPE_CHECKING:
    from softpool3d.analysis.probe import Labelled, Probe, Videos

_WORST = 5


def main(
    features: list[Path] = typer.Argument(help="Files that softpool3d embed wrote."),
    labels: Path | None = typer.Option(
        None, help="A list with columns path, label and perhaps group; if not given, folders are classes."
    ),
    test: Path | None = typer.Option(None, help="Test on the videos of this list, and train on those of --labels."),
    folds: int = typer.Option(5, min=2, help="Without --test: parts that the videos are divided into."),
    neighbours: int = typer.Option(5, min=1, help="Nearest neighbours that vote."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object, with all classes."),
) -> None:
    """Ask what features are worth: a linear classifier and nearest neighbours on them, tested on other videos."""
    asked = Asked(main, locals())
    asked.needs("cross-validation, and --test takes its place", test is None, "folds")
    if test is not None and labels is None:
        raise UsageError("--test needs --labels: the list of the videos to train on")
    for path in (labels, test):
        if path is not None and not path.is_file():
            raise UsageError(f"no list {path}")

    from softpool3d.analysis.probe import label_by_folder, label_by_list, probe, read_videos

    videos = read_videos(features)
    labelled = label_by_folder(videos.names) if labels is None else label_by_list(videos.names, labels, test)
    if videos.failed:
        labelled.notes.append(f"{videos.failed} videos could not be read when the features were made")
    for note in labelled.notes:
        print(f"note: {note}", file=sys.stderr)
    found = probe(videos.vectors, labelled, folds, neighbours)
    if as_json:
        print(json.dumps(_record(videos, labelled, found), ensure_ascii=False))
    else:
        _print(videos, labelled, found)


def _record(videos: Videos, labelled: Labelled, found: Probe) -> dict:
    return {
        "features": videos.about,
        "videos": len(labelled.labels),
        "dimensions": videos.vectors.shape[1],
        "groups": None if labelled.groups is None else len(set(labelled.groups)),
        "notes": labelled.notes,
        "chance": 1 / len(set(labelled.labels)),
        **asdict(found),
    }


def _print(videos: Videos, labelled: Labelled, found: Probe) -> None:
    about, classes = videos.about, len(set(labelled.labels))
    print(
        f"{len(labelled.labels)} videos, {classes} classes; {videos.vectors.shape[1]} features of {about['network']}, "
        f"{about['layer']}"
    )
    groups = "" if labelled.groups is None else f", {len(set(labelled.groups))} groups kept apart"
    if found.folds:
        print(f"cross-validation, {found.folds} folds{groups}")
    else:
        print(f"trained on {len(labelled.labels) - found.tested}, tested on {found.tested}")
    for name, one in found.found.items():
        interval = "" if one.interval is None else f"  (95 %: {one.interval[0]:.1%} to {one.interval[1]:.1%})"
        print(f"  {name:20}{one.accuracy:7.1%}{interval}")
    print(f"  {'chance':20}{1 / classes:7.1%}")
    print("worst classes of the linear probe")
    for one in found.classes[:_WORST]:
        taken = "" if one.taken_for is None else f", mostly taken for {one.taken_for}"
        print(f"  {one.recall:7.1%}  {one.name} ({one.videos} videos{taken})")


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
