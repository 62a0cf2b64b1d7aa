"""Writes a timeline as CSV, JSON, chapters in WebVTT and SRT, a plot, or the video with its labels drawn in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from softpool3d.errors import UsageError
from softpool3d.evaluation.plots import literal
from softpool3d.files import csv_text
from softpool3d.inference.timeline import Segment, VideoTimeline

FORMATS = (".csv", ".json", ".vtt", ".srt")
PLOTS = (".png", ".svg", ".pdf")
VIDEOS = (".mp4", ".mkv", ".mov")
_CURVES = 6


def check_ending(option: str, path: Path, known: tuple[str, ...]) -> None:
    """Raises UsageError for a path whose ending is not one of those known."""
    if path.suffix.lower() not in known:
        raise UsageError(f"{option} {path}: unknown format {path.suffix!r} (known: {', '.join(known)})")


def rendered(found: VideoTimeline, suffix: str) -> bytes:
    """Returns the content of a timeline's file; its ending (.csv, .json, .vtt, .srt) gives the format."""
    render = {".csv": _csv, ".json": _json, ".vtt": _vtt, ".srt": _srt}[suffix.lower()]
    return render(found).encode(errors="surrogateescape")


def as_record(found: VideoTimeline) -> dict[str, Any]:
    """Returns a timeline as a JSON object; times are in seconds."""
    windows = found.windows
    return {
        "file": found.file,
        "duration": round(found.duration, 3),
        "segments": [_segment(segment) for segment in found.segments],
        "windows": [
            {
                "start": round(windows.starts[n], 3),
                "end": round(windows.ends[n], 3),
                "labels": [{"label": found.classes[i], "probability": round(score, 4)} for i, score in windows.tops(n)],
            }
            for n in range(len(windows))
        ],
    }


def _segment(segment: Segment) -> dict[str, Any]:
    return {"start": segment.start, "end": segment.end, "label": segment.label, "score": segment.score}


def _csv(found: VideoTimeline) -> str:
    rows = ([found.file, segment.start, segment.end, segment.label, segment.score] for segment in found.segments)
    return csv_text([["file", "start", "end", "label", "score"], *rows])


def _json(found: VideoTimeline) -> str:
    return json.dumps(as_record(found), indent=1, ensure_ascii=False) + "\n"


def _vtt(found: VideoTimeline) -> str:
    cues = (f"\n{n}\n{_clock(s.start)} --> {_clock(s.end)}\n{_escaped(s)}\n" for n, s in enumerate(found.segments, 1))
    return "WEBVTT\n" + "".join(cues)


def _srt(found: VideoTimeline) -> str:
    cues = []
    for number, segment in enumerate(found.segments, 1):
        begin, end = (_clock(time).replace(".", ",") for time in (segment.start, segment.end))
        cues.append(f"{number}\n{begin} --> {end}\n{_caption(segment)}\n")
    return "\n".join(cues)


def _caption(segment: Segment) -> str:
    label = " ".join(segment.label.split())  # a line end would end the cue
    return f"{label} ({segment.score:.0%})"


def _escaped(segment: Segment) -> str:
    """Returns a segment's caption, escaped: WebVTT would read tags and entities in it."""
    return _caption(segment).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"


