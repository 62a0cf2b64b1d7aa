"""Finds how many frames a second a video stream has.

    rate = stream_rate(stream, times)
    rate.fps, rate.is_even

What a container says of its rate can be missing (live recordings of browsers), a unit of its clock (1000 in Matroska,
60000 in DV) or an average over a pause. So it counts if the timestamps agree with it; else they give the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROBED = 1000  # frames from the beginning that the rate is taken from: a stream has no more of them at hand
_UNKNOWN = 25.0  # where neither container nor timestamps say anything
_MOST = 480.0  # frames a second that a container may claim without timestamps that bear it out
_GAP_S, _GAP = 1.0, 5.0  # a longer interval, and so many times the usual one, is a pause and not a frame's time


@dataclass(frozen=True)
class Rate:
    """The frame rate of a video stream.

    fps: frames a second, without pauses.
    is_even: whether each frame is shown as long as the next one.
    """

    fps: float
    is_even: bool = True


def stream_rate(stream, times: Sequence[float] | np.ndarray = ()) -> Rate:
    """Returns the rate of a PyAV video stream.

    Args:
        times: seconds at which its first frames are shown, in any order; those after the first 1000 do not count.
    """
    claims = [float(claim) for claim in (stream.average_rate, stream.guessed_rate) if claim]
    rate = rate_of(times, claims, float(stream.time_base or 0))
    if stream.codec_context.field_order > 1 and any(abs(2 * claim / rate.fps - 1) < 0.02 for claim in claims):
        return Rate(rate.fps / 2, rate.is_even)  # fields in packets of their own: two are one frame
    return rate


def rate_of(times: Sequence[float] | np.ndarray, claims: Sequence[float] = (), tick: float = 0.0) -> Rate:
    """Returns the rate that timestamps have, exactly as claimed where one of the claims agrees with them.

    Args:
        times: seconds at which frames are shown.
        claims: frames a second that the container names, the most trusted one first.
        tick: seconds that timestamps are rounded to.
    """
    intervals = np.diff(np.unique(np.asarray(times, np.float64))[:PROBED])
    if not len(intervals):
        return Rate(next((claim for claim in claims if claim <= _MOST), _UNKNOWN))
    usual = float(np.median(intervals))
    intervals = intervals[intervals <= max(_GAP_S, _GAP * usual)]
    measured = 1 / float(intervals.mean())
    # Rounded timestamps are off by a tick at both ends.
    tolerance = 0.02 + 2 * tick * measured / len(intervals)
    even = next((claim for claim in claims if _is_even(intervals, claim, tick)), None)
    if even is not None:  # a frame missing here and there makes no other rate
        return Rate(even)
    fps = next((claim for claim in claims if abs(claim / measured - 1) <= tolerance), measured)
    return Rate(fps, _is_even(intervals, fps, tick))


def _is_even(intervals: np.ndarray, fps: float, tick: float) -> bool:
    return bool((np.abs(intervals - 1 / fps) <= 0.1 / fps + 1.5 * tick).mean() >= 0.9)
