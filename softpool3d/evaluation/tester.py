"""Testing a network on a split: every video once, in several views, under any number of processes.

Scores are kept in the results' folder as the work goes on. A test that was stopped or killed goes on where it was when
the same command is given again, with another number of processes too.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from softpool3d import __version__
from softpool3d.config import Config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.inputs import clip_name
from softpool3d.datasets.loader import eval_loader, num_views
from softpool3d.datasets.manifest import Manifest
from softpool3d.datasets.overview import absent_classes
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.evaluation.evaluator import joined, scored_batches
from softpool3d.evaluation.kept import claim_folder, digest_of, save_part, take_up
from softpool3d.evaluation.metrics import Metrics, measure
from softpool3d.evaluation.results import RESULTS, show, write_results
from softpool3d.evaluation.scores import FILE, Scores, VideoScores
from softpool3d.evaluation.subject import Subject, pick_split
from softpool3d.files import write_csv
from softpool3d.runs.figures import published_figures
from softpool3d.runtime.devices import make_accelerator, out_of_memory_explained, placed
from softpool3d.runtime.interrupt import Interrupt, Interrupted
from softpool3d.runtime.processes import Processes
from softpool3d.runtime.progress import Progression

SAVE_EVERY_S = 60.0
_GO_ON = "the same command goes on where it was"
_NAMED = 10  # unreadable files that are printed; all of them are in bad_files.csv


def test(
    subject: Subject,
    split: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Tests a network on a split and writes a folder of results (results.py); returns what its results.json holds.

    Args:
        split: train, val or test; if not given, test, or val where there is none.
        out: the folder; if not given, <folder of the weights>/test (test-val, test-train for another split), or
            test-2, ... where another test's results are.
        overwrite: test anew even if there are results; they stay until the new ones are written.

    Raises:
        UsageError: for a request that cannot be met, or while another process writes to the folder. Nothing was
            written then.
        WorkError: if not one video could be read, or some probabilities are NaN or infinite.
        Interrupted: after Ctrl-C or SIGTERM; the scores so far are kept.
    """
    with ExitStack() as claims:
        return _test(subject, split, out, overwrite, console or Console(), claims)


def _test(
    subject: Subject, split: str | None, out: Path | None, overwrite: bool, console: Console, claims: ExitStack
) -> dict[str, Any]:
    config = subject.config
    accelerator = make_accelerator(config)
    processes = Processes(accelerator)

    def say(text: str) -> None:
        if processes.is_first:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    manifests = read_manifests(config.data)
    split, manifest = pick_split(manifests, split, subject)
    classes = subject.classes or manifest.classes
    request = digest_of(subject, config, split, manifest, classes)
    if subject.note:
        say(subject.note)

    def prepare() -> tuple[Path, Scores | None, bool]:
        folder = claim_folder(subject, split, out, request, overwrite, claims)
        if (folder / RESULTS).is_file() and not overwrite:
            return folder, None, True
        return folder, take_up(folder, request), False

    folder, kept, finished = processes.first(prepare)
    if finished:
        say(f"tested already; --overwrite does it again ({folder})")
        result = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        if processes.is_first:
            found = VideoScores.load(folder / FILE)
            show(console, measure(found.scores, found.classes), folder, result)
        return result

    views = num_views(config.data, config.test.num_clips, config.test.num_crops)
    model = placed(subject.model, accelerator.device, config.train.memory_format).eval()
    say(
        f"{config.model.name}, {config.data.dataset}: {len(manifest)} {split} videos in {views} "
        f"view{'s' if views > 1 else ''}, on {accelerator.device}"
        + (f", {processes.count} processes" if processes.count > 1 else "")
    )
    if absent := absent_classes(split, classes, manifest.class_counts() == 0):
        say(absent)
    if kept is not None:
        say(f"going on: {len(kept.index)} of them were tested before the interruption")

    began = time.perf_counter()
    with processes.losing_none(_GO_ON), out_of_memory_explained(config, testing=True):
        scores, bad = _score(model, manifest, config, accelerator, processes, folder, request, kept, console)
    about = _about(subject, manifest, split, views) | {"request": request}
    extra = {"unreadable": len(bad), "seconds": round(time.perf_counter() - began, 2)}
    published = published_figures(config, subject.figures, len(classes))
    extra |= {"published": published} if published else {}

    def finish() -> tuple[Metrics, dict[str, Any]]:
        rows = [[split, error.index, error.path, error.reason] for error in bad]
        if rows:
            write_csv(folder / "bad_files.csv", [["split", "index", "path", "reason"], *rows])
        else:
            (folder / "bad_files.csv").unlink(missing_ok=True)
        found = VideoScores.of(scores, manifest.clips, classes, about)
        paths = [clip_name(manifest.clips[index]) for index in scores.index.tolist()]
        metrics = write_results(folder, found, extra, paths)
        shutil.rmtree(folder / "partial", ignore_errors=True)
        return metrics, json.loads((folder / RESULTS).read_text(encoding="utf-8"))

    metrics, result = processes.first(finish)
    if processes.is_first:
        show(console, metrics, folder, result)
    return result


