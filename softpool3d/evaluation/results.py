"""Writes a folder of test results, and prints them.

scores.npz      the scores, from which everything else is made (scores.py)
results.json    the numbers
per_class.csv   the numbers of each class
videos.csv      label, prediction and the label's probability of each video, the most suspicious first
confusion.csv   rows are labels, columns predictions; of more than 1,000 classes, a row for each pair that occurs;
confusion.png   the same as a picture
bad_files.csv   videos that could not be read, if there are any
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from softpool3d.errors import WorkError
from softpool3d.evaluation import scores
from softpool3d.evaluation.metrics import Metrics, measure, most_confused
from softpool3d.evaluation.plots import DRAWN, confusion_figure, png
from softpool3d.evaluation.scores import FILE, VideoScores
from softpool3d.files import write_atomically, write_csv

RESULTS = "results.json"
SPACINGS = {  # data.test_spacing in words
    "centres": "in the middle of equal parts",
    "ends": "from the first place to the last",
    "starts": "from where equal parts begin",
}
_SHOWN, _ENDS = 24, 8  # a table of more than _SHOWN classes shows the first and last _ENDS


def check_finite(video_scores: VideoScores) -> None:
    """Checks that there are scores, and that all of them are finite.

    Raises:
        WorkError: if not.
    """
    if not len(video_scores.scores.probabilities):
        raise WorkError("there are no scores: not one of the videos could be read")
    scores.check_finite(video_scores.scores, video_scores.videos.__getitem__)


def write_results(
    folder: Path, video_scores: VideoScores, extra: dict[str, Any] | None = None, paths: Sequence[str] | None = None
) -> Metrics:
    """Measures scores and writes the folder; results.json comes last, so that a folder with it is complete.

    Args:
        extra: further entries of results.json, beside the numbers and what `video_scores.about` holds.
        paths: of the videos, where they are known; else videos.csv has their names.

    Raises:
        WorkError: if the scores are not finite, or the folder cannot be written.
    """
    check_finite(video_scores)
    metrics = measure(video_scores.scores, video_scores.classes)
    video_scores.save(folder / FILE)
    _write_classes(folder / "per_class.csv", metrics)
    write_csv(folder / "videos.csv", _videos(video_scores, paths or video_scores.videos))
    result = metrics.summary | video_scores.about | (extra or {})
    if metrics.confusion is not None:
        classes = video_scores.classes
        write_csv(folder / "confusion.csv", _confusion(metrics.confusion, classes))
        title = f"top-1 {metrics.summary['top1']:.1%} of {metrics.summary['videos']} videos"
        write_atomically(folder / "confusion.png", png(confusion_figure(metrics.confusion, classes, title)))
        result["most_confused"] = [asdict(pair) for pair in most_confused(metrics.confusion, classes)]
    write_atomically(folder / RESULTS, json.dumps(result, indent=2, ensure_ascii=False).encode())
    return metrics


def _confusion(confusion: Tensor, classes: Sequence[str]) -> Iterator[list[Any]]:
    """Yields the matrix; of more classes than a picture can show, a row for each pair that occurs."""
    if len(classes) <= DRAWN:
        yield ["label \\ prediction", *classes]
        yield from ([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))
        return
    yield ["label", "prediction", "videos"]
    for label, prediction in confusion.nonzero().tolist():
        yield [classes[label], classes[prediction], int(confusion[label, prediction])]


def _videos(found: VideoScores, paths: Sequence[str]) -> Iterator[list[Any]]:
    """Yields a header and a row for each video, that whose label has the least probability first; of several labels,
    it is the least likely one's."""
    yield ["path", "label", "prediction", "probability_of_label"]
    scores, rows = found.scores, []
    for path, probabilities, label in zip(paths, scores.probabilities, scores.label, strict=True):
        labels = label.nonzero().flatten().tolist() if scores.multi_label else [int(label)]
        least = min(probabilities[labels].tolist(), default=0.0)
        named, prediction = ";".join(found.classes[n] for n in labels), found.classes[int(probabilities.argmax())]
        rows.append([path, named, prediction, least])
    for *row, least in sorted(rows, key=lambda row: row[-1]):
        yield [*row, round(least, 6)]


