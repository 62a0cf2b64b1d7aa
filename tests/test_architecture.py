"""Which room may import which; how long files and functions may be; what lies in tools/ and in the wheel."""

import ast
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from rich.console import Console

from softpool3d import cli
from softpool3d.config_file import load_config
from softpool3d.inference.trained import SHIPPED
from softpool3d.training.trainer import train

ROOT = Path(__file__).parents[1]
FOLDERS = {"softpool3d": "softpool3d", "datasets": "softpool3d.datasets", "models": "softpool3d.models"}
FOLDERS["tools"] = "softpool3d.tools"

# A room imports rooms of the lines above its own, none of its own line. docs/architecture.md says what each is for.
FLOORS = """
base
ops video
models datasets
surgery runtime
runs command
evaluation
training inference analysis choosing
visual cluster
app
tools
cli
"""
FLOOR = {room: floor for floor, line in enumerate(FLOORS.split("\n")) for room in line.split()}
BASE = {
    "commented",
    "config",
    "config_file",
    "errors",
    "file_kinds",
    "files",
    "foreign",
    "idle_keys",
    "naming",
    "requirements",
    "signals",
    "text",
    "yaml_text",
}

# of more than 350 lines, or 80 in one function
LONG = {
    "softpool3d/config.py": "one list: every key of the configuration",
}


def sources():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[parts[0]], *parts[1:]]).removesuffix(".__init__")


NAMES = {name_of(path): path for path in sources()}


def room_of(name: str) -> str | None:
    """None for the package itself, which has the version and, at first use, the public names."""
    parts = name.split(".")[1:]
    if not parts:
        return None
    if parts[:2] == ["datasets", "video"]:
        return "video"
    return "base" if parts[0] in BASE else parts[0].replace("__main__", "cli")


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "softpool3d":
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in NAMES else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "softpool3d"}
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if room_of(name)])
def test_imports_go_down(name):
    own = room_of(name)
    for other in imported(NAMES[name]):
        room = room_of(other)
        assert room in (None, own) or FLOOR[room] < FLOOR[own], f"{own} imports {other}"


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in sources()])
def test_a_file_fits_into_the_head_and_a_function_on_a_screen(path):
    if str(path.relative_to(ROOT)) in LONG:
        return
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 80, node.name


def test_the_long_ones_are_long():
    assert all((ROOT / name).read_text(encoding="utf-8").count("\n") > 350 for name in LONG)


def test_tools_are_verbs():
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} == {*cli._VERBS, "__init__"}


def test_the_page_has_a_row_for_every_room():
    """In docs/architecture.md, in an order in which imports go down."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, re.M)
    assert set(rows) == set(FLOOR)
    assert [FLOOR[room] for room in rows] == sorted((FLOOR[room] for room in rows), reverse=True)


def test_the_page_draws_the_imports():
    """Every arrow of docs/architecture.md is an import, and every import of a room follows arrows."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = {(a, b) for ends in re.findall(r"^  (.+) --> (.+)$", page, re.M) for a, b in product(*map(_rooms, ends))}
    found = {(room_of(name), room_of(other)) for name, path in NAMES.items() for other in imported(path)}
    found = {(a, b) for a, b in found if a and b and a != b}
    assert drawn <= found
    for room in sorted(FLOOR, key=FLOOR.get):  # from the bottom: what lies below is closed already
        drawn |= {(room, c) for a, b in list(drawn) if a == room for d, c in list(drawn) if d == b}
    assert found <= drawn


def _rooms(text: str) -> list[str]:
    return text.split(" & ")


def test_the_page_s_subclass_learns_from_its_teacher(tmp_path):
    """docs/architecture.md proves by it that another loss is one method: it is run as it stands there."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]
    assert code.count("\n") <= 40
    found = {"__name__": "example"}
    exec(compile(code, "architecture.md", "exec"), found)
    kind = found["Distillation"]
    kind.teacher = SHIPPED
    seen = []

    def noted(training, logits, target, clips):
        loss = kind_loss(training, logits, target, clips)
        with torch.no_grad():
            answers = training.network_of_teacher(clips)
            ours, theirs = (torch.softmax(x / 4, dim=-1) for x in (logits, answers))
            distance = 16 * (theirs * (theirs.log() - ours.log())).sum(1).mean()
            by_hand = (torch.nn.functional.cross_entropy(logits, target) + distance) / 2
        seen.append((loss.item(), by_hand.item(), distance.item()))
        return loss

    kind_loss, kind.loss = kind.loss, noted
    settings = ["data.motion_clips=[16,8,8]", "model.width=4", "train.epochs=1", "train.batch_size=8"]
    settings += ["data.num_workers=0", "test.num_clips=1", "device=cpu"]
    settings += ["optim.warmup_epochs=0", "optim.label_smoothing=0", f"output={tmp_path}"]
    summary = train(load_config("r3d_softpool", settings), console=Console(quiet=True), training=kind)
    assert summary["test_clips"] == 8 and len(seen) == 2
    for loss, by_hand, distance in seen:
        assert loss == pytest.approx(by_hand, rel=1e-5) and distance > 0.01


def test_the_loop_fits_on_a_screen():
    """From the epoch to the optimiser's step."""
    text = (ROOT / "softpool3d" / "training" / "trainer.py").read_text(encoding="utf-8")
    loop = text[text.index("    def epoch(") : text.index("    # --- the parts of a step")]
    assert "self.optimizer.step()" in loop and loop.count("\n") <= 80
