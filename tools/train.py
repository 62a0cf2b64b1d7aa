"""Train a network on video clips.

python tools/train.py videos/                                       # settings are chosen by the videos and the machine
python tools/train.py videos/ --dry-run                              # says which, and stops
python tools/train.py --cfg configs/r3d_softpool.yaml
python tools/train.py videos/ --cfg configs/r3d_softpool.yaml optim.lr=0.05
torchrun --nproc-per-node 8 tools/train.py --cfg configs/kinetics400/x3d_m.yaml data.root=/data/k400
python tools/train.py --resume runs/r3d_softpool
python tools/train.py --cfg configs/r3d_softpool.yaml --resume auto
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from softpool3d.errors import UsageError

if TYPE_CHECKING:
    from softpool3d.config import Config


def main(
    arguments: list[str] | None = typer.Argument(
        None,
        metavar="[VIDEOS] [KEY.PATH=VALUE]...",
        help="A folder of labelled videos, or a list of them (path,label); and settings, as in optim.lr=0.05.",
    ),
    cfg: str | None = typer.Option(
        None, help="The YAML file, or the name of one that is shipped; if not given, settings are chosen for VIDEOS."
    ),
    resume: str | None = typer.Option(
        None,
        help="The run to go on with, its folder or name; auto: the run of --cfg's name if there is one, else a new one",
    ),
    force_resume: bool = typer.Option(
        False, "--force-resume", help="Go on even if changed settings change what is learned."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print what is chosen for VIDEOS, and why, and stop."),
    print_config: bool = typer.Option(False, "--print-config", help="Print the merged configuration and stop."),
) -> None:
    """Train a network: on VIDEOS; --cfg FILE starts a run by a file, --resume FOLDER goes on with one."""
    from softpool3d.config_file import load_config

    videos, overrides = _apart(arguments or [])
    auto = resume == "auto"
    _check(videos, overrides, cfg, resume, auto, force_resume, dry_run)
    run = None
    if resume is not None and not auto:
        from softpool3d.runs.run import Run

        run, config = Run.open(resume, overrides, cfg)
    elif cfg is None:
        config = _chosen(videos, overrides, quiet=print_config)
    else:
        config = load_config(cfg, [*(_as_settings(videos) if videos else ()), *overrides])
    if print_config:
        from softpool3d.commented import commented

        print(commented(config), end="")
        return
    _check_paths(config)
    if dry_run:
        return

    from softpool3d.training.trainer import train

    train(config, run, auto_resume=auto, force_resume=force_resume)


def _apart(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Returns the videos that are named, and the settings."""
    named = [argument for argument in arguments if "=" not in argument or os.path.lexists(argument)]
    if len(named) > 1:
        raise UsageError(
            f"{named[0]} and {named[1]}: videos come from one folder or list; settings are key.path=value, as in "
            "optim.lr=0.05"
        )
    return next(iter(named), None), [argument for argument in arguments if argument not in named]


def _check(
    videos: str | None,
    settings: list[str],
    cfg: str | None,
    resume: str | None,
    auto: bool,
    force_resume: bool,
    dry_run: bool,
) -> None:
    if resume is not None and not auto and videos is not None:
        raise UsageError(f"--resume goes on with a run's own videos; leave {videos} out, or leave --resume out")
    if auto and cfg is None:
        raise UsageError("--resume auto needs --cfg FILE, whose name the run has; or give --resume FOLDER")
    if videos is not None and (root := next((s for s in settings if s.startswith("data.root=")), None)):
        raise UsageError(f"{videos} and {root} both say where the videos are; leave one of them out")
    if dry_run and (cfg is not None or resume is not None):
        raise UsageError(
            "--dry-run says what is chosen for VIDEOS, and a file or a run chooses by itself: --print-config"
        )
    if force_resume and resume is None:
        raise UsageError("--force-resume belongs to --resume FOLDER")


def _chosen(videos: str | None, overrides: list[str], quiet: bool) -> Config:
    """Returns settings for the videos; prints what they are like and why each setting was chosen, unless `quiet`."""
    fixed = _as_settings(videos) if videos is not None else []
    if not any(setting.startswith(("data.root=", "data.dataset=")) for setting in [*fixed, *overrides]):
        raise UsageError("give VIDEOS, a folder of them; or --cfg FILE, to start a run by a file; or --resume FOLDER")
    _check_weights(next((o.partition("=")[2] for o in overrides if o.startswith("model.weights=")), None))
    from softpool3d.choosing import choose_for

    chosen = choose_for(fixed, overrides)
    if not quiet and os.environ.get("RANK", "0") == "0":
        print(chosen, flush=True)
    return chosen.config


def _check_paths(config: Config) -> None:
    """Checks that the folder of the data set, and a file of weights, are there, before torch is loaded."""
    from softpool3d.datasets.sources.folder import list_at
    from softpool3d.datasets.video.find import data_root

    if config.data.root is not None and not list_at(config.data.root):
        data_root(config.data.root, config.data.dataset)
    _check_weights(config.model.weights)


def _check_weights(weights: str | None) -> None:
    from softpool3d.naming import check_weights

    if weights is not None and any(sign in weights for sign in "./:"):  # else it may be the name of public ones
        check_weights(weights)


def _as_settings(videos: str) -> list[str]:
    """Returns the settings that make a training read the videos of a folder or a list.

    Raises:
        UsageError: if there are none.
    """
    from pathlib import Path

    from softpool3d.datasets.manifest import LISTS
    from softpool3d.datasets.sources.folder import SPLIT_NAMES

    path = Path(videos).expanduser()
    if not path.exists():
        raise UsageError(f"no folder of videos, and no list of them: {videos}; a setting is written key.path=value")
    if path.is_file():
        if path.suffix.lower() not in LISTS:
            raise UsageError(f"{videos} is a file and no list ({', '.join(LISTS)}); name the folder that it lies in")
        if path.stem.casefold() in SPLIT_NAMES["train"]:  # its validation and test lie beside it
            path = path.parent
    return [f"name={path.resolve().stem or 'videos'}", "data.dataset=folder", f"data.root={path}"]


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
