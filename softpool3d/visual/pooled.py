"""Pools the pixels of a clip by any kind of pooling, once or several times.

Pixels lie in [0, 1], whatever the kind. That matters to SoftPool, whose weights depend on the scale: on [0, 1], beta 1
is close to average pooling; beta 255 is SoftPool with beta 1 on [0, 255], and close to max pooling.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softpool3d.config_file import pool_config
from softpool3d.errors import UsageError
from softpool3d.models.pools import KINDS, Window, make_pool
from softpool3d.visual.source import Source

Kernel = tuple[int, int, int]
STRIDE = "stride"
_REACH_FAR = ("blur", "lip")  # read more than their windows: a filter's margin, statistics of the whole clip
_PORTION = 32  # frames that are pooled at a time, where windows are independent of each other


@dataclass(frozen=True)
class Pooling:
    """A kind of pooling with its settings.

    layer: takes float (1, 3, T, H, W).
    portion: number of frames that are pooled at a time; None for the whole clip.
    """

    label: str
    layer: Callable[[Tensor], Tensor]
    portion: int | None


@dataclass(frozen=True)
class Pooled:
    """A clip pooled `level` times, to float32 (T', 3, H', W'): T, H and W divided by `factor`, rounded down."""

    label: str
    level: int
    factor: Kernel
    frames: Tensor

    @property
    def shrink(self) -> str:
        """The factor as text, such as 4x, or 1x4x4 where time shrinks by another factor."""
        each = self.factor if len(set(self.factor)) > 1 else self.factor[:1]
        return f"{'x'.join(map(str, each))}{'x' if len(each) == 1 else ''}"


def poolings(kinds: Sequence[str], betas: Sequence[float], kernel: Kernel) -> list[Pooling]:
    """Returns the poolings of these kinds, with soft once for each of `betas`.

    Raises:
        UsageError: for a kind that does not exist.
    """
    result = []
    for kind in kinds:
        for beta in betas if kind == "soft" else betas[:1]:
            result.append(_pooling(kind, beta, kernel))
    return result


def _pooling(kind: str, beta: float, kernel: Kernel) -> Pooling:
    if kind == STRIDE:
        return Pooling("stride", lambda x: _first_of_each_window(x, kernel), _PORTION)
    if kind not in KINDS:
        known = [*KINDS, STRIDE]
        near = difflib.get_close_matches(kind, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--pools: unknown kind of pooling {kind!r}{hint} (known: {', '.join(known)})")
    options = pool_config(kind=kind, beta=beta)
    layer = make_pool(options, Window(kernel, kernel, (0, 0, 0), (1, 1, 1)), channels=3).eval()
    label = {"soft": f"soft, beta {beta:g}", "lp": f"lp, p {options.p:g}"}.get(kind, kind)
    if next(layer.parameters(), None) is not None:
        label += ", initial weights"
    return Pooling(label, layer, None if kind in _REACH_FAR else _PORTION)


def _first_of_each_window(x: Tensor, kernel: Kernel) -> Tensor:
    """Returns the values that a stride without pooling keeps."""
    whole = [slice(0, n // k * k, k) for n, k in zip(x.shape[2:], kernel, strict=True)]
    return x[(..., *whole)]


def check_size(source: Source, kernel: Kernel, repeat: int) -> None:
    """Raises UsageError if the clip is too short or too small to be pooled `repeat` times."""
    sizes = (source.frames.shape[0], *source.frames.shape[2:])
    times = [_times(size, k) for size, k in zip(sizes, kernel, strict=True)]
    if min(times) >= repeat:
        return
    name, most = ("frames", "rows", "columns")[times.index(min(times))], min(times)
    text = "x".join(map(str, kernel))
    remedy = f"--repeat {most} is the most" if most else "a smaller --kernel fits"
    if not most and times[0] == 0 and min(times[1:]) >= repeat:
        remedy = f"--kernel 1,{kernel[1]},{kernel[2]} leaves time alone"
    raise UsageError(
        f"{source.path}: {source.size} has too few {name} to be pooled by {text} {_often(repeat)}; {remedy}"
    )


def _times(size: int, k: int) -> int:
    """Returns how many times `size` can be divided by k, rounded down, and still be at least 1."""
    times = 0
    while k > 1 and size >= k:
        size, times = size // k, times + 1
    return times if k > 1 else 1 << 30


def _often(repeat: int) -> str:
    return {1: "once", 2: "twice"}.get(repeat, f"{repeat} times")


@torch.inference_mode()
def pool_clip(frames: Tensor, pooling: Pooling, kernel: Kernel, repeat: int = 1) -> list[Pooled]:
    """Returns the clip pooled once, twice, ... `repeat` times, each from the one before.

    Args:
        frames: uint8 (T, 3, H, W).
    """
    result, x = [], frames
    for level in range(1, repeat + 1):
        x = _pool(x, pooling, kernel[0])
        result.append(Pooled(pooling.label, level, tuple(k**level for k in kernel), x))
    return result


def _pool(x: Tensor, pooling: Pooling, kernel_t: int) -> Tensor:
    if pooling.portion is None:
        portions = [x]
    else:
        end, step = len(x) // kernel_t * kernel_t, kernel_t * max(1, pooling.portion // kernel_t)
        portions = [x[a : min(a + step, end)] for a in range(0, end, step)]
    return torch.cat([pooling.layer(unit(p).transpose(0, 1)[None])[0].transpose(0, 1) for p in portions])


def unit(frames: Tensor) -> Tensor:
    """Returns frames as floats: uint8 becomes float32 in [0, 1], floats stay as they are."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames


def as_pixels(frames: Tensor) -> Tensor:
    """Returns frames as uint8, from floats in [0, 1] or from uint8."""
    return frames if frames.dtype == torch.uint8 else (frames * 255).round().clamp(0, 255).to(torch.uint8)
