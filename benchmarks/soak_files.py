"""The soak's damaged files: whole ones are damaged at random, and each is given to everything that reads videos.

As a script it is the process that reads, of which one is started again after a file that ends it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue

import numpy as np
from shared import resident, started

CODECS = {
    ".mp4": "libx264",
    ".mkv": "libx264",
    ".mov": "libx264",
    ".avi": "mpeg4",
    ".webm": "libvpx-vp9",
    ".gif": "gif",
}
CODECS |= {".ts": "libx264", ".flv": "flv"}
WAYS = ("reader", "stream", "prepare", "classify", "timeline")  # of reading a video
DAMAGES = ("cut", "flipped", "zeroed", "swapped", "spliced")
PATIENCE_S = 120.0  # for one file and one way to read it
WARM = 500  # readings after which neither should grow
GROWTH = 0.05  # of memory, which is allowed: damaged files ask for sizes of all kinds


def whole_files(folder: Path) -> list[Path]:
    """Writes a short video in each container, with moving stripes."""
    import av

    paths = []
    for ending, codec in CODECS.items():
        path = folder / f"whole{ending}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = 64, 96
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            for number in range(60):
                picture = np.zeros((64, 96, 3), np.uint8)
                picture[:, (np.arange(96) + 2 * number) % 24 < 12] = 220
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        paths.append(path)
    return paths


def damaged(content: bytes, damage: str, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Returns a file's content, damaged in one of five ways, at a random place and to a random extent."""
    size = len(content)
    begin = int(rng.integers(size))
    length = int(size * rng.uniform(0, 0.3)) + 1
    if damage == "cut":
        return content[:begin]
    if damage == "flipped":
        changed = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(0, size, int(10 ** rng.uniform(0, 3)))
        changed[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
        return changed.tobytes()
    if damage == "zeroed":
        return content[:begin] + bytes(min(length, size - begin)) + content[begin + length :]
    if damage == "swapped":
        first, second, third = sorted(int(place) for place in rng.integers(0, size, 3))
        return content[:first] + content[second:third] + content[first:second] + content[third:]
    other = others[int(rng.integers(len(others)))]
    return content[:begin] + other[int(rng.integers(len(other))) :][:length] + content[begin:]


def write_damaged(folder: Path, count: int, seed: int) -> list[Path]:
    """Writes so many damaged files, of every container and damage in turn."""
    rng = np.random.default_rng(seed)
    whole = whole_files(folder)
    contents = [path.read_bytes() for path in whole]
    paths = []
    for number in range(count):
        source = number % len(whole)
        damage = DAMAGES[number // len(whole) % len(DAMAGES)]
        path = folder / f"{number:05d}-{damage}{whole[source].suffix}"
        path.write_bytes(damaged(contents[source], damage, contents, rng))
        paths.append(path)
    return paths


# --- the process that reads -------------------------------------------------------------------------------------------


def ways() -> dict[str, Callable[[str], object]]:
    """Returns what reads a video, in each of `WAYS`."""
    from softpool3d import Classifier
    from softpool3d.datasets.verify import decode_whole
    from softpool3d.datasets.video.decoder import open_video
    from softpool3d.datasets.video.stream import FrameStream
    from softpool3d.inference.timeline import watch

    classifier = Classifier(device="cpu")

    def read(path: str) -> None:
        with open_video(path, short_side=32) as video:
            video.frames(range(0, video.num_frames, 3))

    def stream(path: str) -> None:
        with FrameStream(path) as frames:
            for _ in frames:
                pass

    every = (
        read,
        stream,
        lambda path: named_or_used(decode_whole(path)),
        classifier,
        lambda path: watch(classifier, path, 1.0, 0.5),
    )
    return dict(zip(WAYS, every, strict=True))


def named_or_used(checked: tuple[float, float, str]) -> None:
    """Raises DecodeError where `prepare` would leave the file out."""
    from softpool3d.datasets.video.damage import MAX_MISSING, is_too_much
    from softpool3d.datasets.video.decoder import DecodeError

    missing_s, length_s, what = checked
    if not length_s or is_too_much(missing_s, length_s, MAX_MISSING):
        raise DecodeError("", what)


def _read_all() -> None:
    """Reads each file of standard input in each way; prints a line before, and one after."""
    from softpool3d.errors import SoftPool3dError

    every, before = ways(), set(os.listdir(os.environ["TMPDIR"]))  # torch leaves a folder there when it is imported
    for line in sys.stdin:
        path = line.rstrip("\n")
        for name, way in every.items():
            print(json.dumps({"file": path, "way": name}), flush=True)
            try:
                way(path)
                found = {"outcome": "used"}
            except SoftPool3dError as error:
                found = {"outcome": "named", "why": str(error)}
            except BaseException:
                found = {"outcome": "traceback", "why": traceback.format_exc()}
            found["open"] = len(os.listdir("/proc/self/fd"))
            found["mib"] = resident()
            found["left"] = sorted(set(os.listdir(os.environ["TMPDIR"])) - before)
            print(json.dumps(found), flush=True)


# --- the process that watches -----------------------------------------------------------------------------------------


class Child:
    """A process that reads, and what it says."""

    def __init__(self, temporary: str) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = started([__file__], {"TMPDIR": temporary}, **pipes)
        self._said: Queue[str] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self._said.put(line)
        self._said.put("")

    def ask(self, path: Path) -> None:
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()

    def line(self) -> dict | None:
        """Returns what it says next; None if it has ended.

        Raises:
            Empty: if it says nothing for long.
        """
        said = self._said.get(timeout=PATIENCE_S)
        return json.loads(said) if said else None


def findings(count: int, seed: int, ended: Callable[[], bool]) -> Iterator[dict]:
    """Yields what became of each damaged file in each way: used, named, or a fault.

    Faults are: traceback, crash, hang, and left (a temporary file).

    Args:
        ended: whether time is up.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as temporary:
        child = Child(temporary)
        try:
            for path in write_damaged(Path(folder), count, seed):
                if ended():
                    return
                child.ask(path)
                for _ in range(len(WAYS)):
                    begun = child.line()
                    try:
                        found = child.line()
                    except Empty:
                        found = {"outcome": "hang"}
                    if found is None or found["outcome"] == "hang":
                        child.process.kill()
                        crash = {"outcome": "crash", "why": f"exit code {child.process.wait()}"}
                        yield {"file": str(path), **(begun or {}), **(found or crash)}
                        child = Child(temporary)
                        break
                    yield {**begun, **found}
        finally:
            child.process.kill()
            child.process.wait()


def soak_files(count: int, seed: int, ended: Callable[[], bool], say: Callable[[str], None]) -> tuple[dict, list[dict]]:
    """Returns counts and measures, and the faults, each of which is printed at once.

    Descriptors and memory are compared between the first half of the readings and the second: the first time that a
    library is used, it keeps some for itself.
    """
    counts, faults, opened, sizes = Counter(), [], [], []
    for found in findings(count, seed, ended):
        outcome = found["outcome"] if not found.get("left") else "left"
        counts[outcome] += 1
        if outcome not in ("used", "named"):
            faults.append(found)
            say(f"{outcome}: {found.get('way')} {Path(found['file']).name}: {found.get('why', found.get('left'))}")
        else:
            opened.append(found["open"])
            sizes.append(found["mib"])
    half = len(opened) // 2
    more_open = max(opened[half:], default=0) - max(opened[:half], default=0)
    growth = float(np.median(sizes[half:]) / np.median(sizes[:half]) - 1) if half else 0.0
    if half >= WARM and (more_open > 0 or growth > GROWTH):
        faults.append({"outcome": "grown", "descriptors": more_open, "memory": growth})
        say(f"grown: {more_open:+d} descriptors, memory {growth:+.1%}")
    return {**counts, "descriptors": more_open, "growth": growth}, faults


if __name__ == "__main__":
    _read_all()
