"""`softpool3d classify` for files: prints and writes results, and shares the work among processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from softpool3d.datasets.inputs import Inputs, clip_name
from softpool3d.datasets.parallel import cores
from softpool3d.errors import WorkError
from softpool3d.inference.bulk import Failure, classify_files
from softpool3d.inference.classifier import Classifier, Prediction
from softpool3d.inference.labels_file import ResultsFile, part_of, record
from softpool3d.runs.lock import claim
from softpool3d.runtime.interrupt import Interrupted
from softpool3d.signals import number_of
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
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    mine = out if out is None or rank == 0 else part_of(out, rank)
    with claim(mine, is_folder=False) if mine is not None else nullcontext():
        _classify(make_classifier, inputs, topk, jobs, as_json, out, resume, overwrite, rank, world_size)


def _classify(
    make_classifier: Callable[[], Classifier],
    inputs: Inputs,
    topk: int | None,
    jobs: int | None,
    as_json: bool,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    rank: int,
    world_size: int,
) -> None:
    classifier = make_classifier()
    inputs = replace(inputs, pictures=classifier.takes_pictures)
    total = inputs.count()
    topk = topk or (5 if total == 1 or as_json else 1)
    results = ResultsFile(out, topk, resume, overwrite, rank, world_size) if out else None
    clips = (
        clip for clip in islice(inputs, rank, None, world_size) if results is None or clip_name(clip) not in results
    )
    if jobs is None:
        jobs = 0 if total == 1 else max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    share = None if total is None else len(range(rank, total, world_size))
    counts = {"done": 0, "unread": 0, "unanswered": 0}
    one = total == 1
    show = _printer(as_json, topk) if as_json or results is None else _silent
    try:
        with _Bar(share, enabled=not one and rank == 0) as bar:
            for result in classify_files(classifier, clips, jobs, topk):
                failed = isinstance(result, Failure)
                counts["done" if not failed else "unanswered" if result.read else "unread"] += 1
                if results:
                    results.write(result)
                if failed:
                    bar.line(f"error: {result}")
                elif result.damage:
                    bar.line(f"note: {result.file}: {result.damage}")
                show(result)
                bar.advance()
    except KeyboardInterrupt as stop:
        then = f"; go on with --resume {out}" if out else ""
        raise Interrupted(f"stopped: {_counted(counts)}{then}", number_of(stop)) from None
    except WorkError as error:
        raise WorkError(f"{error} ({_counted(counts)})") from None
    finally:
        if results:
            results.close()
    if world_size > 1:
        counts = _summed(counts)
    if results:
        results.merge()
    if rank == 0:
        _finish(counts, results, total)


def _finish(counts: dict[str, int], results: ResultsFile | None, total: int | None) -> None:
    skipped = f", {results.done} were done before" if results and results.done else ""
    where = f", in {results.path}" if results else ""
    if counts["done"] < sum(counts.values()):
        raise WorkError(f"{_counted(counts)}{skipped}{where}")
    if total != 1 or results:
        print(f"{_counted(counts)}{skipped}{where}", file=sys.stderr)


def _counted(counts: dict[str, int]) -> str:
    """Returns as in "14 of 18 labelled; 4 could not be read (listed above)"."""
    parts = [f"{counts['done']} of {sum(counts.values())} labelled"]
    parts += [f"{counts['unread']} could not be read (listed above)"] * bool(counts["unread"])
    parts += [f"{counts['unanswered']} had no answer (listed above)"] * bool(counts["unanswered"])
    return "; ".join(parts)


def _summed(counts: dict[str, int]) -> dict[str, int]:
    """Returns the counts summed over all processes, once the last of them is done."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(days=30))
    numbers = torch.tensor(list(counts.values()))
    dist.all_reduce(numbers)
    dist.destroy_process_group()
    return dict(zip(counts, numbers.tolist(), strict=True))


# --- what is shown ----------------------------------------------------------------------------------------------------


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


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g} files/s" if task.speed else "")


class _Bar:
    """A progress bar on the error output, if that is a terminal: files, files per second, time left."""

    def __init__(self, total: int | None, enabled: bool) -> None:
        console = Console(stderr=True)
        self._shown = enabled and console.is_terminal
        self._progress = Progress(
            TextColumn("classifying"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self._shown,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        self._progress.advance(self._task)

    def line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
