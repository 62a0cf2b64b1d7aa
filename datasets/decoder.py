"""Frames of a video file: decord first, PyAV where decord cannot.

    with open_video("clip.mp4") as video:
        frames = video.frames([0, 8, 16])        # uint8 (3, C, H, W), upright

decord seeks and is fast; PyAV decodes from the beginning and reads nearly everything. Frames count in the order in
which they are shown; files in which decord would lose count go to PyAV. Open videos inside the worker that reads them:
decord's readers do not survive a fork (its issue 294).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from softpool3d.errors import WorkError

T = TypeVar("T")


class DecodeError(WorkError):
    """A file that cannot be decoded, as one sentence: `path` and `reason`."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"cannot read {path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self):  # worker processes send it on, and an exception pickles its message alone
        return type(self), (self.path, self.reason)


class Video:
    """An open video: `num_frames`, `fps` and any of its frames."""

    def __init__(self, path: str | Path, timeout_s: float = 30.0) -> None:
        self.path = str(path)
        self._timeout_s = timeout_s
        self._reader = self._open_decord() or PyAVReader(self.path)

    @property
    def num_frames(self) -> int:
        return self._reader.num_frames

    @property
    def fps(self) -> float:
        return self._reader.fps

    @property
    def decoder(self) -> str:
        """ "decord" or "pyav": what reads this file."""
        return self._reader.name

    def frames(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """The frames asked for, in the order asked for, repeats included: uint8 (T, C, H, W), RGB.

        Raises:
            IndexError: for an index outside [0, num_frames).
            DecodeError: where neither decoder can read them.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.num_frames):
            raise IndexError(f"{self.path} has frames 0 to {self.num_frames - 1}, asked for {wanted.tolist()}")
        unique, back = np.unique(wanted, return_inverse=True)  # each is decoded once, in order
        try:
            pictures = self._reader.read(unique)
        except _DecordFailed:
            self._reader = PyAVReader(self.path, num_frames=self.num_frames)
            pictures = self._reader.read(unique)
        return torch.from_numpy(pictures[back]).permute(0, 3, 1, 2)

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_decord(self) -> DecordReader | None:
        try:
            file = os.stat(self.path)
            exact = _decord_is_exact(self.path, file.st_size, file.st_mtime_ns)
            return DecordReader(self.path, self._timeout_s) if exact else None
        except _DecordFailed:
            return None


def open_video(path: str | Path, timeout_s: float = 30.0) -> Video:
    """Opens a video file.

    Args:
        path: the file.
        timeout_s: seconds after which a call to decord counts as hung (its issue 269) and PyAV takes over.

    Raises:
        DecodeError: if there is no such file, or it holds no video that can be decoded.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise DecodeError(path, "the file is empty")
    except OSError as error:
        raise DecodeError(path, (error.strerror or str(error)).lower()) from None
    return Video(path, timeout_s)


# --- decord ----------------------------------------------------------------------------------------------------------


class _DecordFailed(Exception):
    """decord could not, or took too long: PyAV's turn."""


class DecordReader:
    """Frame-exact random access through decord, one thread a reader."""

    name = "decord"

    def __init__(self, path: str, timeout_s: float) -> None:
        try:
            import decord
        except ImportError:  # it has no wheels for some machines
            raise _DecordFailed from None
        decord.logging.set_level(decord.logging.QUIET)  # errors reach the user as exceptions, once
        self._timeout_s = timeout_s
        self._reader = self._call(lambda: decord.VideoReader(path, decord.cpu(0), num_threads=1))
        self.num_frames = len(self._reader)
        if self.num_frames < 1:
            raise _DecordFailed
        self.fps = float(self._reader.get_avg_fps()) or 25.0

    def read(self, indices: np.ndarray) -> np.ndarray:
        batch = self._call(lambda: self._reader.get_batch(indices.tolist()))
        # another library may have set decord's global bridge to torch; it is not ours to change
        return batch.asnumpy() if hasattr(batch, "asnumpy") else batch.numpy()

    def close(self) -> None:
        self._reader = None

    def _call(self, work: Callable[[], T]) -> T:
        """`work` in a thread that is left behind if it hangs: nothing else can stop a call into decord."""
        result: list[Any] = []

        def target() -> None:
            with suppress(Exception):  # decord raises its own type, RuntimeError and others
                result.append(work())

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        if not result:
            raise _DecordFailed
        return result[0]


# --- which of the two ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=100_000)
def _decord_is_exact(path: str, size: int, modified: int) -> bool:
    """Whether decord counts this file's frames as they are shown; from its packets, without decoding any.

    Asked once for each file: `size` and `modified` (nanoseconds) are there to tell a file from one that replaces it.

    decord 0.6 loses count after a seek where frames that are shown before a key frame are stored behind it (open GOPs:
    MPEG-2, MPEG-4 part 2 with B-frames, much of HEVC), or where B-frames come in a container that does not say when
    they are shown (AVI, MPEG). It shows the frames that an edit list hides, and hangs at the first seek in an MPEG
    transport stream.

    Raises:
        DecodeError: if the file cannot be opened, holds no video, or has lost its end.
    """
    with _opened(path) as container:
        stream = container.streams.best("video")
        timed = any(name in container.format.name for name in ("mp4", "matroska", "flv"))
        exact = container.format.name != "mpegts" and (timed or not stream.codec_context.has_b_frames)
        key = None
        times = []
        for packet in container.demux(stream):
            if packet.pts is None:  # unknown, or the end
                continue
            times += packet.pts, packet.pts + (packet.duration or 0)
            if packet.is_keyframe:
                key = packet.pts
            elif key is not None and packet.pts < key:
                exact = False
            exact &= not packet.is_discard
        if stream.duration and times:
            length = float(stream.duration * stream.time_base)
            there = float((max(times) - min(times)) * stream.time_base)
            if there < 0.9 * length - 1:
                raise DecodeError(path, f"it breaks off after {there:.1f} of {length:.1f} seconds")
    return exact


@contextmanager
def _opened(path: str):
    """The file as a PyAV container with a video stream; FFmpeg's errors become DecodeErrors."""
    import av

    try:
        with av.open(path, metadata_errors="replace") as container:
            if not container.streams.video:
                raise DecodeError(path, "it has no video stream")
            yield container
    except (av.error.FFmpegError, OSError) as error:
        raise DecodeError(path, (error.strerror or str(error)).lower()) from None


# --- PyAV ------------------------------------------------------------------------------------------------------------


class PyAVReader:
    """Sequential decoding through PyAV: slower, reads nearly everything."""

    name = "pyav"

    def __init__(self, path: str, num_frames: int | None = None) -> None:
        self._path = path
        self.fps = 25.0
        self.num_frames = self._count() if num_frames is None else num_frames

    def read(self, indices: np.ndarray) -> np.ndarray:
        wanted = set(indices.tolist())
        pictures = []
        size = None
        number = -1
        for number, frame in enumerate(self._decode()):
            if number in wanted:
                size = size or (frame.width, frame.height)  # of the first, should it change in the middle
                turns = round(frame.rotation / 90) % 4  # counter-clockwise, as numpy turns
                pictures.append(np.rot90(frame.reformat(*size, format="rgb24").to_ndarray(), turns))
                if len(pictures) == len(wanted):
                    return np.stack(pictures)
        raise DecodeError(self._path, f"only {number + 1} of its {self.num_frames} frames can be decoded")

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _count(self) -> int:
        count = sum(1 for _ in self._decode())
        if not count:
            raise DecodeError(self._path, "its video stream has no frames")
        return count

    def _decode(self):
        """The frames of the default video stream, in the order in which they are shown."""
        with _opened(self._path) as container:
            stream = container.streams.best("video")
            self.fps = float(stream.average_rate or 25)
            yield from container.decode(stream)
