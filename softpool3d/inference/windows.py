"""Slides a window over a whole video, in constant memory, and asks a network about each.

    time       0 s       1 s       2 s       3 s
    window 0   [---------|---------]
    window 1             [---------|---------]            of 2 s, with a hop of 1 s from start to start
    window 2                       [---------|---------]

Frames are decoded once, in a thread of their own, and overlapping windows share them. Only frames that some window
needs are kept, at the network's size, until the last such window is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from softpool3d.config import DataConfig
from softpool3d.datasets.loader import crop_views
from softpool3d.datasets.sampling import FrameTimes, clip_span, view_indices
from softpool3d.datasets.video.pyav_reader import Scaler
from softpool3d.datasets.video.stream import FrameStream, ahead, steady
from softpool3d.inference.predictor import Engine


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


def windows_of(
    engine: Engine,
    stream: FrameStream,
    window_s: float | None = None,
    hop_s: float | None = None,
    see: Callable[[float, np.ndarray], None] = lambda seconds, picture: None,
) -> Iterator[tuple[float, float, Tensor]]:
    """Yields (start, end, answer) of each window of a video: seconds, and what `engine.average` returns.

    Args:
        window_s, hop_s: in seconds; see `Sliding`.
        see: as for `clips_of_windows`.

    Raises:
        DecodeError: if the video cannot be read, or, at its end, if too much of it is missing.
    """
    data = engine.config.data
    num_clips = engine.num_clips if engine.clips_are_set else 1
    sliding = Sliding(data, steady_fps(stream, data), window_s, hop_s, num_clips)
    with closing(ahead(clips_of_windows(stream, sliding, data, engine.num_crops, see), 4)) as made:
        yield from _answered(engine, made)


def steady_fps(stream: FrameStream, data: DataConfig) -> float:
    """Returns the constant rate, in frames per second, at which windows are cut: the stream's own.

    If that varies, it is no lower than `target_fps`, so that no frame is lost where frames come faster than on average.
    """
    if stream.rate.is_even or not data.target_fps:
        return stream.fps
    return max(stream.fps, data.target_fps)


def _answered(engine: Engine, windows: Iterable[tuple[float, float, Tensor]]) -> Iterator[tuple[float, float, Tensor]]:
    """Yields (start, end, answer) of each window; several go through the network in one batch."""
    windows = iter(windows)
    while first := next(windows, None):
        more = max(engine.predictor.batch.next // len(first[2]), 1) - 1
        some = [first, *islice(windows, more)]
        outputs = engine.predictor(torch.cat([views for _, _, views in some])).split(len(first[2]))
        for (start, end, _), of_window in zip(some, outputs, strict=True):
            yield start, end, engine.average(of_window)
