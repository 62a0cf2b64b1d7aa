"""Reads frames with PyAV: decodes from the key frame before each, and knows frames by their presentation timestamps.

Frames that are neither asked for nor referred to by others are not decoded: in H.264 and HEVC with B-frames these are
up to every second one.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from softpool3d.datasets.video.frame_index import (
    DecodeError,
    DecodeTimeout,
    FrameIndex,
    errors_of,
    index_by_decoding,
    open_container,
    video_stream,
)
from softpool3d.datasets.video.orientation import Orientations

_GAP = 8  # a seek pays if the next key frame is more than so many frames ahead


class PyAVReader:
    """Reads any of the frames of a `FrameIndex`; the file stays open until `close`.

    Args:
        short_side: pixels that frames are scaled to (bilinear) while they are converted; None keeps their size.
        timeout_s: seconds that one call of `read` may take.
    """

    name = "pyav"

    def __init__(self, path: str, index: FrameIndex, short_side: int | None = None, timeout_s: float = 30.0) -> None:
        self._path, self.index, self._timeout_s = path, index, timeout_s
        self._picture = Scaler(short_side, path)
        self._container = None
        with errors_of(path):
            self._open()

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns uint8 (T, H, W, 3), upright, of ascending indices without repeats.

        Raises:
            DecodeError: if one of them cannot be decoded, or it takes too long.
        """
        self._deadline = time.monotonic() + self._timeout_s
        with errors_of(self._path):
            pictures = self._by_pts(indices) if self.index.pts is not None else None
            if pictures is None:
                if self.index.pts is not None:  # the packets promised frames that do not come
                    self.index = index_by_decoding(self._path, self._timeout_s, promised=self.index)
                pictures = self._by_counting(indices)
        return np.stack([pictures[i] for i in indices.tolist()])

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        self.close()
        self._container = open_container(self._path, self._timeout_s)
        self._stream = video_stream(self._container)
        self._at_start = True

    def _by_pts(self, indices: np.ndarray) -> dict[int, np.ndarray] | None:
        """Returns pictures by index; None if some frame is not there."""
        index = self.index
        wanted = index.pts[indices]
        # Everything that is shown from a key frame on can be decoded from that key frame on.
        keys = np.searchsorted(index.key_pts, wanted, "right") - 1
        key_frames = np.searchsorted(index.pts, index.key_pts)
        seeks = [0] + [
            n for n in range(1, len(indices)) if keys[n] != keys[n - 1] and key_frames[keys[n]] - indices[n - 1] > _GAP
        ]
        pictures: dict[int, np.ndarray] = {}
        for begin, end in zip(seeks, [*seeks[1:], len(indices)], strict=True):
            group = self._group(int(keys[begin]), wanted[begin:end].tolist())
            if group is None:
                return None
            pictures |= zip(indices[begin:end].tolist(), group, strict=True)
        return pictures

    def _group(self, key: int, wanted: list[int]) -> list[np.ndarray] | None:
        """Returns the pictures of ascending timestamps from a key frame on; None if one does not come."""
        found: dict[int, np.ndarray] = {}
        missing = set(wanted)
        back, latest = 0, int(self.index.key_pts[key])
        while True:
            # If decoding cannot begin here (intra refresh: the decoder holds back what is not whole), it begins at an
            # earlier key frame, and at last at the beginning.
            start = int(self.index.key_pts[key - back]) if key >= back else None
            for frame in self._frames(start, missing, latest):
                if frame.pts in missing:
                    found[frame.pts] = self._picture(frame)
                    missing.discard(frame.pts)
            if not missing:
                return [found[pts] for pts in wanted]
            if start is None:
                return None
            back = 2 * back + 1

    def _frames(self, start: int | None, wanted: set[int] | None, latest: int = 0) -> Iterator:
        """Yields decoded frames from a seek point on (None: the beginning), as long as some timestamps are wanted.

        With `wanted` None, it yields all frames. It yields none if the seek leads past the key frame `latest`.
        """
        from av.error import InvalidDataError

        if start is not None:
            self._container.seek(start, stream=self._stream, backward=True)
        elif not self._at_start:
            self._open()
        self._at_start = False
        context = self._stream.codec_context
        last = max(wanted) if wanted else None
        skipping = "DEFAULT"
        for packet in self._packets() if start is None else self._packets_from_key_frame(latest):
            if wanted is not None:
                needed = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
                if needed != skipping:
                    context.skip_frame = skipping = needed
            with suppress(InvalidDataError):  # a wanted frame that cannot be decoded stays missing
                for frame in packet.decode():
                    yield frame
                    if wanted is not None and (not wanted or frame.pts is not None and frame.pts > last):
                        return

    def _packets_from_key_frame(self, latest: int) -> Iterator:
        """Yields packets from the first key frame on, and none if that comes after `latest`: in MPEG streams a seek may
        overshoot, and MPEG-4 decoders make up what they have not seen."""
        packets = self._packets()
        first = next((packet for packet in packets if packet.is_keyframe), None)
        if first is not None and (first.pts is None or first.pts <= latest):
            yield first
            yield from packets

    def _packets(self) -> Iterator:
        """Yields packets, up to where the file breaks off."""
        from av.error import InvalidDataError

        with suppress(InvalidDataError):
            for packet in self._container.demux(self._stream):
                if time.monotonic() > self._deadline:
                    raise DecodeTimeout(
                        self._path, f"decoding takes longer than {self._timeout_s:g} s (data.decode_timeout_s)"
                    )
                yield packet

    def _by_counting(self, indices: np.ndarray) -> dict[int, np.ndarray]:
        there = self.index.num_frames
        if len(indices) and indices[-1] >= there:
            raise DecodeError(self._path, f"only {there} of its frames can be decoded")
        shown = indices if self.index.shown is None else self.index.shown[indices]
        wanted = set(shown.tolist())
        pictures: dict[int, np.ndarray] = {}
        self._open()
        for number, frame in enumerate(self._frames(None, None)):
            if number in wanted:
                pictures[number] = self._picture(frame)
                if len(pictures) == len(wanted):
                    return dict(zip(indices.tolist(), map(pictures.__getitem__, shown.tolist()), strict=True))
        raise DecodeError(self._path, f"only {len(pictures)} of {len(wanted)} frames could be decoded")


