"""Whole runs, small ones."""

import csv
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from videos import damaged_files

from softpool3d.config_file import load_config
from softpool3d.datasets.sources.motion import CLASSES
from softpool3d.errors import UsageError, WorkError
from softpool3d.evaluation.evaluator import Scores
from softpool3d.evaluation.scores import VideoScores
from softpool3d.runs.checkpoint import load_state, load_weights
from softpool3d.runs.run import Run
from softpool3d.runtime.interrupt import Interrupted
from softpool3d.training import setup, trainer
from softpool3d.training.guard import LossGuard
from softpool3d.training.meter import PARTS
from softpool3d.training.optim import Schedule
from softpool3d.training.trainer import train

TINY = [
    "data.motion_clips=[16,8,8]",
    "data.num_workers=0",
    "model.width=4",
    "train.batch_size=4",
    "train.epochs=2",
    "optim.warmup_epochs=0",
    "test.num_clips=1",
]


def tiny(tmp_path, *overrides):
    return load_config("r3d_softpool", [*TINY, f"output={tmp_path / 'runs'}", *overrides])


def rows(folder):
    with open(os.path.join(folder, "metrics.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything_in_its_folder(tmp_path):
    config = tiny(tmp_path)
    summary = train(config)
    folder = tmp_path / "runs" / "r3d_softpool"
    assert summary["folder"] == str(folder)
    assert load_config(folder / "config.yaml") == config
    assert [row["epoch"] for row in rows(folder)] == ["1", "2"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["test_clips"] == 8 and summary["tested_on"] == "test"
    events = EventAccumulator(str(folder)).Reload()
    assert set(rows(folder)[0]) - {"step"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("val_top1")] == [4, 8]
    assert set(events.Tags()["images"]) == {"training clips", "confusion"}
    clips = Image.open(io.BytesIO(events.Images("training clips")[0].encoded_image_string))
    assert clips.n_frames == 8 and clips.size == (4 * 64, 64)
    (origin,) = json.loads((folder / "run.json").read_text())
    assert origin["data"]["train"]["clips"] == 16 and origin["data"]["train"]["clips_per_class"]["most"] == 2
    assert origin["versions"]["torch"] == torch.__version__.partition("+")[0] and origin["command"]
    assert (folder / "last" / "checkpoint.pt").is_file()
    weights = load_weights(folder / "best.safetensors")
    assert weights.config == config and set(weights.classes) == set(CLASSES)
    again = train(config)
    assert again["folder"] == f"{folder}-2"
    assert [r["train_loss"] for r in rows(folder)] == [r["train_loss"] for r in rows(again["folder"])]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.name=x3d_xs", "model.width=null", "data.num_frames=4", "data.sampling=uniform"],
        ["optim.name=adamw", "train.accumulate=2", "train.memory_format=contiguous", "data.short_clip=hold"],
        ["model.pool.kind=max", "data.num_frames=16", "test.num_crops=3"],
    ],
)
def test_settings_train(tmp_path, overrides):
    summary = train(tiny(tmp_path, "train.epochs=1", *overrides))
    assert 0 <= summary["test_top1"] <= summary["test_top5"] <= 1


def test_an_interrupted_run_goes_on_as_if_it_never_stopped(tmp_path):
    """Interrupted in the middle of an epoch; the same losses and weights, bit by bit, as the run that was not. On a
    CPU: cuDNN adds in an order of its own."""
    overrides = ["model.dropout=0.5", "train.epochs=3", "device=cpu"]
    whole = train(tiny(tmp_path, "name=whole", *overrides))
    script = tmp_path / "stop.py"
    script.write_text(
        "import os, signal, sys\n"
        "from softpool3d.config_file import load_config\n"
        "from softpool3d.training import setup, trainer\n"
        "from softpool3d.runtime.interrupt import Interrupted\n"
        "add, calls = trainer.Meter.add, []\n"
        "def counting(self, *args):\n"
        "    add(self, *args)\n"
        "    calls.append(1)\n"
        "    if len(calls) == 6:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "trainer.Meter.add = counting\n"
        "try:\n"
        "    trainer.train(load_config(sys.argv[1]))\n"
        "except Interrupted as error:\n"
        "    sys.exit(str(error))\n"
    )
    config = tiny(tmp_path, "name=stopped", *overrides)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    stopped = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "config.yaml")], capture_output=True, text=True, timeout=120
    )
    folder = tmp_path / "runs" / "stopped"
    assert VideoScores.load(folder / "scores.npz").about["split"] == "val"  # of the first epoch
    assert f"softpool3d train --resume {folder}" in stopped.stderr
    assert len(rows(folder)) == 1  # the second of three epochs was under way
    run, config = Run.open(folder)
    train(config, run)
    drop = ("seconds", "clips_per_second", "waiting_for_data", *(f"{part}_ms" for part in PARTS))
    for a, b in zip(rows(whole["folder"]), rows(folder), strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}
    first, second = (load_weights(os.path.join(f, "best.safetensors")).state for f in (whole["folder"], folder))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "resumed, stuck", [(False, "trainer.normalize"), (True, "trainer.normalize"), (True, "loader.open_as")]
)
def test_a_first_step_that_never_ends_is_stopped_at_once(tmp_path, resumed, stuck):
    """As torch.compile's does whose processes died of the same signal, or a decoder. There is nothing to save, and
    nothing is."""
    config = tiny(tmp_path, "train.epochs=1")
    if resumed:
        train(config)
        (tmp_path / "runs" / "r3d_softpool" / "summary.json").unlink()
        config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2})})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    script = tmp_path / "stuck.py"
    script.write_text(
        "import os, signal, sys, threading\n"
        "from softpool3d.config_file import load_config\n"
        "from softpool3d.datasets import loader\n"
        "from softpool3d.training import setup, trainer\n"
        "from softpool3d.runtime.interrupt import Interrupted\n"
        "def stuck(*args):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Event().wait(600)\n"
        f"{stuck} = stuck\n"
        "if __name__ == '__main__':\n"  # spawned processes, which write the clips, import this
        "    try:\n"
        "        trainer.train(load_config(sys.argv[1]), auto_resume=True, force_resume=True)\n"
        "    except Interrupted as error:\n"
        "        print(error)\n"
        "        sys.exit(error.exit_code)\n"
    )
    folder = tmp_path / "runs" / "r3d_softpool"
    checkpoint = folder / "last" / "checkpoint.pt"
    before = checkpoint.read_bytes() if resumed else None
    command = [sys.executable, str(script), str(tmp_path / "config.yaml")]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert stopped.stdout.endswith(f"stopped; go on with: softpool3d train --resume {folder}\n")
    assert (checkpoint.read_bytes() if checkpoint.exists() else None) == before
    run, config = Run.open(folder)
    assert train(config, run, force_resume=True)["test_clips"] == 8 and len(rows(folder)) == 1 + resumed


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    """As a person does it: the command, Ctrl-C, the command that it names; worker processes included."""
    command = [sys.executable, "-m", "softpool3d.tools.train"]
    arguments = [*TINY, "data.num_workers=2", "train.epochs=200", f"output={tmp_path}"]
    process = subprocess.Popen(
        [*command, "--cfg", "r3d_softpool", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    folder = tmp_path / "r3d_softpool"
    while not (folder / "metrics.csv").is_file():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().endswith(f"error: stopped; go on with: softpool3d train --resume {folder}")
    assert "Traceback" not in errors
    state = torch.load(folder / "last" / "checkpoint.pt", weights_only=True)
    assert state["epoch"] >= 1


def test_accumulated_batches_are_one_large_batch(tmp_path, monkeypatch):
    """Without batch norm, two batches of 4 add up to one of 8; so does the epoch's last group, which is smaller."""

    def plain(config, num_classes):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool3d((1, 4, 4)), torch.nn.Flatten(), torch.nn.Linear(48, num_classes)
        )

    monkeypatch.setattr(setup, "build_model", plain)
    overrides = [
        "train.epochs=1",
        "optim.clip_grad_norm=0",
        "optim.schedule=constant",
        "optim.lr=0.1",
        "optim.class_weights=[1,2,3,4,5,6,7,8]",
        "data.motion_clips=[16,8,8]",
    ]
    for whole, parts in (("8", ("4", "2")), ("16", ("4", "3"))):
        runs = []
        for size, accumulate in ((whole, "1"), parts):
            summary = train(tiny(tmp_path, *overrides, f"train.batch_size={size}", f"train.accumulate={accumulate}"))
            runs.append(load_weights(summary["weights"]).state["2.weight"])
        same = torch.allclose(*runs, atol=1e-6)
        assert same == (whole == "8")  # 4 batches in groups of 3 are two steps, not one


def test_stopped_while_testing_the_state_of_training_stays(tmp_path, monkeypatch):
    """By then the model holds the best weights, which are not the last ones."""
    checkpoint = tmp_path / "runs" / "r3d_softpool" / "last" / "checkpoint.pt"
    before = []

    def stop(path):
        before.append(checkpoint.read_bytes())
        os.kill(os.getpid(), signal.SIGINT)
        return load_weights(path)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="--resume"):
        patch.setattr(trainer, "load_weights", stop)
        train(tiny(tmp_path))
    assert checkpoint.read_bytes() == before[0]
    run, config = Run.open(tmp_path / "runs" / "r3d_softpool")
    assert train(config, run)["test_clips"] == 8


