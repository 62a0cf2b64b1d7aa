"""`softpool3d classify` for files: prints and writes their labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softpool3d.datasets.inputs import Inputs
from softpool3d.inference.bulk import Failure, classify_files
from softpool3d.inference.classifier import Classifier, Prediction
from softpool3d.inference.each_file import Share, go_through
from softpool3d.inference.labels_file import ResultsFile, record
from softpool3d.text import shown


def classify(
    make_classifier: Callable[[], Classifier],
    inputs: Inputs,
    topk: int | None,
    jobs: int | None,
    as_json: bool,
    out: Path | None,
    resume: bool,
    overwrite: bool,
) -> None:
    """Classifies this process's share of the inputs: with torchrun, every WORLD_SIZE-th file.

    Raises:
        WorkError: if some files could not be classified; all others are done then.
        Interrupted: after Ctrl-C.
    """
    share = Share.mine()
    with share.claimed(out):
        classifier = make_classifier()
        inputs = replace(inputs, pictures=classifier.takes_pictures)
        total = inputs.count()
        topk = topk or (5 if total == 1 or as_json else 1)
        results = ResultsFile(out, topk, resume, overwrite, share.rank, share.world_size) if out else None
        show = _printer(as_json, topk) if as_json or results is None else _silent
        run = lambda clips, jobs: classify_files(classifier, clips, jobs, topk)  # noqa: E731
        go_through(inputs, total, share, run, results, show, jobs)


def _printer(as_json: bool, topk: int) -> Callable[[Prediction | Failure], None]:
    if as_json:
        return lambda result: print(json.dumps(record(result), ensure_ascii=False), flush=True)
    return _print_bars if topk > 1 else _print_line


def _silent(result: Prediction | Failure) -> None:
    pass


def _print_line(result: Prediction | Failure) -> None:
    if isinstance(result, Prediction):
        labels = "  ".join(f"{label.probability:6.1%}  {label.name:24}" for label in result)
        print(f"{labels}  {result.file}", flush=True)


def _print_bars(result: Prediction | Failure) -> None:
    if isinstance(result, Failure):
        return
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label in result:
        bar = "█" * max(1, round(label.probability * 20)) if label.probability >= 0.025 else "▏"
        bar = shown(bar, "#" * len(bar))
        table.add_row(f"{label.probability:6.1%}", Text(bar), Text(label.name))
    console = Console()
    console.print(Text(result.file, style="bold"), soft_wrap=True)
    console.print(table)
