"""Several runs side by side: what was set differently, and what came of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softpool3d.analysis.folders import MEASURES, RunRecord
from softpool3d.config import Effect, differing, has_effect

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Comparison:
    """Several runs, and the settings in which they differ.

    runs: those that could be read; bad: those that could not.
    settings: key -> each run's value, of the keys that are not the same in all runs.
    """

    runs: list[RunRecord]
    bad: list[RunRecord]
    settings: dict[str, list[Any]]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Returns a header and a row for each run: its settings, then its results; "" where there is none yet."""
        results = {
            "epochs": [f"{epochs_done(run)}/{run.config.train.epochs}" for run in self.runs],
            **self._scores(),
            "seconds": [_seconds(run) for run in self.runs],
            "parameters": ["" if run.parameters is None else f"{run.parameters / 1e6:.2f} M" for run in self.runs],
        }
        if any(run.tests for run in self.runs):
            results["tested since"] = [_tested(run) for run in self.runs]
        settings = {key: [_text(value) for value in values] for key, values in self.settings.items()}
        columns = {"run": names(self.runs)} | settings | results
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]

    def _scores(self) -> dict[str, list[str]]:
        """Returns columns of validation and test by top-1, and before it by mAP if a run is judged by that."""
        columns = {}
        for measure in dict.fromkeys((*(run.measure for run in self.runs if run.measure == "map"), "top1")):
            columns[f"best val {MEASURES[measure]}"] = [_percent(run.best_val(measure)) for run in self.runs]
            columns[f"test {MEASURES[measure]}"] = [_in_views(run, measure) for run in self.runs]
        return columns


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Returns the runs that could be read, those that could not, and the settings in which the former differ."""
    runs = [record for record in records if not record.problem]
    settings = differing([run.config for run in runs]) if len(runs) > 1 else {}
    settings = {key: values for key, values in settings.items() if not has_effect(key, Effect.WHERE)}
    return Comparison(runs, [record for record in records if record.problem], settings)


def names(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the folders' names, with as much of the path as tells them apart."""
    folders = [run.folder.absolute() for run in runs]
    for length in range(1, max((len(folder.parts) for folder in folders), default=1) + 1):
        short = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(short)) == len(set(folders)):
            break
    return short if folders else []


def epochs_done(run: RunRecord) -> int:
    return int(max((row.get("epoch", 0) for row in run.epochs), default=0))


def curve(run: RunRecord, key: str = "") -> tuple[list[float], list[float]]:
    """Returns the epochs and values of `key`, or else of the score that the run is judged by in validation.

    Evaluations within an epoch lie between whole numbers.
    """
    key = key or f"val_{run.measure}"
    rows = [row for row in run.epochs if key in row and row.get("epoch", 0) > 0]
    steps = max((row["step"] / row["epoch"] for row in rows if "step" in row), default=0)  # reached at an epoch's end
    epochs = [row["step"] / steps if steps and "step" in row else row["epoch"] for row in rows]
    return epochs, [row[key] for row in rows]


def curves_figure(runs: Sequence[RunRecord]) -> Figure:
    """Draws training loss and validation top-1, or mAP, over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure((11, 4.5), layout="constrained")
    loss, score = figure.subplots(1, 2)
    for number, (run, name) in enumerate(zip(runs, names(runs), strict=True)):
        style = {"marker": ".", "linestyle": ("-", "--", ":")[number // 10 % 3]}  # colours come again after ten
        label = name.replace("$", r"\$")
        label = f" {label}" if label.startswith("_") else label  # matplotlib hides names that begin with _
        loss.plot(*curve(run, "train_loss"), label=label, **style)
        score.plot(*curve(run), label=label, **style)
    loss.set(xlabel="epoch", ylabel="training loss")
    score.set(xlabel="epoch", ylabel=_judged(runs), ylim=(0, 1))
    for axes in (loss, score):
        axes.grid(alpha=0.3)
    if runs:
        figure.legend(*score.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(runs), 3))
    return figure


def picture(figure: Figure, ending: str) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=ending, dpi=110)
    return content.getvalue()


def curves_text(runs: Sequence[RunRecord], width: int = 72, height: int = 14) -> list[str]:
    """Draws validation top-1, or mAP, over the epochs in letters: a, b, ... in the runs' order; * where runs meet."""
    curves = [curve(run) for run in runs]
    epochs = [epoch for xs, _ in curves for epoch in xs]
    values = [value for _, ys in curves for value in ys]
    if not epochs:
        return []
    low, high, last = min(values), max(values), max(epochs)
    grid = [[" "] * width for _ in range(height)]
    for number, (xs, ys) in enumerate(curves):
        for x, y in zip(xs, ys, strict=True):
            column = round(x / last * (width - 1))
            row = height - 1 - (round((y - low) / (high - low) * (height - 1)) if high > low else 0)
            grid[row][column] = letter(number) if grid[row][column] in (" ", letter(number)) else "*"
    marks = {0: high, height // 2: low + (high - low) * (height - 1 - height // 2) / (height - 1), height - 1: low}
    lines = [f"{f'{marks[n]:.0%}' if n in marks else '':>5} |{''.join(row).rstrip()}" for n, row in enumerate(grid)]
    end = f"epoch {last:g}"
    return [_judged(runs), *lines, f"{'':>5} +{'-' * width}", f"{'':>6}0{end:>{width}}"]


def _judged(runs: Sequence[RunRecord]) -> str:
    """Returns the label of these runs' curves."""
    return "validation " + " or ".join(sorted({MEASURES[run.measure] for run in runs}, reverse=True))


def letter(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[number % 52]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _in_views(run: RunRecord, measure: str) -> str:
    """Returns the test score of a run, and in how many views it was made; validation has one."""
    score, views = _percent(run.test(measure)), (run.summary or {}).get("views", 1)
    return f"{score} ({views} views)" if score and views > 1 else score


def _tested(run: RunRecord) -> str:
    if not run.tests:
        return ""
    test = run.tests[0]
    score = f"{test['top1']:.1%}" if test["map"] is None else f"mAP {test['map']:.1%}"
    return f"{score} ({test['num_clips']}x{test['num_crops']})"


def _seconds(run: RunRecord) -> str:
    value = run.summary["seconds"] if run.summary else run.epochs[-1].get("seconds") if run.epochs else None
    return "" if value is None else f"{value:.0f}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)
