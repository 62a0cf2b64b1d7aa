"""The `softpool3d` command: each verb is `main` of a file in tools/.

Torch is imported where work begins, so that --help answers at once.
"""

from __future__ import annotations

import typer

from softpool3d.command import run_app, settings, stoppable
from softpool3d.tools import app as page
from softpool3d.tools import (
    classify,
    compare,
    doctor,
    embed,
    ensemble,
    explain,
    export,
    models,
    prepare,
    probe,
    study,
    test,
    train,
    visualize,
)

_HELP = (
    "Train video networks with SoftPool, classify files, look at what pooling does. --debug, anywhere on the line, "
    "shows where an error comes from."
)
_VERBS = {
    "prepare": prepare,
    "train": train,
    "test": test,
    "ensemble": ensemble,
    "compare": compare,
    "study": study,
    "classify": classify,
    "embed": embed,
    "probe": probe,
    "visualize": visualize,
    "explain": explain,
    "export": export,
    "app": page,
    "models": models,
    "doctor": doctor,
}
_NEED_NO_ARGUMENT = ("app", "models", "doctor")


def run() -> None:
    """Runs the console command."""
    run_app(app())


def app() -> typer.Typer:
    """Returns the command with all its verbs."""
    made = typer.Typer(help=_HELP, no_args_is_help=True, **settings())
    made.callback(invoke_without_command=True)(_version)
    for name, tool in _VERBS.items():
        first = (tool.main.__doc__ or "").partition("\n")[0]  # else it is cut where the terminal is narrow
        made.command(name, short_help=first, no_args_is_help=name not in _NEED_NO_ARGUMENT)(stoppable(tool.main))
    return made


def _version(
    version: bool = typer.Option(False, "--version", "-V", help="Print the version and stop."),
) -> None:
    if version:
        from softpool3d import __version__

        print(f"softpool3d {__version__}")
        raise typer.Exit