def _about(subject: Subject, manifest: Manifest, split: str, views: int) -> dict[str, Any]:
    """Returns what the scores were made from."""
    config = subject.config
    return {
        "softpool3d": __version__,
        "weights": str(subject.weights),
        "dataset": config.data.dataset,
        "source": manifest.source,
        "split": split,
        "views": views,
        "spacing": config.data.test_spacing,
        "num_clips": config.test.num_clips,
        "num_crops": config.test.num_crops,
        "average": config.test.average,
    }


def _score(
    model: nn.Module,
    manifest: Manifest,
    config: Config,
    accelerator: Accelerator,
    processes: Processes,
    folder: Path,
    request: str,
    kept: Scores | None,
    console: Console,
) -> tuple[Scores, list[DecodeError]]:
    """Returns the scores of all videos that can be read, and the errors of those that cannot."""
    rank, world_size = processes.rank, processes.count
    done = kept.index.tolist() if kept else []
    left = np.setdiff1d(np.arange(len(manifest)), done)
    clips = [manifest.clips[index] for index in left.tolist()]
    loader = eval_loader(
        replace(manifest, clips=clips), config, config.test.num_clips, config.test.num_crops, rank, world_size
    )
    mine: list[Scores] = []
    bad: list[DecodeError] = []
    saved = time.perf_counter()

    def keep() -> None:
        if mine:
            save_part(folder / "partial" / f"process-{rank}.npz", joined(mine), request)

    bar = Progression("videos", len(manifest), len(done), console, processes.is_first)
    with Interrupt() as interrupt, bar:
        try:
            for batch, probabilities in scored_batches(model, loader, config, accelerator):
                for error in batch.bad:
                    bad.append(DecodeError(error.path, error.reason, int(left[error.index])))
                    if len(bad) <= _NAMED:
                        bar.line(f"skipped: {error}", "yellow")
                for path, what in batch.damaged.items():
                    bar.line(f"note: {path}: {what}", "yellow")
                if probabilities is not None:
                    mine.append(Scores(probabilities, batch.label, torch.from_numpy(left)[batch.index]))
                bar.advance((len(batch.index) + len(batch.bad)) * world_size)
                if interrupt.requested:
                    raise Interrupted(f"stopped; {_GO_ON}", interrupt.requested)
                if time.perf_counter() - saved > SAVE_EVERY_S:
                    keep()
                    saved = time.perf_counter()
        finally:
            keep()  # before the processes wait for each other: one may be missing
        parts = processes.gather((joined(mine) if mine else None, bad))
    found = [scores for scores, _ in parts if scores is not None]
    errors = [error for _, some in parts for error in some]
    return joined([*found, kept] if kept else found), sorted(errors, key=lambda error: error.index)
