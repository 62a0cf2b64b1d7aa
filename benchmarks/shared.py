"""What the benchmarks share: the machine and command that head a table, and errors in one sentence."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import torch
import typer
from rich.console import Console

from softpool3d.analysis.measuring import machine
from softpool3d.errors import SoftPool3dError, UsageError


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"

    def there(self) -> torch.device:
        """The device.

        Raises:
            UsageError: if it is not there.
        """
        if self is Device.cuda and not torch.cuda.is_available():
            raise UsageError("--device cuda: PyTorch sees no CUDA device here")
        return torch.device(self.value)


def console() -> Console:
    """A terminal; into a file or a pipe, lines are not folded to 80 columns."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def begin(device: torch.device = torch.device("cpu"), ran: str = "") -> tuple[str, Callable[[str], None]]:
    """Machine and command, printed already, and what prints the rest.

    Args:
        ran: what else a reader has to know of what is measured.
    """
    out = console()

    def say(text: str) -> None:
        out.print(text, markup=False, highlight=False, soft_wrap=True)

    about = f"{machine(device)}{ran}. Command: `{command()}`."
    say(about)
    return about, say


def command() -> str:
    """The command line; of files that lie elsewhere their names, because a page is read on other machines."""
    words = [Path(word).name if word.startswith(("/", "~", "..")) else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def run(measure: Callable) -> None:
    """Entry point of each file.

    Runs `measure` on the options of the command line; what a user can mend is one sentence and an exit code.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(measure)
    try:
        app()
    except SoftPool3dError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
