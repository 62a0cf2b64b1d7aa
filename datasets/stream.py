"""A video read once, from its beginning, in constant memory: files of any length, streams, cameras.

stream, picture = FrameStream("match.mp4"), Scaler(128)
for number, frame in steady(stream):    # a frame for each 1 / stream.fps seconds
    picture(frame)                      # uint8 (H, W, 3), its shorter side 128 pixels
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from softpool3d.datasets.decoder import check_file
from softpool3d.datasets.frame_index import DecodeError, errors_of, video_stream
from softpool3d.datasets.remote import is_address

Item = TypeVar("Item")

_LEAP_S = 10.0  # a pause longer than this between two frames is a clock that was set, not a picture that stood still


class FrameStream:
    """The frames of the default video stream as PyAV decodes them, with the time at which each is shown.

    Packets that cannot be decoded are left out and counted in `broken`.

    Args:
        source: a file, or an address that FFmpeg reads: http, rtsp, rtmp, udp, ...; a number is a camera's.
        timeout_s: seconds without an answer after which the source counts as gone.

    Raises:
        DecodeError: if it cannot be opened, or holds no video.
    """

    def __init__(self, source: str | Path | int, timeout_s: float = 30.0) -> None:
        import av

        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        self.broken = 0
        place, kind = _camera(source) if isinstance(source, int) else (str(source), None)
        if not isinstance(source, int) and not is_address(source):
            check_file(source)
        with errors_of(self.name):
            self._container = av.open(place, format=kind, metadata_errors="replace", timeout=timeout_s)
            if not self._container.streams.video:
                self._container.close()
                raise DecodeError(self.name, "it has no video stream")
            self._stream = video_stream(self._container)
        self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.duration = self._duration()

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        """(seconds from the first frame, PyAV's frame), in the order in which they are shown."""
        import av

        offset = last = None
        with errors_of(self.name):
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    self.broken += 1
                    continue
                for frame in frames:
                    time = frame.time
                    if time is None:
                        time = 0.0 if last is None else last + offset + 1 / self.fps
                    if offset is None:
                        offset = time
                    elif not 0 < time - offset - last < _LEAP_S:  # a clock that was set: it goes on from here
                        offset = time - last - 1 / self.fps
                    last = time - offset
                    yield last, frame
        if last is None:
            raise DecodeError(self.name, "its video stream has no frames")

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _duration(self) -> float | None:
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / 1e6 if self._container.duration else None


def steady(stream: FrameStream) -> Iterator[tuple[int, Any]]:
    """(n, the frame that is shown n / fps seconds after the first): each once where the rate is constant."""
    number, shown, time = 0, None, 0.0
    for next_time, frame in stream:
        # half a frame late, so that rounded timestamps do not show the frame before
        while shown is not None and (number + 0.5) / stream.fps < next_time:
            yield number, shown
            number += 1
        shown, time = frame, next_time
    while (number + 0.5) / stream.fps < time + 1 / stream.fps:
        yield number, shown
        number += 1


def ahead(items: Iterable[Item], count: int, drop: bool = False) -> Iterator[Item]:
    """The items, made in a thread of their own, up to `count` ahead.

    Args:
        drop: where they are not taken in time, the oldest of those that are ready are left out.
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


def _camera(number: int) -> tuple[str, str]:
    """FFmpeg's name of a camera, and of what reads it."""
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    if sys.platform == "win32":
        return f"video={number}", "dshow"
    return f"/dev/video{number}", "v4l2"
