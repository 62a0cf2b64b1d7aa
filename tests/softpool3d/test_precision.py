"""fp16 with its gradient scaler, on a CPU. accelerate knows it on GPUs alone; here it gets what it would have made
there: autocast to float16, and a GradScaler that it hands to the optimiser."""

import os
import signal
from pathlib import Path

import pytest
import torch

from softpool3d.config_file import load_config
from softpool3d.runs.checkpoint import load_state, load_weights
from softpool3d.runs.run import Run
from softpool3d.runtime.interrupt import Interrupted
from softpool3d.training import setup, trainer
from softpool3d.training.trainer import train

TINY = [
    *("device=cpu", "data.motion_clips=[16,8,8]", "data.num_workers=0", "train.batch_size=4", "train.epochs=3"),
    *("test.num_clips=1", "optim.warmup_epochs=0", "train.ema=0.5"),
]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """(name, overrides, scale of the loss at first; None for fp32, the run to go on with) -> the run's folder."""

    def plain(config, num_classes):
        torch.manual_seed(0)
        layers = torch.nn.AdaptiveAvgPool3d((1, 4, 4)), torch.nn.Flatten(), torch.nn.Linear(48, num_classes)
        return torch.nn.Sequential(*layers)

    monkeypatch.setattr(setup, "build_model", plain)
    make = trainer.make_accelerator

    def run(name, *overrides, scale=None, resume=None):
        def with_scaler(config):
            accelerator = make(config)
            accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
            return accelerator

        with monkeypatch.context() as patch:
            if scale:
                patch.setattr(trainer, "make_accelerator", with_scaler)
            config = load_config("r3d_softpool", [*TINY, f"output={tmp_path}", f"name={name}", *overrides])
            return Path(train(config, resume)["folder"])

    return run


def test_gradients_are_clipped_unscaled(runs):
    settings = ["optim.clip_grad_norm=0.05", "optim.clip_grad_value=0.02"]
    exact, scaled = (runs(name, *settings, scale=scale) for name, scale in (("exact", None), ("scaled", 2.0**8)))
    assert load_state(scaled / "last" / "checkpoint.pt")["parts"]["scaler"]["scale"] > 2**8
    for file in ("last.safetensors", "last_ema.safetensors"):
        a, b = (load_weights(folder / file).state["2.weight"] for folder in (exact, scaled))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_updates_that_the_scaler_skips_count_for_nothing_and_over_a_resume(runs, monkeypatch):
    """Gradients overflow at the first scale, and again and again as it grows; the losses are finite."""
    settings = ["optim.name=adamw", "optim.clip_grad_norm=1", "optim.clip_grad_value=1"]
    whole = load_state(runs("whole", *settings, scale=2.0**20) / "last" / "checkpoint.pt")
    made = int(whole["parts"]["optimizer"]["state"][0]["step"])
    assert 6 <= made <= 10 and whole["steps"] == 12
    assert whole["parts"]["average"]["n_averaged"] == made
    assert whole["parts"]["guard"] == {"skipped": 0, "in_a_row": 0, "rows": []}

    add, seen = trainer.Meter.add, []

    def stop(meter, *arguments):
        add(meter, *arguments)
        seen.append(1)
        if len(seen) == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stopped:
        patch.setattr(trainer.Meter, "add", stop)
        runs("stopped", *settings, scale=2.0**20)
    run = Run(Path(str(stopped.value).split()[-1]))
    assert load_state(run.checkpoint)["clips"] == 8
    again = load_state(runs("stopped", *settings, scale=2.0**20, resume=run) / "last" / "checkpoint.pt")
    leaves = [torch.utils._pytree.tree_leaves([state["model"], state["parts"]]) for state in (whole, again)]
    for a, b in zip(*leaves, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
