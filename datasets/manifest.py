"""The manifest: the one list of clips that every data set becomes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clip:
    """One labelled video, or the part of it from `start` to `end` (seconds; None: from the beginning, to the end)."""

    path: str
    label: int
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Manifest:
    """The clips of one split; `Clip.label` counts into `classes`."""

    classes: tuple[str, ...]
    clips: tuple[Clip, ...]

    def __len__(self) -> int:
        return len(self.clips)
