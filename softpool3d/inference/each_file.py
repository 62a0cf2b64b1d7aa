"""What commands that work through many files share: processes, progress, resuming, and the count at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.parallel import cores
from softpool3d.errors import UsageError, WorkError
from softpool3d.inference.growing_file import part_of
from softpool3d.inference.parts import is_folder
from softpool3d.inference.work import Failure
from softpool3d.runs.lock import claim
from softpool3d.runtime.interrupt import Interrupted
from softpool3d.signals import number_of


class Results(Protocol):
    """Where results are kept: a `GrowingFile`, or several, or a folder of `Parts`.

    path: for messages. done: number of files whose results were there before.
    """

    path: Path | str
    done: int

    def left(self, clips: Iterable[Clip]) -> Iterator[Clip]: ...
    def write(self, result: Any) -> None: ...
    def close(self) -> None: ...
    def merge(self) -> None: ...


@dataclass(frozen=True)
class Share:
    """This process's share of the work: with torchrun every `world_size`-th file, else all."""

    rank: int
    world_size: int

    @classmethod
    def mine(cls) -> Share:
        return cls(*(int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1))))

    @contextmanager
    def claimed(self, out: str | None) -> Iterator[None]:
        """Claims the file that this process appends to, or the folder, while the body runs.

        Raises:
            UsageError: for a folder that several processes would write to.
        """
        if out is None or "://" in out:
            yield
            return
        folder, path = is_folder(out), Path(out)
        if folder and self.world_size > 1:
            raise UsageError(
                f"--out {out}: the processes of torchrun write to one file, as in results.parquet; "
                "several machines share a folder with --engine ray"
            )
        with claim(path if self.rank == 0 else part_of(path, self.rank), is_folder=folder):
            yield


def go_through(
    clips: Iterable[Clip],
    total: int | None,
    share: Share,
    run: Callable[[Iterator[Clip], int], Iterator[Any]],
    results: Results | None,
    show: Callable[[Any], None] = lambda result: None,
    jobs: int | None = None,
    done: str = "labelled",
    bar: bool = True,
) -> None:
    """Does this process's share of the work. One file that fails does not stop the others.

    Args:
        total: how many clips there are, at most; None if that is not known.
        run: yields a result, or a `Failure`, for each clip; its second argument is `jobs`.
        results: keeps them; clips that are in it already are left out.
        show: is called with each result.
        jobs: number of processes that decode; by default one for each core, and none for a single file.
        done: what becomes of a file, for messages.
        bar: shows progress, if there are several files.

    Raises:
        WorkError: if some files failed; all others are done then.
        Interrupted: after Ctrl-C.
    """
    mine = islice(clips, share.rank, None, share.world_size)
    left = mine if results is None else results.left(mine)
    if jobs is None:
        jobs = 0 if total == 1 else max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    number = None if total is None else len(range(share.rank, total, share.world_size))
    counts = {"done": 0, "unread": 0, "unanswered": 0}
    try:
        with _Bar(number, enabled=bar and total != 1 and share.rank == 0) as progress:
            for result in run(left, jobs):
                failed = isinstance(result, Failure)
                counts["done" if not failed else "unread" if result.failed == "read" else "unanswered"] += 1
                if results:
                    results.write(result)
                if failed:
                    progress.line(f"error: {result}")
                elif result.damage:
                    progress.line(f"note: {result.file}: {result.damage}")
                show(result)
                progress.advance()
    except KeyboardInterrupt as stop:
        then = f"; go on with --resume {results.path}" if results else ""
        raise Interrupted(f"stopped: {_counted(counts, done)}{then}", number_of(stop)) from None
    except WorkError as error:
        raise WorkError(f"{error} ({_counted(counts, done)})") from None
    finally:
        if results:
            results.close()
    if share.world_size > 1:
        counts = _summed(counts)
    if results:
        results.merge()
    if share.rank == 0:
        _finish(counts, results, total, done)


def _finish(counts: dict[str, int], results: Results | None, total: int | None, done: str) -> None:
    skipped = f", {results.done} were done before" if results and results.done else ""
    where = f", in {results.path}" if results else ""
    if counts["done"] < sum(counts.values()):
        raise WorkError(f"{_counted(counts, done)}{skipped}{where}")
    if total != 1 or results:
        print(f"{_counted(counts, done)}{skipped}{where}", file=sys.stderr)


def _counted(counts: dict[str, int], done: str) -> str:
    """Returns as in "14 of 18 labelled; 4 could not be read (listed above)"."""
    parts = [f"{counts['done']} of {sum(counts.values())} {done}"]
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


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g} files/s" if task.speed else "")


class _Bar:
    """A progress bar on the error output, if that is a terminal: files, files per second, time left."""

    def __init__(self, total: int | None, enabled: bool) -> None:
        console = Console(stderr=True)
        self._shown = enabled and console.is_terminal
        self._progress = Progress(
            TextColumn("files"),
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
