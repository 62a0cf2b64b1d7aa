"""Chooses which frames of a video make a clip: pure index arithmetic, no I/O.

A clip of `num_frames` at `rate` spans (num_frames - 1) * rate + 1 frames of the video; the rate need not be whole.
Where the video is shorter, the indices "loop" (start again) or "hold" (stay on the last frame).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from softpool3d.config import DataConfig

Short = Literal["loop", "hold"]
Spacing = Literal["centres", "ends", "starts"]


def clip_span(num_frames: int, rate: float) -> int:
    """Returns the number of frames of the video from the clip's first to its last, both counted."""
    return int((num_frames - 1) * rate + 1e-6) + 1


def frames_from(start: int, total: int, num_frames: int, rate: float, short: Short = "loop") -> np.ndarray:
    """Returns start, start + rate, ..., looped or held past the end of the video: int64 (num_frames,)."""
    return _fit(start + np.arange(num_frames) * rate, total, short)


def random_clip(
    total: int,
    num_frames: int,
    rate: float,
    rng: np.random.Generator,
    short: Short = "loop",
    jitter: float = 0.0,
) -> np.ndarray:
    """Returns a clip that starts anywhere in the video where it fits; frames move by up to `jitter * rate / 2`."""
    start = int(rng.integers(max(total - clip_span(num_frames, rate), 0) + 1))
    if not jitter:
        return frames_from(start, total, num_frames, rate, short)
    moves = rng.uniform(-0.5, 0.5, num_frames) * jitter * rate
    positions = start + np.arange(num_frames) * rate + moves
    if clip_span(num_frames, rate) <= total:  # a clip that fits stays within the video
        positions = positions.clip(0, total - 1)
    return _fit(np.round(positions).clip(0), total, short)


def spaced_clips(
    total: int, num_frames: int, rate: float, num_clips: int, short: Short = "loop", spacing: Spacing = "centres"
) -> list[np.ndarray]:
    """Returns `num_clips` clips at equal distances; a single one is centred.

    Args:
        spacing: where clips start, of all places where one fits. "centres": in the middle of each of `num_clips` equal
            parts; "ends": from the first place to the last; "starts": where each of the equal parts begins.
    """
    room = max(total - clip_span(num_frames, rate), 0)
    number = np.arange(num_clips)
    if spacing == "centres" or num_clips == 1:
        starts = room * (2 * number + 1) // (2 * num_clips)
    elif spacing == "ends":
        starts = np.linspace(0, room, num_clips).round().astype(int)
    else:
        starts = room * number // num_clips
    return [frames_from(int(start), total, num_frames, rate, short) for start in starts]


def segment_frames(total: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Returns one frame from each of `num_frames` equal segments of the whole video (TSN, arXiv 1608.00859).

    With `rng` it is a random frame of the segment, else its middle: int64 (num_frames,), ascending.
    """
    offsets = rng.random(num_frames) if rng is not None else np.full(num_frames, 0.5)
    return _fit((np.arange(num_frames) + offsets) * total / num_frames, total, "hold")


@dataclass(frozen=True)
class FrameTimes:
    """A video, or a clip's part of it, as the sampling functions see it: `total` frames at a constant rate.

    Args:
        times: float64, ascending, seconds at which the frames are shown.
        fps: frames a second, on average.
        by_time: whether the frames seen are those of a video that shows the same at a constant `fps`, instead of the
            video's own frames.
    """

    times: np.ndarray
    fps: float
    by_time: bool

    @property
    def total(self) -> int:
        return round((self.times[-1] - self.times[0]) * self.fps) + 1 if self.by_time else len(self.times)

    def frames(self, indices: np.ndarray) -> np.ndarray:
        """Returns the frames of the video that are shown at these indices, counted from the first of `times`."""
        if not self.by_time:
            return indices
        # half a frame late, so that rounded timestamps do not show the frame before
        due = self.times[0] + (indices + 0.5) / self.fps
        return np.searchsorted(self.times, due, "right").clip(1) - 1


def train_indices(timeline: FrameTimes, data: DataConfig, rng: np.random.Generator, share: float = 1.0) -> np.ndarray:
    """Returns the frames of a training clip, as `data` asks: int64, counted from the first frame of the timeline.

    Args:
        share: how much of `data.num_frames` the clip has, over the same time.
    """
    total, frames = timeline.total, share_of(data.num_frames, share)
    rate = _rate(timeline, data) * data.num_frames / frames
    if data.sampling == "uniform":
        indices = segment_frames(total, frames, rng)
    elif data.sampling == "centred":
        (indices,) = spaced_clips(total, frames, rate, 1, data.short_clip)
    else:
        indices = random_clip(total, frames, rate, rng, data.short_clip, data.jitter)
    return timeline.frames(indices)


def view_indices(
    timeline: FrameTimes, data: DataConfig, num_clips: int, spacing: Spacing | None = None
) -> list[np.ndarray]:
    """Returns the frames of each evaluation clip. With `sampling: uniform` all would be the same, so there is one.

    Args:
        spacing: `data.test_spacing` if not given.
    """
    total = timeline.total
    if data.sampling == "uniform":
        clips = [segment_frames(total, data.num_frames)]
    else:
        rate = _rate(timeline, data)
        clips = spaced_clips(total, data.num_frames, rate, num_clips, data.short_clip, spacing or data.test_spacing)
    return [timeline.frames(indices) for indices in clips]


def share_of(size: int, share: float) -> int:
    """Returns a share of a number of frames or pixels, rounded, and at least 1."""
    return max(round(size * share), 1)


def _rate(timeline: FrameTimes, data: DataConfig) -> float:
    return data.sampling_rate * (timeline.fps / data.target_fps if data.target_fps else 1)


def _fit(positions: np.ndarray, total: int, short: Short) -> np.ndarray:
    if total < 1:
        raise ValueError(f"a video of {total} frames has no clips")
    indices = np.floor(positions + 1e-6).astype(np.int64)
    return indices % total if short == "loop" else np.minimum(indices, total - 1)
