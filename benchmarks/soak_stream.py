"""The soak's streams: servers that die, end, fall silent or set their clocks, and `classify --stream --reconnect`.

The RTSP server is GStreamer's, by the system's Python:
    apt install gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good
"""

from __future__ import annotations

import functools
import json
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from shared import started

SILENCE_S = 30.0  # after which a server counts as gone
_PATIENCE_S = 90.0
_FIRST_S = 60.0  # for the first window, and for the first one after a server is back
_PYTHON = "/usr/bin/python3"  # GStreamer's bindings come with the system, not from PyPI
_SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
if len(sys.argv) == 1:
    sys.exit()
Gst.init(None)
server, factory = GstRtspServer.RTSPServer.new(), GstRtspServer.RTSPMediaFactory.new()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory.set_launch(
    f"( videotestsrc is-live=true pattern=ball num-buffers={sys.argv[2]} ! "
    "video/x-raw,format=I420,width=128,height=96,framerate=25/1 ! jpegenc ! rtpjpegpay name=pay0 pt=26 )"
)
server.get_mount_points().add_factory("/ball", factory)
server.attach(None)
GLib.MainLoop().run()
"""


@functools.cache
def lacking_for_rtsp() -> str:
    """Returns why no RTSP server can be started here; "" where one can."""
    try:
        found = subprocess.run([_PYTHON, "-c", _SERVER], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return found.stderr.strip().rpartition("\n")[2]


class _Server:
    """An RTSP server that can be ended and started again; it sends so many frames to each who asks (-1: no end)."""

    def __init__(self, frames: int = -1) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"rtsp://127.0.0.1:{self.port}/ball"
        self._frames = frames
        self.start()

    def start(self) -> None:
        command = [_PYTHON, "-c", _SERVER, str(self.port), str(self._frames)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.1)
        raise AssertionError("no RTSP server came up in a minute")

    def tell(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class _Watcher:
    """`classify --stream`: its windows with the moments at which they were printed, and what it said."""

    def __init__(self, address: str, *options: str) -> None:
        self.windows: list[tuple[float, float]] = []  # (when it came, the time that it was printed with)
        self.said: list[str] = []
        command = [
            "-m",
            "softpool3d",
            "classify",
            "--stream",
            address,
            "--weights",
            "motion",
            "--device",
            "cpu",
            "--json",
        ]
        self.process = started([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._listen)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.windows.append((time.monotonic(), json.loads(line)["time"]))

    def _listen(self) -> None:
        self.said.extend(self.process.stderr)

    def sees_more(self, seconds: float = _FIRST_S) -> bool:
        """Waits for two more windows."""
        return self.waits(lambda before=len(self.windows): len(self.windows) >= before + 2, seconds)

    def waits(self, condition: Callable[[], object], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or self.process.poll() is not None:
                return bool(condition())
            time.sleep(0.05)
        return True

    def stop(self, number: signal.Signals = signal.SIGINT) -> str:
        """Stops it and returns what it said."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(_FIRST_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.said.append("Traceback: it hung")
        for thread in self._threads:
            thread.join()
        return "".join(self.said)


def soak_streams(
    rounds: int, seed: int, ended: Callable[[], bool], say: Callable[[str], None]
) -> tuple[dict[str, int], list[str]]:
    """Watches a server while so many accidents of each kind happen to it.

    Returns:
        How often each accident happened, and what went wrong, as sentences.
    """
    rng, done, faults = np.random.default_rng(seed), Counter(), []
    kinds = {"cut": _cut, "silence": _silent, "end": _end} if not lacking_for_rtsp() else {}
    for _ in range(rounds):
        for kind in (kinds | {"clock set": _clock_set}).values():
            if ended():
                break
            name, wrong = kind(rng)
            done[name] += 1
            faults += [f"{name}: {what}" for what in wrong]
            for what in wrong:
                say(f"{name}: {what}")
    return dict(done), faults


