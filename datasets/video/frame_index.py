"""Finds which frames a video file holds, and when each is shown. Reading its packets takes a few milliseconds.

    index = frame_index("clip.mp4")
    index.num_frames, index.times          # in the order in which they are shown

Nothing is decoded, unless the packets do not tell: AVI stores no presentation times, and MPEG-4 part 2 has packets
without a frame. Then the whole file is decoded once. Time is what the timestamps say: a pause of 30 seconds is 30
seconds.
"""

from __future__ import annotations

import os
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from softpool3d.datasets.video.containers import open_file, open_place
from softpool3d.datasets.video.damage import Damage
from softpool3d.datasets.video.decord_files import facts_of, reads_exactly
from softpool3d.datasets.video.h264 import key_frame_kind
from softpool3d.datasets.video.packets import Packets
from softpool3d.datasets.video.rate import PROBED, Rate, stream_rate
from softpool3d.errors import DEBUG, SoftPool3dError, WorkError, os_reason
from softpool3d.requirements import wrong_version

_COUNTS = ("avi", "asf", "dv", "mxf", "nut", "ogg")  # their timestamps count frames in order, after a seek, too
_KEPT = 4096  # indices of files read last; one of 300 frames takes 5 KB


class DecodeError(WorkError):
    """A file cannot be decoded. Holds its `path`, the `reason` and, if known, its `index` in the manifest."""

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
    rate: frames a second, and whether they are evenly spaced.
    height, width: as stored, before any rotation.
    pts: int64 (num_frames,), the presentation timestamps by which decoded frames are recognised, ascending, without
        repeats; None if frames have to be counted from the beginning.
    key_pts: int64, presentation timestamps of the key frames at which decoding can begin, ascending.
    decord_is_exact: whether decord 0.6 is known to read such a file as PyAV does (decord_files.py).
    damage: what is missing of the file, as far as it is known.
    shown: int64 (num_frames,), what is shown for each frame, counted among those that can be decoded; None: itself.
    """

    times: np.ndarray
    rate: Rate
    height: int
    width: int
    pts: np.ndarray | None
    key_pts: np.ndarray
    decord_is_exact: bool
    damage: Damage
    shown: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        return len(self.times)

    @property
    def fps(self) -> float:
        return self.rate.fps


_cache: OrderedDict[tuple[str, int, int], FrameIndex] = OrderedDict()


def frame_index(path: str | Path, timeout_s: float = 30.0) -> FrameIndex:
    """Returns the index of a file; remembered until the file changes.

    Raises:
        DecodeError: if the file cannot be opened or holds no video.
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


def index_by_decoding(path: str, timeout_s: float = 30.0, promised: FrameIndex | None = None) -> FrameIndex:
    """Returns the index of a file whose packets do not tell its frames, or told them wrong; all of it is decoded.

    Args:
        promised: what the packets told. If some of its frames cannot be decoded, they stay in the index, and each shows
            the frame before it.
    """
    with opened(path, timeout_s) as container:
        stream = video_stream(container)
        packets = Packets(path, container, stream)
        stamps = [packets.time(frame) for frame in packets.decoded()]
        if not stamps:
            raise DecodeError(path, "its video stream has no frames")
        rate = stream_rate(stream, [time for time in stamps if time is not None])
        damage = packets.damage(rate)
        if promised is not None and damage.undecodable_s:
            index = _of_what_decodes(promised, damage, np.array(stamps, np.float64), stream)
        else:
            context = stream.codec_context
            times, keys = _seconds(stamps, rate.fps), np.empty(0, np.int64)
            index = FrameIndex(times, rate, context.height, context.width, None, keys, False, damage)
    _remember(_identity(path), index)
    return index


def _of_what_decodes(promised: FrameIndex, damage: Damage, stamps: np.ndarray, stream) -> FrameIndex:
    """Returns the promised index, each frame of which shows the frame that can be decoded at its time."""
    due = promised.pts * float(stream.time_base) + 0.25 / promised.fps
    order = np.argsort(np.nan_to_num(stamps, nan=-np.inf))  # frames around damage may come late
    shown = order[np.searchsorted(stamps[order], due, "right").clip(1) - 1]
    return replace(promised, pts=None, damage=damage, decord_is_exact=False, shown=shown)


