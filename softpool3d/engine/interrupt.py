"""Ctrl-C and SIGTERM as a request: the loop stops at the next safe point. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal

from softpool3d.errors import SoftPool3dError


class Interrupted(SoftPool3dError):
    """Work that the user stopped; the message says how to go on. Exit code 130, as shells have it for Ctrl-C."""

    exit_code = 130


class Interrupt:
    """While entered, `requested` tells whether somebody asked to stop."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
