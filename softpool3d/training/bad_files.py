"""Files of a data set that turn out unreadable: each is named once, and too many of them stop the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.errors import WorkError
from softpool3d.files import write_csv
from softpool3d.runtime.processes import Processes


class TooManyBadFiles(WorkError):
    """More of a split's files are unreadable than the configuration allows."""


class BadFiles:
    """The unreadable and the damaged files of one split.

    Args:
        split: its name, for messages.
        total: how many clips it has.
        max_fraction: the share of them that may be bad.
        say: called with a line for the user, for each file that was not known to be bad.
        known: files that were found earlier, in the part of the run before an interruption.
    """

    def __init__(
        self,
        split: str,
        total: int,
        max_fraction: float,
        say: Callable[[str], None],
        known: dict[str, tuple[int | None, str]] | None = None,
    ) -> None:
        self.split, self.total, self.max_fraction, self.say = split, total, max_fraction, say
        self.files = dict(known or {})  # path -> index in the manifest, what is wrong
        self.fresh: list[DecodeError] = []  # bad files that the other processes do not know of yet
        self.damaged: dict[str, str] = {}  # path -> what is missing of a file that is used
        self._fresh_damaged: dict[str, str] = {}

    @property
    def has_news(self) -> bool:
        """Whether the other processes have yet to learn of something."""
        return bool(self.fresh or self._fresh_damaged)

    def __len__(self) -> int:
        return len(self.files)

    def add(self, errors: list[DecodeError], damaged: Mapping[str, str] = MappingProxyType({})) -> None:
        """Notes the bad and damaged files that are new.

        Args:
            damaged: path -> what is missing, of files that are used all the same.
        """
        for path, what in damaged.items():
            if path not in self.damaged:
                self.damaged[path] = self._fresh_damaged[path] = what
                self.say(f"note: {path}: {what}")
        for error in errors:
            if error.path not in self.files:
                self.files[error.path] = error.index, error.reason
                self.fresh.append(error)
                self.say(f"skipped: {error}")

    def share(self, processes: Processes) -> None:
        """Tells every process what all of them have noted.

        Raises:
            TooManyBadFiles: in all of them, once more than `max_fraction` of the split's files are bad.
        """
        for errors, damaged in processes.gather((self.fresh, self._fresh_damaged)):
            self.add(errors, damaged)
        self.fresh, self._fresh_damaged = [], {}
        if len(self) > self.max_fraction * self.total:
            raise TooManyBadFiles(
                f"{len(self)} of the {self.total} {self.split} files cannot be read, more than "
                f"data.max_bad_fraction={self.max_fraction:g} allows; repair or remove them, or go on with "
                "--resume FOLDER data.max_bad_fraction=..."
            )


def write_bad_files(path: Path, splits: Iterable[BadFiles]) -> None:
    """Writes a CSV file with every file that was found unreadable: split, index in its manifest, path, reason."""
    rows: list[list[object]] = [["split", "index", "path", "reason"]]
    for bad in splits:
        for file, (index, reason) in sorted(bad.files.items()):
            rows.append([bad.split, "" if index is None else index, file, reason])
    write_csv(path, rows)
