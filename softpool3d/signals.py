"""Signals that ask a program to stop.

Training and testing take them as a request, and stop at the next safe point (runtime/interrupt.py). Any other command
ends as Ctrl-C ends it, so that its temporary files and processes go with it. Worker processes ignore these signals and
leave the decision to their parent: terminals and clusters send signals to all processes.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# Ctrl-C; a cluster's end of a job; the terminal was closed; a cluster's warning some time before the end (as
# `#SBATCH --signal=USR1@120` asks for). Windows has only the first two.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
_HANGUP = getattr(signal, "SIGHUP", None)
_LATER_S = 0.02  # by then Python has left what it drops errors of
# torchrun, if it started this process: asked before torch is loaded, which takes seconds in which it may be killed
_TORCHRUN = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


class Stopped(KeyboardInterrupt):
    """Raised where a signal asks to stop.

    It is not KeyboardInterrupt itself: where that comes out of `exec`, as in the definition of a dataclass, Python
    takes it for unhandled, and kills itself at its end.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def number_of(stop: KeyboardInterrupt) -> int:
    """Returns the number of the signal that asked to stop: SIGINT for a plain KeyboardInterrupt."""
    return getattr(stop, "number", signal.SIGINT)


def torchrun_is_gone() -> bool:
    """Whether torchrun started this process, and has ended since."""
    return _TORCHRUN not in (None, os.getppid())


def is_ignored(number: int) -> bool:
    """Whether a signal is a SIGHUP that this process ignores, as processes started by nohup do."""
    return number == _HANGUP and signal.getsignal(number) == signal.SIG_IGN


def leave_to_parent() -> None:
    """Ignores the signals in a worker process, which its parent stops."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def raised() -> Iterator[None]:
    """Makes Ctrl-C, SIGTERM and SIGHUP raise `Stopped` inside. A second SIGTERM or SIGHUP ends the process.

    Under torchrun only Ctrl-C does. torchrun ends the processes by SIGTERM, also those that wait for each other, where
    Python does not run its handlers.
    """
    numbers = [] if "LOCAL_RANK" in os.environ else [n for n in (signal.SIGTERM, _HANGUP) if n is not None]
    numbers = [n for n in numbers if not is_ignored(n)]
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        numbers.append(signal.SIGINT)

    def stop(number: int, _: object) -> None:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        forget_terminal(number)
        raise Stopped(number)

    def again(dropped: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised in a `__del__`, or in what it calls around a fork: it comes once more, later."""
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            return hook(dropped)
        number = number_of(dropped.exc_value)
        signal.signal(number, stop)
        later = threading.Timer(_LATER_S, _thread.interrupt_main if sys.platform == "win32" else _sent_again, [number])
        later.daemon = True
        later.start()

    previous = {number: signal.signal(number, stop) for number in numbers}
    hook, sys.unraisablehook = sys.unraisablehook, again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)


def _sent_again(number: int) -> None:
    """A real signal, which wakes a call of the system that waits."""
    signal.pthread_kill(threading.main_thread().ident, number)


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Handles a Ctrl-C that comes after the body, which is the whole work of a process.

    While the exit hooks run, it ends the process at once, with an exit code. During Python's teardown after them it
    does nothing.
    """
    _at_exit(_ignore_ctrl_c)  # hooks run last to first
    try:
        yield
    finally:
        _at_exit(_leave_at_ctrl_c)


def _at_exit(hook: Callable[[], None]) -> None:
    atexit.unregister(hook)
    atexit.register(hook)


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave_at_ctrl_c() -> None:
    def leave(number: int, _: object) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(128 + number)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)


def forget_terminal(number: int) -> None:
    """After SIGHUP, sends further output to the null device: writing to a closed terminal is an error."""
    if number != _HANGUP:
        return
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):  # it was a terminal
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
