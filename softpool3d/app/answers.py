"""What the page answers about a video: its labels, its timeline, its Grad-CAM, its pooled forms."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import gradio as gr

from softpool3d.app import markup
from softpool3d.errors import SoftPool3dError, UsageError
from softpool3d.inference.classifier import Classifier
from softpool3d.inference.exported import check_open
from softpool3d.inference.labels_file import record
from softpool3d.inference.timeline import VideoTimeline, watch
from softpool3d.inference.timeline_files import as_record, draw_plot, rendered
from softpool3d.inference.trained import default_weights
from softpool3d.naming import BEST, SHIPPED, runs_in
from softpool3d.visual.gradcam import explain, heat_sheet
from softpool3d.visual.output import write_sheet
from softpool3d.visual.pooled import check_size, pool_clip, poolings
from softpool3d.visual.quality import measure
from softpool3d.visual.report import settings_of, write_report
from softpool3d.visual.sheet import original_panel, pooled_panel
from softpool3d.visual.source import read_source

MOTION = "motion"
SECONDS = 5.0  # of a video, to draw
KERNELS = {"2x2x2": (2, 2, 2), "3x3x3": (3, 3, 3), "4x4x4": (4, 4, 4), "1x2x2": (1, 2, 2), "1x4x4": (1, 4, 4)}
_MIN_SCORE = 0.5  # of a segment, as for `classify --timeline`


def told(*nothing: Any) -> Callable:
    """Returns a decorator of answers to a video, generators whose last output is a note: an error that the user can
    mend becomes one sentence there, beside `nothing` in the other outputs."""

    def decorated(answer: Callable) -> Callable:
        @functools.wraps(answer)
        def told(self: Answers, video: str | None, *arguments: Any, **settings: Any) -> Iterator[tuple]:
            yield *nothing, ""
            try:
                yield from answer(self, video, *arguments, **settings)
            except SoftPool3dError as error:
                text = str(error).replace(video, Path(video).name) if video else str(error)
                yield *nothing, markup.refusal(text)

        return told

    return decorated


class Answers:
    """Answers with one network, which is kept until another is picked.

    Args:
        weights: as for `Classifier`; None for `default_weights`.
        runs: a folder of runs, whose weights can be picked.
        folder: where files for download are written.

    Raises:
        UsageError, WorkError: as `Classifier` does.
    """

    def __init__(self, weights: str | None, runs: Path, folder: Path) -> None:
        self.note = ""
        if weights is None:
            chosen, self.note = default_weights()
            weights = MOTION if chosen == SHIPPED else str(chosen)
        self.first, self._runs, self._folder = weights, runs, folder
        self._kept: tuple[tuple[str, float], Classifier] | None = None
        self.network(weights)

    def network(self, weights: str) -> Classifier:
        """Returns the network of these weights. A file that was written anew, as of a run that trains, is read anew."""
        path = Path(weights)
        key = weights, path.stat().st_mtime if path.is_file() else 0.0
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # two networks may not fit into memory
            self._kept = key, Classifier(weights)
        return self._kept[1]

    def weights(self) -> list[str]:
        """Returns what can be picked: the first weights, the shipped ones, and the best ones of each run."""
        best = (run / BEST for run in runs_in(self._runs))
        return list(dict.fromkeys([self.first, MOTION, *(str(path) for path in best if path.is_file())]))

    @told(None, "", None, None, gr.update(choices=[], value=None))
    def label(self, video: str | None, weights: str, progress=gr.Progress()) -> Iterator[tuple]:
        """Yields labels, timeline, JSON, CSV, classes to explain, and a note; labels come first."""
        if video is None:
            return
        progress(None, desc="Network")
        classifier = self.network(weights)
        progress(None, desc="Labels")
        result = classifier(video)
        classes = gr.Dropdown(choices=list(classifier.classes), value=result.label)
        notes = [self.note if weights == self.first else "", classifier.note, result.damage]
        answer = {label.name: label.probability for label in result}, "", None, None, classes, markup.notes(notes)
        yield answer

        def seen(seconds: float) -> None:
            progress((min(seconds, result.duration), result.duration), desc="Timeline", unit="s")

        found = watch(classifier, video, min_score=_MIN_SCORE, on_window=seen)
        found = replace(found, file=Path(video).name)
        whole = record(result) | as_record(found)
        files = [
            self._file(found, ".json", json.dumps(whole, indent=1, ensure_ascii=False).encode(errors="replace")),
            self._file(found, ".csv", rendered(found, ".csv")),
        ]
        yield answer[0], markup.timeline(found, self._plot(found)), *files, *answer[4:]

    @told(None)
    def gradcam(self, video: str | None, weights: str, label: str | None, progress=gr.Progress()) -> Iterator[tuple]:
        """Yields a video, the clip with what speaks for a class laid over it, and a note."""
        progress(None, desc="Grad-CAM")
        check_open(weights)
        classifier, source = self.network(weights), read_source(_there(video), 0.0, SECONDS)
        target = self._new("gradcam.mp4")
        write_sheet(target, heat_sheet(classifier, source, explain(classifier, source, label), beside=False))
        yield str(target), ""

    @told("")
    def pool(
        self, video: str | None, kinds: list[str], kernel: str, beta: float, progress=gr.Progress()
    ) -> Iterator[tuple]:
        """Yields a page about the clip and its pooled forms, with a split view, and a note."""
        progress(0.0, desc="Pooling")
        if not kinds:
            raise UsageError("pick a kind of pooling")
        source, size = read_source(_there(video), 0.0, SECONDS), KERNELS[kernel]
        check_size(source, size, 1)
        pooled = []
        for done, layer in enumerate(poolings(kinds, [beta], size)):
            progress((done, len(kinds)), desc=f"Pooling: {layer.label}")
            pooled += pool_clip(source.frames, layer, size)
        progress(0.9, desc="What is left")
        source = replace(source, path=Path(source.path.name))
        panels = [original_panel(source), *map(pooled_panel, pooled)]
        options = [source.path.name, "--pools", ",".join(kinds), "--kernel", ",".join(map(str, size))]
        options += ["--beta", f"{beta:g}", "--seconds", f"{SECONDS:g}", "--report", "report.html"]
        qualities = [measure(source.frames, clip) for clip in pooled]
        command = f"softpool3d visualize {shlex.join(options)}"
        with TemporaryDirectory(dir=self._folder) as folder:
            target = Path(folder) / "report.html"
            write_report(target, source, panels, qualities, settings_of(source, kernel), command)
            yield markup.frame(target.read_text(encoding="utf-8")), ""

    def _plot(self, found: VideoTimeline) -> bytes:
        with TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / "timeline.png"
            draw_plot(path, replace(found, thumbnails=[]), _MIN_SCORE)
            return path.read_bytes()

    def _file(self, found: VideoTimeline, ending: str, content: bytes) -> str:
        path = self._new(f"{Path(found.file).stem}{ending}")
        path.write_bytes(content)
        return str(path)

    def _new(self, name: str) -> Path:
        """Returns a path that nobody else has: two visitors may send files of one name."""
        return Path(mkdtemp(dir=self._folder)) / name


def _there(video: str | None) -> Path:
    if video is None:
        raise UsageError("drop a video first")
    return Path(video)
