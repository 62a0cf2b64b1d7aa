"""What the pages have to say: every key, every option, every name; and nothing that a reader does not have."""

import inspect
import re
from pathlib import Path

import pytest
import typer

import softpool3d
from softpool3d import cli
from softpool3d.analysis import models_page
from softpool3d.config import Config
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.inference.classifier import Prediction

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def says(word: str) -> bool:
    """A word by itself: not a part of a longer key or option."""
    return re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", TEXT) is not None


def keys(section=Config, prefix=""):
    for name, field in section.model_fields.items():
        if inspect.isclass(field.annotation) and hasattr(field.annotation, "model_fields"):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def options():
    app = typer.main.get_command(cli.app())
    for verb, command in app.commands.items():
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                if option.startswith("--"):
                    yield verb, option


def test_all_keys_are_found():
    assert set(Config().flat()) | {"optim.options"} == {*keys()}


@pytest.mark.parametrize("key", [key for key in keys() if "." in key])
def test_every_key_of_a_configuration_has_a_word(key):
    assert says(key)


@pytest.mark.parametrize("key", [key for key in keys() if "." not in key])
def test_every_key_of_the_top_has_a_word(key):
    assert f"`{key}`" in TEXT


@pytest.mark.parametrize(("verb", "option"), list(options()))
def test_every_option_has_a_word(verb, option):
    assert says(option)
    assert not option.startswith("--no-")  # a second name for what is so without the option


def test_every_environment_variable_has_a_word():
    files = [path for folder in ("softpool3d", "datasets", "models", "tools") for path in (ROOT / folder).rglob("*.py")]
    read = {
        name for path in [*files, ROOT / "setup.py"] for name in re.findall(r"\bSOFTPOOL3D_[A-Z_]+", path.read_text())
    }
    assert {"SOFTPOOL3D_HOME", "SOFTPOOL3D_CUDA", "SOFTPOOL3D_DEBUG"} <= read
    assert not [name for name in (*read, "TORCH_CUDA_ARCH_LIST") if not says(name)]


@pytest.mark.parametrize("name", [*softpool3d.__all__, Prediction.__name__, DecodeError.__name__])
def test_every_public_name_has_a_word(name):
    assert name == "__version__" or re.search(rf"\b{name}\b", TEXT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_folder_outside_of_the_project(page):
    text = page.read_text(encoding="utf-8")
    words = re.sub(r"\]\([^)]*\)", "]", text)  # links are followed below
    assert not re.findall(r"\.\./\w+|(?<![\w.])/(?:work|tmp|root|home)/\S+", words)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


# A path from the root, from softpool3d/, or of one of its rooms, as engine/memory.py would be one.
_PATHS = re.compile(r"(?<![\w./~-])((?:[a-z][\w-]*/)+[\w-]+\.(?:py|cpp|cu|cuh|h|md))\b")
_ELSEWHERE = ("videos/", "runs/NAME/", "torch/", "c10/")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    named = _PATHS.findall(page.read_text(encoding="utf-8"))
    assert not [name for name in named if not _is_there(name)]


def test_every_file_that_the_code_names_is_there():
    folders = ("softpool3d", "datasets", "models", "tools", "benchmarks", "cuda_ext")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in _SOURCES]
    texts = {path.name: re.sub(r"#include .*", "", path.read_text(encoding="utf-8")) for path in files}
    named = {(place, name) for place, text in texts.items() for name in _PATHS.findall(text)}
    assert len(named) > 20
    assert not [(place, name) for place, name in named if not _is_there(name)]


_SOURCES = {".py", ".h", ".cuh", ".cpp", ".cu"}


def _is_there(name: str) -> bool:
    if name.startswith(_ELSEWHERE):
        return True
    return any((ROOT / folder / name).exists() for folder in ("", "softpool3d", "docs", "tests"))


def test_the_page_of_models_is_what_its_command_writes():
    """Whoever edits the page edits its template too; the tables' figures are the command's own."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for part in re.split(r"\{\w+\}", models_page._PAGE):
        assert part in text