def draw_plot(path: Path, found: VideoTimeline, min_score: float) -> None:
    """Draws a timeline: its thumbnails, if any, below them the curves of the likeliest labels, then the segments."""
    from matplotlib.figure import Figure

    windows = found.windows
    middles = (np.array(windows.starts) + np.array(windows.ends)) / 2
    curves = _curves(found)
    heights = (1.3, 3, 0.5) if found.thumbnails else (3, 0.5)
    figure = Figure(figsize=(12, sum(heights) + 0.2), layout="constrained")
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for column, (seconds, picture) in enumerate(found.thumbnails):
        axes = figure.add_subplot(rows[0].subgridspec(1, len(found.thumbnails), wspace=0.03)[column])
        axes.imshow(picture)
        axes.set_title(short_clock(seconds), fontsize=8)
        axes.axis("off")
    main = figure.add_subplot(rows[-2])
    colours = {}
    for number, (label, scores) in curves.items():
        (line,) = main.plot(middles, scores, marker="." if len(windows) < 60 else "", label=literal(label))
        colours[found.classes[number]] = line.get_color()
    main.axhline(min_score, color="grey", linewidth=0.8, linestyle="--")
    main.set(ylim=(0, 1.02), xlim=(0, max(found.duration, 1e-3)), ylabel="probability")
    main.xaxis.set_major_formatter(lambda seconds, _: short_clock(seconds))
    main.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, frameon=False)
    band = figure.add_subplot(rows[-1], sharex=main)
    for segment in found.segments:
        width = segment.end - segment.start
        band.barh(0, width, left=segment.start, color=colours.get(segment.label, "lightgrey"), edgecolor="white")
        if width > 0.08 * found.duration:
            middle = (segment.start + segment.end) / 2
            band.text(
                middle, 0, literal(segment.label), ha="center", va="center", fontsize=8, color="white", clip_on=True
            )
    band.set_yticks([])
    band.set_xlabel(literal(Path(found.file).name))
    figure.savefig(path, dpi=110, format=path.suffix[1:].lower())


def _curves(found: VideoTimeline) -> dict[int, tuple[str, np.ndarray]]:
    """Returns class -> its name and its scores, float (windows,), of the classes to draw.

    A score is NaN where the class is not among the window's labels. Labels of segments come first; then the sum of
    scores decides.
    """
    windows = found.windows
    shape = (len(windows), windows.kept)
    classes, scores = np.array(windows.classes).reshape(shape), np.array(windows.scores).reshape(shape)
    weight = {int(number): float(scores[classes == number].sum()) for number in np.unique(classes)}
    in_segments = {segment.label for segment in found.segments}
    order = sorted(weight, key=lambda n: (found.classes[n] not in in_segments, -weight[n]))[:_CURVES]
    curves = {}
    for number in order:
        here = classes == number
        line = np.where(here.any(1), np.where(here, scores, 0).max(1), np.nan)
        curves[number] = (found.classes[number], line)
    return curves


def short_clock(seconds: float) -> str:
    """Returns a time as people read it: 1:02.5, or 1:02:03 from an hour on."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{seconds:02.0f}" if hours else f"{minutes}:{seconds:04.1f}"


def annotated_frames(found: VideoTimeline) -> Iterator[np.ndarray]:
    """Yields the video's frames at a constant rate, uint8 (H, W, 3), with the label of the current segment drawn in."""
    from softpool3d.datasets.video.pyav_reader import Scaler
    from softpool3d.datasets.video.stream import FrameStream, ahead, steady

    scale, segments, at = Scaler(None, found.file), found.segments, 0
    with FrameStream(found.file, max_missing=1.0) as stream:  # `watch` has already told what is missing
        pictures = ((n, scale(frame)) for n, frame in steady(stream))
        with closing(ahead(pictures, 4)) as made:
            for number, picture in made:
                seconds = number / stream.fps
                while at < len(segments) and segments[at].end <= seconds:
                    at += 1
                if at < len(segments) and segments[at].start <= seconds:
                    picture = _with_text(picture, _caption(segments[at]))
                yield picture


def _with_text(picture: np.ndarray, text: str) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(np.ascontiguousarray(picture))
    draw = ImageDraw.Draw(image)
    size = max(image.height // 16, 10)
    font = ImageFont.load_default(size)
    while size > 8 and font.getlength(text) > image.width - size:
        size -= 1
        font = ImageFont.load_default(size)
    margin = size // 2
    draw.rectangle((0, image.height - 2 * size, font.getlength(text) + 2 * margin, image.height), "black")
    draw.text((margin, image.height - size), text, "white", font, anchor="lm")
    return np.asarray(image)
