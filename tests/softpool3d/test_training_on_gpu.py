"""Training on an NVIDIA GPU: where the host waits for it, and that what it skips, compiles and takes up is right."""

import itertools
from pathlib import Path

import pytest
import torch

from softpool3d.config_file import load_config
from softpool3d.runs.checkpoint import load_state, load_weights
from softpool3d.runs.run import Run
from softpool3d.training import setup
from softpool3d.training.average import Average
from softpool3d.training.guard import LossGuard
from softpool3d.training.trainer import Training, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]

SMALL = [
    "device=cuda",
    "data.motion_clips=[32,8,8]",
    "data.num_workers=0",
    "model.width=8",
    "train.batch_size=4",
    "train.epochs=2",
    "optim.warmup_epochs=0",
    "test.num_clips=1",
]


def small(folder, *overrides, cfg="r3d_softpool"):
    return load_config(cfg, [*SMALL, f"output={folder}", *overrides])


class Hurried(Training):
    """Raises an error where torch makes the host wait for the device in a step, from the third of the run on."""

    steps = 0

    def step(self, batch, epoch, step):
        self.steps += 1
        torch.cuda.set_sync_debug_mode("error" if self.steps > 2 else "default")
        try:
            return super().step(batch, epoch, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "settings",
    [
        ["optim.name=adamw"],
        ["train.ema=0.9", "optim.clip_grad_norm=1", "optim.clip_grad_value=1"],
        ["train.on_nonfinite=skip", "train.accumulate=2"],
        ["train.precision=bf16", "train.mixup=0.2", "train.cutmix=1", "optim.label_smoothing=0.1"],
        ["train.memory_format=channels_last_3d", "model.pool.beta=learnable"],
    ],
    ids=str,
)
def test_the_host_does_not_wait_for_the_device_in_a_step(tmp_path, settings):
    train(small(tmp_path, *settings), training=Hurried)


def poisoned(numbers):
    """Builds a loss that is NaN for these batches of the run."""
    build, count = setup.build_loss, itertools.count()

    def anew(*arguments):
        criterion = build(*arguments)
        return lambda *given: criterion(*given) * (float("nan") if next(count) in numbers else 1)

    return anew


def same_numbers(one, other):
    """Compares the weights, optimiser and averages of two runs."""
    a, b = (load_state(Path(run["folder"]) / "last" / "checkpoint.pt") for run in (one, other))
    flat = [
        torch.utils._pytree.tree_leaves([s["model"], s["parts"]["optimizer"]["state"], s["parts"].get("average")])
        for s in (a, b)
    ]
    assert len(flat[0]) == len(flat[1]) > 20
    for ours, theirs in zip(*flat, strict=True):
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_updates_that_the_device_skips_are_those_that_the_host_would(tmp_path, monkeypatch, name):
    torch.backends.cudnn.deterministic = True
    settings = [f"optim.name={name}", "train.on_nonfinite=skip", "train.ema=0.9"]
    with monkeypatch.context() as patch:
        patch.setattr(setup, "build_loss", poisoned([0, 3, 4, 9]))
        kept = train(small(tmp_path, *settings, "name=kept"))
    with monkeypatch.context() as patch:
        patch.setattr(setup, "build_loss", poisoned([0, 3, 4, 9]))
        patch.setattr(LossGuard, "_answers_on_device", lambda *_: False)
        told = train(small(tmp_path, *settings, "name=told"))
    torch.backends.cudnn.deterministic = False
    assert kept["skipped_updates"] == told["skipped_updates"] == 4
    same_numbers(kept, told)
    tables = [(Path(run["folder"]) / "nonfinite.csv").read_text() for run in (kept, told)]
    assert tables[0] == tables[1]


def test_an_average_is_the_same_whether_the_host_knows_or_the_device():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(3, 64, 3, device="cuda")
    told, kept = Average(network, 0.99), Average(network, 0.99)
    yes, no = torch.ones((), dtype=torch.bool, device="cuda"), torch.zeros((), dtype=torch.bool, device="cuda")
    for average in (told, kept):
        average.update_parameters(network)
    for _ in range(5):
        with torch.no_grad():
            network.weight.add_(torch.randn_like(network.weight))
        told.update_parameters(network)
        kept.update_parameters(network, yes)
        kept.update_parameters(network, no)
    assert torch.equal(told.module.weight, kept.module.weight)
    assert told.n_averaged.item() == kept.n_averaged.item() == 6


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_x3d_compiled(tmp_path, precision):
    summary = train(
        small(tmp_path, "train.compile=true", f"train.precision={precision}", "train.epochs=1", cfg="x3d_softpool")
    )
    state = load_weights(summary["weights"]).state
    assert all(value.isfinite().all() for value in state.values()) and summary["test_clips"] == 8


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_run_without_a_fused_optimiser_goes_on_with_one(tmp_path, monkeypatch, name):
    settings = [f"optim.name={name}", "train.epochs=1"]
    with monkeypatch.context() as patch:
        patch.setattr(setup, "is_fused", lambda *_: False)
        folder = Path(train(small(tmp_path, *settings))["folder"])
    assert not load_state(folder / "last" / "checkpoint.pt")["parts"]["optimizer"]["param_groups"][0].get("fused")
    run, config = Run.open(folder, ["train.epochs=2"])
    train(config, run, force_resume=True, training=Hurried)
    state = load_state(folder / "last" / "checkpoint.pt")
    assert state["epoch"] == 2 and all(value.isfinite().all() for value in state["model"].values())
