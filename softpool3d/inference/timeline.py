"""The timeline of a video: which label it shows when, as a window slides over it (windows.py).

Of each window the five likeliest classes are kept.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from softpool3d.datasets.video.damage import Damage
from softpool3d.datasets.video.stream import FrameStream, ahead
from softpool3d.inference.classifier import Classifier
from softpool3d.inference.windows import Sliding, clips_of_windows, steady_fps, windows_of

KEPT = 5  # labels of each window
_THUMBNAILS = 32


@dataclass(frozen=True)
class Segment:
    """A part of a video in which neighbouring windows have the same likeliest label.

    start, end: in seconds. score: mean probability over the windows.
    """

    start: float
    end: float
    label: str
    score: float


@dataclass
class Windows:
    """The windows of a video, as flat arrays: start and end in seconds, likeliest classes and their scores."""

    starts: array = field(default_factory=lambda: array("f"))
    ends: array = field(default_factory=lambda: array("f"))
    classes: array = field(default_factory=lambda: array("H"))  # KEPT of each window, or as many as there are
    scores: array = field(default_factory=lambda: array("f"))
    kept: int = KEPT

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: float, end: float, probabilities: Tensor) -> None:
        self.kept = min(KEPT, len(probabilities))
        top = probabilities.topk(self.kept)
        self.starts.append(start)
        self.ends.append(end)
        self.classes.extend(top.indices.tolist())
        self.scores.extend(top.values.tolist())

    def tops(self, number: int) -> list[tuple[int, float]]:
        """Returns (class, probability) of the labels of one window, likeliest first."""
        part = slice(number * self.kept, (number + 1) * self.kept)
        return list(zip(self.classes[part], self.scores[part], strict=True))


@dataclass
class VideoTimeline:
    """The timeline of a video, as `watch` returns it.

    duration: in seconds.
    windows: with smoothed probabilities.
    segments: the parts in which one label stays the likeliest, at the least score or above.
    damage: what is missing of the file; None for a live source.
    thumbnails: (seconds, picture uint8 (H, W, 3)), evenly spaced.
    """

    file: str
    duration: float
    classes: tuple[str, ...]
    windows: Windows
    segments: list[Segment]
    damage: Damage | None
    thumbnails: list[tuple[float, np.ndarray]]


def watch(
    classifier: Classifier,
    source: str | Path,
    window_s: float | None = None,
    hop_s: float | None = None,
    smooth: int = 3,
    min_score: float = 0.5,
    on_window: Callable[[float], None] = lambda seconds: None,
) -> VideoTimeline:
    """Returns the timeline of a video of any length: which label it shows when.

    Args:
        source: a file, or an address that FFmpeg reads.
        window_s, hop_s: in seconds; see `Sliding`.
        smooth: number of neighbouring windows whose probabilities are averaged, odd; 1 leaves them as they are.
        min_score: the least probability that a window needs to be in a segment.
        on_window: called with the time, in seconds, up to which the video has been classified.

    Raises:
        DecodeError: if the source cannot be read, or too much of it is missing.
    """
    data, windows, thumbnails = classifier.config.data, Windows(), _Thumbnails()
    with FrameStream(source, data.decode_timeout_s, data.max_missing) as stream:
        end = 0.0
        with closing(windows_of(classifier, stream, window_s, hop_s, thumbnails.add)) as answered:
            for start, end, probabilities in _smoothed(answered, smooth):
                windows.add(start, end, probabilities)
                on_window(end)
        segments = _segments(windows, classifier.classes, min_score)
        return VideoTimeline(
            str(source), end, classifier.classes, windows, segments, stream.damage, thumbnails.evenly()
        )


def follow(
    classifier: Classifier,
    source: str | Path | int,
    window_s: float | None = None,
    hop_s: float | None = None,
    keep_up: bool = True,
    inertia: float = 0.5,
) -> Iterator[tuple[float, Tensor]]:
    """Yields (end in seconds, probabilities) of each window of a camera or a stream, until it ends.

    Args:
        source: an address that FFmpeg reads, or the number of a camera.
        keep_up: leaves out windows that come while the network is busy; else every window is classified.
        inertia: weight of the earlier windows in the running mean of the probabilities, 0 to 1.

    Raises:
        DecodeError: if the source cannot be opened, or holds no video.
    """
    data = classifier.config.data
    with FrameStream(source, data.decode_timeout_s) as stream:
        sliding = Sliding(data, steady_fps(stream, data), window_s, hop_s)
        cut = clips_of_windows(stream, sliding, data, 1, lambda *_: None)
        smooth = None
        with closing(ahead(cut, 1, drop=True) if keep_up else ahead(cut, 4)) as made:
            for _, end, views in made:
                probabilities = classifier.average(classifier.predictor(views))
                smooth = probabilities if smooth is None else inertia * smooth + (1 - inertia) * probabilities
                yield end, smooth


def _smoothed(windows: Iterable[tuple[float, float, Tensor]], width: int) -> Iterator[tuple[float, float, Tensor]]:
    """Yields the windows, each with the mean probabilities of itself and up to `width // 2` neighbours on each side."""
    half = width // 2
    near: deque[tuple[float, float, Tensor]] = deque(maxlen=2 * half + 1)
    seen = given = 0
    for window in windows:
        near.append(window)
        seen += 1
        if seen > half:
            yield _mean_around(near, given - (seen - len(near)), half)
            given += 1
    while given < seen:
        yield _mean_around(near, given - (seen - len(near)), half)
        given += 1


def _mean_around(near: deque, at: int, half: int) -> tuple[float, float, Tensor]:
    around = [near[i][2] for i in range(max(at - half, 0), min(at + half + 1, len(near)))]
    return near[at][0], near[at][1], torch.stack(around).mean(0)


def _segments(windows: Windows, classes: tuple[str, ...], min_score: float) -> list[Segment]:
    """Merges neighbouring windows that have the same likeliest label, with a score of at least `min_score`.

    A window stands for the time around its middle, up to halfway to its neighbours' middles.
    """
    middles = (np.array(windows.starts) + np.array(windows.ends)) / 2
    borders = [0.0, *((middles[1:] + middles[:-1]) / 2).tolist(), windows.ends[-1] if len(windows) else 0.0]
    segments: list[Segment] = []
    last, scores = None, []
    for number in range(len(windows)):
        best, score = windows.tops(number)[0]
        if score < min_score:
            last = None
            continue
        if best == last:
            scores.append(score)
            start = segments.pop().start
        else:
            scores, start = [score], borders[number]
        mean = float(np.mean(scores))
        segments.append(Segment(round(start, 3), round(borders[number + 1], 3), classes[best], round(mean, 4)))
        last = best
    return segments


class _Thumbnails:
    """Collects up to 32 evenly spaced pictures of a video of unknown length: when full, every other one is dropped."""

    def __init__(self) -> None:
        self._pictures: list[tuple[float, np.ndarray]] = []
        self._every_s, self._due = 0.25, 0.0

    def add(self, seconds: float, picture: np.ndarray) -> None:
        if seconds >= self._due:
            self._pictures.append((seconds, picture))
            self._due = seconds + self._every_s
        if len(self._pictures) > _THUMBNAILS:
            self._pictures = self._pictures[::2]
            self._every_s *= 2

    def evenly(self, count: int = 10) -> list[tuple[float, np.ndarray]]:
        last = len(self._pictures) - 1
        return [self._pictures[i] for i in sorted({round(i) for i in np.linspace(0, last, min(count, last + 1))})]
