"""Commands that are stopped while a thread of theirs decodes: an exit code and a sentence, and nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from videos import write_numbered

_CODE = """
import os, signal, sys, threading
owner, attribute, count, number = sys.argv[1:5]
from softpool3d.inference import classify_timeline
from softpool3d.inference import timeline, timeline_files
owner = {"timeline": timeline.Windows, "files": timeline_files, "classifier": timeline.Classifier}[owner]
work, calls = getattr(owner, attribute), []

def stopping(*arguments, **options):
    calls.append(1)
    if len(calls) == int(count):
        assert threading.active_count() > 1  # which reads ahead
        os.kill(os.getpid(), int(number))
    return work(*arguments, **options)

setattr(owner, attribute, stopping)
sys.argv[1:5] = []
from softpool3d.cli import run
run()
"""


def stopped(*arguments, at, number=signal.SIGINT):
    command = [sys.executable, "-X", "faulthandler", "-c", _CODE, *at, str(int(number))]
    command += ["classify", "--weights", "motion", *arguments]
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell ignores Ctrl-C for what it runs in the background, and so would all that is started from there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.fixture
def clip(tmp_path):
    return write_numbered(tmp_path / "a.mp4", 400)


@pytest.mark.parametrize(
    ("options", "at", "number"),
    [
        (["--hop", "40ms"], ["timeline", "add", "7"], signal.SIGINT),
        (["--hop", "10s", "--annotate", "b.mp4", "--min-score", "0"], ["files", "_with_text", "50"], signal.SIGINT),
        (["--hop", "10s", "--annotate", "b.mp4", "--min-score", "0"], ["files", "_with_text", "9"], signal.SIGTERM),
    ],
)
def test_a_timeline_that_is_stopped(options, at, number, clip, tmp_path):
    options = [tmp_path / word if word == "b.mp4" else word for word in options]
    result = stopped(clip, "--timeline", *options, at=at, number=number)
    assert (result.returncode, result.stderr) == (128 + number, f"error: stopped in {clip}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_stream_that_is_stopped(clip, tmp_path):
    """By Ctrl-C, as watching ends."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/a.mp4"
        result = stopped("--stream", address, "--hop", "40ms", at=["classifier", "average", "4"])
        server.shutdown()
    assert result.returncode == 0 and result.stderr.startswith("stopped after ") and "3 windows" in result.stderr
    assert len(result.stderr.splitlines()) == 1
