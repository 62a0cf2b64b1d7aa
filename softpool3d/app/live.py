"""What the page shows of a run, while it trains and afterwards."""

from __future__ import annotations

from pathlib import Path

from softpool3d.analysis.comparison import curves_figure, epochs_done
from softpool3d.analysis.folders import MEASURES, RunRecord, read_run
from softpool3d.app import markup
from softpool3d.errors import UsageError
from softpool3d.evaluation.metrics import measure
from softpool3d.evaluation.plots import confusion_figure, png
from softpool3d.evaluation.scores import FILE, VideoScores
from softpool3d.naming import runs_in

_READ = ("metrics.csv", "summary.json", FILE)


class Live:
    """The runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Returns the runs by their names in the folder, the last that changed first."""
        runs = sorted(runs_in(self.folder), key=_written, reverse=True)
        return [str(run.relative_to(self.folder)) for run in runs]

    def changed(self, name: str | None) -> list[float]:
        """Returns when the files that `look` reads were written: what has not changed is not drawn again."""
        return [_written(self.folder / name / file) for file in _READ] if name else []

    def look(self, name: str | None) -> tuple[str, str, str, str]:
        """Returns how a run stands, its curves, its confusion, and its worst clips, as HTML."""
        if not name:
            return markup.notes([f"There are no runs in {self.folder}."]), "", "", ""
        run = read_run(self.folder / name)
        if run.problem:
            return markup.notes([f"{name}: {run.problem}"]), "", "", ""
        curves = markup.notes(["No epoch is done yet."])
        if run.epochs:
            curves = markup.picture(png(curves_figure([run])), "Training loss, and validation, over the epochs")
        return markup.notes([stands(run)]), curves, *_mistakes(run.folder)


def _written(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def stands(run: RunRecord) -> str:
    """Returns how far a run is, and its best score, in a sentence."""
    epochs = f"{epochs_done(run)} of {run.config.train.epochs} epochs" if run.config else ""
    scores = [("best in validation", run.best_val()), ("in the test", run.test())]
    told = [f"{MEASURES[run.measure]} {score:.1%} {where}" for where, score in scores if score is not None]
    return ", ".join([f"{run.config.model.name}: {epochs}", *told, "finished" if run.finished else "not finished"])


def _mistakes(folder: Path) -> tuple[str, str]:
    """Returns confusion and worst clips of the best weights, in the test, or, until that is done, in validation."""
    try:
        found = VideoScores.load(folder / FILE)
    except UsageError:
        return "", ""
    metrics = measure(found.scores, found.classes)
    if metrics.confusion is None:
        return markup.notes(["Clips have several labels, and none is taken for another."]), ""
    where = "in validation" if found.about.get("split") == "val" else "in the test"
    drawn = png(confusion_figure(metrics.confusion, found.classes))
    picture = markup.picture(drawn, "Confusion matrix: counts of clips by label and prediction", broad=False)
    worst = markup.section(f"Worst clips, {where}", markup.worst(found.worst()))
    return markup.section(f"What is taken for what, {where}", picture), worst
