"""Measures what is missing of a video file, and decides whether the file is bad. All readers follow this rule.

What decodes is used: at a moment whose frame is missing, the frame before it is shown, as players do. The missing
seconds are reported. A file with a larger share missing than `data.max_missing` is bad.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from softpool3d.datasets.video.rate import Rate

MAX_MISSING = 0.1  # the default of the share of a file that may be missing


@dataclass(frozen=True)
class Damage:
    """What is missing of a file.

    length_s: what the file promises, in seconds.
    cut_s: how much of that is missing at its end.
    undecodable_s: how much is there and cannot be decoded.
    is_unfinished: its last part is not whole, and nobody knows how much followed (transport streams, fragments).
    """

    length_s: float
    cut_s: float = 0.0
    undecodable_s: float = 0.0
    is_unfinished: bool = False

    def __bool__(self) -> bool:
        return bool(self.missing_s) or self.is_unfinished

    @property
    def missing_s(self) -> float:
        return min(self.cut_s + self.undecodable_s, self.length_s)

    def is_bad(self, max_missing: float) -> bool:
        return is_too_much(self.missing_s, self.length_s, max_missing)

    def __str__(self) -> str:
        parts = []
        if self.cut_s:
            parts.append(f"it breaks off after {self.length_s - self.cut_s:.1f} of {self.length_s:.1f} seconds")
        elif self.is_unfinished:
            parts.append("it breaks off: its last part is not whole, and how much followed is unknown")
        if self.undecodable_s:
            parts.append(f"{self.undecodable_s:.2g} of {self.length_s:.1f} seconds cannot be decoded")
        return ", and ".join(parts)


@dataclass
class Count:
    """How many frames the packets of a stream promised, and how many of them could be decoded."""

    promised: int = 0
    decoded: int = 0

    def undecodable_s(self, rate: Rate, is_interlaced: bool) -> float:
        """Returns how much could not be decoded, in seconds."""
        promised = self.promised
        if is_interlaced and self.decoded < 0.6 * promised:  # each field has a packet of its own
            promised //= 2
        return max(promised - self.decoded, 0) / rate.fps


def is_too_much(missing_s: float, length_s: float, max_missing: float) -> bool:
    """Whether so many missing seconds make a file of this length bad."""
    return missing_s > max_missing * length_s + 1e-9


def is_cut_off(path: str, container_name: str) -> bool:
    """Whether a file ends in the middle of one of its parts, by the sizes that the parts state.

    This is for containers that do not state their length: transport streams and MP4 in fragments. Others give False.
    """
    if container_name == "mpegts":
        return _is_cut_transport_stream(path)
    if "mp4" in container_name:
        return _is_cut_in_a_fragment(path)
    return False


def _is_cut_transport_stream(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(5)
        size = os.fstat(file.fileno()).st_size
    if head[:1] == b"\x47":
        return size % 188 != 0
    return head[4:5] == b"\x47" and size % 192 != 0  # M2TS: four bytes of time before each packet


def _is_cut_in_a_fragment(path: str) -> bool:
    """Walks over the boxes of an MP4 file: 4 bytes of size, 4 of type; after a size of 1, the size is in the next 8."""
    fragments, at = False, 0
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        while at + 8 <= end:
            file.seek(at)
            head = file.read(16)
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            fragments |= kind == b"moof"
            if size < 8:  # 0: to the end of the file; else this is no box
                return False
            at += size
    return fragments and at > end
