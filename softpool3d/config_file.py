"""Configurations from YAML files and command-line overrides.

    config = load_config("configs/r3d_softpool.yaml", ["optim.lr=0.05", "model.pool.kind=avg"])

A file may name one `base:` file, relative to itself, whose values it overrides. Every mistake is reported with its
key and where it stands (file and line, or the override itself).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from softpool3d.config import Config, PoolConfig
from softpool3d.errors import UsageError
from softpool3d.yaml_text import parse_value, read_yaml


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and its `base:`, applies `key.path=value` overrides, validates.

    `path` may also name a file that ships with the package, as `r3d_softpool` or `configs/r3d_softpool.yaml`.

    Raises:
        UsageError: naming the file and line, or the override, of the first mistake.
    """
    values, origins = read_yaml(find_config(path), Config)
    if "variants" in values:
        raise UsageError(f"{path} describes a study: softpool3d study --cfg {path}")
    return make_config(values, origins, overrides)


def make_config(values: dict[str, Any], origins: dict[tuple, str], overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration of a training: `values` by section and key, with overrides applied, and checked.

    Args:
        origins: where each path of keys was written, for messages.

    Raises:
        UsageError: naming the origin of the first mistake.
    """
    for override in overrides:
        _apply_override(values, origins, override)
    config = validate(values, origins)
    check_schedule(config, origins)
    _check_pooling(config, overrides)
    _check_root(config, origins)
    return config


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """Returns `config` with `key.path=value` overrides applied.

    Raises:
        UsageError: naming the override that is wrong.
    """
    values: dict[str, Any] = config.model_dump()
    origins: dict[tuple, str] = {}
    for override in overrides:
        _apply_override(values, origins, override)
    config = validate(values, origins)
    if any(path in origins for path in (("data", "root"), ("data", "dataset"))):  # runs may hold a root of earlier days
        _check_root(config, origins)
    return config


def check_schedule(config: Config, origins: dict[tuple, str] | None = None) -> None:
    """Checks that the learning rate's schedule fits into train.epochs, before a training.

    Configurations of weights and runs that exist already are read without this check.

    Raises:
        UsageError: for a warm-up, or epochs of the head, longer than the run, or milestones past its end.
    """
    optim, epochs = config.optim, config.train.epochs
    mistakes, instead, keys = [], [], []
    if optim.warmup_epochs > epochs:
        keys.append("warmup_epochs")
        mistakes.append(f"optim.warmup_epochs={optim.warmup_epochs:g} is longer")
        instead.append("optim.warmup_epochs=0")
    if late := [milestone for milestone in optim.milestones if milestone >= epochs]:
        within = [milestone for milestone in optim.milestones if milestone < epochs]
        keys.append("milestones")
        mistakes.append(f"{_list(late)} of optim.milestones would never be reached")
        instead.append(f"optim.milestones={_list(within)}" if within else "optim.schedule=constant optim.milestones=[]")
    if optim.head_epochs >= epochs:
        keys.append("head_epochs")
        mistakes.append(f"with optim.head_epochs={optim.head_epochs} the other layers would never learn")
        instead.append("optim.head_epochs=0")
    if mistakes:
        origin = (origins or {}).get(("optim", keys[0]))
        raise UsageError(
            f"{f'{origin}: ' if origin else ''}the learning rate's schedule does not fit into train.epochs={epochs}: "
            f"{', and '.join(mistakes)}; for a run so short, add {' '.join(instead)}"
        )


def _check_pooling(config: Config, overrides: Sequence[str]) -> None:
    """Raises UsageError for overrides of the pooling if it has no place, as in recipes of published networks."""
    asked = next((o for o in overrides if o.startswith("model.pool.") and not o.startswith("model.pool.where=")), None)
    if asked and not config.model.pool.where:
        raise UsageError(
            f"override {asked}: model.pool.where is [], so that the network pools as it was published; say where it "
            "goes, as in model.pool.where=[existing,downsample]"
        )


def _check_root(config: Config, origins: dict[tuple, str]) -> None:
    """Raises UsageError for the folder of a data set that has none: nobody means to train on something else."""
    root, dataset = config.data.root, config.data.dataset
    if root is not None and config.data.is_generated:
        where = origins.get(("data", "root"), "data.root")
        raise UsageError(
            f"{where}: the data set {dataset} is generated and has no folder; add "
            f"data.dataset=folder to use {root}, or take data.root away"
        )


def _list(numbers: list[float]) -> str:
    return f"[{','.join(f'{number:g}' for number in numbers)}]"


def with_what_is_set(config: Config, other: Config) -> Config:
    """Returns `config` with every value that a file, an override or the constructor has set in `other`."""

    def merged(base: dict, over: dict) -> dict:
        both = {key: merged(base[key], value) if isinstance(value, dict) else value for key, value in over.items()}
        return base | both

    return validate(merged(config.model_dump(), other.model_dump(exclude_unset=True)))


def find_config(path: str | Path) -> Path:
    """Returns `path` if it is a file, else the path of the package's own configuration of that name.

    Raises:
        UsageError: if there is neither, listing the package's own.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        raise UsageError(f"config {path} is a folder; name the YAML file in it")
    shipped = Path(str(files("softpool3d.configs")))
    relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for candidate in (shipped / relative, shipped / f"{relative}.yaml"):
        if candidate.is_file() and not path.is_absolute():
            return candidate
    found = sorted(shipped.glob("*.yaml")) + sorted(shipped.glob("*/*.yaml"))
    known = [str(p.relative_to(shipped).with_suffix("")) for p in found]
    raise UsageError(f"no config file {path}; those that come with softpool3d: {', '.join(known)}")


def validate(values: dict[str, Any], origins: dict[tuple, str] | None = None) -> Config:
    """Returns `values` as a Config; `origins` says for each key path where it was written.

    Raises:
        UsageError: for the first mistake, naming its key and origin.
    """
    origins = origins or {}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(error.errors(), values, origins)) from None


