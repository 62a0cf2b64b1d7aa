"""A study: several networks, each trained with several variants and several seeds.

Runs of one network and seed are paired: they see the same clips in the same order, and their layers start from the same
weights. The study's file is YAML (configs/study/motion.yaml); each run is an ordinary one, in a folder of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from softpool3d.analysis.folders import RunRecord, read_run
from softpool3d.config import Config, Effect, Section, differing, has_effect
from softpool3d.config_file import find_config, load_config
from softpool3d.errors import UsageError, WorkError
from softpool3d.runs.pretrained import left_open
from softpool3d.runs.run import Run
from softpool3d.yaml_text import read_yaml

Name = Annotated[str, Field(pattern=r"^[\w.+-]+$")]  # it is part of a folder's name


class Study(Section):
    """A study, as its file describes it.

    networks: configuration files, relative to the study's file.
    variants: name -> overrides.
    reference: the variant that the others are compared with.
    """

    title: str
    output: str
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    networks: Annotated[list[str], Field(min_length=1)]
    variants: Annotated[dict[Name, list[str]], Field(min_length=2)]
    reference: str

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if self.reference not in self.variants:
            raise ValueError(f"reference {self.reference!r} is none of the variants ({', '.join(self.variants)})")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} has one of them twice")
        return self


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    network: str
    variant: str
    seed: int
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.output) / self.config.name


def load_study(path: str | Path, overrides: list[str] | None = None) -> tuple[Study, list[Trial]]:
    """Reads a study; returns it and its runs, seed by seed, so that a study that is cut short has whole pairs.

    Args:
        overrides: applied to the configuration of every run; `output` may be among them.

    Raises:
        UsageError: naming the file and line of the first mistake.
    """
    path = find_config(path)
    values, origins = read_yaml(path, Study)
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(error, origins, path)) from None
    trials = []
    for seed in study.seeds:
        for network in study.networks:
            for variant, own in study.variants.items():
                chosen = [f"output={study.output}", *(overrides or []), *own, f"seed={seed}"]
                config = load_config(path.parent / network, chosen)
                named = [*chosen, f"name={config.name}-{variant}-seed{seed}"]
                trials.append(Trial(config.name, variant, seed, load_config(path.parent / network, named)))
    if len({trial.folder for trial in trials}) < len(trials):
        raise UsageError(f"{path}: two of the networks have the same name: {', '.join(study.networks)}")
    return study, trials


def run_study(
    trials: list[Trial], train: Callable[[Config, Run | None], object], say: Callable[[str], None]
) -> dict[str, str]:
    """Trains the runs that are not finished; returns folder -> why its run failed.

    Raises:
        UsageError: for a folder of another configuration, before anything is trained.
        Interrupted: as `train` does.
    """
    records = [_checked(trial) for trial in trials]
    failed = {}
    for number, (trial, record) in enumerate(zip(trials, records, strict=True), 1):
        if record is not None and record.finished:
            continue
        say(f"\nrun {number} of {len(trials)}: {trial.config.name}")
        try:
            run, config = (None, trial.config) if record is None else Run.open(trial.folder)
            train(config, run)
        except WorkError as error:
            failed[str(trial.folder)] = str(error)
            say(f"failed: {error}")
    return failed


def _checked(trial: Trial) -> RunRecord | None:
    """Returns what the folder of a trial holds; None if there is no folder.

    Raises:
        UsageError: if it is no run's, or that of another configuration.
    """
    if not trial.folder.exists():
        return None
    record = read_run(trial.folder)
    if record.problem:
        raise UsageError(f"{trial.folder}: {record.problem}; move it away, and the study trains that run anew")
    for key in differing([trial.config, record.config]):
        if not has_effect(key, Effect.WHERE, Effect.HOW) and key not in left_open(trial.config):
            raise UsageError(
                f"{trial.folder} is a run with another {key}; move it away, or give the study another output=..."
            )
    return record


def _explain(error: ValidationError, origins: dict[tuple, str], path: Path) -> str:
    """Returns one sentence for pydantic's errors; an unknown key comes first, as a missing one may be misspelt."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    keys = tuple(part for part in first["loc"] if isinstance(part, str))
    where = next((origins[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in origins), str(path))
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], Study.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(Study.model_fields)}"
        return f"{where}: unknown key {keys[-1]}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {'.'.join(keys) or 'the study'}: {message[0].lower()}{message[1:]}"
