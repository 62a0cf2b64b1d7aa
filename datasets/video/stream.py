"""Reads a video once, from its beginning, in constant memory: files of any length, streams, cameras.

stream, picture = FrameStream("match.mp4"), Scaler(128)
for number, frame in steady(stream):    # a frame for each 1 / stream.fps seconds
    picture(frame)                      # uint8 (H, W, 3), its shorter side 128 pixels
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from softpool3d.datasets.video.containers import is_address, open_camera, open_place
from softpool3d.datasets.video.damage import MAX_MISSING, Damage
from softpool3d.datasets.video.decoder import check_damage, check_file
from softpool3d.datasets.video.frame_index import DecodeError, errors_of, probed_rate, video_stream, with_video
from softpool3d.datasets.video.packets import Packets
from softpool3d.datasets.video.rate import Rate, stream_rate

Item = TypeVar("Item")

_LEAP_S = 10.0  # a pause longer than this of a live stream is a clock that was set, not a picture that stood still
_LATE_S = 1.0  # a frame whose time lies less than this before the last one's comes late, as after damage
_PROBED = 64  # packets that the rate of a live stream is taken from
_CLOSING_S = 1.0  # closing waits so long for a thread that reads


class FrameStream:
    """The frames of the default video stream as PyAV decodes them, with the time at which each is shown.

    What cannot be decoded is left out, and counted in `damage`. One thread may read while another one closes.

    Args:
        source: a file, or an address that FFmpeg reads: http, rtsp, rtmp, udp, ...; a number is a camera's.
        timeout_s: seconds without an answer after which the source counts as gone.
        max_missing: the share of a file that may be missing (damage.py).

    Attributes:
        is_live: whether its end is unknown: a camera, or an address without a duration.
        duration: seconds, where that is known.
        damage: what was missing, once all frames are out; None before, and for live sources.

    Raises:
        DecodeError: if it cannot be opened, or holds no video.
    """

    def __init__(self, source: str | Path | int, timeout_s: float = 30.0, max_missing: float = MAX_MISSING) -> None:
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        self.damage: Damage | None = None
        self._max_missing = max_missing
        self._lock, self._is_closed = threading.Lock(), False
        is_camera = isinstance(source, int)
        is_file = not is_camera and not is_address(source)
        if is_file:
            check_file(source)
        with errors_of(self.name):
            container = open_camera(source, timeout_s) if is_camera else open_place(str(source), timeout_s)
            self._container = with_video(self.name, container)
            stream = video_stream(self._container)
            self.is_live = not is_file and not self._container.duration
            self._packets = Packets(self.name, self._container, stream, self.is_live)
        self._place, self._timeout_s = str(source), timeout_s
        self.duration = self._packets.length_s

    @cached_property
    def rate(self) -> Rate:
        """Frames a second, and whether they are evenly spaced; packets are read for it when it is first asked for."""
        if not self.is_live:
            return probed_rate(self._place, self._timeout_s)
        with errors_of(self.name):
            return stream_rate(self._packets.stream, self._packets.probe(_PROBED))

    @cached_property
    def fps(self) -> float:
        """Frames a second."""
        return self.rate.fps

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        """Yields (seconds from the first frame, PyAV's frame), in the order in which frames are shown.

        Raises:
            DecodeError: at the end, where too much of a file was missing; for a live source also when it breaks off.
        """
        clock, frames = _Clock(self.fps, self.is_live, self.duration), self._packets.decoded()
        while (frame := self._next(frames)) is not None:
            time = clock.read(self._packets.time(frame))
            if time is not None:
                yield time, frame
        if self._is_closed:
            return
        if clock.last is None:
            raise DecodeError(self.name, "its video stream has no frames")
        if not self.is_live:
            self.damage = self._packets.damage(self.rate)
            check_damage(self.name, self.damage, self._max_missing)

    def _next(self, frames: Iterator) -> Any | None:
        with self._lock, errors_of(self.name):
            if not self._is_closed:
                return next(frames, None)
            self._container.close()  # `close` did not wait for this thread
            return None

    def close(self) -> None:
        """Closes the source, but not while another thread reads it, which would crash the interpreter.

        If that thread waits for a silent camera, it closes the source itself when it wakes up.
        """
        self._is_closed = True
        if self._lock.acquire(timeout=_CLOSING_S):
            try:
                self._container.close()
            finally:
                self._lock.release()

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Clock:
    """Turns timestamps into seconds from the first frame, ascending.

    In a file, time is what the timestamps say, long pauses included; only a live stream's clock may have been set anew.
    In both, time goes on if timestamps begin again, as in files that were joined.
    """

    def __init__(self, fps: float, is_live: bool, duration: float | None) -> None:
        self._frame_s = 1 / fps
        self._leap_s = _LEAP_S if is_live else (duration or 3600.0) + _LEAP_S  # no frame of a file can be further on
        self._offset = 0.0
        self.last: float | None = None

    def read(self, stamp: float | None) -> float | None:
        """Returns the time of a frame; None for one that comes too late to be shown."""
        if self.last is None:
            self._offset, self.last = stamp or 0.0, 0.0
            return self.last
        step = self._frame_s if stamp is None else stamp - self._offset - self.last
        if -_LATE_S < step <= 0:
            return None
        if not 0 < step < self._leap_s:
            step = self._frame_s
            self._offset = stamp - self.last - step
        self.last += step
        return self.last


def steady(stream: FrameStream, fps: float | None = None) -> Iterator[tuple[int, Any]]:
    """Yields (n, the frame shown n / fps seconds after the first); each comes once if the rate is constant.

    Args:
        fps: the stream's own rate if None.
    """
    fps = fps or stream.fps
    number, shown, time = 0, None, 0.0
    for next_time, frame in stream:
        # half a frame late, so that rounded timestamps do not show the frame before
        while shown is not None and (number + 0.5) / fps < next_time:
            yield number, shown
            number += 1
        shown, time = frame, next_time
    while (number + 0.5) / fps < time + 1 / stream.fps:
        yield number, shown
        number += 1


def ahead(items: Iterable[Item], count: int, drop: bool = False) -> Iterator[Item]:
    """Yields the items, which another thread makes up to `count` ahead.

    Args:
        drop: whether the oldest ready items are left out if they are not taken in time.
    """
    ready: queue.Queue = queue.Queue(count)
    end, stop = object(), threading.Event()

    def put(item: object, drop: bool = False) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0 if drop else 0.1)
            except queue.Full:
                if drop:
                    with suppress(queue.Empty):
                        ready.get_nowait()

    def work() -> None:
        try:
            for item in items:
                put(item, drop)
                if stop.is_set():
                    return
            put(end)
        except BaseException as error:  # it is raised where the items are taken
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=1.0)  # it may wait for a camera that says nothing
