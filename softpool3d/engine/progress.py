"""What training shows: one bar for the run and one line an epoch; lines alone where there is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_FIELDS = "loss {task.fields[loss]:.3f}  top-1 {task.fields[top1]:5.1%}  {task.fields[rate]:.0f} clips/s  "
_FIELDS += "waiting for data {task.fields[waiting]:.0%}"


class Display:
    """A progress bar over all of a run's steps. Silent on every process but the first."""

    def __init__(self, total_steps: int, done_steps: int, console: Console, enabled: bool) -> None:
        self.console = console
        self._enabled = enabled
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
            "", total=total_steps, completed=done_steps, loss=0.0, top1=0.0, rate=0.0, waiting=0.0
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

    def show(self, loss: float, top1: float, rate: float, waiting: float) -> None:
        self._progress.update(self._task, loss=loss, top1=top1, rate=rate, waiting=waiting)

    def line(self, text: str, style: str | None = None) -> None:
        if self._enabled:
            self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