def show(console: Console, metrics: Metrics, folder: Path | None, result: dict[str, Any] | None = None) -> None:
    """Prints the numbers, the published one beside ours, the classes from worst to best, and the most confused pairs.

    Args:
        result: what results.json holds: the views, and what was published (runs/figures.py).
    """
    summary, result = metrics.summary, result or {}
    published = result.get("published")
    low, high = summary["top1_interval"]
    lines = [("top-1", f"{summary['top1']:.2%}", f"95% interval {low:.2%} to {high:.2%}")]
    if published:
        lines.append(("top-1, published", f"{published['top1']:.2%}", published["of"]))
    if metrics.confusion is None:
        lines[0] = ("top-1", f"{summary['top1']:.2%}", "the likeliest class is one of the video's")
        lines.append(("mAP", f"{summary['mean_average_precision']:.2%}", "mean over classes"))
    else:
        lines += [
            ("top-5", f"{summary['top5']:.2%}", ""),
            ("mean class accuracy", f"{summary['mean_class_accuracy']:.2%}", ""),
            ("calibration error", f"{summary['calibration_error']:.2%}", "expected, 15 bins"),
        ]
    if "spacing" in result:  # results of earlier versions do not say it
        lines.append(("views of each video", str(result["views"]), views_of(result)))
    if summary["classes_without_clips"]:
        lines.append(("classes without videos", str(summary["classes_without_clips"]), "not in the means"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value, note in lines:
        table.add_row(name, Text(value, justify="right"), note)
    console.print(table)
    console.print()
    console.print(_class_table(metrics))
    if metrics.confusion is not None:
        pairs = most_confused(metrics.confusion, tuple(row.name for row in metrics.classes), 5)
        if pairs:
            console.print("\nmost confused:")
        for pair in pairs:
            text = f"  {pair.count} of {pair.clips}  {pair.label} taken for {pair.prediction}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    if folder is not None:
        console.print(f"\nwritten to {folder}", markup=False, highlight=False, soft_wrap=True)


def views_of(result: dict[str, Any]) -> str:
    """Returns in words where the views lie that a test's numbers were made from."""
    clips, crops = result["views"] // result["num_crops"], result["num_crops"]
    where = f" {SPACINGS[result['spacing']]}" if clips > 1 else ", in the middle"
    return f"{clips} clip{'s' if clips > 1 else ''}{where}; {crops} crop{'s' if crops > 1 else ''} of each"


def _class_table(metrics: Metrics) -> Table:
    several = metrics.confusion is None
    rows = [row for row in metrics.classes if row.clips]
    rows.sort(key=lambda row: (row.average_precision if several else row.top1) or 0.0)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class, worst first", overflow="fold")
    for name in ("videos", "AP") if several else ("videos", "top-1", "precision"):
        table.add_column(name, justify="right", no_wrap=True)
    if not several:
        table.add_column("most often taken for", overflow="fold")
    left_out = len(rows) - 2 * _ENDS if len(rows) > _SHOWN else 0
    for number, row in enumerate(rows):
        if left_out and number == _ENDS:
            table.add_row(Text(f"... {left_out} more, in per_class.csv", style="dim"))
        if left_out and _ENDS <= number < len(rows) - _ENDS:
            continue
        if several:
            table.add_row(Text(row.name), str(row.clips), _percent(row.average_precision))
        else:
            mistaken = Text(f"{row.mistaken_for} ({row.mistakes})" if row.mistakes else "")
            table.add_row(Text(row.name), str(row.clips), _percent(row.top1), _percent(row.precision), mistaken)
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


_ONE_LABEL = ("name", "clips", "top1", "top5", "precision", "mistaken_for", "mistakes")
_SEVERAL_LABELS = ("name", "clips", "average_precision")


def _write_classes(path: Path, metrics: Metrics) -> None:
    columns = _SEVERAL_LABELS if metrics.confusion is None else _ONE_LABEL
    write_csv(path, [columns, *([_cell(getattr(row, column)) for column in columns] for row in metrics.classes)])


def _cell(value: Any) -> Any:
    return "" if value is None else round(value, 6) if isinstance(value, float) else value
