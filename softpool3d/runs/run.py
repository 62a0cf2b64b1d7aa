"""The folder of a run: its configuration, metrics, checkpoint, best weights and summary."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from softpool3d.config import Config
from softpool3d.config_file import load_config, override_config, validate, with_what_is_set
from softpool3d.errors import UsageError, WorkError, os_reason
from softpool3d.files import write_atomically
from softpool3d.naming import run_named
from softpool3d.yaml_text import read_yaml


class Run:
    """The folder of a run. Scalars go to metrics.csv, one row for each call of `log`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "last" / "checkpoint.pt"
        self.best = folder / "best.safetensors"
        self.rows: list[dict[str, Any]] = []  # of metrics.csv

    @classmethod
    def create(cls, config: Config) -> Run:
        """Makes a new folder <output>/<name>, or <name>-2 and so on where that is taken: nothing is overwritten.

        Raises:
            WorkError: if it cannot be written.
        """
        base = Path(config.output).expanduser() / config.name
        folder, number = base, 1
        try:
            while True:
                try:
                    folder.mkdir(parents=True)
                    break
                except FileExistsError:
                    number += 1
                    folder = base.with_name(f"{base.name}-{number}")
        except OSError as error:
            raise WorkError(
                f"cannot write the run's folder {folder}: {os_reason(error)}; name another with output=..."
            ) from None
        try:
            write_atomically(folder / "config.yaml", config.to_yaml().encode())
        except WorkError:
            with suppress(OSError):
                folder.rmdir()  # else the next try would be the second run of this name
            raise
        return cls(folder)

    @classmethod
    def open(
        cls, folder: str | Path, overrides: Sequence[str] = (), cfg: str | Path | None = None
    ) -> tuple[Run, Config]:
        """Opens an existing run, by its folder or name; returns it, and its configuration with a file's and overrides.

        Raises:
            UsageError: if it is not the folder of a run, or an override is wrong.
        """
        folder = run_named(folder)
        config = stored_config(folder)
        if cfg is not None:
            config = with_what_is_set(config, load_config(cfg))
        return cls(folder), override_config(config, overrides)

    def set_config(self, config: Config) -> None:
        """Writes another configuration; the one before is kept as config.before.yaml."""
        path = self.folder / "config.yaml"
        if stored_config(self.folder) != config:
            write_atomically(path, config.to_yaml().encode(), previous=self.folder / "config.before.yaml")

    def log(self, row: dict[str, Any]) -> None:
        """Adds the scalars of one evaluation, or of an epoch without one."""
        self.rows.append(row)
        self._write_rows()

    def keep_rows(self, count: int) -> None:
        """Keeps the first `count` rows of metrics.csv, those from before the checkpoint that the run resumes from."""
        path = self.folder / "metrics.csv"
        if path.is_file():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    self.rows = list(csv.DictReader(file))[:count]
            except (csv.Error, ValueError):
                raise UsageError(f"{path} is damaged; move it away to resume without it") from None
        if self.rows:
            self._write_rows()

    def summarize(self, summary: dict[str, Any]) -> None:
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())

    def _write_rows(self) -> None:
        text = io.StringIO()
        # the columns of all rows, the last row's first: a resumed run may have gained or lost an average of its weights
        columns = dict.fromkeys(column for row in reversed(self.rows) for column in row)
        writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "metrics.csv", text.getvalue().encode())


def stored_config(folder: Path) -> Config:
    """Returns the configuration that a run's folder holds.

    Raises:
        UsageError: if it cannot be read.
    """
    return validate(*read_yaml(folder / "config.yaml", Config))
