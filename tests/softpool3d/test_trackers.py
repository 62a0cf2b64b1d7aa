"""Trackers by way of accelerate, with one that has wandb's interface in place of wandb."""

import sys
from types import ModuleType, SimpleNamespace

import accelerate.tracking
import pytest
from accelerate.utils import LoggerType

from softpool3d.config import load_config
from softpool3d.engine import trackers
from softpool3d.engine.run import Run
from softpool3d.engine.trainer import train
from softpool3d.errors import WorkError

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
    monkeypatch.setattr(trackers, "_installed", lambda package: package == "wandb")
    return told


def test_a_run_goes_on_as_the_same_run_there(wandb, tmp_path, monkeypatch):
    settings = [*TINY, "test.num_clips=1", f"output={tmp_path}", "train.trackers=wandb"]
    config = load_config("r3d_softpool", [*settings, "name=tracked"])
    train(config)
    folder = tmp_path / "tracked"
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