def pool_config(**values: Any) -> PoolConfig:
    """Returns a PoolConfig made from keyword arguments.

    Raises:
        UsageError: naming the argument that is wrong.
    """
    try:
        return PoolConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(error.errors(), values, {}).removeprefix(": ")) from None


def _apply_override(values: dict[str, Any], origins: dict[tuple, str], override: str) -> None:
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise UsageError(f"{override!r} is not an override; write key.path=value, as in optim.lr=0.05")
    value = parse_value(text, path, Config)
    target = values
    for part in path[:-1]:
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    target[path[-1]] = value
    for length in range(1, len(path) + 1):  # a conflict of keys is the override's mistake, not the file's
        origins[path[:length]] = f"override {override}"


# --- saying what is wrong --------------------------------------------------------------------------------------------


def _explain(errors: list, values: dict, origins: dict[tuple, str]) -> str:
    """Returns one sentence for pydantic's first error: where, which key, what is wrong, what is allowed."""
    error = errors[0]
    path = parts = tuple(part for part in error["loc"] if isinstance(part, str))
    alternatives = [error["msg"]]
    if error["type"] != "extra_forbidden":
        path = next((parts[:n] for n in range(1, len(parts) + 1) if _model_at(parts[:n]) is None), parts)
    if len(parts) > len(path):  # a union has one error for each of its types; the deepest ones say most
        union = [other for other in errors if other["loc"][: len(path)] == path]
        depth = max(len(other["loc"]) for other in union)
        deepest = [other for other in union if len(other["loc"]) == depth]
        error, alternatives = deepest[0], list(dict.fromkeys(other["msg"] for other in deepest))
    # a list's element is reported at the list's line
    origin = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
    where = f"{origin}: " if origin else ""
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"{where}unknown key {key}; {_hint(path, error['input'])}"
    message = " or ".join([alternatives[0], *(text.removeprefix("Input should be ") for text in alternatives[1:])])
    message = message.removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = error["input"]
    if (section := _model_at(path)) is not None and not isinstance(given, dict):
        keys = ", ".join(section.model_fields)
        return f"{where}{key} is a group of keys ({keys}) and not a value; {_meant(section, key, given)}"
    if error["type"] == "value_error" or isinstance(given, dict):
        return f"{where}{key}: {message}"
    return f"{where}{key} = {given!r}: {message}"


def _hint(path: tuple[str, ...], given: object) -> str:
    """Returns which key may have been meant by an unknown one, whose value, or keys, are `given`."""
    names, inner = [".".join(path)], given
    while isinstance(inner, dict) and inner:
        name, inner = next(iter(inner.items()))
        names.insert(0, f"{names[0]}.{name}")
    meant = _nearest(names)
    if meant is None:
        return f"known here: {', '.join(_known_keys(path[:-1]))}"
    section = _model_at(tuple(meant.split(".")))
    if section is None or isinstance(given, dict) or meant.rpartition(".")[2] != path[-1]:
        return f"did you mean {meant}?"
    return _meant(section, meant, given)


def _nearest(names: list[str]) -> str | None:
    """Returns the key, or the section, that one of these unknown keys is nearest to; None if none is near.

    The end of a key goes before its last word alone, and that before words that are alike: in the section that was
    named, or, much alike, in another one.
    """
    keys = _all_keys()
    keys += dict.fromkeys(key.rpartition(".")[0] for key in keys if "." in key)
    for name in names:
        if ends := [key for key in keys if key.endswith(f".{name}")]:
            return ends[0]

    def alike(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    def parts(key: str) -> tuple[str, str]:
        section, _, word = key.rpartition(".")
        return section, word

    for name in names:
        section, word = parts(name)
        if same := [key for key in keys if parts(key)[1] == word]:
            return max(same, key=lambda key: alike(parts(key)[0], section))
    for name in names[::-1]:
        section, word = parts(name)
        near = {key: alike(parts(key)[1], word) for key in keys}
        near = {key: much for key, much in near.items() if much >= (0.5 if "" != section == parts(key)[0] else 0.75)}
        if near:
            return max(near, key=lambda key: (near[key], parts(key)[0] == section))
        initials = "".join(part[:1] for part in word.split("_"))
        if "_" in word and (short := [key for key in keys if parts(key)[1] == initials]):  # learning_rate: lr
            return short[0]
    return None


def _meant(section: type[BaseModel], key: str, given: object) -> str:
    """Returns which key of a group may have been meant: the first that takes what was given."""
    for name in section.model_fields:
        try:
            section(**{name: given})
        except ValidationError:
            continue
        return f"did you mean {key}.{name}={given}?"
    return f"name one of them, as in {key}.{next(iter(section.model_fields))}=..."


def _model_at(path: tuple[str, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] = Config
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model


def _known_keys(path: tuple[str, ...]) -> list[str]:
    model = _model_at(path)
    return list(model.model_fields) if model else []


def _all_keys(path: tuple[str, ...] = ()) -> list[str]:
    keys = []
    for name in _known_keys(path):
        here = (*path, name)
        keys += _all_keys(here) if _model_at(here) else [".".join(here)]
    return keys
