"""Reads the folder of a run, finished or not."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from softpool3d.config import Config
from softpool3d.errors import UsageError
from softpool3d.foreign import parse_json
from softpool3d.naming import meant
from softpool3d.runs.run import stored_config

MEASURES = {"map": "mAP", "top1": "top-1"}  # name in files -> for people


@dataclass
class RunRecord:
    """What a run's folder holds.

    epochs: rows of metrics.csv, values as numbers.
    summary: of summary.json; None if the run is not finished.
    tests: results.json of each `softpool3d test` on the test split since, the one with the most views first.
    problem: why the folder could not be read.
    """

    folder: Path
    config: Config | None = None
    epochs: list[dict[str, float]] = field(default_factory=list)
    summary: dict[str, Any] | None = None
    parameters: int | None = None
    num_classes: int | None = None
    tests: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""

    @property
    def finished(self) -> bool:
        return self.summary is not None and not self.problem

    @property
    def measure(self) -> str:
        """The measure by which the run is judged, a key of MEASURES: mAP where clips have several labels."""
        keys = {key for row in self.epochs for key in row} | set(self.summary or ())
        return "map" if keys & {"val_map", "test_map"} else "top1"

    def best_val(self, measure: str = "") -> float | None:
        """Returns the best validation score so far, by `measure` or the run's own."""
        key = f"val_{measure or self.measure}"
        return max((row[key] for row in self.epochs if key in row), default=None)

    def test(self, measure: str = "") -> float | None:
        """Returns the test score of the best weights; None if the run is not finished."""
        return (self.summary or {}).get(f"test_{measure or self.measure}")


def read_run(folder: str | Path) -> RunRecord:
    """Reads a run's folder. Never raises: `problem` says what cannot be read."""
    record = RunRecord(Path(folder))
    if not record.folder.is_dir():
        absent = f"there is no such folder{meant(record.folder, ())}"
        record.problem = "it is a file, not a folder" if record.folder.exists() else absent
        return record
    if not (record.folder / "config.yaml").is_file():
        record.problem = "it is not the folder of a run (it has no config.yaml)"
        return record
    try:
        record.config = stored_config(record.folder)
        record.epochs = list(_epochs(record.folder / "metrics.csv"))
        record.summary = _summary(record.folder / "summary.json")
        record.parameters, record.num_classes = _sizes(record.folder / "best.safetensors")
        record.tests = sorted(_tests(record.folder), key=lambda test: -test["num_clips"] * test["num_crops"])
    except UsageError as error:
        record.problem = str(error)
    return record


def _epochs(path: Path) -> Iterator[dict[str, float]]:
    if not path.is_file():
        return
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield {key: float(value) for key, value in row.items() if value != ""}
    except (OSError, TypeError, ValueError):
        raise UsageError(f"{path} is damaged") from None


def _summary(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        summary = parse_json(path.read_text(encoding="utf-8"))
        needed = ("test_top1", "seconds", *(key for key in ("val_map", "test_map") if key in summary))
        return summary | {key: float(summary[key]) for key in needed}
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is damaged") from None


def _tests(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("test*/results.json")):
        try:
            result = parse_json(path.read_text(encoding="utf-8"))
            if result.get("split") == "test":
                found = {key: result[key] for key in ("top1", "num_clips", "num_crops")}
                yield found | {"map": result.get("mean_average_precision")}
        except (OSError, ValueError, KeyError, AttributeError):
            raise UsageError(f"{path} is damaged") from None


def _sizes(weights: Path) -> tuple[int | None, int | None]:
    """Returns how many parameters, without norms' running statistics, and classes a weights file has, by its header."""
    if not weights.is_file():
        return None, None
    from safetensors import SafetensorError, safe_open

    statistics = ("running_mean", "running_var", "num_batches_tracked")
    try:
        with safe_open(weights, "pt") as file:
            names = [name for name in file.keys() if not name.endswith(statistics)]  # noqa: SIM118 (it is not a dict)
            parameters = sum(prod(file.get_slice(name).get_shape()) for name in names)
            classes = parse_json((file.metadata() or {}).get("classes", "[]"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{weights} is damaged ({error})") from None
    return parameters, len(classes) or None
