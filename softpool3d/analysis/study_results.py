"""What a study keeps of its finished runs: a JSON file beside its page, small enough to be published with it.

The page is made from it. With it, another machine goes on with the runs that are missing, and anybody checks a verdict
without training: it holds each run's answer for each test clip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from softpool3d import __version__
from softpool3d.analysis.folders import RunRecord, read_run
from softpool3d.analysis.measuring import machine
from softpool3d.analysis.study import Trial
from softpool3d.config import Config, Effect, has_effect
from softpool3d.errors import UsageError
from softpool3d.evaluation.scores import FILE, VideoScores
from softpool3d.files import write_atomically
from softpool3d.runs.pretrained import left_open
from softpool3d.runtime.devices import pick_device


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Result(_Part):
    """A finished run.

    Attributes:
        data_set: "" in a study of one, which its networks' files name.
        settings: digest of its configuration, without what concerns speed and places.
        measure: top1, or map where clips have several labels; `test` and `val` (the best epoch's) are by it.
        train_top1: in the last epoch.
        seconds: of the wall clock. cpu_seconds: of the run's process, all its threads.
        answers: the likeliest class of each test clip; None where clips have several labels.
    """

    data_set: str
    settings: str
    machine: str
    measure: str
    test: float
    val: float
    train_top1: float
    test_clips: int
    seconds: float
    cpu_seconds: float | None
    peak_memory_bytes: int
    parameters: int | None
    num_classes: int | None
    answers: tuple[int, ...] | None


class Clips(_Part):
    """The test clips of a data set, in the order of answers; labels are numbers of classes."""

    classes: tuple[str, ...]
    videos: tuple[str, ...]
    labels: tuple[int, ...]


class Results(BaseModel):
    """The finished runs of a study.

    Attributes:
        data: data set -> digest of what it held.
        clips: data set -> its test clips. Clips with several labels have none.
        runs: name -> result.
    """

    model_config = ConfigDict(extra="forbid")

    softpool3d: str = __version__
    data: dict[str, str] = {}
    clips: dict[str, Clips] = {}
    runs: dict[str, Result] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Results:
        for name, clips in self.clips.items():
            if len(clips.labels) != len(clips.videos) or not _below(clips.labels, len(clips.classes)):
                raise ValueError(f"the labels of {name or 'the clips'} fit neither its videos nor its classes")
        for name, run in self.runs.items():
            clips = self.clips.get(run.data_set)
            if run.answers is not None and (clips is None or len(run.answers) != len(clips.videos)):
                raise ValueError(f"the answers of {name} are not one for each clip")
        return self

    @classmethod
    def read(cls, path: Path) -> Results:
        """Reads a study's file; one that is not there holds no runs.

        Raises:
            UsageError: if it is damaged, or of another version of softpool3d, whose runs are not to be mixed with ours.
        """
        if not path.exists():
            return cls()
        try:
            found = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"][:3]))
            raise UsageError(
                f"{path} is no file of a study's results, or it is damaged ({where + ': ' if where else ''}"
                f"{first['msg']}); move it away, or name another page with --out"
            ) from None
        if found.softpool3d != __version__:
            raise UsageError(
                f"{path} holds runs of softpool3d {found.softpool3d}, and this is {__version__}; move it away, or name "
                "another page with --out"
            )
        return found

    def write(self, path: Path) -> None:
        """Writes the file, a line for each run.

        Raises:
            WorkError: if it cannot be written.
        """
        head = json.dumps({"softpool3d": self.softpool3d, "data": self.data}, ensure_ascii=False)
        parts = [head[:-1]]
        for key, values in (("clips", self.clips), ("runs", self.runs)):
            lines = [f"{json.dumps(name, ensure_ascii=False)}: {one.model_dump_json()}" for name, one in values.items()]
            parts.append(f'"{key}": {{\n' + ",\n".join(lines) + "\n}")
        write_atomically(path, (",\n".join(parts) + "}\n").encode())

    def gather(self, trials: Sequence[Trial]) -> None:
        """Takes up the runs whose folders here are finished; what it had of others stays."""
        for trial in trials:
            if (record := read_run(trial.folder)).finished:
                self.runs[trial.config.name] = self._result(trial, record)

    def problem(self, trial: Trial) -> str:
        """Returns why a run's result cannot be used; "" if it can, or there is none."""
        result = self.runs.get(trial.config.name)
        if result is None or result.settings == settings(trial):
            return ""
        return "its result beside the page was made with other settings; name another page with --out"

    def _result(self, trial: Trial, record: RunRecord) -> Result:
        summary, known = record.summary or {}, self.runs.get(trial.config.name)
        return Result(
            data_set=trial.data_set,
            settings=settings(trial),
            machine=known.machine if known else machine(pick_device(trial.config.device)),
            measure=record.measure,
            test=record.test(),
            val=summary[f"val_{record.measure}"],
            train_top1=record.epochs[-1]["train_top1"],
            test_clips=summary.get("test_clips", 0),
            seconds=summary["seconds"],
            cpu_seconds=summary.get("cpu_seconds"),
            peak_memory_bytes=summary.get("peak_memory_bytes", 0),
            parameters=record.parameters,
            num_classes=record.num_classes,
            answers=self._answers(trial, record),
        )

    def _answers(self, trial: Trial, record: RunRecord) -> tuple[int, ...] | None:
        try:
            found = VideoScores.load(record.folder / FILE)
        except UsageError:
            return None
        if found.scores.multi_label:
            return None
        clips = Clips(classes=found.classes, videos=found.videos, labels=tuple(found.scores.label.tolist()))
        if self.clips.setdefault(trial.data_set, clips) != clips:
            return None  # not comparable clip by clip
        return tuple(found.scores.probabilities.argmax(1).tolist())


def _below(numbers: Sequence[int], end: int) -> bool:
    return all(0 <= number < end for number in numbers)


def deciding(keys: Iterable[str], config: Config) -> list[str]:
    """Returns those of a configuration's dotted keys on which a run's result depends."""
    skipped = left_open(config)
    return [key for key in keys if not has_effect(key, Effect.WHERE, Effect.HOW) and key not in skipped]


def settings(trial: Trial) -> str:
    """Returns a digest of what a run's result depends on: the first 16 characters of a SHA-256, hexadecimal."""
    flat = trial.config.flat()
    text = json.dumps({key: flat[key] for key in deciding(flat, trial.config)}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
