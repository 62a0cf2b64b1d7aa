"""Signals as a request: the loop stops at the next safe point, with its state saved; where it has none yet, at once.

Ctrl-C (a second one stops at once), and whatever else signals.py lists.
"""

from __future__ import annotations

import signal

from softpool3d.errors import SoftPool3dError
from softpool3d.signals import STOPPING, forget_terminal, is_ignored


class Interrupted(SoftPool3dError):
    """Work that the user or a cluster stopped; the message says how to go on. Exit code 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StoppedAtOnce(Interrupted):
    """There was nothing to save."""


class Interrupt:
    """While entered, `requested` is the number of the signal that asked to stop, or 0.

    Attributes:
        at_once: while this is set, a signal raises `StoppedAtOnce` with it. The first step may take minutes, as it
            compiles, and may never end: a compiler's processes may have died of the same signal.
    """

    def __init__(self) -> None:
        self.requested = 0
        self.at_once: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        for number in STOPPING:
            if not is_ignored(number):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: object) -> None:
        self.requested = number
        forget_terminal(number)
        if number == signal.SIGINT:
            before = self._previous[number]
            signal.signal(number, before if callable(before) else signal.default_int_handler)
        if self.at_once is not None:
            raise StoppedAtOnce(self.at_once, number)
