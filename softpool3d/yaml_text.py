"""Reads and writes the YAML of configurations: text stays text where text is wanted, and lines are remembered.

What YAML takes for a number, a truth value or a date (1e-3, 2024, no) may be the name of a run, a folder or a class.
"""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from softpool3d.errors import UsageError

_TEXT, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
_NULLS = ("", "~", "null", "Null", "NULL")
_FLOAT = r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$"
_NUMBERS = ("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+0123456789."))


class _Loader(yaml.SafeLoader):
    """YAML in which a key may stand only once, and 1e-4 is a number (YAML 1.1 wants 1.0e-4)."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or not isinstance(self.construct_object(key), str):
                raise yaml.MarkedYAMLError(problem="a key has to be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value} stands here twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# what YAML 1.1 takes for a date is text here
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(*_NUMBERS)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that the loader above, or any other, would take for something else."""


_Dumper.add_implicit_resolver(*_NUMBERS)


def dump(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)


def read_yaml(
    path: Path, model: type[BaseModel], seen: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], dict[tuple, str]]:
    """Returns the values of a file and its `base:`, unchecked, and for each path of keys its file and line.

    Args:
        model: what the values are for; it says which of them are text.

    Raises:
        UsageError: naming the file and line of the first mistake.
    """
    if path.resolve() in seen:
        raise UsageError(f"{path}: `base:` leads in a circle")
    try:
        text = path.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=_Loader)
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=_Loader)):
            raise UsageError(f"{path}: a config has no YAML aliases (*name); use `base:` for what files share")
        values = _values(node, model)
    except OSError as error:
        raise UsageError(f"cannot read config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"config {path} is not text in UTF-8 (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError):  # PyYAML's own limits: depth, and digits of a number
        raise UsageError(f"{path}: no config is nested so deeply, or has a number so long") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}:1: a config is a mapping of keys to values, this is a {type(values).__name__}")
    origins: dict[tuple, str] = {}
    if node is not None:
        _note_origins(node, (), path, origins)
    base = values.pop("base", None)
    if base is None:
        return values, origins
    if not isinstance(base, str):
        raise UsageError(f"{origins[('base',)]}: base: is the name of one YAML file")
    base_path = path.parent / base
    if not base_path.is_file():
        raise UsageError(f"{origins[('base',)]}: base: no file {base_path}")
    base_values, base_origins = read_yaml(base_path, model, (*seen, path.resolve()))
    return _merge(base_values, values), base_origins | origins


def parse_value(text: str, keys: tuple[str, ...], model: type[BaseModel]) -> Any:
    """Returns the value that an override gives to a path of keys.

    Where text is wanted, only quotes and null are read as YAML, because a name may hold `#` and `: `.
    """
    wanted = _wanted_at(keys, model)
    try:
        node = yaml.compose(text, Loader=_Loader)
        quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')
        if wanted in (str, str | None) and not quoted:
            return None if text.strip() in _NULLS else text
        return _values(node, wanted)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text


def _values(node: yaml.Node | None, wanted: Any) -> Any:
    if node is None:
        return None
    _keep_text(node, wanted)
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _keep_text(node: yaml.Node, wanted: Any) -> None:
    """Tags what is written without quotes as text, wherever `wanted`, a model or type, wants text; null stays null."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                _keep_text(value, _member(wanted, key.value))
    elif _is_text(wanted):
        for scalar in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(scalar, yaml.ScalarNode) and scalar.tag != _NULL:
                scalar.tag = _TEXT


def _wanted_at(keys: tuple[str, ...], model: type[BaseModel]) -> Any:
    wanted: Any = model
    for key in keys:
        wanted = _member(wanted, key)
    return wanted


def _member(wanted: Any, key: str) -> Any:
    """Returns the type of a model's field, or of a dict's values; None where there is none."""
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        field = wanted.model_fields.get(key)
        return field and field.annotation
    return get_args(wanted)[1] if get_origin(wanted) is dict else None


def _is_text(wanted: Any) -> bool:
    """Whether a type is str or a list of str, None allowed."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return _is_text(parts[0])
    if origin in (list, Union, types.UnionType):
        return all(part is type(None) or _is_text(part) for part in parts)
    return wanted is str


def _note_origins(node: yaml.Node, path: tuple, file: Path, origins: dict[tuple, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            origins[here] = f"{file}:{key.start_mark.line + 1}"
            _note_origins(value, here, file, origins)


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
