"""The soak's long runs: memory must not grow with the number of clips.

As a script it is the process that is watched: python benchmarks/soak_memory.py classify 10000
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from shared import family, resident, started

WARM = 500  # clips after which memory has to stay
ALLOWED = 0.02  # of it
WINDOW_S = 8.64  # of the timeline: 10,000 windows are a day
_EVERY = 50
# glibc keeps what is freed as it likes, 10% more or less of the process; so it has to give it back
_GIVEN_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
_RATE = 5  # frames a second of the videos that are written


def soak_memory(way: str, count: int, ended: Callable[[], bool]) -> tuple[str, bool]:
    """Runs one of `WAYS` over so many clips.

    Returns:
        What was measured, and whether memory grew, or nothing is known of it.
    """
    samples = list(_samples(way, count, ended))
    warm = next((mib for clips, mib in samples if clips >= WARM), None)
    if warm is None:
        return f"ended after {samples[-1][0] if samples else 0} clips", True
    most = max(mib for clips, mib in samples if clips >= WARM)
    return f"{samples[-1][0]:,} clips: {warm:.0f} MiB, {most / warm - 1:+.1%}", most > (1 + ALLOWED) * warm


def _samples(way: str, count: int, ended: Callable[[], bool]) -> Iterator[tuple[int, float]]:
    command = [__file__, way, str(count)]
    watched = started(command, _GIVEN_BACK, stdout=subprocess.PIPE)
    try:
        for line in watched.stdout:
            yield tuple(json.loads(line))
            if ended():
                return
        if watched.wait():
            raise AssertionError(f"{' '.join(command)}: exit code {watched.returncode}")
    finally:
        watched.kill()
        watched.wait()


# --- the process that is watched --------------------------------------------------------------------------------------


Tell = Callable[[int, float], None]  # the number of clips so far, and the memory in MiB


def _classify(count: int, folder: Path, tell: Tell) -> None:
    from softpool3d.inference.bulk import run_files
    from softpool3d.inference.trained import load_trained
    from softpool3d.inference.work import Labelling

    work = Labelling({"device": "cpu", "batch": 4}, 1).work(load_trained("motion"))
    for number, _ in enumerate(run_files(work, _clips(count, folder), 0), 1):
        tell(number, resident())


def _load(count: int, folder: Path, tell: Tell) -> None:
    """Tells the memory of the worker that loads, not that of the process that it loads for."""
    from softpool3d.config_file import load_config
    from softpool3d.datasets.loader import train_loader
    from softpool3d.datasets.manifest import Manifest

    config = load_config("r3d_softpool", ["data.num_workers=1", "train.batch_size=10"])
    loader = train_loader(Manifest(("0",), list(_clips(count, folder))), config)
    for number, _ in enumerate(loader, 1):
        _, worker = family(os.getpid())
        tell(10 * number, resident(worker))


def _timeline(count: int, folder: Path, tell: Tell) -> None:
    """Slides over one video: 10,000 windows are 24 hours of it."""
    from softpool3d import Classifier
    from softpool3d.inference.timeline import watch

    windows = itertools.count(1)
    long = write_long_video(folder / "long.ts", WINDOW_S * count)
    watch(
        Classifier("motion", device="cpu"), long, WINDOW_S, WINDOW_S, 1, 0.5, lambda _: tell(next(windows), resident())
    )


def write_long_video(path: Path, seconds: float, offset_s: float = 0.0) -> Path:
    """Writes a video of any length, of which a second is encoded and comes again and again; its times begin at the
    offset."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=_RATE)
        stream.width, stream.height, stream.gop_size = 64, 48, _RATE
        picture, packets = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8), []
        for number in range(_RATE):
            packets += stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, axis=1)))
        packets += stream.encode(None)
        contents = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        for second in range(math.ceil(seconds)):
            later = round(_RATE * (offset_s + second))
            for content, pts, dts, is_key in contents:
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, _RATE), is_key
                packet.pts, packet.dts = pts + later, dts + later
                container.mux(packet)
    return path


def _clips(count: int, folder: Path) -> Iterator:
    from soak_files import whole_files

    from softpool3d.datasets.manifest import Clip

    files = whole_files(folder)
    return (Clip(str(files[number % len(files)]), 0) for number in range(count))


WAYS = {"clips": _classify, "loader": _load, "timeline": _timeline}

if __name__ == "__main__":

    def print_some(clips: int, mib: float) -> None:
        if clips % _EVERY == 0:
            print(json.dumps([clips, mib]), flush=True)

    with tempfile.TemporaryDirectory() as name:
        WAYS[sys.argv[1]](int(sys.argv[2]), Path(name), print_some)
