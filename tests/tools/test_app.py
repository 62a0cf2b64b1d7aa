"""`softpool3d app` before it serves a page: what it refuses, what it is told, how it ends."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from http.cookiejar import CookieJar
from importlib.util import find_spec
from pathlib import Path

import pytest

from softpool3d.app import server
from softpool3d.errors import WorkError
from softpool3d.tools import app


@pytest.fixture
def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def upload(address: str, name: str, content: bytes) -> tuple[int, str]:
    body = (
        f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        "Content-Type: video/mp4\r\n\r\n".encode()
        + content
        + b"\r\n--b--\r\n"
    )
    request = urllib.request.Request(f"{address}gradio_api/upload", body)
    request.add_header("Content-Type", "multipart/form-data; boundary=b")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_options_reach_the_server(run, tmp_path, monkeypatch):
    told = []

    def noted(*arguments):
        told.append(arguments)
        raise WorkError("enough")

    monkeypatch.setattr(server, "serve", noted)
    monkeypatch.delenv("SOFTPOOL3D_PASSWORD", raising=False)
    assert run("app").stderr == "error: enough\n"
    assert told.pop() == (None, Path("runs"), "127.0.0.1", 7860, None, False)
    asked = [
        "--weights",
        "motion",
        "--runs",
        tmp_path,
        "--host",
        "0.0.0.0",
        "--port",
        "7000",
        "--password",
        "a",
        "--open",
    ]
    run("app", *asked)
    assert told.pop() == ("motion", tmp_path, "0.0.0.0", 7000, "a", True)
    monkeypatch.setenv("SOFTPOOL3D_PASSWORD", "b")
    run("app")
    assert told.pop()[4] == "b"


def test_what_cannot_be_served(run, port, tmp_path, monkeypatch):
    monkeypatch.delenv("SOFTPOOL3D_PASSWORD", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = run("app", "--port", port)
    assert done.returncode == 2
    assert done.stderr == f"error: --port {port}: address already in use; give another, as in --port {port + 1}\n"
    for host in ("0.0.0.0", "example.org", "192.168.0.7"):
        done = run("app", "--host", host, "--port", port)
        assert done.returncode == 2 and "set a password" in done.stderr and done.stderr.count("\n") == 1
    done = run("app", "--weights", tmp_path / "none.safetensors", "--port", port)
    assert done.returncode == 2 and "none.safetensors" in done.stderr and done.stderr.count("\n") == 1
    monkeypatch.setattr(app, "find_spec", lambda name: None if name == "gradio" else find_spec(name))
    done = run("app")
    assert done.returncode == 2
    assert done.stderr == "error: app needs gradio; install it with: pip install 'softpool3d[app]'\n"


@pytest.mark.parametrize(("host", "family"), [("localhost", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_names_and_addresses_of_this_machine(host, family, port, tmp_path):
    try:
        with socket.socket(family) as tried:
            tried.bind((host, port))
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with server.served("motion", tmp_path, host, port, None) as address:
        assert urllib.request.urlopen(address).status == 200


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_which_hosts_are_this_machine_s_own(host, own):
    assert server.is_loopback(host) is own


def test_uploads_stay_where_they_belong(port, tmp_path, monkeypatch):
    """Within the limit, in a folder that goes away, whatever they are called; and nothing else is handed out."""
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with server.served("motion", tmp_path, "127.0.0.1", port, None, limit="10kb") as address:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        status, told = upload(address, "../../x.mp4", b"1234")
        assert status == 200 and Path(told.strip('["]')).name == "x.mp4"
        (found,) = folder.rglob("*.mp4")
        assert found.read_bytes() == b"1234" and os.path.realpath(found).startswith(os.path.realpath(folder))
        assert not list(folder.parent.glob("x.mp4"))
        status, told = upload(address, "large.mp4", bytes(20_000))
        assert status == 413 and "exceeded maximum allowed size" in told
        for path in (secret, Path("/etc/hostname"), f"{folder}/../{tmp_path.name}"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}gradio_api/file={urllib.parse.quote(str(path))}")
            assert refused.value.code in (403, 404)
    assert not folder.exists()


def test_a_password(port, tmp_path):
    with server.served("motion", tmp_path, "127.0.0.1", port, "a ü") as address:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}config")
        assert refused.value.code == 401
        assert upload(address, "a.mp4", b"1")[0] == 401
        visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

        def enter(password):
            return visitor.open(
                f"{address}login", urllib.parse.urlencode({"username": "me", "password": password}).encode()
            )

        with pytest.raises(urllib.error.HTTPError):
            enter("a u")
        assert enter("a ü").status == 200 and visitor.open(f"{address}config").status == 200


def test_another_host_is_warned_of(tmp_path, monkeypatch, capsys):
    @contextmanager
    def served(*_):
        yield "http://0.0.0.0:1/"

    monkeypatch.setattr(server, "served", served)
    monkeypatch.setattr(server.threading.Event, "wait", lambda _: None)
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        server.serve(None, tmp_path, host, 1, "a", False)
        out, err = capsys.readouterr()
        assert out == "http://0.0.0.0:1/  (Ctrl-C ends it)\n"
        assert err.startswith(f"warning: whoever reaches {host} and knows the password") is warned
        assert err.count("\n") == warned


def test_ctrl_c_ends_it_and_leaves_nothing(port, tmp_path):
    command = [sys.executable, "-m", "softpool3d", "app", "--weights", "motion", "--port", str(port)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with subprocess.Popen(
        command, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **default
    ) as started:
        assert started.stdout.readline() == f"http://127.0.0.1:{port}/  (Ctrl-C ends it)\n"
        assert list(tmp_path.glob("softpool3d-app-*"))
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=60)
    assert (started.returncode, out, err) == (130, "", "error: stopped\n")
    assert not list(tmp_path.glob("softpool3d-app-*"))


def test_runs_come_with_the_last_that_changed_first(tmp_path):
    from softpool3d.app.live import Live

    for number, name in enumerate(["old", "new", "between", "empty"]):
        (tmp_path / name).mkdir()
        if name != "empty":
            (tmp_path / name / "config.yaml").write_text("")
        os.utime(tmp_path / name, (number, number))
    os.utime(tmp_path / "new", (9, 9))
    assert Live(tmp_path).names() == ["new", "between", "old"]
    assert Live(tmp_path / "none").names() == []
    assert "no runs in" in Live(tmp_path / "none").look(None)[0]
    (tmp_path / "old" / "config.yaml").write_text("model: 3\n")
    assert "config.yaml" in Live(tmp_path).look("old")[0]
