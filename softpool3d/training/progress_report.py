"""The texts of a run: header, one line an epoch, summary; and the rows of metrics.csv."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn

from softpool3d.config import Config
from softpool3d.datasets.loader import num_views
from softpool3d.datasets.multigrid import Multigrid
from softpool3d.datasets.overview import Overview
from softpool3d.datasets.sampling import share_of
from softpool3d.evaluation.scores import Scores
from softpool3d.idle_keys import idle_keys
from softpool3d.runtime.devices import peak_memory_bytes
from softpool3d.training.meter import PARTS
from softpool3d.training.norms import has_norms

if TYPE_CHECKING:
    from softpool3d.training.trainer import Training


def show(console: Console, lines: Iterable[str], style: str | None = None) -> None:
    """Prints lines as they are, without folding or markup."""
    for line in lines:
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def show_data(console: Console, found: Overview) -> None:
    """Prints what the data holds, and in yellow what is odd about it."""
    show(console, found.lines)
    show(console, found.notes, "yellow")


def header(
    config: Config,
    folder: Path,
    model: nn.Module,
    device: torch.device,
    multigrid: Multigrid,
    processes: int,
) -> str:
    """Returns the lines that a run begins with: network, pooling, parameters, device, clips, folder."""
    pool = config.model.pool
    pooling = f"{pool.kind} pooling at {', '.join(pool.where)}" if pool.where else "its own pooling"
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    idle = "".join(f"{sentence}\n" for sentence in idle_keys(config, has_norms(model), alone=processes == 1))
    return (
        f"{idle}{config.model.name} with {pooling}, {millions:.2f} M parameters, on {device}\n"
        f"{_cycles(config, multigrid)}{_views(config)}writing to {folder}"
    )


def _views(config: Config) -> str:
    """Returns a line about the views of a video, where testing has more than validation."""
    views = num_views(config.data, config.test.num_clips, config.test.num_crops)
    return f"validation sees one view of each video, the test at the end {views}\n" if views > 1 else ""


def _cycles(config: Config, multigrid: Multigrid) -> str:
    """Returns lines about the clips of multigrid training, up to which epoch; "" without it."""
    lines = []
    for end, grid in multigrid.spans:
        frames, side = share_of(config.data.num_frames, grid.frames), share_of(config.data.crop_size, grid.crop)
        times = f", {grid.clips} times the clips an update" if grid.clips > 1 else ""
        lines.append(f"to epoch {end:.1f}: {frames} frames of {side}x{side}{times}")
    if multigrid.short_crops:
        sides = sorted({share_of(config.data.crop_size, crop) for crop in multigrid.short_crops})
        lines.append(f"in turns with crops of {' and '.join(map(str, sides))} pixels")
    return "".join(f"{line}\n" for line in lines)


def epoch_line(at: str, trained: dict[str, float], scores: dict[str, Scores], best: bool) -> str:
    """Returns the line of an epoch, or of an evaluation within one.

    Args:
        at: where in the run, as "epoch 3/10".
        trained: what `Meter.read` returns.
        scores: of the weights under "", of their average under "_ema"; empty if nothing was evaluated.
    """
    line = f"{at}  loss {trained['loss']:.3f}  top-1 {trained['top1']:6.1%}  "
    if scores:
        line += f"val loss {scores[''].loss():.3f}  val top-1 {scores[''].accuracy():6.1%}  "
        line += f"val top-5 {scores[''].accuracy(5):6.1%}  "
        if scores[""].multi_label:
            line += f"val mAP {scores[''].mean_average_precision():6.1%}  "
    if "_ema" in scores:
        line += f"EMA top-1 {scores['_ema'].accuracy():6.1%}  "
    return f"{line}{trained['rate']:.0f} clips/s  waiting {trained['waiting']:.0%}{'  *' if best else ''}"


def metrics_row(
    epoch: int,
    step: int,
    lr: float,
    trained: dict[str, float],
    scores: dict[str, Scores],
    networks: Sequence[str],
    multi_label: bool,
    seconds: float,
) -> dict[str, Any]:
    """Returns a row of metrics.csv; its val_* are empty if nothing was evaluated.

    Args:
        epoch: counts from 1.
        step: batches done, of the whole run.
        trained, scores: as for `epoch_line`.
        networks: the keys that `scores` may have.
    """
    validated: dict[str, Any] = {}
    for suffix in networks:
        found = scores.get(suffix)
        validated[f"val{suffix}_loss"] = round(found.loss(), 6) if found else ""
        validated[f"val{suffix}_top1"] = round(found.accuracy(), 6) if found else ""
        validated[f"val{suffix}_top5"] = round(found.accuracy(5), 6) if found else ""
        if multi_label:
            validated[f"val{suffix}_map"] = round(found.mean_average_precision(), 6) if found else ""
    return {
        "epoch": epoch,
        "step": step,
        "lr": round(lr, 8),
        "train_loss": round(trained["loss"], 6),
        "train_top1": round(trained["top1"], 6),
        **validated,
        "clips_per_second": round(trained["rate"], 2),
        "waiting_for_data": round(trained["waiting"], 4),
        **{f"{part}_ms": round(trained[f"{part}_ms"], 2) for part in PARTS},
        "seconds": round(seconds, 1),
    }


def summary_of(training: Training, split: str, views: int, scores: dict[str, Scores]) -> dict[str, Any]:
    """Returns what summary.json holds.

    Args:
        split: the split that was tested, with `views` views of each clip.
        scores: of the best weights under "", of the best average under "_ema".
    """
    summary = {
        "tested_on": split,
        "test_clips": len(scores[""].label),
        "views": views,
        "skipped_updates": training.guard.skipped,
        "bad_files": {name: len(files) for name, files in training.bad.items()},
        "seconds": training.seconds(),
        "cpu_seconds": training.cpu_seconds(),
        "peak_memory_bytes": peak_memory_bytes(training.device),
        "folder": str(training.disk.folder),
        "weights": str(training.keepers[""].best),
    }
    for suffix, keeper in training.keepers.items():
        summary[f"val{suffix}_top1"] = keeper.top1
        summary[f"test{suffix}_top1"] = scores[suffix].accuracy()
        summary[f"test{suffix}_top5"] = scores[suffix].accuracy(5)
        if training.manifests["train"].multi_label:
            summary[f"val{suffix}_map"] = keeper.mean_average_precision
            summary[f"test{suffix}_map"] = scores[suffix].mean_average_precision()
    return summary


def summary_lines(summary: dict[str, Any]) -> str:
    bad = ", ".join(f"{count} of {name}" for name, count in summary["bad_files"].items() if count)
    skipped = f"\nunreadable files skipped: {bad}" if bad else ""
    multi_label = "test_map" in summary
    maps = f"mAP {summary['test_map']:.1%}, " if multi_label else ""
    best = f"mAP {summary['val_map']:.1%}" if multi_label else f"top-1 {summary['val_top1']:.1%}"
    views = "one view" if summary["views"] == 1 else f"{summary['views']} views"
    return (
        f"{summary['tested_on']} {maps}top-1 {summary['test_top1']:.1%}, top-5 {summary['test_top5']:.1%} "
        f"({summary['test_clips']} clips, {views} each); best val {best} (one view each); "
        f"{summary['seconds']:.0f} s, peak memory {summary['peak_memory_bytes'] / 2**30:.2f} GiB{skipped}\n"
        f"weights: {summary['weights']}"
    )
