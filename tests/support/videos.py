"""Videos that tests make, and files that are none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np

CELL, COLUMNS, BITS = 16, 4, 12


def numbered_frames(count: int) -> np.ndarray:
    """Frames whose number is drawn into them, a cell of 16x16 pixels for each bit: uint8 (count, 48, 64, 3)."""
    bits = (np.arange(count)[:, None] >> np.arange(BITS)) & 1
    cells = bits.reshape(count, BITS // COLUMNS, COLUMNS) * 200 + 28
    pictures = cells.repeat(CELL, axis=1).repeat(CELL, axis=2).astype(np.uint8)
    return np.repeat(pictures[..., None], 3, axis=3)


def read_numbers(frames) -> list[int]:
    """The numbers drawn into uint8 (T, C, H, W)."""
    picture = np.asarray(frames).mean(axis=1)
    cells = picture.reshape(len(picture), BITS // COLUMNS, CELL, COLUMNS, CELL).mean(axis=(2, 4)).reshape(-1, BITS)
    return ((cells > 128) << np.arange(BITS)).sum(axis=1).tolist()


def write_numbered(
    path: Path,
    count: int = 40,
    codec: str = "libx264",
    rate: int = 25,
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    first: int = 0,
    **options: str,
) -> Path:
    """A video of `numbered_frames`, from number `first` on; `times`: when each is shown, in frames."""
    import av

    with kept_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pix_fmt
        stream.options = options
        stream.codec_context.thread_count = 3  # slices and so sizes of packets: the same on every machine
        for number, picture in enumerate(numbered_frames(first + count)[first:]):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@contextmanager
def kept_priority() -> Iterator[None]:
    """SVT-AV1, where root runs it, makes the thread that calls it a real-time one and leaves it so: threads that this
    one waits for then wait for it, and tests take minutes."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def copy_packets(source: Path, target: Path, begin: float = 0.0, delay: float = 0.0, **options: str) -> Path:
    """Another container around the same packets, from the key frame before `begin` on; an edit list hides what comes
    before `begin`, where the container has one. Timestamps move by `delay` seconds."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        track = old.streams.video[0]
        stream = new.add_stream_from_template(track)
        shift = round((delay - begin) / track.time_base)
        old.seek(round(begin / track.time_base), stream=track)
        for packet in old.demux(track):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = stream
                new.mux(packet)
    return target


def rotated(source: Path, target: Path, degrees: int) -> Path:
    """The same packets with rotation metadata."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


def with_display_matrix(source: Path, target: Path, a: float, b: float, c: float, d: float) -> Path:
    """The same packets with a display matrix: a stored pixel (x, y) is shown at (a x + c y, b x + d y)."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        one = 1 << 16
        stream.set_display_matrix([*(round(x * one) for x in (a, b, 0, c, d, 0, 0, 0)), 1 << 30])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


def zeroed(source: Path, target: Path, packets: range) -> Path:
    """The same file with the second half of some packets, by their order in the file, overwritten by zeros."""
    import av

    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for place, size in (places[number] for number in packets):
        content[place + 4 : place + size] = bytes(size - 4)
    target.write_bytes(content)
    return target


def write_audio_only(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        for start in range(0, 44100, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def damaged_files(folder: Path) -> dict[str, Path]:
    """Files that end in .mp4 and are no videos, or no whole ones: kind -> path."""
    whole = write_numbered(folder / "whole.mp4", 60).read_bytes()
    paths = {name: folder / f"{name}.mp4" for name in ("empty", "text", "truncated")}
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("this is not a video\n" * 100)
    paths["truncated"].write_bytes(whole[: len(whole) // 2])
    paths["audio"] = write_audio_only(folder / "audio.mp4")
    (folder / "whole.mp4").unlink()
    return paths
