"""Which frames of a video make a clip: pure index arithmetic, no I/O.

A clip of `num_frames` at `sampling_rate` spans (num_frames - 1) * sampling_rate + 1 frames of the video. Where the
video is shorter, the indices "loop" (start again) or "hold" (stay on the last frame).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Short = Literal["loop", "hold"]


def clip_span(num_frames: int, sampling_rate: int) -> int:
    """Frames of the video from the clip's first to its last, both counted."""
    return (num_frames - 1) * sampling_rate + 1


def frames_from(start: int, total: int, num_frames: int, sampling_rate: int, short: Short = "loop") -> np.ndarray:
    """Indices start, start + rate, ...; those past the end of the video looped or held. int64, (num_frames,)."""
    if total < 1:
        raise ValueError(f"a video of {total} frames has no clips")
    indices = start + np.arange(num_frames, dtype=np.int64) * sampling_rate
    return indices % total if short == "loop" else np.minimum(indices, total - 1)


def random_clip(
    total: int, num_frames: int, sampling_rate: int, rng: np.random.Generator, short: Short = "loop"
) -> np.ndarray:
    """A clip that starts anywhere in the video where it fits."""
    start = int(rng.integers(max(total - clip_span(num_frames, sampling_rate), 0) + 1))
    return frames_from(start, total, num_frames, sampling_rate, short)


def spaced_clips(
    total: int, num_frames: int, sampling_rate: int, num_clips: int, short: Short = "loop"
) -> list[np.ndarray]:
    """`num_clips` clips spaced evenly from the first possible start to the last; a single one is centred."""
    room = max(total - clip_span(num_frames, sampling_rate), 0)
    starts = [room // 2] if num_clips == 1 else np.linspace(0, room, num_clips).round().astype(int)
    return [frames_from(int(start), total, num_frames, sampling_rate, short) for start in starts]


def segment_frames(total: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame from each of `num_frames` equal segments of the whole video (TSN, arXiv 1608.00859).

    A random frame of each segment with `rng`, else its middle. int64, (num_frames,), ascending.
    """
    if total < 1:
        raise ValueError(f"a video of {total} frames has no clips")
    offsets = rng.random(num_frames) if rng is not None else np.full(num_frames, 0.5)
    return np.minimum((np.arange(num_frames) + offsets) * total / num_frames, total - 1).astype(np.int64)
