"""Runs that go on with other settings: what is learned anew, what is kept, and what is left alone."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from zygote import network

from softpool3d.config_file import load_config
from softpool3d.errors import UsageError
from softpool3d.runs.checkpoint import load_state, load_weights
from softpool3d.runs.resume import restore
from softpool3d.runs.run import Run
from softpool3d.training import setup, trainer

SETTINGS = [
    *("data.motion_clips=[8,8,8]", "data.num_workers=0", "device=cpu", "train.batch_size=4", "train.epochs=1"),
    *("model.width=8", "test.num_clips=1", "optim.warmup_epochs=0", "optim.weight_decay=0.1"),
]


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(setup, "build_model", network)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders of a run with an average of its weights and one without, one epoch each."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "build_model", network)
        for name, ema in (("plain", 0), ("averaged", 0.5)):
            config = load_config("r3d_softpool", [*SETTINGS, f"output={folder}", f"name={name}", f"train.ema={ema}"])
            trainer.train(config, console=Console(quiet=True))
    return folder


def go_on(finished, tmp_path, name, *overrides):
    """The folder of a copy that has gone on by force, its state, its summary, and what was said."""
    shutil.copytree(finished / name, tmp_path / name)
    run, config = Run.open(tmp_path / name, overrides)
    console = Console(record=True, width=200)
    summary = trainer.train(config, run, console, force_resume=True)
    return tmp_path / name, load_state(run.checkpoint), summary, console.export_text()


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        (["optim.weight_decay=0.25"], {"weight_decay": 0.25, "momentum": 0.9}),
        (["optim.momentum=0.5", "optim.nesterov=false"], {"weight_decay": 0.1, "momentum": 0.5, "nesterov": False}),
    ],
)
def test_settings_of_the_optimiser_are_those_that_are_set(finished, tmp_path, overrides, settings):
    before = load_state(finished / "plain" / "last" / "checkpoint.pt")["parts"]["optimizer"]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        step = torch.optim.SGD.step

        def watched(self, *arguments):
            if not seen:
                seen.extend([self.param_groups[0] | {}, list(self.state.values())[0]["momentum_buffer"].clone()])
            return step(self, *arguments)

        patch.setattr(torch.optim.SGD, "step", watched)
        _, state, _, said = go_on(finished, tmp_path, "plain", "train.epochs=2", *overrides)
    group = state["parts"]["optimizer"]["param_groups"][0]
    assert {key: seen[0][key] for key in settings} == settings == {key: group[key] for key in settings}
    assert torch.equal(seen[1], before["state"][0]["momentum_buffer"])  # what was gathered is taken up
    assert state["parts"]["optimizer"]["param_groups"][1]["weight_decay"] == 0 and "begins anew" not in said


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["optim.name=adamw", "optim.lr=1e-3"], "exp_avg_sq"),
        (["optim.options.dampening=0.1", "optim.nesterov=false"], "momentum_buffer"),
        (["optim.layer_decay=0.5"], "momentum_buffer"),
        (["optim.freeze=[0.*]"], "momentum_buffer"),
    ],
)
def test_an_optimiser_of_another_kind_begins_anew_and_says_so(finished, tmp_path, overrides, kept):
    _, state, _, said = go_on(finished, tmp_path, "plain", "train.epochs=2", *overrides)
    key = overrides[0].partition("=")[0]
    assert f"the optimiser begins anew, without what it had gathered: {key} changed" in said
    optimizer = state["parts"]["optimizer"]
    assert all(kept in one for one in optimizer["state"].values())
    assert state["epoch"] == 2 and all(value.isfinite().all() for value in state["model"].values())


def test_an_average_is_begun_or_left_behind(finished, tmp_path):
    folder, state, summary, said = go_on(finished, tmp_path, "plain", "train.epochs=2", "train.ema=0.5")
    assert "train.ema: the average of the weights begins anew" in said and 0 <= summary["test_ema_top1"] <= 1
    average = load_weights(folder / "last_ema.safetensors").state
    assert torch.equal(state["parts"]["average"]["module.0.weight"], average["0.weight"])
    folder, state, summary, _ = go_on(finished, tmp_path, "averaged", "train.epochs=2", "train.ema=0")
    assert "average" not in state["parts"] and "test_ema_top1" not in summary
    with (folder / "metrics.csv").open(newline="") as file:
        one, two = csv.DictReader(file)
    assert one["val_ema_top1"] and not two["val_ema_top1"]  # rows of before stay whole
    with pytest.raises(UsageError, match="train.ema: the run has no epoch left whose weights could be averaged; raise"):
        go_on(finished / "..", tmp_path / "again", f"{finished.name}/plain", "train.ema=0.5")


def test_the_scaler_of_fp16_is_no_part_of_every_run(finished, tmp_path, monkeypatch):
    """It is there on a GPU alone: here, one that was saved and one that is new."""
    shutil.copytree(finished / "plain", tmp_path / "plain")
    state = load_state(tmp_path / "plain" / "last" / "checkpoint.pt")
    config = load_config("r3d_softpool")
    state["config"] = config.model_dump()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    state["parts"] = {"scaler": {**scaler.state_dict(), "scale": 4.0}}
    optimizer = torch.optim.SGD([torch.zeros(1)])
    assert restore({}, optimizer, state, config) == []
    assert restore({"scaler": scaler}, optimizer, state, config) == [] and scaler.get_scale() == 4
    state["parts"] = {}
    assert restore({"scaler": scaler}, optimizer, state, config) == [] and scaler.get_scale() == 4


def test_a_schedule_that_does_not_fit_is_refused_here_too(finished, tmp_path):
    with pytest.raises(UsageError, match="does not fit into train.epochs=2: optim.warmup_epochs=3 is longer"):
        go_on(finished, tmp_path, "plain", "train.epochs=2", "optim.warmup_epochs=3")


def test_a_finished_run_shows_its_result_and_rewrites_nothing(finished, tmp_path, monkeypatch):
    folder = tmp_path / "plain"
    shutil.copytree(finished / "plain", folder)

    def contents():
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before, console = contents(), Console(record=True, width=200)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", lambda *_: pytest.fail("it was tested again"))
        run, config = Run.open(folder, ["data.prefetch=3"])
        summary = trainer.train(config, run, console)
    said = console.export_text()
    assert contents() == before and f"{folder} is finished" in said and f"top-1 {summary['test_top1']:.1%}" in said
    # other views are another test; without its checkpoint a run is not finished
    run, config = Run.open(folder, ["test.num_clips=2"])
    assert trainer.train(config, run, Console(quiet=True))["views"] == 2 * summary["views"]
    run.checkpoint.rename(run.checkpoint.with_name("previous.pt"))
    run, config = Run.open(folder)
    assert trainer.train(config, run, Console(quiet=True))["views"] == 2 * summary["views"]


def test_the_number_of_processes_and_what_is_asked_for_stay_apart(tmp_path):
    """Accumulated, on two processes, and by `--resume auto` with the same file each time: nothing changes."""
    twice = ["train.batch_size=2", "train.accumulate=2"]
    asked = load_config("r3d_softpool", [*SETTINGS, *twice, f"output={tmp_path}"])
    quiet = Console(quiet=True)
    folder = Path(trainer.train(asked, console=quiet)["folder"])
    state = load_state(folder / "last" / "checkpoint.pt")
    (folder / "summary.json").unlink()
    # as two processes leave it, which took two clips each at once
    torch.save({**state, "processes": 2}, folder / "last" / "checkpoint.pt")
    for _ in range(2):
        trainer.train(asked, console=quiet, auto_resume=True)
        assert Run.open(folder)[1] == asked
        after = load_state(folder / "last" / "checkpoint.pt")
        assert (after["update_size"], after["config"]) == (4, asked.model_dump())
    assert not (folder.parent / f"{folder.name}-2").exists()
