"""Signals as a request: the loop stops at the next safe point, with its state saved, or at once if it has none yet.

The signals are those of signals.py. A second Ctrl-C stops at once.
"""

from __future__ import annotations

import signal

from softpool3d.errors import SoftPool3dError
from softpool3d.signals import STOPPING, Stopped, forget_terminal, is_ignored, torchrun_is_gone


class Interrupted(SoftPool3dError):
    """Work that the user or a cluster stopped; the message says how to go on. Exit code 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Interrupt:
    """While entered, listens for signals; `requested` says whether one came.

    Attributes:
        at_once: a message; while it is set, a signal ends the block by `Interrupted` with it, wherever the block is. It
            is set for the first step, which may compile for minutes, or never end because the same signal killed the
            compiler's processes.
    """

    def __init__(self) -> None:
        self._number = 0
        self.at_once: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        for number in STOPPING:
            if not is_ignored(number):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, Stopped) and self.at_once is not None:
            raise Interrupted(self.at_once, error.number) from None

    @property
    def requested(self) -> int:
        """The number of the signal that asked to stop, or 0. SIGTERM if torchrun, which would send it, is gone."""
        return self._number or (signal.SIGTERM if torchrun_is_gone() else 0)

    def _request(self, number: int, _: object) -> None:
        self._number = number
        forget_terminal(number)
        if number == signal.SIGINT:
            before = self._previous[number]
            signal.signal(number, before if callable(before) else signal.default_int_handler)
        if self.at_once is not None:
            raise Stopped(number)  # no Exception, which may be handled as a failure of what was under way
