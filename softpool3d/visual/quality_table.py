"""Shows the quality of several clips as a table, a CSV file and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from softpool3d.visual.quality import CHANNELS, Quality

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

Measured = dict[str, list[Quality]]  # a clip's name -> the quality of each pooling


def averages(measured: Measured) -> tuple[int, list[tuple[str, dict[str, float]]]]:
    """Returns the number of clips averaged, and of each pooling its label and its mean scores.

    Clips with a score that is not finite are left out of all means. These are clips that some pooling keeps exactly (a
    single colour has an infinite PSNR), and clips that are too small for SSIM.
    """
    clips = [{q.label: q.scores() for q in qualities} for qualities in measured.values()]
    clips = [clip for clip in clips if all(math.isfinite(v) for scores in clip.values() for v in scores.values())]
    labels = [label for label in clips[0] if all(label in clip for clip in clips)] if clips else []
    return len(clips), [
        (label, {name: fmean(clip[label][name] for clip in clips) for name in clips[0][label]}) for label in labels
    ]


def table(measured: Measured) -> Table:
    """Returns the scores of each clip and pooling as a table, followed by the means over several clips."""
    from rich.table import Table
    from rich.text import Text

    result = Table(box=None, padding=(0, 2, 0, 0))
    channels = "/".join(channel.upper() for channel in CHANNELS)
    for name in ("clip", "pooling", "pooled to", "PSNR dB", channels, "SSIM", channels):
        result.add_column(name, justify="left" if name in ("clip", "pooling", "pooled to") else "right", no_wrap=True)
    for clip, qualities in measured.items():
        for number, quality in enumerate(qualities):
            name = Text(clip if number == 0 else "")
            result.add_row(name, quality.label, quality.pooled, *_cells(quality.scores()))
    if len(measured) > 1:
        count, rows = averages(measured)
        for number, (label, scores) in enumerate(rows):
            result.add_row(f"mean of {count}" if number == 0 else "", label, "", *_cells(scores))
    return result


def _cells(scores: dict[str, float]) -> list[str]:
    cells = []
    for kind, digits in (("psnr", 2), ("ssim", 4)):
        cells.append(_number(scores[kind], digits))
        cells.append("/".join(_number(scores[f"{kind}_{c}"], digits) for c in CHANNELS))
    return cells


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def csv_rows(measured: Measured) -> list[list[object]]:
    """Returns the rows of a CSV file, its head first: one for each clip and pooling; PSNR is in dB."""
    head = ["clip", "pooling", "times", "smaller", "original", "pooled"]
    names = [f"{kind}{end}" for kind in ("psnr", "ssim") for end in ("", *(f"_{c}" for c in CHANNELS))]
    rows: list[list[object]] = [[*head, *names]]
    for clip, qualities in measured.items():
        for q in qualities:
            scores = [f"{q.scores()[name]:.6g}" for name in names]
            rows.append([clip, q.pooling, q.level, q.factor, q.original, q.pooled, *scores])
    return rows


def figure(measured: Measured) -> Figure:
    """Plots PSNR and SSIM, with a row of dots for each clip."""
    from matplotlib.figure import Figure

    result = Figure((10, 1.6 + 0.3 * len(measured)), layout="constrained")
    left, right = result.subplots(1, 2, sharey=True)
    clips = list(measured)
    labels = dict.fromkeys(q.label for qualities in measured.values() for q in qualities)
    for number, label in enumerate(labels):
        points = [(i, q.scores()) for i, clip in enumerate(clips) for q in measured[clip] if q.label == label]
        rows = [i + (number / max(1, len(labels) - 1) - 0.5) * 0.5 for i, _ in points]  # beside each other
        style = {"s": 22, "color": f"C{number % 10}", "marker": "os^Dv*PX"[number // 10 % 8], "label": label}
        left.scatter([s["psnr"] for _, s in points], rows, **style)
        right.scatter([s["ssim"] for _, s in points], rows, **style)
    left.set(xlabel="PSNR, dB", yticks=range(len(clips)), yticklabels=[c.replace("$", r"\$") for c in clips])
    left.set_ylim(len(clips) - 0.4, -0.6)
    right.set(xlabel="SSIM")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    result.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="small")
    return result


def curves(qualities: Sequence[Quality], fps: float) -> Figure:
    """Plots PSNR and SSIM of each frame over time."""
    from matplotlib.figure import Figure

    result = Figure((9, 4.6), layout="constrained")
    upper, lower = result.subplots(2, 1, sharex=True)
    for number, quality in enumerate(qualities):
        seconds = [t / fps for t in range(len(quality.mse))]
        upper.plot(seconds, quality.psnr_of_frames(), color=f"C{number % 10}", lw=1.2, label=quality.label)
        lower.plot(seconds, quality.ssim.mean(1), color=f"C{number % 10}", lw=1.2)
    upper.set(ylabel="PSNR, dB")
    lower.set(ylabel="SSIM", xlabel="seconds")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.margins(x=0)
    result.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="small")
    return result
