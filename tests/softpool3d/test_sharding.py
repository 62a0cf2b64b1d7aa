"""Networks in shards, in two processes: the same run as whole ones."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softpool3d.config_file import load_config
from softpool3d.errors import UsageError
from softpool3d.runs.checkpoint import load_weights
from softpool3d.training.trainer import train

TINY = [
    *("data.motion_clips=[16,8,9]", "data.num_workers=0", "model.width=4", "train.batch_size=4", "train.epochs=2"),
    *("test.num_clips=1", "device=cpu", "optim.warmup_epochs=0", "optim.clip_grad_norm=1", "train.norm=sync"),
    "train.ema=0.5",
]


def torchrun(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "softpool3d.tools.train", *arguments]
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert found.returncode == 0, found.stderr


def losses(folder: Path) -> list[tuple[float, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(float(row["train_loss"]), float(row["val_loss"])) for row in csv.DictReader(file)]


def test_a_sharded_run_is_a_whole_one_and_resumes(tmp_path):
    whole = train(
        load_config("r3d_softpool", [*TINY, "train.global_batch=8", "train.batch_size=8", f"output={tmp_path}"])
    )
    torchrun(tmp_path, "--cfg", "r3d_softpool", *TINY, "name=shards", "train.shard=true", f"output={tmp_path}")
    folder = tmp_path / "shards"
    for ours, theirs in zip(losses(folder), losses(Path(whole["folder"])), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for file in ("last.safetensors", "last_ema.safetensors"):
        sharded, plain = (load_weights(Path(of) / file).state for of in (folder, whole["folder"]))
        for name, value in plain.items():
            torch.testing.assert_close(sharded[name], value, rtol=1e-3, atol=1e-4, msg=f"{file}: {name}")
    before = losses(folder)
    torchrun(tmp_path, "--resume", str(folder))  # nothing is left but testing; the state has to fit
    assert losses(folder) == before


def test_what_cannot_be_sharded(tmp_path):
    with pytest.raises(UsageError, match="train.shard needs several processes: torchrun"):
        train(load_config("r3d_softpool", [*TINY, "train.shard=true", f"output={tmp_path}"]))