def _wrong(watcher: _Watcher, told: str, *expected: str) -> list[str]:
    """Returns what is wrong with what was watched: times have to ascend and to follow the clock on the wall."""
    wrong = [f"a traceback: {told}"] if "Traceback" in told else []
    wrong += [f"it did not say {text!r}, but {told!r}" for text in expected if text not in told]
    came, times = (np.array(column) for column in zip(*watcher.windows, strict=True)) if watcher.windows else ([], [])
    if not len(times):
        return [*wrong, f"no windows: {told}"]
    if (np.diff(times) <= 0).any():
        wrong.append("its times do not ascend")
    late = (came - came[0]) - (times - times[0])
    if len(expected) and np.abs(late).max() > 10:
        wrong.append(f"its times are {np.abs(late).max():.0f} s off")
    return wrong


@contextmanager
def _watched(frames: int = -1):
    server = _Server(frames)
    watcher = _Watcher(server.address, "--live", "--reconnect", f"{_PATIENCE_S:g}s")
    try:
        yield server, watcher
    finally:
        server.end()
        watcher.process.kill()


def _cut(rng: np.random.Generator) -> tuple[str, list[str]]:
    with _watched() as (server, watcher):
        there = watcher.sees_more()
        time.sleep(rng.uniform(0, 2))
        server.end()
        time.sleep(rng.uniform(0.5, 4))
        server.start()
        back = there and watcher.sees_more()
        wrong = _wrong(watcher, watcher.stop(), "; trying again for 90 s", "is back after", "stopped after")
    return "cut connection", wrong if back else [*wrong, "it did not come back"]


def _silent(rng: np.random.Generator) -> tuple[str, list[str]]:
    """The server's process stands still, until it counts as gone, and goes on."""
    with _watched() as (server, watcher):
        there = watcher.sees_more()
        time.sleep(rng.uniform(0, 2))
        server.tell(signal.SIGSTOP)
        gone = there and watcher.waits(lambda: any("trying again" in line for line in watcher.said), 2 * SILENCE_S)
        server.tell(signal.SIGCONT)
        back = gone and watcher.sees_more(_PATIENCE_S)
        wrong = _wrong(watcher, watcher.stop(), "; trying again for 90 s", "is back after", "stopped after")
    return "silent server", wrong if back else [*wrong, "it did not come back"]


def _end(_: np.random.Generator) -> tuple[str, list[str]]:
    """The server ends each stream after eight seconds, and begins the next one from time 0."""
    with _watched(frames=200) as (_, watcher):
        again = watcher.waits(lambda: sum("is back" in line for line in watcher.said) >= 2, 2 * _FIRST_S)
        wrong = _wrong(watcher, watcher.stop(), "; trying again for 90 s", "is back after", "stopped after")
    return "ended stream", wrong if again else [*wrong, "it did not come back twice"]


def _clock_set(_: np.random.Generator) -> tuple[str, list[str]]:
    """A stream of three times eight seconds, whose clock is set on by half a day and back again."""
    with tempfile.TemporaryDirectory() as folder, _http([0.0, 40_000.0, 0.0], Path(folder)) as address:
        watcher = _Watcher(address, "--hop", "1s")
        watcher.waits(lambda: watcher.process.poll() is not None, 2 * _FIRST_S)
        told = watcher.stop()
    wrong = _wrong(watcher, told)
    times = [time for _, time in watcher.windows]
    if not wrong and (max(np.diff(times)) > 3 or not 23 < times[-1] < 26):
        wrong.append(f"a leap, or not 24 s: {times}")
    return "clock set", wrong


@contextmanager
def _http(offsets_s: list[float], folder: Path):
    """Yields the address of a stream of an unknown length: parts of eight seconds, one after another."""
    from soak_memory import write_long_video

    parts = [
        write_long_video(folder / f"{number}.ts", 8.0, offset).read_bytes() for number, offset in enumerate(offsets_s)
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 (the name that http.server calls)
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # whoever has seen enough leaves
                for part in parts:
                    self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/stream.ts"
        server.shutdown()
