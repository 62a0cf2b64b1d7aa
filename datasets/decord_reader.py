"""Frames through decord, in a process of its own.

decord can hang on odd files (its issue 269), and nothing can stop a call into it but the end of its process. So each
process that reads clips has one helper process, started when decord is first needed: it has one file open at a time,
and is killed and forgotten when it does not answer in time. Frames come through a socket: a millisecond for a clip.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

import numpy as np


class DecordFailed(Exception):
    """decord could not, or took too long: PyAV's turn."""


class DecordReader:
    """Reads any of the frames of a file; opening one closes the helper's last one.

    Args:
        size: width and height that frames are scaled to (bilinear); None keeps their size.
        timeout_s: seconds that a call may take.

    Raises:
        DecordFailed: if decord is not there, cannot open the file, or hangs.
    """

    name = "decord"

    def __init__(self, path: str, size: tuple[int, int] | None, timeout_s: float) -> None:
        self._helper = _helper()
        self._timeout_s = timeout_s
        self.num_frames = self._helper.call("open", (path, size or (-1, -1)), timeout_s)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (T, H, W, 3) of ascending indices without repeats."""
        shape = self._helper.call("read", indices.tolist(), self._timeout_s)
        pictures = np.empty(shape, np.uint8)
        self._helper.receive_into(pictures)
        return pictures

    def close(self) -> None:
        if self._helper.running:
            self._helper.call("close", None, self._timeout_s)


class _Helper:
    def __init__(self) -> None:
        import socket

        ours, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            f"from softpool3d.datasets.decord_reader import serve; serve({theirs.fileno()})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what it prints when it crashes: the file goes to PyAV
            start_new_session=True,  # Ctrl-C is not for it: it ends with its parent
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self.running = True

    def call(self, verb: str, argument: object, timeout_s: float) -> object:
        try:
            self._connection.send((verb, argument))
            if not self._connection.poll(timeout_s):
                self.kill()
                raise DecordFailed
            answer = self._connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # it crashed
            self.kill()
            raise DecordFailed from None
        if isinstance(answer, Exception):
            raise DecordFailed
        return answer

    def receive_into(self, array: np.ndarray) -> None:
        try:
            self._connection.recv_bytes_into(memoryview(array).cast("B"))
        except (EOFError, OSError):
            self.kill()
            raise DecordFailed from None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.forget()

    def forget(self) -> None:
        """Without ending it: in a forked process, whose parent goes on with it."""
        self._connection.close()
        self.running = False


_current: _Helper | None = None


def _helper() -> _Helper:
    global _current
    if _current is None or not _current.running:
        if os.name != "posix" or not _decord_is_there():
            raise DecordFailed
        _current = _Helper()
    return _current


def stop_helper() -> None:
    """Ends this process's helper, if it has one; the next file starts another."""
    if _current is not None and _current.running:
        _current.kill()


def _decord_is_there() -> bool:
    from importlib.util import find_spec

    return find_spec("decord") is not None


def _after_fork() -> None:
    global _current
    if _current is not None and _current.running:
        _current.forget()
    _current = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# --- the helper ------------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """The helper's whole life: answers until its parent is gone."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # errors reach the user as exceptions, once
    connection = Connection(descriptor)
    requests: queue.SimpleQueue = queue.SimpleQueue()

    def listen() -> None:
        # a thread of its own notices the end of the parent even while a call into decord hangs
        try:
            while True:
                requests.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    reader = None
    while True:
        verb, argument = requests.get()
        pictures = None
        try:
            if verb == "open":
                path, (width, height) = argument
                reader = decord.VideoReader(path, decord.cpu(0), width=width, height=height, num_threads=1)
                answer = len(reader)
            elif verb == "read":
                pictures = reader.get_batch(argument).asnumpy()
                answer = pictures.shape
            else:
                reader = answer = None
        except Exception as error:  # decord raises its own type, RuntimeError and others
            answer = RuntimeError(str(error))
        try:
            connection.send(answer)
            if pictures is not None:
                connection.send_bytes(memoryview(np.ascontiguousarray(pictures)).cast("B"))
        except OSError:
            os._exit(0)
