"""The packets of a video stream, the frames that come of them, and how much of the file is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from softpool3d.datasets.video.damage import Count, Damage, is_cut_off
from softpool3d.datasets.video.rate import Rate

_CUT_S = 0.25  # a file that is shorter than it says by no more than this, or by two frames, is whole


class Packets:
    """Yields the packets of a container's video stream, from the beginning; afterwards `damage` says what is missing.

    Args:
        is_live: whether a read error is raised, as the end of the source. In a file, it is where the file breaks off.
    """

    def __init__(self, path: str, container, stream, is_live: bool = False) -> None:
        self._path, self._container, self.stream, self._is_live = path, container, stream, is_live
        self.codec = stream.codec_context.name
        self.length_s, from_zero, of_stream = _length_of(container, stream)
        # Where the length is that of the whole container, its sound counts too: it may go on longer than the pictures.
        self._streams = [stream] if is_live or of_stream else list(container.streams.get())
        self._first, self._end = (0.0 if from_zero else float("inf")), -float("inf")
        self._count = Count()
        self._probed: list = []

    def __iter__(self) -> Iterator:
        import av

        yield from self._probed
        self._probed = []
        try:
            for packet in self._container.demux(self._streams):
                start = packet.dts if packet.pts is None else packet.pts
                if start is not None and packet.time_base:
                    self._first = min(self._first, float(start * packet.time_base))
                    self._end = max(self._end, float((start + (packet.duration or 0)) * packet.time_base))
                if packet.stream == self.stream:  # the empty last one has no index of its own
                    yield packet
        except av.error.InvalidDataError:
            if self._is_live:
                raise

    def probe(self, count: int) -> list[float]:
        """Returns the times of the first packets that promise frames, in seconds; they come again in the iteration."""
        self._probed = list(islice(self, count))
        if self._hides_times:
            return []
        return [float(p.pts * p.time_base) for p in self._probed if p.pts is not None and self.promises_a_frame(p)]

    def promises_a_frame(self, packet) -> bool:
        """Whether a frame is to be shown for a packet.

        It is not if others only refer to it (VP8), if an edit list hides it, or if the packet may be empty (MPEG-4).
        """
        if not packet.size or packet.is_discard:
            return False
        if self.codec == "vp8":
            return bool(bytes(memoryview(packet)[:1])[0] & 0x10)
        return self.codec != "mpeg4" or packet.size >= 20

    def time(self, frame) -> float | None:
        """Returns when a frame is shown, in seconds; None if the container does not say."""
        return None if self._hides_times else frame.time

    @property
    def _hides_times(self) -> bool:
        """Whether times are of no use: AVI stores the order of decoding alone, and frames are shown in another."""
        return self._container.format.name == "avi" and self.stream.codec_context.has_b_frames > 0

    def decoded(self) -> Iterator:
        """Yields the frames as PyAV decodes them; what cannot be decoded is left out and counted."""
        import av

        for packet in self:
            self._count.promised += self.promises_a_frame(packet)
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                self._count.decoded += 1
                yield frame

    def damage(self, rate: Rate) -> Damage:
        """Returns what is missing of the file, once all packets were read."""
        there = max(self._end - self._first, 1 / rate.fps)
        promised = self.length_s or 0.0
        container_name = self._container.format.name
        unfinished = not self._is_live and os.path.isfile(self._path)
        unfinished = unfinished and (is_cut_off(self._path, container_name) or container_name == "asf" and not promised)
        cut_s = promised - there
        if self._is_live or cut_s <= max(_CUT_S, 2 / rate.fps):
            promised, cut_s = there, 0.0
        is_interlaced = self.stream.codec_context.field_order > 1
        return Damage(promised, cut_s, self._count.undecodable_s(rate, is_interlaced), unfinished)


def _length_of(container, stream) -> tuple[float | None, bool, bool]:
    """Returns the seconds that the file says it has; whether they count from time 0, and not from the first frame; and
    whether the stream says so, and not the container for all its streams together."""
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate), False, True  # FFmpeg's duration shrinks with the file
    if stream.duration:
        return float(stream.duration * stream.time_base), False, True
    with suppress(ValueError, KeyError):  # Matroska: 00:00:20.000000000
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds), True, True
    return (container.duration / 1e6 if container.duration else None), True, False