def test_bad_files_are_skipped_named_once_and_counted(tmp_path, two_classes, capsys):
    for path in damaged_files(tmp_path).values():
        path.rename(two_classes / "jumping" / path.name)
    sizes = ["data.short_side=48", "data.train_short_side=[48,48]", "data.crop_size=48"]
    folder = ["data.dataset=folder", f"data.root={two_classes}", "data.split=[0.75,0.25,0]", *sizes]
    summary = train(tiny(tmp_path, "data.max_bad_fraction=0.9", *folder))
    printed = capsys.readouterr().out
    assert sum(summary["bad_files"].values()) == 4
    assert all(printed.count(f"{name}.mp4: ") == 1 for name in ("empty", "text", "truncated", "audio"))
    assert "unreadable files skipped: " in printed
    assert summary["tested_on"] == "val"

    with pytest.raises(
        WorkError, match=r"of the \d+ (train|val) files cannot be read, more than data.max_bad_fraction"
    ):
        train(tiny(tmp_path, "name=strict", "data.max_bad_fraction=0.05", *folder))
    run, config = Run.open(tmp_path / "runs" / "strict", ["data.max_bad_fraction=0.9"])
    assert sum(train(config, run)["bad_files"].values()) == 4  # those from before the stop are counted


def test_requests_that_cannot_be_met_write_nothing(tmp_path):
    first = train(tiny(tmp_path))
    for override, message in {
        f"model.weights={tmp_path / 'absent'}": "no weights file",
        "device=cuda:9": "device: 'cuda:9' does not work here",
        "train.precision=fp16": "train.precision=fp16 needs a GPU",
        "train.precision=bf16": "train.precision=bf16 needs a GPU",
        "train.precision=tf32": "train.precision=tf32 needs a GPU",
        "train.trackers=[clearml]": "train.trackers: clearml is not installed here; pip install clearml",
    }.items():
        if "needs a GPU" in message and torch.cuda.is_available():
            continue
        with pytest.raises(UsageError, match=message):
            train(tiny(tmp_path, "name=other", override))
    assert not (tmp_path / "runs" / "other").exists()
    with pytest.raises(UsageError, match="model.weights: .* holds another network than r3d_18: stem.0.weight is"):
        train(tiny(tmp_path, "name=other", f"model.weights={first['weights']}", "model.width=8"))


