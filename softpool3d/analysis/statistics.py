"""Mean, spread, and what a few paired runs say about a difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its t interval, which is None for a single pair."""

    pairs: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None

    @property
    def excludes_zero(self) -> bool:
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def paired_difference(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Difference:
    """Returns the mean of first - second over pairs, and its interval: mean +- t(level, n - 1) s / sqrt(n)."""
    pairs = tuple(a - b for a, b in zip(first, second, strict=True))
    mean = statistics.fmean(pairs)
    if len(pairs) < 2:
        return Difference(pairs, mean, None)
    half = t_quantile(level, len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(pairs, mean, (mean - half, mean + half))


def grouped_interval(
    values: Sequence[float], groups: Sequence[str], level: float = 0.95, draws: int = 4000
) -> tuple[float, float] | None:
    """Returns the bootstrap's percentile interval of the mean of `values`.

    None where it would be nonsense: with one group, and where all values are the same.

    Whole groups are drawn with replacement: the clips of one person are alike, and count as one observation.

    Args:
        values: a value for each clip. groups: whose clip each is.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2 or len(set(values)) == 1:
        return None
    sums, counts = np.bincount(index, np.asarray(values)), np.bincount(index)
    drawn = np.random.default_rng(0).integers(len(names), size=(draws, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def spread(values: Sequence[float]) -> float | None:
    """Returns the standard deviation of a sample; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def t_quantile(level: float, freedom: int) -> float:
    """Returns t: Student's distribution with `freedom` degrees has `level` of its mass between -t and t."""
    low, high = 0.0, 1.0
    while _mass_within(high, freedom) < level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _mass_within(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _mass_within(t: float, freedom: int) -> float:
    """Returns the mass between -t and t, by the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total
