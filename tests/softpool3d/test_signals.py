"""Signals that ask to stop: taken as a request, raised, or left to the parent."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest

from softpool3d import signals
from softpool3d.runs.checkpoint import load_state
from softpool3d.runtime.interrupt import Interrupt

TINY = ["data.motion_clips=[8,8,8]", "data.num_workers=1", "model.width=4", "train.batch_size=4", "train.epochs=300"]


def _listening() -> None:
    """A shell ignores Ctrl-C for what it runs in the background, and so would all that is started from there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def hangup():
    """SIGHUP, and Ctrl-C too, as a shell leaves them for what runs in the foreground, wherever the tests run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.SIGHUP
    for number, handler in zip((signal.SIGHUP, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.STOPPING)
def test_each_is_a_request_while_a_loop_listens_and_what_it_was_afterwards(number, hangup):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert interrupt.requested == 0
        signal.raise_signal(number)
        assert interrupt.requested == number
    assert signal.getsignal(number) == before


def test_what_nohup_started_lives_on_without_its_terminal(hangup):
    signal.signal(hangup, signal.SIG_IGN)
    with Interrupt() as interrupt:
        signal.raise_signal(hangup)
        assert interrupt.requested == 0
    with signals.raised():
        signal.raise_signal(hangup)


def test_a_command_that_does_not_listen_ends_as_by_ctrl_c(hangup):
    for number in (signal.SIGINT, signal.SIGTERM, hangup):
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt) as stop, signals.raised():
            signal.raise_signal(number)
        assert signals.number_of(stop.value) == number and signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_comes_where_python_drops_errors_comes_again(hangup, number):
    class Last:
        def __del__(self):
            signal.raise_signal(number)

    with pytest.raises(signals.Stopped) as stopped, signals.raised():
        Last()
        time.sleep(10)
        pytest.fail("the signal was lost")
    assert stopped.value.number == number


def test_ctrl_c_in_the_definition_of_a_class_ends_in_the_exit_code_that_was_chosen(tmp_path):
    """While modules are imported: dataclasses are made by `exec`. Python killed itself by SIGINT at its end."""
    (tmp_path / "command.py").write_text(
        "import signal, sys\nfrom softpool3d import signals\nwith signals.raised():\n    try:\n"
        "        exec('signal.raise_signal(signal.SIGINT)')\n    except KeyboardInterrupt:\n        sys.exit(130)\n"
    )
    command = [sys.executable, "-m", "command"]
    assert subprocess.run(command, cwd=tmp_path, preexec_fn=_listening).returncode == 130


def test_ctrl_c_at_the_very_end_is_no_death_by_a_signal():
    """In an exit hook, and in what Python does after the last of them."""
    code = (
        "import atexit, os, signal, sys\nfrom softpool3d import signals\n"
        "class Late:\n    def __del__(self, raise_signal=signal.raise_signal, number=signal.SIGINT):\n"
        "        raise_signal(number)\n"
        "with signals.ending_quietly():\n"
        "    if sys.argv[1] == 'hook':\n        atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "    else:\n        sys.late = Late()\n"
        "print('done')\n"
    )
    for when, expected in (("hook", 130), ("later", 0)):
        done = subprocess.run([sys.executable, "-c", code, when], capture_output=True, text=True, preexec_fn=_listening)
        assert (done.returncode, done.stdout, done.stderr) == (expected, "done\n", "")


def test_the_second_one_ends_the_process():
    code = (
        "import signal\nfrom softpool3d import signals\nwith signals.raised():\n    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n    except KeyboardInterrupt:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGTERM


def test_a_training_saves_when_its_terminal_is_closed(tmp_path):
    """All of it gets SIGHUP then, and what it prints from there on fails."""
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-m", "softpool3d.tools.train", "--cfg", "r3d_softpool", *TINY, f"output={tmp_path}"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=own_terminal
    )
    os.close(theirs)
    folder = tmp_path / "r3d_softpool"
    printed = b""
    while not (folder / "metrics.csv").is_file():
        assert process.poll() is None, printed
        printed += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(120) == 128 + signal.SIGHUP, printed
    rows = (folder / "metrics.csv").read_text().count("\n") - 1
    state = load_state(folder / "last" / "checkpoint.pt")
    assert 1 <= rows == state["rows"] <= 299 and (state["clips"] or state["epoch"])