class Scaler:
    """Turns decoded frames into uint8 (H, W, 3), upright, all of the size that the first one has.

    Args:
        short_side: pixels that they are scaled to (bilinear); None keeps the first one's size.
        name: of their file, for errors.

    Raises:
        DecodeError: if they are in colours that cannot be converted.
    """

    def __init__(self, short_side: int | None, name: str = "a video") -> None:
        from av.video.reformatter import VideoReformatter

        self._short_side, self._name = short_side, name
        self._size: tuple[int, int] | None = None  # width, height, before it is turned
        self._reformatter = VideoReformatter()  # keeps its tables from picture to picture
        self._orientation = Orientations()

    def __call__(self, frame) -> np.ndarray:
        if self._size is None:
            self._size = scaled(frame.width, frame.height, self._short_side)
        with errors_of(self._name):
            picture = convert(self._reformatter, frame, *self._size, format="rgb24", interpolation="BILINEAR")
        return self._orientation(frame).upright(picture.to_ndarray())


def convert(reformatter, frame, width: int, height: int, **options):
    """Returns the frame as libswscale converts it, from the colours that it says it is in.

    Raises:
        ValueError: if libswscale does not know these (YCgCo, BT.2020 with constant luminance, ICtCp).
    """
    try:
        # one thread: handing slices of a small picture to others costs more than it saves, far more on busy cores
        return reformatter.reformat(frame, width, height, threads=1, **options)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        kind = f"matrix_coefficients {int(frame.colorspace)}"
        raise ValueError(f"its colours are of a kind that cannot be converted ({kind})") from error


def scaled(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Returns width and height scaled to a shorter side; the longer one is rounded down, as in PySlowFast."""
    if short_side is None or min(width, height) == short_side:
        return width, height
    if width < height:
        return short_side, height * short_side // width
    return width * short_side // height, short_side
