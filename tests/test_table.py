"""Every key of the configuration and every option of every verb has a test that fails when it is ignored: the table of
them (support/coverage_table.py) is complete, and names tests that are there."""

import ast
from functools import cache
from pathlib import Path

import pytest
from coverage_table import KEYS, OPTIONS

from softpool3d.config import Config
from softpool3d.config_file import _all_keys

ROOT = Path(__file__).parents[1]


def options():
    """Of the command and each of its verbs, as `classify --topk` and `classify videos`."""
    import typer

    from softpool3d import cli

    command = typer.main.get_command(cli.app())
    found = {option.opts[0] for option in command.params}
    return found | {f"{verb} {option.opts[0]}" for verb, of in command.commands.items() for option in of.params}


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("table", "there"), [(KEYS, lambda: set(_all_keys())), (OPTIONS, options)])
def test_the_table_has_what_there_is_and_no_more(table, there):
    assert sorted(there() - table.keys()) == [], "these need a test that fails when they are ignored, and an entry"
    assert sorted(table.keys() - there()) == [], "these are gone"
    assert set(Config().flat()) <= set(_all_keys())


@pytest.mark.parametrize("name", sorted({*KEYS.values(), *OPTIONS.values()}))
def test_the_tests_of_the_table_are_there(name):
    path, _, test = name.partition("::")
    assert test.startswith("test_") and test in functions_of(path)


def test_the_test_of_a_key_names_it():
    """A slip of the table: in the file of a key's test stands the key's last word, or the test's file would say nothing
    of it."""
    for key, test in KEYS.items():
        assert key.rpartition(".")[2] in (ROOT / test.partition("::")[0]).read_text(encoding="utf-8"), key
    for option, test in OPTIONS.items():
        word = option.rpartition(" ")[2]
        assert not word.startswith("--") or word in (ROOT / test.partition("::")[0]).read_text(encoding="utf-8"), option
