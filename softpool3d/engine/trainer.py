"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console

from softpool3d.config import Config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.loader import eval_loader, num_views, to_device, train_loader
from softpool3d.datasets.transforms import BatchMix, normalize
from softpool3d.engine.bad_files import BadFiles, TooManyBadFiles, write_bad_files
from softpool3d.engine.checkpoint import FORMAT, load_into, load_state, load_weights, save_state, save_weights
from softpool3d.engine.devices import (
    MEMORY_FORMATS,
    make_accelerator,
    peak_memory_bytes,
    random_state,
    seed_everything,
    set_random_state,
)
from softpool3d.engine.evaluator import evaluate
from softpool3d.engine.interrupt import Interrupt, Interrupted
from softpool3d.engine.meter import Meter
from softpool3d.engine.optim import build_optimizer, learning_rate
from softpool3d.engine.pretrained import adopt_statistics, name_classes
from softpool3d.engine.progress import Display
from softpool3d.engine.report import epoch_line, few, header, metrics_row, summary_lines
from softpool3d.engine.run import Run
from softpool3d.errors import UsageError, WorkError
from softpool3d.models import build_model, load_pretrained


def train(config: Config, resume: Run | None = None, console: Console | None = None) -> dict[str, Any]:
    """Trains, validates after each epoch, tests the best weights at the end; returns the summary it writes.

    Args:
        config: the whole configuration. A new run's folder is made as `Run.create` says.
        resume: the run to go on with, from its last checkpoint; `config` is then the run's own.

    Raises:
        UsageError: for a request that cannot be met; nothing was written then.
        WorkError: if too many files are bad, the loss is no longer finite, or the folder cannot be written.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    console = console or Console()
    accelerator = make_accelerator(config)
    seed_everything(config.seed)
    manifests = read_manifests(config.data)
    classes = manifests["train"].classes
    memory_format = MEMORY_FORMATS[config.train.memory_format]
    state = load_state(resume.checkpoint) if resume else _fresh_state(classes)
    if resume:
        manifests = name_classes(manifests, tuple(state["classes"]))
        classes = manifests["train"].classes
        _check_order(resume.checkpoint, state["classes"], classes)
    if tuple(state["classes"]) != classes:
        raise UsageError(
            f"{resume.checkpoint} was trained on {len(state['classes'])} classes ({few(state['classes'])}) and "
            f"the data set has {len(classes)} ({few(classes)})"
        )

    model = build_model(config, len(classes))
    if resume:
        load_into(model, state["model"], resume.checkpoint)
    elif config.model.weights:
        loaded = load_pretrained(model, config)
        config, adopted = adopt_statistics(config, loaded)
        manifests = name_classes(manifests, loaded.classes)
        classes = manifests["train"].classes
        _check_order(f"model.weights: {config.model.weights}", loaded.classes, classes)
        state["classes"] = list(classes)
        if accelerator.is_main_process:
            console.print(f"{loaded}\n{adopted}".rstrip(), markup=False, highlight=False, soft_wrap=True)
    model = model.to(memory_format=memory_format)
    optimizer = build_optimizer(model, config.optim)
    model, optimizer = accelerator.prepare(model, optimizer)
    if state["optimizer"]:
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.is_main_process:
            set_random_state(state["rng"], accelerator.device)
        if accelerator.scaler and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])

    rank, world_size = accelerator.process_index, accelerator.num_processes
    train_clips = train_loader(manifests["train"], config, rank, world_size)
    val_clips = eval_loader(manifests["val"], config, rank=rank, world_size=world_size)
    batches, epochs = train_clips.batch_sampler, config.train.epochs
    steps, accumulate = batches.steps_in(0), batches.accumulate
    mix = BatchMix(len(classes), config.train.mixup, config.train.cutmix)
    warmup = round(config.optim.warmup_epochs * steps)

    run = resume or _new_run(config, accelerator)
    if accelerator.is_main_process:
        run.keep_rows_through(state["epoch"])

    def save() -> None:
        """What resuming needs; `state` says where in the run we are."""
        if accelerator.is_main_process:
            state["model"] = accelerator.unwrap_model(model).state_dict()
            state["optimizer"] = optimizer.state_dict()
            state["scaler"] = accelerator.scaler.state_dict() if accelerator.scaler else None
            state["rng"] = random_state(accelerator.device)
            state["bad"] = {name: files.files for name, files in bad.items()}
            state["seconds"] = started + time.perf_counter()
            save_state(run.checkpoint, state)

    def stop_if_asked() -> None:
        if interrupt.requested:
            raise Interrupted(f"stopped; go on with: softpool3d train --resume {run.folder}")

    batches.set_position(state["epoch"], state["clips"])
    done = state["epoch"] * steps + batches.first
    display = Display(epochs * steps, done, console, accelerator.is_main_process)

    def note_bad_file(text: str) -> None:
        display.line(text, "yellow")
        if accelerator.is_main_process:
            write_bad_files(run.folder / "bad_files.csv", bad.values())

    bad = {
        name: BadFiles(
            name,
            len(manifest),
            config.data.max_bad_fraction,
            note_bad_file,
            state["bad"].get(name),
        )
        for name, manifest in manifests.items()
    }
    display.line(header(config, run.folder, manifests, accelerator.unwrap_model(model), accelerator.device))
    started = state["seconds"] - time.perf_counter()

    with Interrupt() as interrupt, display:
        try:
            for epoch in range(state["epoch"], epochs):
                display.describe(f"epoch {epoch + 1}/{epochs}")
                meter = Meter(state["meter"], accelerator.device)
                model.train()
                batches.set_position(epoch, state["clips"])
                for step, batch in enumerate(meter.timed(train_clips), batches.first):
                    bad["train"].add(batch.bad)
                    if batch.video is None:
                        raise WorkError("no readable file was found for a whole batch of training clips")
                    video = to_device(batch, config.data, accelerator.device)
                    label = batch.label.to(accelerator.device, non_blocking=True)
                    clips = normalize(video, config.data.mean, config.data.std)
                    # as an interrupted run draws it again, and each process differently
                    draw = ((config.seed * epochs + epoch) * steps + step) * world_size + rank
                    clips, target = mix(clips, label, draw)
                    clips = clips.contiguous(memory_format=memory_format)
                    update = (step + 1) % accumulate == 0
                    with nullcontext() if update else accelerator.no_sync(model):
                        with accelerator.autocast():
                            logits = model(clips)
                        loss = F.cross_entropy(logits.float(), target, label_smoothing=config.optim.label_smoothing)
                        accelerator.backward(loss * batches.weight(step))
                    if update:
                        if config.optim.clip_grad_norm:
                            accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_grad_norm)
                        for group in optimizer.param_groups:
                            group["lr"] = learning_rate(epoch * steps + step, epochs * steps, warmup, config.optim.lr)
                        optimizer.step()
                        optimizer.zero_grad()
                    meter.add(loss.detach(), logits.detach(), label)
                    if meter.due() or step + 1 == steps:
                        shown = meter.read()
                        if not math.isfinite(shown["loss"]):
                            raise WorkError(
                                f"the loss is {shown['loss']} in epoch {epoch + 1} at step {step + 1}; try a lower "
                                "optim.lr, a longer optim.warmup_epochs, or optim.clip_grad_norm=1"
                            )
                        display.show(**shown)
                    display.advance()
                    if update:
                        state.update(clips=batches.done(step + 1), meter=meter.sums)
                        stop_if_asked()

                trained = meter.read()
                display.describe(f"epoch {epoch + 1}/{epochs}, validation")
                scores = evaluate(model, val_clips, config, accelerator, stop_if_asked, bad["val"].add)
                top1, loss = scores.accuracy(), scores.loss()
                state.update(epoch=epoch + 1, clips=0, meter=None)
                better = (top1, -loss) > tuple(state["best"])
                if better:
                    state["best"] = [top1, -loss]
                if accelerator.is_main_process:
                    if better:
                        save_weights(run.best, accelerator.unwrap_model(model), config, classes)
                    run.log(
                        metrics_row(
                            epoch + 1,
                            optimizer.param_groups[0]["lr"],
                            trained,
                            scores,
                            started + time.perf_counter(),
                        )
                    )
                save()
                display.line(epoch_line(epoch + 1, epochs, trained, scores, better))
        except (Interrupted, TooManyBadFiles):
            save()
            raise

        accelerator.wait_for_everyone()
        split = "test" if "test" in manifests else "val"
        display.describe(f"testing on {split}")
        load_into(accelerator.unwrap_model(model), load_weights(run.best).state, run.best)
        test_clips = eval_loader(
            manifests[split], config, config.test.num_clips, config.test.num_crops, rank, world_size
        )
        scores = evaluate(model, test_clips, config, accelerator, stop_if_asked, bad[split].add)

    summary = {
        "val_top1": state["best"][0],
        "tested_on": split,
        "test_top1": scores.accuracy(),
        "test_top5": scores.accuracy(5),
        "test_clips": len(scores.label),
        "views": num_views(config.data, config.test.num_clips, config.test.num_crops),
        "bad_files": {name: len(files) for name, files in bad.items()},
        "seconds": started + time.perf_counter(),
        "peak_memory_bytes": peak_memory_bytes(accelerator.device),
        "folder": str(run.folder),
        "weights": str(run.best),
    }
    if accelerator.is_main_process:
        run.summarize(summary)
        run.close()
    display.line(summary_lines(summary))
    return summary


def _fresh_state(classes: tuple[str, ...]) -> dict[str, Any]:
    """Where a run stands: what `last/checkpoint.pt` holds."""
    return {
        "softpool3d": FORMAT,
        "classes": list(classes),
        "epoch": 0,  # epochs finished
        "clips": 0,  # done of the one that is not, by all processes
        "meter": None,  # and their sums
        "best": [-1.0, -math.inf],  # validation top-1, minus its loss
        "seconds": 0.0,
        "model": None,
        "optimizer": None,
        "scaler": None,
        "rng": None,
        "bad": {},  # split -> unreadable files: path -> index, reason
    }


def _new_run(config: Config, accelerator: Accelerator) -> Run:
    """The first process makes the folder; the others learn its name."""
    folder = [Run.create(config).folder if accelerator.is_main_process else None]
    return Run(broadcast_object_list(folder)[0])


def _check_order(source: object, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Raises UsageError for the same classes in another order: every answer of the network would be a wrong one."""
    if tuple(theirs) != tuple(ours) and sorted(theirs) == sorted(ours):
        at = next(n for n, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
        raise UsageError(
            f"{source} has the data set's classes in another order: number {at} is {theirs[at]!r} there and "
            f"{ours[at]!r} here; put the names in that order into the data set's classes.txt"
        )
