"""Measures what our training adds to a bare loop around a network: per step, per evaluated clip, at the start.

python benchmarks/train.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from shared import begin, run
from torch import Tensor, nn

from softpool3d.analysis.measuring import DOCUMENT, markdown_table, recycle_memory, save_section
from softpool3d.config import Config
from softpool3d.config_file import load_config
from softpool3d.datasets.batches import TrainBatches
from softpool3d.datasets.loader import Batch
from softpool3d.datasets.parallel import cores
from softpool3d.evaluation.evaluator import evaluate
from softpool3d.runtime.devices import MEMORY_FORMATS, make_accelerator
from softpool3d.training import setup, trainer

CLASSES = 8  # of `motion`, whose lists the run reads and whose clips it validates on
NETWORKS = {"r3d_18": (8, 112), "x3d_s": (13, 160)}  # frames, crop
STEP_LEGEND = (
    "Milliseconds of one training step of two clips, and of one clip evaluated: medians of rounds in which ours and "
    "the bare loop take turns, and in brackets the median of the rounds' ratios. Ours is `train`, or `evaluate`, "
    "itself (normalisation, accuracy, checks for NaN, progress, schedule) on batches in memory; the bare loop is "
    "torchvision's or pytorchvideo's network with `SGD`, cross entropy and clips that are normalised already, in the "
    "same memory format. Freed memory is kept for both."
)
START_LEGEND = (
    "Seconds from the command to the end of the first step of `configs/r3d_softpool.yaml`, and those of "
    "`python -c 'import torch'`; medians of runs that take turns."
)
WAIT_LEGEND = (
    "Share of an epoch's time that training waits for data: `configs/r3d_softpool.yaml` on `motion`, decoded, with one "
    "worker for each core; the first epoch starts the workers."
)


def report(rounds: int, say: Callable[[str], None]) -> str:
    """Measures everything; returns the tables as Markdown."""
    recycle_memory()
    rows = []
    for name in NETWORKS:
        say(f"measuring steps of {name}")
        rows.append(_row(f"{name}, training step", steps(name, rounds)))
        say(f"measuring evaluation of {name}")
        rows.append(_row(f"{name}, evaluation", evaluations(name, 2 * rounds)))
    say("measuring the start")
    torch_seconds, first_step = start(max(rounds // 3, 3))
    say("measuring the wait for data")
    waits = waiting()
    parts = [STEP_LEGEND, "", markdown_table(["", "bare", "ours"], rows), "", START_LEGEND, ""]
    cells = [f"{torch_seconds:.2f}", f"{first_step:.2f}", f"{first_step - torch_seconds:.2f}"]
    parts += [markdown_table(["import torch", "first step", "difference"], [cells]), "", WAIT_LEGEND, ""]
    parts.append(markdown_table([f"epoch {n + 1}" for n in range(len(waits))], [[f"{wait:.1%}" for wait in waits]]))
    return "\n".join(parts)


def _row(name: str, pairs: list[tuple[float, float]]) -> list[str]:
    bare, ours = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
    ratio = statistics.median(mine / theirs for theirs, mine in pairs)
    return [name, f"{bare:.1f}", f"{ours:.1f} ({ratio:.3f}x)"]


class InTurns:
    """A loader that yields one batch from memory again and again, and lets the bare loop run before each time.

    The time from a batch to the request for the next is that of everything around the loader, so of our step.

    Attributes:
        pairs: seconds of the bare loop and of ours, for each batch.
    """

    def __init__(self, batch: Batch, bare: Callable[[], object], count: int, sampler: object) -> None:
        self.batch, self.bare, self.count, self.batch_sampler = batch, bare, count, sampler
        self.dataset = self
        self.num_crops = 1
        self.pairs: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.count):
            began = time.perf_counter()
            self.bare()
            handed = time.perf_counter()
            yield self.batch
            if number:  # the first one warms up
                self.pairs.append((handed - began, time.perf_counter() - handed))


def bare_network(name: str) -> nn.Module:
    """Returns the network as a user of its library would make it."""
    if name == "x3d_s":
        from pytorchvideo.models.x3d import create_x3d

        frames, crop = NETWORKS[name]
        return create_x3d(input_clip_length=frames, input_crop_size=crop, model_num_class=CLASSES, head_activation=None)
    from torchvision.models.video import r3d_18

    return r3d_18(num_classes=CLASSES)


def _config(name: str, folder: str) -> Config:
    frames, crop = NETWORKS[name]
    sizes = [f"data.num_frames={frames}", f"data.crop_size={crop}", f"data.short_side={crop}"]
    return load_config(
        "r3d_softpool",
        [
            *(
                f"model.name={name}",
                "model.width=null",
                "model.pool.where=[]",
                f"data.train_short_side=[{crop},{crop}]",
            ),
            *(*sizes, "data.motion_clips=[16,8,8]", "data.num_workers=0", "data.sampling=uniform"),
            *("train.batch_size=2", "train.epochs=1", "test.num_clips=1", f"output={folder}", "device=cpu"),
            *("optim.warmup_epochs=0", "optim.label_smoothing=0", "optim.clip_grad_norm=0", "model.dropout=0"),
        ],
    )


def _batch(config: Config) -> tuple[Batch, Tensor]:
    data = config.data
    video = torch.randint(256, (2, 3, data.num_frames, data.crop_size, data.crop_size), dtype=torch.uint8)
    clips = (video / 255 - 0.45) / 0.225
    return Batch(video, torch.tensor([0, 1]), torch.tensor([0, 1])), clips.contiguous(memory_format=_layout(config))


def _layout(config: Config) -> torch.memory_format:
    return MEMORY_FORMATS[config.train.memory_format]


def steps(name: str, rounds: int) -> list[tuple[float, float]]:
    """Returns pairs of seconds: of a bare training step, and of one of `train`."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(name, folder)
        batch, clips = _batch(config)
        model = bare_network(name).to(memory_format=_layout(config)).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)

        def bare() -> None:
            loss = F.cross_entropy(model(clips), batch.label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        loader = InTurns(batch, bare, rounds + 1, TrainBatches(2 * (rounds + 1), 2, 0))
        with patch.object(setup, "train_loader", lambda *_: loader):
            trainer.train(config, console=Console(quiet=True))
    return loader.pairs


def evaluations(name: str, rounds: int) -> list[tuple[float, float]]:
    """Returns pairs of seconds per clip: of a bare forward pass, and of `evaluate`."""
    config = _config(name, "runs")
    batch, clips = _batch(config)
    model = bare_network(name).to(memory_format=_layout(config)).eval()

    @torch.inference_mode()
    def bare() -> Tensor:
        return model(clips)

    views = Batch(batch.video.unsqueeze(1), batch.label, batch.index)
    loader = InTurns(views, bare, rounds + 1, None)
    evaluate(model, loader, config, make_accelerator(config))
    return [(bare / 2, ours / 2) for bare, ours in loader.pairs]


_FIRST_STEP = """
import os, sys
from softpool3d.cli import run
from softpool3d.training import meter
def stop(*_): os._exit(0)
meter.Meter.add = stop
sys.argv = ["softpool3d", "train", "--cfg", "r3d_softpool", *sys.argv[1:]]
run()
"""


def start(rounds: int) -> tuple[float, float]:
    """Returns median seconds: of `import torch`, and from the command to the end of the first training step."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"output={folder}", f"data.num_workers={cores()}"]
        commands = {"torch": ["-c", "import torch"], "step": ["-c", _FIRST_STEP, *overrides]}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(rounds + 1):
            for name, command in commands.items():
                began = time.perf_counter()
                quiet = {
                    "stdout": subprocess.DEVNULL,
                    "stderr": subprocess.DEVNULL,
                }  # a pipe would wait for the workers
                subprocess.run([sys.executable, *command], check=True, env=os.environ, **quiet)
                if turn:  # the first one fills the disk's cache, and makes `motion` where it is not yet
                    times[name].append(time.perf_counter() - began)
    return statistics.median(times["torch"]), statistics.median(times["step"])


def waiting(epochs: int = 3) -> list[float]:
    """Returns the share of each epoch's time that training waits for data."""
    import csv

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            "r3d_softpool", [f"train.epochs={epochs}", f"output={folder}", f"data.num_workers={cores()}", "device=cpu"]
        )
        summary = trainer.train(config, console=Console(quiet=True))
        with (Path(summary["folder"]) / "metrics.csv").open(newline="") as file:
            return [float(row["waiting_for_data"]) for row in csv.DictReader(file)]


def measure(
    rounds: Annotated[
        int, typer.Option(min=3, help="Training steps of each network; evaluations are twice as many.")
    ] = 15,
    save: Annotated[bool, typer.Option("--save", help="Write the tables to docs/benchmarks-train.md.")] = False,
) -> None:
    """Compare training and evaluation with a bare loop around the same network, and measure the start and the waits."""

    about, say = begin()
    tables = report(rounds, say)
    say(tables)
    if save:
        saved = save_section("Training on a CPU", f"{about}\n\n{tables}", DOCUMENT.with_name("benchmarks-train.md"))
        say(f"Written to {saved}")


if __name__ == "__main__":
    run(measure)