def test_weights_to_start_from(tmp_path):
    first = train(tiny(tmp_path))
    second = train(tiny(tmp_path, "name=second", f"model.weights={first['folder']}", "optim.lr=1e-9"))
    a, b = (load_weights(summary["weights"]).state for summary in (first, second))
    torch.testing.assert_close(a["fc.weight"], b["fc.weight"])


def test_resume_from_what_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="is not the folder of a run"):
        Run.open(tmp_path)


def test_a_loss_that_explodes_stops_the_run(tmp_path):
    with pytest.raises(WorkError, match=r"the loss is (nan|inf) in epoch \d at step \d+; try a lower optim.lr"):
        train(tiny(tmp_path, "optim.lr=1e30", "optim.clip_grad_norm=0", "train.epochs=4"))


def test_evaluation_by_steps_the_best_few_and_the_last(tmp_path):
    summary = train(
        tiny(tmp_path, "train.epochs=3", "train.eval_every=2", "train.eval_every_steps=3", "train.keep_best=2")
    )
    folder = Path(summary["folder"])
    # four batches an epoch; epochs 2 and 3 are evaluated (every second, the last), and batches 3, 6, 9, 12
    assert [(row["step"], bool(row["val_top1"])) for row in rows(folder)] == [
        ("3", True),
        ("4", False),
        ("6", True),
        ("8", True),
        ("9", True),
        ("12", True),
    ]
    evaluated = [(float(row["val_top1"]), -float(row["val_loss"])) for row in rows(folder) if row["val_top1"]]
    kept = sorted(path.name for path in (folder / "kept").iterdir())
    assert len(kept) == 2
    best = load_weights(summary["weights"]).state
    same = [
        name for name in kept if torch.equal(load_weights(folder / "kept" / name).state["fc.weight"], best["fc.weight"])
    ]
    assert len(same) == 1
    steps = ["3", "6", "8", "9", "12"]
    assert f"step{int(steps[evaluated.index(max(evaluated))]):07}" in same[0]
    last, final = (
        load_weights(folder / "last.safetensors").state,
        torch.load(folder / "last" / "checkpoint.pt", weights_only=True),
    )
    assert all(torch.equal(last[name], value) for name, value in final["model"].items())


