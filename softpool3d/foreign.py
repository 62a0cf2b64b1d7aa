"""Input from strangers: JSON that is parsed, and text on its way to a terminal (see docs/security.md)."""

from __future__ import annotations

import json
import re
from typing import Any, TextIO

# What rich itself writes: colours, the cursor up, a line erased, the cursor hidden and shown.
_OURS = r"\x1b\[(?:[0-9;]*m|[0-9]*[AK]|\?25[hl])"
_CONTROL = re.compile(rf"({_OURS})|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
        ValueError: if it is not JSON, or nested too deeply, for which Python itself raises RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Shielded:
    """A text stream to a terminal on which file names cannot set titles, fill the clipboard or ask for answers.

    Control characters are shown as they are written in Python (\\x1b), except line ends, tabs, and the few sequences
    that rich draws colours and bars with. All other attributes are the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(_CONTROL.sub(lambda found: found[1] or f"\\x{ord(found[0]):02x}", text))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
