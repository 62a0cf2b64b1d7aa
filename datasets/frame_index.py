"""Which frames a video file holds and when each is shown, from its packets: a few milliseconds, nothing is decoded.

    index = frame_index("clip.mp4")
    index.num_frames, index.times          # in the order in which they are shown

Where packets do not tell (AVI stores no presentation times, MPEG-4 part 2 has packets without a frame), the whole file
is decoded once instead.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softpool3d.errors import WorkError

_KEPT = 4096  # indices of files read last; one of 300 frames takes 5 KB


class DecodeError(WorkError):
    """A file that cannot be decoded, as one sentence: `path`, `reason` and, if known, its `index` in the manifest."""

    def __init__(self, path: str | Path, reason: str, index: int | None = None) -> None:
        which = "" if index is None else f" (clip {index})"
        super().__init__(f"cannot read {path}: {reason}{which}")
        self.path = str(path)
        self.reason = reason
        self.index = index

    def __reduce__(self):  # worker processes send it on, and an exception pickles its message alone
        return type(self), (self.path, self.reason, self.index)


class DecodeTimeout(DecodeError):
    """A file whose decoding takes longer than it may."""


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """The frames of the default video stream, in the order in which they are shown.

    times: float64 (num_frames,), seconds from the first frame.
    fps: frames a second, on average.
    height, width: as stored, before any rotation.
    pts: int64 (num_frames,), the presentation timestamps by which decoded frames are recognised, ascending and each
        there once; None where frames have to be counted from the beginning.
    key_pts: int64, presentation timestamps of the key frames, ascending.
    decord_is_exact: whether decord 0.6 counts these frames as they are shown.
    may_be_turned: whether the container can ask for a rotation.
    """

    times: np.ndarray
    fps: float
    height: int
    width: int
    pts: np.ndarray | None
    key_pts: np.ndarray
    decord_is_exact: bool
    may_be_turned: bool

    @property
    def num_frames(self) -> int:
        return len(self.times)


_cache: OrderedDict[tuple[str, int, int], FrameIndex] = OrderedDict()


def frame_index(path: str | Path, timeout_s: float = 30.0) -> FrameIndex:
    """The index of a file; remembered until the file changes.

    Raises:
        DecodeError: if the file cannot be opened, holds no video, or has lost its end.
    """
    path = str(path)
    key = _identity(path)
    index = _cache.get(key)
    if index is None:
        with opened(path, timeout_s) as container:
            index = _from_packets(path, container)
        if index is None:
            return index_by_decoding(path, timeout_s)
        _remember(key, index)
    _cache.move_to_end(key)
    return index


def index_by_decoding(path: str, timeout_s: float = 30.0) -> FrameIndex:
    """The index of a file whose packets do not tell its frames, or told them wrong; all of it is decoded."""
    with opened(path, timeout_s) as container:
        stream = video_stream(container)
        fps = float(stream.average_rate or 25)
        stamps = [frame.time for frame in container.decode(stream)]
        context = stream.codec_context
        times = _seconds(stamps, fps)
        if not stamps:
            raise DecodeError(path, "its video stream has no frames")
        index = FrameIndex(times, fps, context.height, context.width, None, np.empty(0, np.int64), False, True)
    _remember(_identity(path), index)
    return index


@contextmanager
def errors_of(path: str):
    """What FFmpeg and PyAV raise becomes a DecodeError."""
    import av

    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise DecodeError(path, (error.strerror or str(error)).lower()) from None
    except ValueError as error:  # damaged headers: pictures of no size, text in no encoding
        raise DecodeError(path, " ".join(str(error).lower().split())) from None


@contextmanager
def opened(path: str, timeout_s: float):
    """The file as a PyAV container with a video stream."""
    with errors_of(path), open_container(path, timeout_s) as container:
        yield container


def open_container(path: str, timeout_s: float):
    import av

    container = av.open(path, metadata_errors="replace", timeout=timeout_s)
    if not container.streams.video:
        container.close()
        raise DecodeError(path, "it has no video stream")
    return container


def video_stream(container):
    """The default video stream, decoded in one thread: workers are the parallelism, and frames come one by one."""
    stream = container.streams.best("video") or container.streams.video[0]
    if stream.codec_context is None:
        raise DecodeError(container.name, "its codec is unknown here")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def _from_packets(path: str, container) -> FrameIndex | None:
    """None where the packets do not tell.

    decord 0.6 loses count after a seek where frames that are shown before a key frame are stored behind it (open GOPs:
    MPEG-2, MPEG-4 part 2 with B-frames, much of HEVC), or where B-frames come in a container that does not say when
    they are shown (AVI, MPEG). It shows the frames that an edit list hides, and hangs at the first seek in an MPEG
    transport stream.
    """
    stream = video_stream(container)
    context, container_name = stream.codec_context, container.format.name
    codec, reorders = context.name, context.has_b_frames
    timed = any(name in container_name for name in ("mp4", "matroska", "flv", "mpegts"))
    told = timed or not reorders
    plain = context.format is None or context.format.components[0].bits <= 8  # its colours differ in 10 bit
    plain = plain and context.field_order in (0, 1)  # and in interlaced pictures
    alone = len(container.streams.video) == 1  # decord has its own idea of which is the default one
    decord_is_exact = told and plain and alone and container_name != "mpegts"
    pts, keys, spans = [], [], []
    key = None
    for packet in container.demux(stream):
        if packet.pts is None:
            told &= not packet.size  # an empty one is the end
            continue
        spans += packet.pts, packet.pts + (packet.duration or 0)
        if codec == "vp8" and packet.size and not bytes(memoryview(packet)[:1])[0] & 0x10:
            decord_is_exact = False
            continue  # a frame that is only referred to
        if codec == "mpeg4" and packet.size < 20:
            told = decord_is_exact = False  # it may hold no frame
        if packet.is_discard:
            decord_is_exact = False
        if packet.is_keyframe:
            key = packet.pts
            keys.append(key)
        elif key is None:
            told = False  # whether anything comes out before the first key frame is the decoder's to say
        elif packet.pts < key:
            decord_is_exact = False
            told &= len(keys) > 1
        if not packet.is_discard:
            pts.append(packet.pts)
    if spans:
        _check_length(path, stream, spans)
    unique = np.unique(np.array(pts, np.int64))
    if not told or len(unique) != len(pts) or not len(pts):
        return None
    fps = float(stream.average_rate or 25)
    times = _seconds((unique * float(stream.time_base)).tolist(), fps)
    return FrameIndex(
        times,
        fps,
        context.height,
        context.width,
        unique,
        np.array(sorted(keys), np.int64),
        decord_is_exact,
        container_name != "avi",
    )


def _check_length(path: str, stream, spans: list[int]) -> None:
    if not stream.duration:
        return
    length = float(stream.duration * stream.time_base)
    there = float((max(spans) - min(spans)) * stream.time_base)
    if there < 0.9 * length - 1:
        raise DecodeError(path, f"it breaks off after {there:.1f} of {length:.1f} seconds")


def _seconds(stamps: list[float | None], fps: float) -> np.ndarray:
    """From the first frame; counted at `fps` where a time is missing or goes back."""
    if None not in stamps:
        times = np.array(stamps, np.float64)
        if (np.diff(times) > 0).all():
            return times - times[:1]
    return np.arange(len(stamps)) / fps


def _identity(path: str) -> tuple[str, int, int]:
    try:
        file = os.stat(path)
    except OSError as error:
        raise DecodeError(path, (error.strerror or str(error)).lower()) from None
    return path, file.st_size, file.st_mtime_ns


def _remember(key: tuple[str, int, int], index: FrameIndex) -> None:
    _cache[key] = index
    while len(_cache) > _KEPT:
        _cache.popitem(last=False)
