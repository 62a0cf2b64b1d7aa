"""Trackers by way of accelerate, with one that has wandb's interface in place of wandb."""

import subprocess
import sys
import threading
from types import ModuleType, SimpleNamespace

import accelerate.tracking
import pytest
from accelerate.utils import LoggerType

from softpool3d.config_file import load_config
from softpool3d.errors import WorkError
from softpool3d.runs.run import Run
from softpool3d.training import board
from softpool3d.training.trainer import train

TINY = ["data.motion_clips=[8,8,8]", "data.num_workers=0", "model.width=4", "train.batch_size=4", "train.epochs=1"]
TINY += ["optim.warmup_epochs=0"]


@pytest.fixture
def wandb(monkeypatch):
    """What it was told: settings of each start, rows by step, configuration."""
    told = SimpleNamespace(starts=[], rows={}, config={}, finished=0)

    def init(**settings):
        told.starts.append(settings)
        return SimpleNamespace(
            id=settings.get("id", "id7"),
            log=lambda values, step: told.rows.update({step: values}),
            finish=lambda: setattr(told, "finished", told.finished + 1),
        )

    module = ModuleType("wandb")
    module.init = init
    module.config = SimpleNamespace(update=lambda values, **_: told.config.update(values))
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.WANDB])
    monkeypatch.setattr(board, "_installed", lambda package: package == "wandb")
    return told


def test_a_run_goes_on_as_the_same_run_there(wandb, tmp_path, monkeypatch):
    settings = [*TINY, "test.num_clips=1", f"output={tmp_path}", "train.trackers=wandb"]
    config = load_config("r3d_softpool", [*settings, "name=tracked"])
    train(config)
    folder = tmp_path / "tracked"
    (folder / "summary.json").unlink()  # killed while it was tested
    train(config, Run(folder))
    first, second = wandb.starts
    assert first == {"project": "softpool3d", "name": "tracked", "dir": str(folder)}
    assert second == {**first, "id": "id7", "resume": "allow"}
    assert list(wandb.rows) == [2] and 0 <= wandb.rows[2]["val_top1"] <= 1
    assert wandb.config["optim.lr"] == config.optim.lr and wandb.finished == 2

    def refuse(**_):
        raise RuntimeError("no API key configured\nand so on")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(WorkError, match=r"train.trackers=wandb: no API key configured; log in there"):
        train(load_config("r3d_softpool", [*settings, "name=refused"]))


def test_a_tracker_that_never_answers_does_not_hold_up_the_run(wandb, tmp_path, monkeypatch, capsys):
    """As without a network: libraries try again for minutes."""
    answer = threading.Event()
    init = sys.modules["wandb"].init
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **settings: answer.wait() and init(**settings))
    monkeypatch.setattr(board, "_PATIENCE_S", 0.1)
    train(load_config("r3d_softpool", [*TINY, "test.num_clips=1", f"output={tmp_path}", "train.trackers=wandb"]))
    printed = capsys.readouterr().out
    assert "train.trackers=wandb: no answer for 0.1 s; the run goes on, and its rows wait for one" in printed
    assert "train.trackers=wandb: no answer for 0.1 s; the last rows may be missing there" in printed
    assert (tmp_path / "r3d_softpool" / "summary.json").is_file() and not wandb.rows
    answer.set()


class Service:
    """What a tracker is to us, by way of accelerate: `refuse` is raised when it starts, `lose` when it gets a row."""

    def __init__(self, refuse=None, lose=None):
        self.trackers, self.rows, self.refuse, self.lose = [], [], refuse, lose

    def init_trackers(self, *_):
        if self.refuse:
            raise self.refuse

    def log(self, values, step):
        if self.lose and len(self.rows) == 1:
            raise self.lose
        self.rows.append((step, values))


def tracked(folder, service):
    """Three rows, and what is said."""
    said = []
    one = board.Trackers(folder, load_config("r3d_softpool", ["train.trackers=mlflow"]), service, said.append)
    one.start()
    for step in range(3):
        one.log({"loss": 1.0}, step)
    one.close(finished=True)
    return said


def caused(error, cause):
    error.__cause__ = cause
    return error


def test_without_a_network_it_is_said_once_and_the_run_goes_on(tmp_path):
    service = Service()
    assert tracked(tmp_path, service) == [] and [step for step, _ in service.rows] == [0, 1, 2]
    without = "; the run goes on without, metrics.csv has its rows"
    for error in (
        ConnectionError("cannot reach it\nand so on"),
        caused(RuntimeError("cannot reach it"), TimeoutError("timed out")),
        type("CommError", (Exception,), {})("cannot reach it"),
    ):
        assert tracked(tmp_path, Service(refuse=error)) == [f"train.trackers=mlflow: cannot reach it{without}"]
    service = Service(lose=ValueError("no such run"))  # whatever it is, it comes too late to stop a run for
    assert tracked(tmp_path, service) == [f"train.trackers=mlflow: no such run{without}"] and len(service.rows) == 1


def test_what_the_user_can_mend_stops_a_run_before_it_begins(tmp_path):
    with pytest.raises(WorkError, match="train.trackers=mlflow: no such experiment; log in there"):
        tracked(tmp_path, Service(refuse=ValueError("no such experiment")))


@pytest.mark.parametrize("written", [0, 1, 3])
def test_a_full_disk_under_tensorboard_s_file_is_a_sentence(tmp_path, written):
    """TensorBoard writes in a thread of its own, whose traceback came before the error."""
    code = (
        "import errno, os, sys, types\n"
        "from tensorboard.summary.writer.record_writer import RecordWriter\n"
        "from softpool3d.errors import WorkError\n"
        "from softpool3d.training.board import Board\n"
        "write, left = RecordWriter.write, int(sys.argv[2])\n"
        "def full(self, data):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left < 0:\n"
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "    write(self, data)\n"
        "RecordWriter.write = full\n"
        "trackers = types.SimpleNamespace(log=lambda *_: None, close=lambda **_: None)\n"
        "try:\n"
        "    with Board(sys.argv[1], types.SimpleNamespace(is_main_process=True), 0, trackers) as board:\n"
        "        for step in range(5):\n"
        "            board.scalars({'step': step, 'loss': 1.0})\n"
        "except WorkError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), str(written)], capture_output=True, text=True, timeout=120
    )
    assert result.stdout == f"cannot write TensorBoard's file in {tmp_path / 'run'}: no space left on device\n"
    assert result.stderr == ""
