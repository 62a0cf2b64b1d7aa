"""What the page shows of a run, while it trains and afterwards."""

from __future__ import annotations

from pathlib import Path

from softpool3d.analysis.comparison import curves_figure, epochs_done
from softpool3d.analysis.folders import MEASURES, RunRecord, read_run, runs_in
from softpool3d.app import markup
from softpool3d.errors import UsageError
from softpool3d.evaluation.metrics import measure
from softpool3d.evaluation.plots import confusion_figure, png
from softpool3d.evaluation.scores import FILE, VideoScores

_READ = ("metrics.csv", "summary.json", FILE)
_LATER = "comes with the scores of the test, at the end of the training"


class Live:
    """The runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Returns the runs by their names in the folder, the last that changed first."""
        return [str(run.relative_to(self.folder)) for run in runs_in(self.folder)]

    def changed(self, name: str | None) -> list[float]:
        """Returns when the files that `look` reads were written: what has not changed is not drawn again."""
        paths = [self.folder / name / file for file in _READ] if name else []
        return [path.stat().st_mtime if path.is_file() else 0.0 for path in paths]

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
        confusion, worst = _tested(run.folder)
        taken = markup.section("What is taken for what", confusion)
        return markup.notes([stands(run)]), curves, taken, markup.section("Worst clips", worst)


def stands(run: RunRecord) -> str:
    """Returns how far a run is, and its best score, in a sentence."""
    epochs = f"{epochs_done(run)} of {run.config.train.epochs} epochs" if run.config else ""
    scores = [("best in validation", run.best_val()), ("in the test", run.test())]
    told = [f"{MEASURES[run.measure]} {score:.1%} {where}" for where, score in scores if score is not None]
    return ", ".join([f"{run.config.model.name}: {epochs}", *told, "finished" if run.finished else "not finished"])


def _tested(folder: Path) -> tuple[str, str]:
    """Returns confusion and worst clips of the test of the best weights, or when there will be some."""
    drawn = _drawn(folder)
    try:
        found = VideoScores.load(folder / FILE)
    except UsageError:
        return drawn or markup.notes([f"The confusion {_LATER}."]), markup.notes([f"The table {_LATER}."])
    metrics = measure(found.scores, found.classes)
    if metrics.confusion is None:
        several = markup.notes(["Clips have several labels, and none is taken for another."])
        return several, several
    figure = confusion_figure(metrics.confusion, found.classes, "test")
    return markup.picture(png(figure), "Confusion matrix of the test", broad=False), markup.worst(found.worst())


def _drawn(folder: Path) -> str:
    """Returns the confusion of the last validation, which training draws for TensorBoard; "" if there is none yet."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 1})
    events.Reload()
    if "confusion" not in events.Tags()["images"]:
        return ""
    content = events.Images("confusion")[-1].encoded_image_string
    return markup.picture(content, "Confusion matrix of the last validation", broad=False)
