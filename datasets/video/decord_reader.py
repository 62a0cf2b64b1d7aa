"""Reads frames with decord, in a process of its own.

decord can hang on odd files (its issue 269) and crash, and only the end of its process stops a call into it. So each
process that reads clips has one helper process. It is started when decord is first needed, and killed when it does not
answer in time. Every request names its file, so each answer is of that file, whichever files the helper has open and
however often it was started anew.

decord reads those files of decord_files.py in which it sees the same times and key frames as PyAV, and finds nothing
damaged.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from contextlib import suppress

import numpy as np

_OPEN = 8  # files that a helper keeps open; those not used longest are closed, and opened again when they are needed
_LENGTH = struct.Struct("<Q")  # goes before each message
_STDERR = 2


class DecordFailed(Exception):
    """decord failed or took too long, so PyAV has to read the file."""


class DecordReader:
    """Reads any of the frames of a file.

    Args:
        size: width and height that frames are scaled to (bilinear); None keeps their size.
        timeout_s: seconds that a call may take.
        times: seconds from the first frame, for each frame as PyAV counts them.
        keys: the indices of the key frames.

    Raises:
        DecordFailed: if decord is not there, cannot open the file, counts other frames, or hangs; nothing else.
    """

    name = "decord"

    def __init__(
        self, path: str, size: tuple[int, int] | None, timeout_s: float, times: np.ndarray, keys: np.ndarray
    ) -> None:
        path = os.path.abspath(path)  # the helper stands in the folder in which it was started
        try:
            self._file = path, _identity(path), size or (-1, -1)
        except OSError:
            raise DecordFailed from None
        self._timeout_s = timeout_s
        its_times, its_keys = _helper().call("open", (self._file, None), timeout_s)
        if not (np.array_equal(its_keys, keys) and len(its_times) == len(times) and _same_times(its_times, times)):
            self.close()
            raise DecordFailed("it counts other frames")

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns uint8 (T, H, W, 3) of ascending indices without repeats."""
        return _helper().call("read", (self._file, indices.tolist()), self._timeout_s)

    def close(self) -> None:
        """Closes the file. Never raises: a helper that is gone has closed its files."""
        if _current is not None and _current.running:
            with suppress(DecordFailed):
                _current.call("close", (self._file, None), self._timeout_s)


class _Helper:
    """A process that runs `serve`; a call that times out or is interrupted kills it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            f"from softpool3d.datasets.video.decord_reader import serve; serve({theirs.fileno()})"
        )
        with theirs, tempfile.TemporaryFile() as its_words:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=its_words,  # not for the user: the file goes to PyAV
                start_new_session=True,  # Ctrl-C is not for it: it ends with its parent
            )
        self._lock = threading.Lock()  # threads of one process take turns: an answer is that of the last request

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def call(self, verb: str, argument: tuple, timeout_s: float) -> object:
        with self._lock:
            try:
                self._socket.settimeout(timeout_s)
                _send(self._socket, (verb, *argument))
                done, answer = _receive(self._socket)
            except (EOFError, OSError, pickle.UnpicklingError):  # it crashed, was killed, or hangs
                self.kill()
                raise DecordFailed from None
            except BaseException:  # Ctrl-C: its answer must not be taken for that of the next call
                self.kill()
                raise
        if not done:
            raise DecordFailed(answer)
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def forget(self) -> None:
        """Lets go of the helper without ending it: in a forked process, whose parent goes on with it."""
        self._socket.close()
        self._process.returncode = 0  # not this process's child: it is neither waited for nor warned of


_current: _Helper | None = None


def _helper() -> _Helper:
    global _current
    if _current is None or not _current.running:
        if os.name != "posix" or not _decord_is_there():
            raise DecordFailed
        try:
            _current = _Helper()
        except OSError:  # no more processes, memory or files
            raise DecordFailed from None
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
    if _current is not None:
        _current.forget()
    _current = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _same_times(its_times: np.ndarray, times: np.ndarray) -> bool:
    its_times = its_times.astype(np.float64)
    return np.allclose(its_times - its_times[0], times, rtol=1e-6, atol=1e-5)  # decord's have 24 bits


def _identity(path: str) -> tuple[int, ...]:
    """Returns numbers that change when another file takes the path."""
    file = os.stat(path)
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns


def _send(connection: socket.socket, message: object) -> None:
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    connection.sendall(_LENGTH.pack(len(content)))
    connection.sendall(content)


def _receive(connection: socket.socket) -> object:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return pickle.loads(_exactly(connection, length))


def _exactly(connection: socket.socket, length: int) -> bytearray:
    content = bytearray(length)
    rest = memoryview(content)
    while rest:
        count = connection.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return content


# --- the helper ------------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Answers requests until the parent is gone; this is all that the helper does."""
    import decord

    # Where FFmpeg finds a packet damaged, decord shows some other frame and only FFmpeg's own words on stderr tell.
    decord.logging.set_level(decord.logging.ERROR)
    os.ftruncate(_STDERR, 0)
    connection = socket.socket(fileno=descriptor)
    requests: queue.SimpleQueue = queue.SimpleQueue()

    def listen() -> None:
        # a thread of its own notices the end of the parent even while a call into decord hangs
        try:
            while True:
                requests.put(_receive(connection))
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    readers: OrderedDict[tuple, object] = OrderedDict()
    while True:
        try:
            answer = True, _answer(readers, *requests.get())
            if os.lseek(_STDERR, 0, os.SEEK_END):
                os.ftruncate(_STDERR, 0)
                answer = False, "it is damaged"
        except Exception as error:  # decord raises its own type, RuntimeError and others
            answer = False, str(error)
        try:
            _send(connection, answer)
        except OSError:
            os._exit(0)


def _answer(readers: OrderedDict[tuple, object], verb: str, file: tuple, indices: list[int] | None) -> object:
    if verb == "close":
        readers.pop(file, None)
        return None
    if file not in readers:
        readers[file] = _opened(*file)
        if len(readers) > _OPEN:
            readers.popitem(last=False)
    readers.move_to_end(file)
    reader = readers[file]
    if verb == "open":
        return reader.get_frame_timestamp(range(len(reader)))[:, 0], reader.get_key_indices()
    return reader.get_batch(indices).asnumpy()


def _opened(path: str, identity: tuple[int, ...], size: tuple[int, int]):
    import decord

    # fault_tol: it raises instead of returning the nearest frame for one that does not come
    reader = decord.VideoReader(path, decord.cpu(0), width=size[0], height=size[1], num_threads=1, fault_tol=1e-6)
    if _identity(path) != identity:
        raise RuntimeError("another file took its place")
    return reader
