"""What a choice of settings starts from: what the videos are like, and what the machine has."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from softpool3d.config import DataConfig
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.parallel import cores
from softpool3d.datasets.video.decoder import DecodeError, open_video
from softpool3d.errors import UsageError
from softpool3d.runtime.devices import pick_device

_MOST, _PATIENCE_S = 100, 20.0  # videos that are looked at; and for how long, on slow disks


@dataclass(frozen=True)
class Span:
    """The lowest, the median and the highest of a quantity."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Span:
        return cls(float(np.min(values)), float(np.median(values)), float(np.max(values)))

    def text(self, unit: str = "", digits: int = 0) -> str:
        low, high = (f"{value:.{digits}f}" for value in (self.low, self.high))
        return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


@dataclass(frozen=True)
class Videos:
    """What the videos are like; those that were looked at stand for all.

    clips: of each split. fewest, most: training clips of the classes that have any. seconds, fps, short_side: of the
    `looked_at` clips. long_side: the median. portrait: the share that is higher than wide. unreadable: those that could
    not be read, each with the reason.
    """

    classes: tuple[str, ...]
    clips: dict[str, int]
    fewest: int
    most: int
    multi_label: bool
    looked_at: int
    seconds: Span
    fps: Span
    short_side: Span
    portrait: float
    unreadable: tuple[str, ...]

    def __str__(self) -> str:
        total, shape = sum(self.clips.values()), "portrait and landscape" if 0 < self.portrait < 1 else ""
        per_class = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
        size = f"short side {self.short_side.text(' pixels')}"
        lines = (
            f"{total} videos of {len(self.classes)} classes, {per_class} of each to train on; {self.looked_at} looked "
            f"at: {self.seconds.text(' s', 1)}, {self.fps.text(' frames/s')}, {size}{f', {shape}' if shape else ''}"
        )
        if self.unreadable:
            lines += f"\n{len(self.unreadable)} of these could not be read: {self.unreadable[0]}"
        return lines


@dataclass(frozen=True)
class Machine:
    """What trains: `cores` of the CPU, and a GPU if `gpu` names one. memory_gb: the GPU's, else the machine's."""

    device: str
    cores: int
    memory_gb: float
    gpu: str = ""
    bf16: bool = False

    def __str__(self) -> str:
        if self.gpu:
            return f"{self.gpu} with {self.memory_gb:.0f} GB, {self.cores} cores"
        return f"{self.cores} core{'s' if self.cores > 1 else ''}, {self.memory_gb:.0f} GB, no GPU"


def look_at_videos(manifests: dict[str, Manifest], data: DataConfig) -> Videos:
    """Returns what the videos are like, from a hundred of them, evenly spread over the lists.

    Raises:
        UsageError: if none of those can be read.
    """
    clips = [clip for manifest in manifests.values() for clip in manifest.clips]
    facts, unreadable, began = [], [], time.monotonic()
    for clip in _some(clips):
        if time.monotonic() - began > _PATIENCE_S and facts:
            break
        try:
            facts.append(_facts(clip, data))
        except DecodeError as error:
            unreadable.append(str(error))
    if not facts:
        raise UsageError(f"data.root: none of the {len(unreadable)} videos looked at can be read; {unreadable[0]}")
    seconds, fps, heights, widths = map(np.array, zip(*facts, strict=True))
    counts = manifests["train"].class_counts()
    return Videos(
        classes=manifests["train"].classes,
        clips={split: len(manifest) for split, manifest in manifests.items()},
        fewest=int(counts[counts > 0].min()),
        most=int(counts.max()),
        multi_label=manifests["train"].multi_label,
        looked_at=len(facts),
        seconds=Span.of(seconds),
        fps=Span.of(fps),
        short_side=Span.of(np.minimum(heights, widths)),
        portrait=float(np.mean(heights > widths)),
        unreadable=tuple(unreadable),
    )


def look_at_machine(device: str = "auto") -> Machine:
    """Returns what the machine has, with the GPU that `device` means."""
    place = pick_device(device)
    if place.type == "cuda":
        known = torch.cuda.get_device_properties(place)
        return Machine(str(place), cores(), known.total_memory / 2**30, known.name, torch.cuda.is_bf16_supported())
    return Machine("cpu", cores(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _some(clips: list[Clip]) -> Iterator[Clip]:
    """Yields a hundred clips, every n-th, in an order in which those seen first are spread over all, too."""
    places = np.linspace(0, len(clips) - 1, min(_MOST, len(clips))).round().astype(int)
    for start in range(10):
        for place in places[start::10]:
            yield clips[place]


def _facts(clip: Clip, data: DataConfig) -> tuple[float, float, int, int]:
    """Returns the clip's seconds, frames a second, height and width."""
    with open_video(clip.path, timeout_s=data.decode_timeout_s, max_missing=data.max_missing) as video:
        first, count = video.part(clip.start, clip.end)
        height, width = video.frames([first]).shape[2:]
        return count / video.fps, video.fps, height, width
