"""Trainings in processes of torchrun that note what they train on (tests/cluster/bin/softpool3d)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

WATCHER = Path(__file__).parents[1] / "cluster" / "bin"
CLIPS, UPDATE, EPOCHS = 16, 4, 28
SETTINGS = ["--cfg", "r3d_softpool", "device=cpu", f"data.motion_clips=[{CLIPS},8,8]", "data.num_workers=0"]
SETTINGS += ["data.num_frames=4", "data.short_side=32", "data.train_short_side=[32,32]", "data.crop_size=32"]
SETTINGS += [f"train.global_batch={UPDATE}", "train.batch_size=2", f"train.epochs={EPOCHS}", "train.eval_every=4"]
SETTINGS += ["model.width=8", "model.dropout=0.5", "train.norm=sync", "test.num_clips=1", "train.timeout_minutes=2"]


def environment(folder: Path) -> dict[str, str]:
    """What `softpool3d` needs to note its batches in `folder`."""
    folder.mkdir()
    path = os.pathsep.join([str(WATCHER), os.path.dirname(sys.executable), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "WATCHED": str(folder), "OMP_NUM_THREADS": "1"}


def until(condition: Callable[[], object], log: Path, seconds: float = 120) -> None:
    """Waits for it; a test that waits in vain shows what the processes printed."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text() if log.exists() else f"no {log}"
        time.sleep(0.1)


def batches(folder: Path) -> list[dict]:
    """Every batch that was noted, by any process."""
    lines = [line for path in folder.glob("*-*") for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_start(folder: Path) -> list[dict]:
    """The batches of the last start of all processes."""
    noted = batches(folder)
    return [batch for batch in noted if batch["start"] == max(batch["start"] for batch in noted)]


def updates(folder: Path) -> dict[int, dict[int, list[int]]]:
    """epoch -> clips that were done before an update -> clips of that update, those of all processes. Of an update that
    was made again, because the first was lost, this is the last."""
    made: dict[int, dict[int, tuple[float, list[int]]]] = {}
    for batch in sorted(batches(folder), key=lambda batch: batch["start"]):
        of_epoch = made.setdefault(batch["epoch"], {})
        if of_epoch.get(batch["done"], (None,))[0] != batch["start"]:
            of_epoch[batch["done"]] = batch["start"], []
        of_epoch[batch["done"]][1].extend(batch["clips"])
    return {epoch: {done: clips for done, (_, clips) in sorted(made[epoch].items())} for epoch in sorted(made)}


def assert_each_clip_comes_once(folder: Path, epochs: int) -> None:
    """And each update has the clips of train.global_batch, whatever became of the processes."""
    made = updates(folder)
    for epoch in range(epochs):
        assert list(made[epoch]) == list(range(0, CLIPS, UPDATE)), epoch
        assert all(len(clips) == UPDATE for clips in made[epoch].values()), epoch
        assert sorted(clip for clips in made[epoch].values() for clip in clips) == list(range(CLIPS)), epoch