def test_early_stopping_holds_over_a_resume(tmp_path, capsys, monkeypatch):
    scores = Scores(torch.eye(8), torch.arange(8), torch.arange(8))
    monkeypatch.setattr(trainer, "evaluate", lambda *_: scores)
    summary = train(tiny(tmp_path, "train.epochs=9", "train.patience=2"))
    stopped = rows(summary["folder"])
    assert len(stopped) == 3
    assert "stopped early" in capsys.readouterr().out
    run, config = Run.open(summary["folder"])
    train(config, run)
    assert rows(summary["folder"]) == stopped


def rates(overrides, epochs=10, steps=10, batch_size=8):
    config = load_config("r3d_softpool", ["optim.lr=0.5", "optim.warmup_epochs=1", *overrides]).optim
    schedule = Schedule(config, epochs, batch_size)
    return [schedule(epoch, step, steps) for epoch in range(epochs) for step in range(steps)]


def test_schedules():
    cosine = rates([])
    assert cosine[0] == pytest.approx(0.05) and cosine[9] == cosine[10] == 0.5
    assert cosine == sorted(cosine[:10]) + sorted(cosine[10:], reverse=True)
    assert 0 < cosine[-1] < 0.001
    assert rates(["optim.final_lr=0.1"])[-1] == pytest.approx(0.05, abs=1e-3)
    assert rates(["optim.warmup_start=0.5"])[0] == pytest.approx(0.5 * (0.5 + 0.05))
    start = rates(["optim.cosine_from_start=true"])  # as PySlowFast: no jump where the warm-up ends
    assert start[9] == pytest.approx(start[10]) and max(start) == start[9] < 0.5
    assert start[10:] == pytest.approx(
        [0.25 * (1 + math.cos(math.pi * step / len(start))) for step in range(10, len(start))]
    )
    steps = rates(["optim.schedule=multistep", "optim.milestones=[2,5.5]", "optim.gamma=0.5"])
    assert steps[10:20] == [0.5] * 10 and steps[20:55] == [0.25] * 35 and steps[55:] == [0.125] * 45
    assert set(rates(["optim.schedule=constant"])[10:]) == {0.5}
    assert rates(["optim.schedule=constant", "optim.base_batch=16"])[-1] == 0.25