@contextmanager
def errors_of(path: str) -> Iterator[None]:
    """Turns whatever a reader raises into a DecodeError that names the file, so that work on other files goes on.

    FFmpeg's and PyAV's own errors speak for themselves. Any other error may be a mistake of ours: its type is named,
    and `--debug` shows where it came from.
    """
    import av

    try:
        yield
    except av.error.MemoryError as error:  # a MemoryError too, but of what the file asks for
        raise DecodeError(path, "more memory is asked for than there is: it is damaged, or memory ran out") from error
    except (SoftPool3dError, MemoryError):
        raise
    except (av.error.FFmpegError, OSError) as error:
        raise DecodeError(path, os_reason(error)) from error
    except ValueError as error:  # damaged headers: pictures of no size, text in no encoding
        raise DecodeError(path, " ".join(str(error).lower().split())) from error
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        wrong = wrong_version("av")
        because = f"; {wrong}" if wrong else ""
        raise DecodeError(path, f"reading it fails with {type(error).__name__}: {error}{because}") from error


@contextmanager
def opened(path: str, timeout_s: float):
    """Yields the file as a PyAV container with a video stream, and closes it."""
    with errors_of(path), open_container(path, timeout_s) as container:
        yield container


def open_container(path: str, timeout_s: float):
    """Returns the file as a PyAV container with a video stream, which the caller closes."""
    return with_video(path, open_file(path, timeout_s))


def with_video(name: str, container):
    """Returns the container; raises DecodeError if it holds no video."""
    if not container.streams.video:
        container.close()
        raise DecodeError(name, "it has no video stream")
    return container


def video_stream(container):
    """Returns the default video stream, decoded in one thread: workers are the parallelism, frames come one by one."""
    stream = container.streams.best("video") or container.streams.video[0]
    if stream.codec_context is None:
        raise DecodeError(container.name, "its codec is unknown here")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def probed_rate(path: str, timeout_s: float = 30.0) -> Rate:
    """Returns the rate of a file, or of one at an address, from its first packets, the same as its index has."""
    with errors_of(path), with_video(path, open_place(path, timeout_s)) as container:
        stream = video_stream(container)
        # those of the last frames may be stored late
        return stream_rate(stream, Packets(path, container, stream).probe(PROBED + 32))


def _from_packets(path: str, container) -> FrameIndex | None:
    """Returns the index, or None if the packets do not tell."""
    stream = video_stream(container)
    packets = Packets(path, container, stream)
    context, container_name = stream.codec_context, container.format.name
    reorders = context.has_b_frames
    timed = any(name in container_name for name in ("mp4", "matroska", "flv", "mpegts"))
    told = timed or not reorders and container_name in _COUNTS
    shows_all = closed = True
    pts, keys = [], []
    key = None
    for packet in packets:
        if packet.pts is None:
            told &= not packet.size  # an empty one is the end
            continue
        told &= timed or packet.pts == packet.dts  # ASF stores one, and FFmpeg guesses the other
        promised = packets.promises_a_frame(packet)
        shows_all &= promised
        if not promised and not packet.is_discard:
            told &= packets.codec != "mpeg4"  # it may hold a frame all the same
            continue
        if packet.is_keyframe:
            key = packet.pts
            kind = key_frame_kind(memoryview(packet), context.extradata) if packets.codec == "h264" else "idr"
            closed &= kind == "idr"
            if not keys or kind != "refresh" or reorders:  # without B-frames x264 leaves a column out of its refresh
                keys.append(key)
        elif key is None:
            told = False  # whether anything comes out before the first key frame is the decoder's to say
        elif packet.pts < key:
            closed = False
            told &= len(keys) > 1
        if promised:
            pts.append(packet.pts)
    unique = np.unique(np.array(pts, np.int64))
    if not told or len(unique) != len(pts) or not len(pts):
        return None
    times = unique * float(stream.time_base)
    rate = stream_rate(stream, times)
    return FrameIndex(
        _seconds(times.tolist(), rate.fps),
        rate,
        context.height,
        context.width,
        unique,
        np.array(sorted(keys), np.int64),
        reads_exactly(facts_of(container, stream, shows_all, closed)),
        packets.damage(rate),
    )


def _seconds(stamps: list[float | None], fps: float) -> np.ndarray:
    """Returns seconds from the first frame; counted at `fps` if a time is missing or goes back."""
    if None not in stamps:
        times = np.array(stamps, np.float64)
        if (np.diff(times) > 0).all():
            return times - times[:1]
    return np.arange(len(stamps)) / fps


def _identity(path: str) -> tuple[str, int, int]:
    try:
        file = os.stat(path)
    except OSError as error:
        raise DecodeError(path, os_reason(error)) from None
    return path, file.st_size, file.st_mtime_ns


def _remember(key: tuple[str, int, int], index: FrameIndex) -> None:
    _cache[key] = index
    while len(_cache) > _KEPT:
        _cache.popitem(last=False)
