"""What a name on the command line means: a run, its weights, a file. A typo is answered before torch is loaded."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Sequence
from pathlib import Path

from softpool3d.errors import UsageError

RUNS = Path("runs")  # where runs lie, unless `output` says otherwise
BEST = "best.safetensors"
SHIPPED = Path(__file__).parent / "weights" / "x3d_xs_motion.safetensors"
KINETICS = "mvit_v2_s:kinetics400"
SHORT_NAMES = {"motion": str(SHIPPED), "kinetics400": KINETICS}  # of weights -> what they stand for
_WEIGHTS = (".safetensors", ".pth", ".pyth", ".pt", ".ckpt", ".bin", ".onnx", ".pt2")
_TRAINED_ON = ("kinetics400", "imagenet1k")  # begin what stands behind the colon of public weights
_LISTED = 5


def address_of(path: str | Path) -> str | None:
    """Returns what a path is if it is no file but an address, as s3://bucket/folder; pathlib makes s3:/bucket of it."""
    scheme = re.match(r"([a-z][a-z0-9+]+:)/+", str(path))
    return f"{scheme[1]}//{str(path)[scheme.end() :]}" if scheme else None


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def runs_in(folder: Path) -> list[Path]:
    """Returns the folders of runs in a folder; if there are none, those one level below."""
    if not folder.is_dir():
        return []
    for pattern in ("*/config.yaml", "*/*/config.yaml"):
        if found := sorted(path.parent for path in folder.glob(pattern)):
            return found
    return []


def run_named(name: str | Path, option: str = "--resume") -> Path:
    """Returns the folder of the run that a name means: its path, its name in runs/, a file of it, or the only one in a
    folder.

    Raises:
        UsageError: if it means none, or several.
    """
    path = Path(name).expanduser()
    for candidate in (path, RUNS / path, *list(path.parents)[:2]):
        if is_run(candidate) and (candidate.name == path.name or path.exists()):
            return candidate
    inside = runs_in(path)
    if len(inside) == 1:
        return inside[0]
    several = f"{len(inside)} runs are in {name}: {_few(inside)}" if inside else ""
    why = several or f"{name} is not the folder of a run (it has no config.yaml){meant(path, ())}"
    raise UsageError(f"{option}: {why}")


def runs_named(name: str | Path) -> list[Path]:
    """Returns the folders of the runs that a name means: that of `run_named`, or all in a folder; else the name."""
    path = Path(name).expanduser()
    for candidate in (path, RUNS / path):
        if is_run(candidate):
            return [candidate]
        if inside := runs_in(candidate):
            return inside
    return [path]


def weights_named(name: str | Path) -> Path | None:
    """Returns the weights file that a name means: the file, or the best weights of `run_named`; None if it means none.

    Raises:
        UsageError: if it means several, or a run that has no weights yet.
    """
    path = Path(name).expanduser()
    if path.is_file() or (path / BEST).is_file():
        return path if path.is_file() else path / BEST
    if not path.exists() and (RUNS / path).exists():
        return weights_named(RUNS / path)
    if is_run(path):
        raise UsageError(f"{path} has no weights yet; softpool3d train --resume {path} goes on until it has some")
    inside = [run / BEST for run in runs_in(path) if (run / BEST).is_file()]
    if len(inside) > 1:
        raise UsageError(f"{len(inside)} runs with weights are in {name}; name one: {_few(inside)}")
    return inside[0] if inside else None


def spelled_out(name: str | Path) -> str | Path:
    """Returns what a short name of weights stands for; any other name as it is, and that of a file that is there."""
    return name if Path(name).exists() else SHORT_NAMES.get(str(name), name)


def no_weights(name: str | Path) -> str:
    """Returns a sentence about weights that are not there, with what may have been meant."""
    path = Path(name).expanduser()
    near, is_word = meant(path, _WEIGHTS), path.name == str(name) and not path.suffix
    if is_word and "did you mean" not in near:
        near += "; a network's public weights are named as in r3d_18:kinetics400"
    return f"no weights file {name}{near}"


def check_weights(name: str | Path | None) -> None:
    """Checks weights that are named by a file or a run, and the kind of public ones; not whether the network has it.

    Raises:
        UsageError: if they are not there.
    """
    if name is None or str(name) in SHORT_NAMES or weights_named(name) is not None:
        return
    network, colon, file = str(name).partition(":")
    if not colon:
        raise UsageError(no_weights(name))
    if Path(file).expanduser().is_file() or file.lower().startswith(_TRAINED_ON):
        return
    if "." in file or "/" in file:
        raise UsageError(no_weights(file))
    near = difflib.get_close_matches(file.lower(), _TRAINED_ON, n=1)
    hint = f"did you mean {network}:{near[0]}?" if near else "those are r3d_18:kinetics400, resnet50:imagenet1k, ..."
    raise UsageError(f"{name}: there is no file {file!r}, and no public weights have such a name; {hint}")


def check_files(names: Sequence[str | Path]) -> None:
    """Checks that one at least of these files, folders and globs is there; the absence of others is their own failure.

    Raises:
        UsageError: if none is, naming the first.
    """
    if names and not any(Path(name).exists() or glob.glob(str(name), recursive=True) for name in names):
        others = f", nor the other {len(names) - 1}" if len(names) > 1 else ""
        raise UsageError(f"no file {names[0]}{others}{meant(Path(names[0]), None)}")


def meant(path: Path, endings: tuple[str, ...] | None) -> str:
    """Returns the nearest of what there is, as the end of a sentence: of runs, and of files with these endings.

    Args:
        endings: None for files of all kinds, and no runs.
    """
    beside = list(path.parent.iterdir()) if path.parent.is_dir() else []
    there = [file for file in beside if endings is None or file.suffix in endings]
    if endings is not None:
        there += dict.fromkeys([*runs_in(path.parent), *runs_in(RUNS)])
    by_name = {one.name: one for one in reversed(there) if not one.name.startswith(".")}
    if near := difflib.get_close_matches(path.name, by_name, n=1):
        return f"; did you mean {by_name[near[0]]}?"
    return f"; there are {_few(list(by_name.values())[::-1])}" if by_name and endings is not None else ""


def _few(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:_LISTED])) + (", ..." if len(paths) > _LISTED else "")