def test_an_average_of_the_weights_is_evaluated_and_kept_beside_them(tmp_path):
    config = tiny(tmp_path, "train.ema=0.5", "train.epochs=2", "train.precise_norm=2", "train.norm=split")
    summary = train(config)
    folder = Path(summary["folder"])
    assert all(row["val_ema_top1"] for row in rows(folder)) and "test_ema_top1" in summary
    last, average = (load_weights(folder / f"last{suffix}.safetensors").state for suffix in ("", "_ema"))
    assert not torch.equal(last["fc.weight"], average["fc.weight"])
    state = torch.load(folder / "last" / "checkpoint.pt", weights_only=True, map_location="cpu")
    assert torch.equal(state["parts"]["average"]["module.fc.weight"], average["fc.weight"])


class Poisoned:
    """A loss that is NaN for the batches of these numbers, the first being 0."""

    def __init__(self, numbers):
        self.numbers, self.count = numbers, 0

    def __call__(self, logits, target):
        loss = torch.nn.functional.cross_entropy(logits, target)
        self.count += 1
        return loss * float("nan") if self.count - 1 in self.numbers else loss


def test_a_nan_stops_the_run_and_names_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "build_loss", lambda *_: Poisoned([5]))
    with pytest.raises(WorkError, match="the loss is nan in epoch 2 at step 2; .*train.on_nonfinite=skip"):
        train(tiny(tmp_path))
    folder = tmp_path / "runs" / "r3d_softpool"
    with open(folder / "nonfinite.csv", newline="", encoding="utf-8-sig") as file:
        found = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"], row["loss"]) for row in found] == [("2", "2", "nan")] * 4
    assert all(Path(row["path"]).is_file() for row in found)
    state = torch.load(folder / "last" / "checkpoint.pt", weights_only=True)  # of before
    assert all(value.isfinite().all() for value in state["model"].values())


def test_an_update_with_a_nan_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "build_loss", lambda *_: Poisoned([1, 2]))
    summary = train(tiny(tmp_path, "train.on_nonfinite=skip", "train.epochs=1"))
    assert summary["skipped_updates"] == 2
    assert all(value.isfinite().all() for value in load_weights(summary["weights"]).state.values())
    assert 0 < float(rows(summary["folder"])[0]["train_loss"]) < 10
    monkeypatch.setattr(setup, "build_loss", lambda *_: Poisoned(range(100)))
    with pytest.raises(WorkError, match="the 20th update in a row that was skipped"):
        train(tiny(tmp_path, "train.on_nonfinite=skip", "train.epochs=9"))
    assert rows(tmp_path / "runs" / "r3d_softpool-2")[0]["train_loss"] == "nan"  # not 0: no update was made


