"""Runs commands: an error that the user can mend, or Ctrl-C, ends one with a single sentence and an exit code."""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import typer

from softpool3d.errors import DEBUG, SoftPool3dError, UsageError, os_reason
from softpool3d.foreign import Shielded
from softpool3d.runtime.interrupt import Interrupted
from softpool3d.signals import ending_quietly, number_of, raised


def settings() -> dict[str, Any]:
    """Returns settings of every application: -h too; and help in one column where frames would leave no room."""
    columns = shutil.get_terminal_size().columns
    narrow = {"terminal_width": columns} if columns < _NARROW else {}
    if narrow:  # no setting of typer says how help is laid out
        context = next(kind for kind in typer.Context.__mro__ if "formatter_class" in vars(kind))
        context.formatter_class = _Stacked
    return {
        "context_settings": {"help_option_names": ["-h", "--help"], **narrow},
        "rich_markup_mode": None if narrow else "rich",
        "pretty_exceptions_enable": False,
    }


def run_tool(main: Callable) -> None:
    """Runs the `main` of a file of tools/ as a script."""
    app = typer.Typer(add_completion=False, **settings())
    app.command()(stoppable(main))
    run_app(app)


_NARROW = 70  # columns


class _Stacked(typer.Context.formatter_class):
    """Help whose explanations stand below their options, not beside them."""

    def write_dl(self, rows: Sequence[tuple[str, str]], *_: object, **__: object) -> None:
        for option, explanation in rows:
            self.write_text(option)
            with self.indentation():
                self.write_text(explanation)


class Asked(SimpleNamespace):
    """The options of a verb as they were typed: `Asked(main, locals())`, at its beginning."""

    def __init__(self, main: Callable, values: dict[str, Any]) -> None:
        super().__init__(**values)
        self._options = {name: option.default for name, option in inspect.signature(main).parameters.items()}

    def given(self, name: str) -> bool:
        """Whether an option has another value than its default."""
        return getattr(self, name) != self._options[name].default

    def spelled(self, name: str) -> str:
        """Returns an option as it is typed, as in --short-side."""
        declared = self._options[name].param_decls
        return declared[0] if declared else f"--{name.replace('_', '-')}"

    def needs(self, what: str, is_there: bool, *names: str) -> None:
        """Refuses options that do nothing, because what they belong to is not there.

        Raises:
            UsageError: naming the first of them.
        """
        for name in names:
            if not is_there and self.given(name):
                raise UsageError(f"{self.spelled(name)} needs {what}")


def stoppable(main: Callable) -> Callable:
    """Returns `main`, ended with one sentence by a Ctrl-C that it does not handle itself."""

    @functools.wraps(main)
    def stoppable(*arguments: object, **options: object) -> None:
        try:
            main(*arguments, **options)
        except KeyboardInterrupt as stop:
            raise Interrupted("stopped", number_of(stop)) from None

    return stoppable


def _take_debug() -> None:
    """Takes --debug off the line; workers see it in the environment."""
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    if "--debug" in sys.argv[:end]:
        sys.argv.remove("--debug")
        os.environ[DEBUG] = "1"


def _hint_at_dashes() -> None:
    """Prints a hint if an option is the name of a file: a shell may have made such names of *.mp4."""
    words = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    name = next((word for word in words if word.startswith("-") and word != "-" and os.path.lexists(word)), None)
    if name is not None:
        print(f"a file whose name begins with - goes after --, as in: softpool3d classify -- {name}", file=sys.stderr)


def run_app(app: typer.Typer) -> None:
    """Runs an application as the whole work of a process, and ends the process with its exit code."""
    # OpenMP's idle threads spin while they wait for work. They take cores that decoding workers or other programs need,
    # and a step takes several times as long. OpenMP reads the variable when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.stdout.reconfigure(errors="replace")  # terminals that lack a letter of a class name still show the rest
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)).isatty():
            setattr(sys, name, Shielded(stream))
    _take_debug()
    with _before_teardown() if "TORCHELASTIC_RUN_ID" in os.environ else nullcontext():
        _run(app)


@contextmanager
def _before_teardown() -> Iterator[None]:
    """Ends the process before Python's teardown, after the exit hooks and with the exit code that Python would give.

    A gloo thread that releases its last tensor during the teardown ends the process by SIGABRT
    (pytorch/pytorch#190489): the run was done, and torchrun reported a failure. Destroying the process groups is not
    enough. Their threads live as long as anything holds the groups, and torch's cache of sharded tensors does.
    """
    code = 0
    try:
        yield
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run(app: typer.Typer) -> None:
    """Runs `app`: an error that the user can mend becomes one sentence and an exit code, a bug shows its traceback."""
    try:
        with ending_quietly(), raised():
            app()
    except SystemExit as end:
        if end.code == 2:  # the command line is not understood
            _hint_at_dashes()
        raise
    except SoftPool3dError as error:
        # all processes of a torchrun get the same usage error, and the first one of each machine prints it
        if not (error.told_elsewhere or (isinstance(error, UsageError) and os.environ.get("LOCAL_RANK", "0") != "0")):
            if os.environ.get(DEBUG):
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output (`| head`) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a name too long, a folder without permission
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {os_reason(error)}", file=sys.stderr)
        sys.exit(1)
