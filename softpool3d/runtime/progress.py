"""What training shows: one bar for the run and one line an epoch; lines alone where there is no terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_FIELDS = "loss {task.fields[loss]:.3f}  top-1 {task.fields[top1]:5.1%}  {task.fields[rate]:.0f} clips/s  "
_FIELDS += "waiting for data {task.fields[waiting]:.0%}  {task.fields[spent]}"


_WARM, _MEASURED = 3, 10  # the first steps compile and fill queues; as many more say how long the rest takes


class Display:
    """A progress bar over all of a run's steps, and once a line that says how long they take.

    Silent on every process but the first.

    Args:
        beside: the time of evaluations, as a share of that of the steps; a guess.
    """

    def __init__(self, total_steps: int, done_steps: int, console: Console, enabled: bool, beside: float = 0.0) -> None:
        self.console = console
        self._enabled = enabled
        self._left, self._seen, self._began, self._beside = total_steps - done_steps, 0, 0.0, beside
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(_FIELDS),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._progress.add_task(
            "", total=total_steps, completed=done_steps, loss=0.0, top1=0.0, rate=0.0, waiting=0.0, spent=""
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def advance(self, steps: int = 1) -> None:
        self._progress.advance(self._task, steps)
        self._seen += steps
        if self._seen == _WARM:
            self._began = time.perf_counter()
        elif self._seen == _WARM + _MEASURED and self._left > 2 * self._seen:
            step = (time.perf_counter() - self._began) / _MEASURED
            steps = self._left - self._seen
            words = duration(steps * step * (1 + self._beside))
            self.line(f"{words} to go: {steps} steps of {step:.2f} s, and what evaluating takes")

    def show(self, loss: float, top1: float, rate: float, waiting: float, **milliseconds: float) -> None:
        """Shows what `Meter.read` returns; the parts of a step as shares of its time."""
        total = max(sum(milliseconds.values()), 1e-9)
        spent = "  ".join(f"{part.removesuffix('_ms')} {ms / total:.0%}" for part, ms in milliseconds.items())
        self._progress.update(self._task, loss=loss, top1=top1, rate=rate, waiting=waiting, spent=spent)

    def line(self, text: str, style: str | None = None) -> None:
        if self._enabled:
            self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Returns a time in words: 40 seconds, 7 minutes, 3.5 hours, 2.1 days."""
    for unit, length, most in (("seconds", 1, 90), ("minutes", 60, 90), ("hours", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.{0 if length < 3600 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


class Progression:
    """A progress bar of work that is counted; where there is no terminal, a line every half minute.

    Args:
        what: what is counted, as in "videos".
        done: how many of the `total` were done before.
        enabled: whether anything is shown: on the first process only.
    """

    def __init__(self, what: str, total: int, done: int, console: Console, enabled: bool) -> None:
        self._what, self._total, self._before, self._done = what, total, done, done
        self._console, self._enabled = console, enabled
        self._lines = enabled and not console.is_terminal
        self._began = self._said = time.perf_counter()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._progress.add_task(what, total=total, completed=done, rate="")

    def __enter__(self) -> Progression:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, count: int) -> None:
        self._done = min(self._done + count, self._total)
        now = time.perf_counter()
        rate = f"{(self._done - self._before) / max(now - self._began, 1e-9):.1f} {self._what}/s"
        self._progress.update(self._task, completed=self._done, rate=rate)
        if self._lines and now - self._said > 30:
            self._said = now
            self.line(f"{self._done} of {self._total} {self._what}, {rate}")

    def line(self, text: str, style: str | None = None) -> None:
        if self._enabled:
            self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