class Infinite(torch.autograd.Function):
    """A loss as it is, with a gradient that is not."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


class Steep(Poisoned):
    """The loss is finite for these batches, its gradient is not."""

    def __call__(self, logits, target):
        loss = torch.nn.functional.cross_entropy(logits, target)
        self.count += 1
        return Infinite.apply(loss) if self.count - 1 in self.numbers else loss


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "build_loss", lambda *_: Steep([5]))
    with pytest.raises(WorkError, match="the gradient's norm is (nan|inf) in epoch 2 at step 2; .*on_nonfinite=skip"):
        train(tiny(tmp_path, "checkpoint.every_minutes=1e-9"))
    folder = tmp_path / "runs" / "r3d_softpool"
    with open(folder / "nonfinite.csv", newline="", encoding="utf-8-sig") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 4 and all(math.isfinite(float(row["loss"])) for row in found)
    assert not any(math.isfinite(float(row["gradient_norm"])) for row in found)
    state = torch.load(folder / "last" / "checkpoint.pt", weights_only=True)
    leaves = torch.utils._pytree.tree_leaves([state["model"], state["parts"]])
    assert state["steps"] == 5 and all(leaf.isfinite().all() for leaf in leaves if isinstance(leaf, torch.Tensor))


@pytest.mark.parametrize("accumulate", ["1", "2"])
def test_an_update_whose_gradient_is_not_finite_is_skipped(tmp_path, monkeypatch, accumulate):
    monkeypatch.setattr(setup, "build_loss", lambda *_: Steep([2]))
    settings = ["train.on_nonfinite=skip", "train.epochs=1", "optim.clip_grad_norm=1"]
    summary = train(tiny(tmp_path, *settings, f"train.accumulate={accumulate}"))
    assert summary["skipped_updates"] == 1
    state = torch.load(Path(summary["folder"]) / "last" / "checkpoint.pt", weights_only=True)
    leaves = torch.utils._pytree.tree_leaves([state["model"], state["parts"]])
    assert all(leaf.isfinite().all() for leaf in leaves if isinstance(leaf, torch.Tensor))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("loss", [Poisoned, Steep])
def test_a_verdict_that_stays_on_the_device_skips_the_same_updates(tmp_path, monkeypatch, name, loss):
    """As on a GPU, where the host reads verdicts now and then; a CPU's fused optimisers skip updates too."""
    settings = [f"optim.name={name}", "optim.options={fused: true}", "train.on_nonfinite=skip", "train.epochs=2"]
    monkeypatch.setattr(setup, "build_loss", lambda *_: loss([1, 2, 4]))
    told = train(tiny(tmp_path, *settings, "name=told"))
    read, settle = [], LossGuard.settle
    monkeypatch.setattr(LossGuard, "settle", lambda guard: read.append(len(guard._unread)) or settle(guard))
    monkeypatch.setattr(LossGuard, "_answers_on_device", lambda *_: True)
    monkeypatch.setattr(setup, "build_loss", lambda *_: loss([1, 2, 4]))
    kept = train(tiny(tmp_path, *settings, "name=kept"))
    assert told["skipped_updates"] == kept["skipped_updates"] == 3
    assert max(read) == 4  # all updates of an epoch
    one, other = (load_state(Path(run["folder"]) / "last" / "checkpoint.pt") for run in (told, kept))
    flat = [torch.utils._pytree.tree_leaves([s["model"], s["parts"]["optimizer"]["state"]]) for s in (one, other)]
    assert len(flat[0]) == len(flat[1]) > 20
    for ours, theirs in zip(*flat, strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    tables = [(Path(run["folder"]) / "nonfinite.csv").read_text() for run in (told, kept)]
    assert tables[0] == tables[1]


def test_where_a_verdict_stays_on_the_device(tmp_path, monkeypatch):
    """On a GPU, where the optimiser that accelerate wraps is fused and has its state, and an average has begun. Not
    where fp16's scaler judges gradients."""
    answers = set()

    def asked(guard, *rest):
        optimizer = rest[-1]
        fused = optimizer.param_groups[0]["fused"]
        for has_state, device, scaler, begun in itertools.product(
            (False, True), ("cpu", "cuda"), (None, object()), (None, False, True)
        ):
            if has_state:
                for parameter in itertools.chain(*(group["params"] for group in optimizer.param_groups)):
                    optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
            guard._accelerator = SimpleNamespace(device=torch.device(device), scaler=scaler)
            guard._average = None if begun is None else SimpleNamespace(begun=begun)
            if guard._answers_on_device(optimizer):
                answers.add((fused, device, scaler, has_state, begun))
        raise WorkError("enough")

    monkeypatch.setattr(LossGuard, "allows", asked)
    for fused in ("true", "false"):
        with pytest.raises(WorkError, match="enough"):
            train(tiny(tmp_path, f"optim.options={{fused: {fused}}}"))
    assert answers == {(True, "cuda", None, True, None), (True, "cuda", None, True, True)}


def test_a_verdict_that_stays_on_the_device_stops_the_run_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(LossGuard, "_answers_on_device", lambda *_: True)
    monkeypatch.setattr(setup, "build_loss", lambda *_: Poisoned([5]))
    with pytest.raises(WorkError, match="the loss is nan in epoch 2 at step 2; .*train.on_nonfinite=skip"):
        train(tiny(tmp_path, "optim.options={fused: true}"))
    state = load_state(tmp_path / "runs" / "r3d_softpool" / "last" / "checkpoint.pt")
    assert all(value.isfinite().all() for value in state["model"].values())


def test_fp16_whose_scaler_never_finds_a_scale(tmp_path, monkeypatch):
    """The scaler leaves such updates out in silence; it is on a GPU alone, and stood in for here."""
    monkeypatch.setattr("accelerate.optimizer.AcceleratedOptimizer.step_was_skipped", True)
    with pytest.raises(WorkError, match="gradients in fp16 were not finite in 20 updates in a row"):
        train(tiny(tmp_path, "train.epochs=9"))


def test_answers_that_are_no_numbers_are_no_validation(tmp_path, monkeypatch):
    """Training itself is fine: statistics of norms, or fp16, can be no numbers in evaluation alone."""
    build = setup.build_model

    def broken(*arguments):
        network = build(*arguments)
        network.register_forward_hook(lambda module, _, logits: logits if module.training else logits * float("nan"))
        return network

    monkeypatch.setattr(setup, "build_model", broken)
    with pytest.raises(WorkError, match=r"for 8 of 8 videos are not finite \(the first: .*\.mp4\); its weights"):
        train(tiny(tmp_path, "train.epochs=1"))
    folder = tmp_path / "runs" / "r3d_softpool"
    assert not (folder / "best.safetensors").exists() and not (folder / "metrics.csv").exists()


def test_a_full_disk_is_met_before_tensorboard_s_thread_meets_it(tmp_path, monkeypatch):
    def full(*_):
        raise WorkError("no space left")

    monkeypatch.setattr(setup, "write_provenance", full)
    with pytest.raises(WorkError, match="no space left"):
        train(tiny(tmp_path))
    assert not list(tmp_path.glob("runs/*/events.*"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_is_one_sentence_with_three_settings(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(setup, "build_loss", lambda *_: fail)
    message = "out of memory with train.batch_size=4 clips of 8 frames at 64 pixels; try train.batch_size=2 "
    message += "train.accumulate=2 .*, model.checkpointing=true, or a smaller data.crop_size"
    with pytest.raises(WorkError, match=message):
        train(tiny(tmp_path))


def test_an_update_larger_than_the_data_set(tmp_path):
    with pytest.raises(
        UsageError, match="train.batch_size=12: an update has 24 clips and the training split 16; lower"
    ):
        train(tiny(tmp_path, "train.batch_size=12", "train.accumulate=2"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("override", ["train.epochs=0", "optim.lr=0", "optim.lr=-0.1"])
def test_settings_that_train_nothing(tmp_path, override):
    key, _, value = override.partition("=")
    with pytest.raises(UsageError, match=f"{key} = {value}: input should be greater than"):
        tiny(tmp_path, override)


def test_scores():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]])
    scores = Scores(probabilities, torch.tensor([0, 2, 0, 1]), torch.arange(4))
    assert scores.accuracy() == 0.5
    assert scores.accuracy(2) == 0.75
    assert scores.accuracy(5) == 1.0
    assert scores.loss() == pytest.approx(-torch.tensor([0.5, 0.3, 0.2, 0.5]).log().mean().item())
    assert Scores(torch.empty(0, 1), torch.empty(0).long(), torch.empty(0).long()).accuracy() == 0
