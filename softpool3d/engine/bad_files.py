"""Files of a data set that turn out unreadable: each is named once, and too many of them stop the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from softpool3d.datasets.decoder import DecodeError
from softpool3d.errors import WorkError


class TooManyBadFiles(WorkError):
    """More of a split's files are unreadable than the configuration allows."""


class BadFiles:
    """Of one split.

    Args:
        split: its name, for messages.
        total: how many clips it has.
        max_fraction: of them that may be bad.
        say: prints a line.
        known: paths that were found earlier, in the part of the run before an interruption.
    """

    def __init__(
        self, split: str, total: int, max_fraction: float, say: Callable[[str], None], known: Iterable[str] = ()
    ) -> None:
        self.split, self.total, self.max_fraction, self.say = split, total, max_fraction, say
        self.paths = set(known)

    def __len__(self) -> int:
        return len(self.paths)

    def add(self, errors: list[DecodeError]) -> None:
        """Raises TooManyBadFiles once more than `max_fraction` of the split's files are bad."""
        for error in errors:
            if error.path not in self.paths:
                self.paths.add(error.path)
                self.say(f"skipped: {error}")
        if len(self.paths) > self.max_fraction * self.total:
            raise TooManyBadFiles(
                f"{len(self.paths)} of the {self.total} {self.split} files cannot be read, more than "
                f"data.max_bad_fraction={self.max_fraction:g} allows; repair or remove them, or go on with "
                "--resume FOLDER data.max_bad_fraction=..."
            )
