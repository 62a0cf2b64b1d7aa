"""Shared by the benchmarks: the machine and command at the head of a table, and errors in one sentence."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

import torch
import typer
from rich.console import Console

from softpool3d.analysis.measuring import machine
from softpool3d.errors import SoftPool3dError, UsageError


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"

    def there(self) -> torch.device:
        """Returns the device.

        Raises:
            UsageError: if PyTorch sees no such device.
        """
        if self is Device.cuda and not torch.cuda.is_available():
            raise UsageError("--device cuda: PyTorch sees no CUDA device here")
        return torch.device(self.value)


def console() -> Console:
    """Returns a console that does not fold lines to 80 columns in a file or a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def begin(
    device: torch.device = torch.device("cpu"), ran: str = "", note: str = ""
) -> tuple[str, Callable[[str], None]]:
    """Prints the machine and the command; returns this text, and a function that prints more.

    Args:
        ran, note: what else a reader has to know about what is measured: before the command, and after it.
    """
    out = console()

    def say(text: str) -> None:
        out.print(text, markup=False, highlight=False, soft_wrap=True)

    about = f"{machine(device)}{ran}. Command: `{command()}`.{note}"
    say(about)
    return about, say


def started(arguments: list[str], env: Mapping[str, str] = MappingProxyType({}), **settings) -> subprocess.Popen:
    """Starts Python with these arguments, in one thread; it hears Ctrl-C.

    A shell ignores Ctrl-C for what it runs in the background, and so would all that is started from there.

    Args:
        env: what the environment has besides.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen([sys.executable, *arguments], text=True, env=environment, **settings)


def family(pid: int) -> list[int]:
    """Returns a process and all that it started and they did, in this order."""
    found = [pid]
    for parent in found:
        with suppress(OSError):  # it has ended
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def resident(pid: int | str = "self") -> float:
    """Returns the resident memory of a process, in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def command() -> str:
    """Returns the command line. Files elsewhere are cut to their names: a page is read on other machines."""
    words = [Path(word).name if word.startswith(("/", "~", "..")) else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def run(measure: Callable) -> None:
    """Runs `measure` with the options of the command line; the entry point of each file.

    An error that a user can mend is printed as one sentence, and gives an exit code.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(measure)
    try:
        app()
    except SoftPool3dError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
