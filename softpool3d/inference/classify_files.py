"""`softpool3d classify` for files: prints and writes their labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softpool3d.datasets.inputs import Inputs
from softpool3d.inference.bulk import Engine, Started
from softpool3d.inference.classifier import Prediction
from softpool3d.inference.each_file import Results, Share, go_through
from softpool3d.inference.labels_file import ResultsFile, columns, record, row, schema
from softpool3d.inference.parts import Parts, is_folder
from softpool3d.inference.trained import Trained
from softpool3d.inference.work import Failure, Labelling
from softpool3d.text import shown


@dataclass(frozen=True)
class Options:
    """The options of `classify` for files.

    network: those of `Classifier`.
    out: a file, or a folder of parts; None to print labels.
    """

    network: dict[str, Any]
    topk: int | None
    jobs: int | None
    as_json: bool
    out: str | None
    resume: bool
    overwrite: bool


def classify(load: Callable[[], Trained], inputs: Inputs, options: Options, engine: Engine) -> None:
    """Classifies this process's share of the inputs: with torchrun, every WORLD_SIZE-th file.

    Args:
        load: returns the network.
        engine: starts the work.

    Raises:
        WorkError: if some files could not be classified; all others are done then.
        Interrupted: after Ctrl-C.
    """
    share, as_json = Share.mine(), options.as_json
    with share.claimed(options.out):
        trained = load()
        inputs = replace(inputs, pictures=trained.config.data.of_pictures)
        total = inputs.count()
        topk = options.topk or (5 if total == 1 or as_json else 1)
        with engine(trained, Labelling(options.network, topk)) as started:
            results = _results(options, topk, share, started) if options.out else None
            show = _printer(as_json, topk) if as_json or results is None else _silent
            go_through(inputs, total, share, started.run, results, show, options.jobs)


def _results(options: Options, topk: int, share: Share, started: Started) -> Results:
    out, how = options.out, (options.resume, options.overwrite)
    if is_folder(out):
        about = started.about() | {"topk": topk}
        return Parts(out, about, schema(columns(topk)), lambda result: row(record(result), topk), *how)
    return ResultsFile(Path(out), topk, *how, share.rank, share.world_size)


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
