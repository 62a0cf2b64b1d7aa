"""Classifies a window that slides over a whole video, in constant memory.

    time       0 s       1 s       2 s       3 s
    window 0   [---------|---------]
    window 1             [---------|---------]            of 2 s, with a hop of 1 s from start to start
    window 2                       [---------|---------]

Frames are decoded once, in a thread of their own, and overlapping windows share them. Only frames that some window
needs are kept, at the network's size, until the last such window is done. Of each window the five likeliest classes are
kept.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from softpool3d.config import DataConfig
from softpool3d.datasets.loader import crop_views
from softpool3d.datasets.sampling import FrameTimes, clip_span, view_indices
from softpool3d.datasets.video.damage import Damage
from softpool3d.datasets.video.pyav_reader import Scaler
from softpool3d.datasets.video.stream import FrameStream, ahead, steady
from softpool3d.inference.classifier import Classifier

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


class Sliding:
    """Computes which frames each window needs.

    Frames are numbered at the constant rate at which `steady` yields them. Inside a window, clips lie as in testing.

    Args:
        data: the network's settings of data.
        fps: frames per second.
        window_s, hop_s: length of the windows, and distance between the starts of two, in seconds; by default the span
            of one clip, and half a window.
        num_clips: number of clips in each window.
    """

    def __init__(
        self, data: DataConfig, fps: float, window_s: float | None, hop_s: float | None, num_clips: int = 1
    ) -> None:
        rate = data.sampling_rate * (fps / data.target_fps if data.target_fps else 1)
        span = clip_span(data.num_frames, rate) if window_s is None else round(window_s * fps)
        self.fps, self.span = fps, max(span, 1)
        self.hop = max(hop_s * fps if hop_s is not None else self.span / 2, 1.0)
        self.offsets = np.stack(view_indices(FrameTimes(np.arange(self.span) / fps, fps, False), data, num_clips))
        self._needed = frozenset(self.offsets.ravel().tolist())

    def start(self, window: int) -> int:
        return round(window * self.hop)

    def exists(self, window: int, frames: int) -> bool:
        """Whether a video of so many frames has this window. The last one reaches the video's end, or beyond it."""
        return window == 0 or self.start(window - 1) + self.span < frames

    def needs(self, frame: int, window: int) -> bool:
        """Whether this window or a later one needs the frame."""
        while (start := self.start(window)) <= frame:
            if frame - start in self._needed:
                return True
            window += 1
        return False


def clips_of_windows(
    stream: FrameStream, sliding: Sliding, data: DataConfig, num_crops: int, see: Callable[[float, np.ndarray], None]
) -> Iterator[tuple[float, float, Tensor]]:
    """Yields (start, end, views) of each window: seconds, and uint8 (V, C, T, crop_size, crop_size).

    Beyond the video's end, its last frame is repeated.

    Args:
        see: called with the time, in seconds, and the picture of each frame that is kept.
    """
    scale = Scaler(data.short_side, stream.name)
    kept: dict[int, np.ndarray] = {}
    window = 0
    number, frame, same = -1, None, None
    picture = None

    def cut(end: int | None) -> tuple[float, float, Tensor]:
        start = sliding.start(window)
        indices = start + sliding.offsets
        frames = kept if end is None else {i: kept[min(i, end - 1)] for i in indices.ravel().tolist()}
        clips = torch.from_numpy(np.stack([np.stack([frames[i] for i in clip]) for clip in indices.tolist()]))
        stop = start + sliding.span if end is None else min(start + sliding.span, end)
        views = crop_views(clips.permute(0, 1, 4, 2, 3), data, num_crops)
        return start / sliding.fps, stop / sliding.fps, views

    for number, frame in steady(stream, sliding.fps):  # noqa: B007 (used after the loop)
        if sliding.needs(number, window):
            if frame is not same:
                picture, same = scale(frame), frame
                see(number / sliding.fps, picture)
            kept[number] = picture
        while number == sliding.start(window) + sliding.span - 1:
            yield cut(None)
            window += 1
            for old in [i for i in kept if i < sliding.start(window)]:
                del kept[old]
    total = number + 1
    kept[total - 1] = scale(frame)
    while sliding.exists(window, total):
        yield cut(total)
        window += 1


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
        num_clips = classifier.num_clips if classifier.clips_are_set else 1
        sliding = Sliding(data, _steady_fps(stream, data), window_s, hop_s, num_clips)
        cut = clips_of_windows(stream, sliding, data, classifier.num_crops, thumbnails.add)
        end = 0.0
        with closing(ahead(cut, 4)) as made:
            for start, end, probabilities in _smoothed(_classified(classifier, made), smooth):
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
        sliding = Sliding(data, _steady_fps(stream, data), window_s, hop_s)
        cut = clips_of_windows(stream, sliding, data, 1, lambda *_: None)
        smooth = None
        with closing(ahead(cut, 1, drop=True) if keep_up else ahead(cut, 4)) as made:
            for _, end, views in made:
                probabilities = classifier.average(classifier.predictor(views))
                smooth = probabilities if smooth is None else inertia * smooth + (1 - inertia) * probabilities
                yield end, smooth


def _steady_fps(stream: FrameStream, data: DataConfig) -> float:
    """Returns the constant rate, in frames per second, at which windows are cut: the stream's own.

    If that varies, it is no lower than `target_fps`, so that no frame is lost where frames come faster than on average.
    """
    if stream.rate.is_even or not data.target_fps:
        return stream.fps
    return max(stream.fps, data.target_fps)


def _classified(
    classifier: Classifier, windows: Iterable[tuple[float, float, Tensor]]
) -> Iterator[tuple[float, float, Tensor]]:
    """Yields (start, end, probabilities) of each window; several go through the network in one batch."""
    windows = iter(windows)
    while first := next(windows, None):
        more = max(classifier.predictor.batch.next // len(first[2]), 1) - 1
        some = [first, *islice(windows, more)]
        logits = classifier.predictor(torch.cat([views for _, _, views in some])).split(len(first[2]))
        for (start, end, _), of_window in zip(some, logits, strict=True):
            yield start, end, classifier.average(of_window)


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
