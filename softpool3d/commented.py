"""Writes a configuration with a comment on each key: the comments that stand in config.py."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel

from softpool3d.config import Config
from softpool3d.yaml_text import dump

_WIDTH = 100


def commented(config: Config) -> str:
    """Returns a configuration as YAML that `load_config` reads, with what config.py says of each key above it."""
    return "".join(f"{line}\n" for line in _section(Config, config.model_dump(), ""))


def _section(model: type[BaseModel], values: dict[str, Any], indent: str) -> Iterator[str]:
    notes = comments_of(model)
    for key, value in values.items():
        kind = model.model_fields[key].annotation
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        note = notes.get(key) or (vars(kind)["__doc__"] or "" if is_section else "")
        for line in textwrap.wrap(note, _WIDTH - len(indent) - 2):
            yield f"{indent}# {line}"
        if is_section:
            yield f"{indent}{key}:"
            yield from _section(kind, value, f"{indent}  ")
        else:
            text = dump({key: value}).rstrip("\n")
            yield from textwrap.indent(text[1:-1] if text.startswith("{") else text, indent).splitlines()


@cache
def comments_of(model: type[BaseModel]) -> dict[str, str]:
    """Returns the comments that stand above a model's fields and behind them: field -> text."""
    source = inspect.getsource(model)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {line for line, token in comments.items() if token.line.lstrip().startswith("#")}
    found = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        first = node.lineno
        while first - 1 in alone:
            first -= 1
        lines = [comments[line].string.lstrip("# ") for line in range(first, node.end_lineno + 1) if line in comments]
        found[node.target.id] = " ".join(lines)
    return found
