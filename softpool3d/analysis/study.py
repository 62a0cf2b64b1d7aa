"""A study: several networks, each trained with several variants and several seeds, on one data set or on several.

Runs of one data set, network and seed are paired: they see the same clips in the same order, and their layers start
from the same weights. The study's file is YAML (configs/study/motion.yaml); each run is an ordinary one, in a folder of
its own.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from softpool3d.config import Config, Section
from softpool3d.config_file import find_config, load_config
from softpool3d.errors import UsageError
from softpool3d.yaml_text import read_yaml

Name = Annotated[str, Field(pattern=r"^[\w.+-]+$")]  # it is part of a folder's name


class Study(Section):
    """A study, as its file describes it.

    Attributes:
        networks: configuration files, relative to the study's file.
        sets: folders of labelled videos below the one that is given with the study -> overrides of their runs.
        variants: name -> overrides.
        once: variants that are tried with the first seed alone.
        chosen: name -> variants, of which the one that is best in validation stands for all, for each network and seed.
        reference: the variant that the others are compared with.
        pairs: data set -> pairs of classes; the page says how often one is taken for the other.
    """

    title: str
    output: str
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    networks: Annotated[list[str], Field(min_length=1)]
    sets: dict[Name, list[str]] = {}
    variants: Annotated[dict[Name, list[str]], Field(min_length=2)]
    once: list[str] = []
    chosen: dict[Name, Annotated[list[str], Field(min_length=2)]] = {}
    reference: str
    pairs: dict[Name, list[Annotated[list[str], Field(min_length=2, max_length=2)]]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        named = {"reference": [self.reference], "once": self.once}
        named |= {f"chosen.{name}": variants for name, variants in self.chosen.items()}
        for key, variants in named.items():
            for variant in variants:
                if variant not in self.variants:
                    raise ValueError(f"{key} {variant!r} is none of the variants ({', '.join(self.variants)})")
        if self.reference in self.once:
            raise ValueError(f"reference {self.reference!r} is compared seed by seed, and `once` has it tried once")
        if taken := self.chosen.keys() & self.variants.keys():
            raise ValueError(f"chosen {min(taken)!r} is the name of a variant")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} has one of them twice")
        return self


@dataclass(frozen=True)
class Trial:
    """One run of a study, made by `softpool3d train --cfg file overrides`.

    data_set: the name of its data set; "" in a study without `sets`, on the data of its networks' files.
    """

    data_set: str
    network: str
    variant: str
    seed: int
    config: Config
    file: Path
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return Path(self.config.output) / self.config.name


def load_study(
    path: str | Path, overrides: list[str] | None = None, data: str | Path | None = None
) -> tuple[Study, list[Trial]]:
    """Reads a study; returns it and its runs, seed by seed, so that a study that is cut short has whole pairs.

    Args:
        overrides: applied to the configuration of every run; `output` may be among them.
        data: the folder of the study's data sets. If it holds none of them, it is itself the one data set.

    Raises:
        UsageError: naming the file and line of the first mistake.
    """
    path = find_config(path)
    values, origins = read_yaml(path, Study)
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(error, origins, path)) from None
    sets = _data_sets(study, data)
    trials = []
    for seed in study.seeds:
        for data_set, here in sets.items():
            for network in study.networks:
                for variant, own in study.variants.items():
                    if variant in study.once and seed != study.seeds[0]:
                        continue
                    chosen = [f"output={study.output}", *here, *(overrides or []), *own, f"seed={seed}"]
                    config = load_config(path.parent / network, chosen)
                    words = [data_set] if data_set else []
                    chosen.append(f"name={'-'.join([*words, config.name, variant, f'seed{seed}'])}")
                    named = load_config(path.parent / network, chosen)
                    file = path.parent / network
                    trials.append(Trial(data_set, config.name, variant, seed, named, file, tuple(chosen)))
    if len({trial.folder for trial in trials}) < len(trials):
        raise UsageError(f"{path}: two of the networks have the same name: {', '.join(study.networks)}")
    return study, trials


def absent_sets(study: Study, trials: list[Trial]) -> list[str]:
    """Returns the study's data sets that none of its runs is on, because their folders were not there."""
    present = {trial.data_set for trial in trials}
    return [name for name in study.sets if name not in present] if present & study.sets.keys() else []


def _data_sets(study: Study, data: str | Path | None) -> dict[str, list[str]]:
    """Returns the data sets that there are: name -> overrides."""
    if data is None:
        if study.sets:
            raise UsageError(f"--data: the study is on {', '.join(study.sets)}; name the folder that holds them")
        return {"": []}
    data = Path(data)
    if not data.is_dir():
        raise UsageError(f"--data: there is no folder {data}")
    here = {name: own for name, own in study.sets.items() if (data / name).is_dir()}
    found = {name: (data / name, own) for name, own in here.items()} or {data.resolve().name: (data, [])}
    return {name: ["data.dataset=folder", f"data.root={root}", *own] for name, (root, own) in found.items()}


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
