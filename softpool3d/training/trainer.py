"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from softpool3d.config import Config, MultigridConfig
from softpool3d.datasets import read_manifests
from softpool3d.datasets.loader import eval_loader, num_views, to_device, train_loader
from softpool3d.datasets.manifest import Manifest
from softpool3d.datasets.overview import few, overview
from softpool3d.datasets.transforms import BatchMix, normalize
from softpool3d.errors import UsageError, WorkError
from softpool3d.evaluation.evaluator import evaluate
from softpool3d.evaluation.losses import build_loss, choose_loss
from softpool3d.models import build_model, load_pretrained
from softpool3d.runs.checkpoint import load_into, load_weights, save_state
from softpool3d.runs.lock import lock, release
from softpool3d.runs.pretrained import adopt_statistics, name_classes
from softpool3d.runs.provenance import write_provenance
from softpool3d.runs.resume import begin, keep_update, restore, result
from softpool3d.runs.run import Run
from softpool3d.runtime.devices import (
    MEMORY_FORMATS,
    make_accelerator,
    out_of_memory_explained,
    peak_memory_bytes,
    random_state,
    seed_everything,
    set_random_state,
)
from softpool3d.runtime.interrupt import Interrupt, Interrupted, StoppedAtOnce
from softpool3d.runtime.processes import Processes
from softpool3d.runtime.progress import Display
from softpool3d.training.bad_files import BadFiles, TooManyBadFiles, write_bad_files
from softpool3d.training.board import Board, Trackers, check_trackers
from softpool3d.training.guard import LossGuard
from softpool3d.training.keeper import Keeper
from softpool3d.training.meter import Meter
from softpool3d.training.norms import convert_norms, precise_statistics
from softpool3d.training.optim import Schedule, build_optimizer, freeze, train_mode
from softpool3d.training.preflight import check_count, check_order, check_size
from softpool3d.training.progress_report import epoch_line, header, metrics_row, show_data, summary_lines
from softpool3d.training.sharding import layout


def train(
    config: Config,
    resume: Run | None = None,
    console: Console | None = None,
    *,
    auto_resume: bool = False,
    force_resume: bool = False,
) -> dict[str, Any]:
    """Trains, validates after each epoch, tests the best weights at the end; returns the summary it writes.

    Args:
        config: the whole configuration. A new run's folder is made as `Run.create` says.
        resume: the run to go on with, from its last checkpoint; `config` is then the run's own.
        auto_resume: go on with the newest run of `config`'s name, if there is one.
        force_resume: go on even if the configuration was changed in what is learned.

    Raises:
        UsageError: for a request that cannot be met; nothing was written then.
        WorkError: if too many files are bad, the loss is no longer finite, the folder cannot be written, or another
            process of the run was lost.
        Interrupted: after Ctrl-C, SIGTERM or SIGUSR1, with the state saved, unless the first step was under way.
    """
    console = console or Console()
    check_trackers(config)
    accelerator = make_accelerator(config)
    processes = Processes(accelerator)
    try:
        with processes.losing_none("mend that and start again"):
            run, config, state, lines = processes.first(
                lambda: begin(config, resume, processes.count, auto=auto_resume, force=force_resume)
            )
            if processes.is_first:
                _say(console, lines)
            if state is not None and (summary := processes.first(lambda: result(run, config, state))):
                if processes.is_first:
                    console.print(
                        f"{run.folder} is finished\n{summary_lines(summary)}",
                        markup=False,
                        highlight=False,
                        soft_wrap=True,
                    )
                return summary
            return _train(config, run, state, console, accelerator, processes, force_resume)
    finally:
        release()


def _say(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _train(
    config: Config,
    run: Run | None,
    state: dict[str, Any] | None,
    console: Console,
    accelerator: Accelerator,
    processes: Processes,
    force_resume: bool,
) -> dict[str, Any]:
    """`state` is None for a run that begins, `run` for one without a folder yet."""
    seed_everything(config.seed)
    manifests = read_manifests(config.data)
    found = processes.first(lambda: overview(manifests, config.data))
    if processes.is_first:
        show_data(console, found)
    config, classes = choose_loss(config, manifests["train"]), manifests["train"].classes
    memory_format = MEMORY_FORMATS[config.train.memory_format]
    resumed, state = state is not None, state or _fresh_state(classes)
    if resumed:
        manifests = name_classes(manifests, tuple(state["classes"]))
        classes = manifests["train"].classes
        check_order(run.checkpoint, state["classes"], classes)
        check_count(run.checkpoint, state, manifests["train"], force_resume)
    if tuple(state["classes"]) != classes:
        raise UsageError(
            f"{run.checkpoint} was trained on {len(state['classes'])} classes ({few(state['classes'])}) and "
            f"the data set has {len(classes)} ({few(classes)})"
        )

    model = build_model(config, len(classes))
    if resumed:
        load_into(model, state["model"], run.checkpoint)
    elif config.model.weights:
        loaded = load_pretrained(model, config)
        config, adopted = adopt_statistics(config, loaded)
        manifests = name_classes(manifests, loaded.classes)
        classes = manifests["train"].classes
        check_order(f"model.weights: {config.model.weights}", loaded.classes, classes)
        state["classes"] = list(classes)
        if accelerator.is_main_process:
            console.print(f"{loaded}\n{adopted}".rstrip(), markup=False, highlight=False, soft_wrap=True)
    # what the run is asked for is written down; what these processes make of it is not
    asked = config
    if resumed:
        config = keep_update(config, state["update_size"], processes.count)
    freeze(model, config.optim.freeze)
    model = convert_norms(model, config.train, accelerator.device)
    model = network = model.to(accelerator.device, memory_format=memory_format)
    averaging = get_ema_multi_avg_fn(config.train.ema)
    average = AveragedModel(network, multi_avg_fn=averaging) if config.train.ema else None
    criterion = build_loss(config, manifests["train"], accelerator.device)
    if config.train.compile:
        network.compile()
    pieces = layout(config.train, accelerator)
    model = pieces.wrap(network, accelerator)
    if average:
        pieces.place(average.module, accelerator)
    optimizer = accelerator.prepare(build_optimizer(network, config.optim))

    rank, world_size = processes.rank, processes.count
    train_clips = train_loader(manifests["train"], config, rank, world_size)
    val_clips = eval_loader(manifests["val"], config, rank=rank, world_size=world_size)
    batches, epochs = train_clips.batch_sampler, config.train.epochs
    accumulate = batches.accumulate
    mix = BatchMix(len(classes), config.train.mixup, config.train.cutmix)
    schedule = Schedule(config.optim, epochs, batches.update_size * config.train.repeats)

    check_size(config, batches, manifests["train"])

    if run is None:
        run = processes.first(lambda: Run.create(asked))
    processes.first(lambda: lock(run.folder) or run.set_config(asked))
    # of the weights, and of their average
    networks = {"": network} | ({"_ema": average.module} if average else {})
    keepers = {suffix: Keeper(run.folder, asked, classes, suffix) for suffix in networks}
    guard = LossGuard(network, config.train, manifests["train"], run.folder, accelerator)
    # all that changes as the run goes on, besides the network and `state` itself
    parts = {"optimizer": pieces.optimizer_part(network, optimizer), "scaler": accelerator.scaler, "guard": guard}
    parts |= {"average": pieces.average_part(average)} if average else {}
    parts |= {f"keeper{suffix}": keeper for suffix, keeper in keepers.items()}
    parts = {name: part for name, part in parts.items() if part is not None}
    if resumed:
        anew = restore(parts, optimizer, state, config)
        if processes.is_first:
            _say(console, anew)
            run.keep_rows(state["rows"])
        elif state["meter"] is not None:
            state["meter"] = torch.zeros_like(state["meter"])  # the first has those of all
    if rank < len(state["random"]):
        set_random_state(state["random"][rank], accelerator.device)
    elif rank:
        seed_everything(config.seed + rank * 1_000_003 + state["steps"])
    state.update(
        train_clips=len(manifests["train"]),
        config=asked.model_dump(),
        processes=world_size,
        update_size=batches.update_size * config.train.repeats,
    )

    def save() -> None:
        """What resuming needs; `state` says where in the run we are."""
        state["model"] = pieces.state(network)
        state["parts"] = {name: part.state_dict() for name, part in parts.items()}
        state["random"] = processes.gather(random_state(accelerator.device))
        state["bad"] = {name: files.files for name, files in bad.items()}
        state["seconds"] = started + time.perf_counter()
        meter = None if state["meter"] is None else processes.sum(state["meter"])
        processes.first(lambda: save_state(run.checkpoint, {**state, "meter": meter}))

    def stop_if_asked() -> bool:
        """After every update and batch of an evaluation: what signals, bad files and the clock of any process ask for.
        Returns whether it is time to save."""
        every = 60 * config.checkpoint.every_minutes
        save_now = processes.is_first and 0 < every < started + time.perf_counter() - state["seconds"]
        fresh = any(files.has_news for files in bad.values())
        asked, save_now, fresh = processes.most(interrupt.requested, save_now, fresh)
        if fresh:
            for files in bad.values():
                files.share(processes)
        if asked:
            raise Interrupted(f"stopped; {go_on}", asked)
        return bool(save_now)

    go_on = f"go on with: softpool3d train --resume {run.folder}"
    batches.set_position(state["epoch"], state["clips"])
    total = state["steps"] - batches.first + sum(map(batches.steps_in, range(state["epoch"], epochs)))
    display = Display(total, state["steps"], console, accelerator.is_main_process)

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
    display.line(header(config, run.folder, network, accelerator.device, batches.multigrid))
    started = state["seconds"] - time.perf_counter()
    trackers = Trackers(run.folder, config, accelerator, display.line)
    processes.first(trackers.start)
    if accelerator.is_main_process:  # before the board, whose thread has no clear words for a disk that is full
        write_provenance(run.folder, manifests, accelerator)
    board = Board(run.folder, accelerator, state["steps"], trackers)

    def report(name: str, trained: dict[str, float], evaluated: bool) -> None:
        """A row of metrics.csv and a line on the terminal, after an evaluation where one is due."""
        scores, better, epoch = {}, False, state["epoch"] + 1
        if evaluated:
            display.describe(f"{name}, validation")
            for suffix, evaluated_network in networks.items():
                processes.share_buffers(evaluated_network)
                if config.train.precise_norm:
                    with closing(_clips_for_norms(config, manifests["train"], accelerator)) as clips:
                        precise_statistics(evaluated_network, clips, config.train.precise_norm, accelerator)
                with pieces.evaluating(evaluated_network):
                    scores[suffix] = evaluate(
                        evaluated_network, val_clips, config, accelerator, stop_if_asked, bad["val"].add
                    )
            file, main = f"epoch{epoch:04}-step{state['steps']:07}", accelerator.is_main_process
            for suffix, keeper in keepers.items():
                better |= keeper.offer(pieces.state(networks[suffix]), scores[suffix], file, main)
        if accelerator.is_main_process:
            seconds = started + time.perf_counter()
            multi_label = manifests["train"].multi_label
            row = metrics_row(epoch, state["steps"], state["lr"], trained, scores, list(networks), multi_label, seconds)
            run.log(row)
            board.scalars(row)
            if better:
                board.confusion(scores[""], classes, state["steps"])
        display.line(epoch_line(name, trained, scores, better))
        display.describe(name)
        state.update(rows=state["rows"] + 1, reported=state["steps"])

    def steps_are_due() -> bool:
        """train.eval_every_steps: so many batches, or more, since the last evaluation."""
        every = config.train.eval_every_steps
        return every is not None and state["steps"] // every > state["reported"] // every

    def patience_is_over() -> bool:
        return all(keeper.patience_is_over() for keeper in keepers.values())

    with processes.losing_none(go_on), Interrupt() as interrupt, board, display, out_of_memory_explained(config):
        interrupt.at_once = f"stopped; {go_on}" if processes.count == 1 else None  # several stop at the same step
        try:
            for files in bad.values():  # those from before the interruption, by the limit of now
                files.share(processes)
            for epoch in range(state["epoch"], epochs):
                if patience_is_over():
                    break
                name = f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}"
                display.describe(name)
                batches.set_position(epoch, state["clips"])
                first, steps, before = batches.first, batches.steps_in(epoch), state["steps"] - batches.first
                meter = Meter(state["meter"], accelerator.device)
                if 0 < first < steps and steps_are_due():  # an evaluation that was interrupted
                    report(f"{name}, step {first}", meter.read(processes.sum), evaluated=True)
                train_mode(model)
                for step, batch in enumerate(meter.timed(train_clips), first):
                    bad["train"].add(batch.bad, batch.damaged)
                    if batch.video is None:
                        raise WorkError("no readable file was found for a whole batch of training clips")
                    video = to_device(batch, config.data, accelerator.device)
                    label = batch.label.to(accelerator.device, non_blocking=True)
                    clips = normalize(video, config.data.mean, config.data.std)
                    # as an interrupted run draws it again, and each process differently
                    draw = ((config.seed * epochs + epoch) * steps + step) * world_size + rank
                    clips, target = mix(clips, label, draw)
                    clips = clips.contiguous(memory_format=memory_format)
                    meter.mark("data")
                    update = (step + 1) % accumulate == 0
                    guard.before_forward()
                    with nullcontext() if update else accelerator.no_sync(model):
                        with accelerator.autocast():
                            logits = model(clips).float()
                        loss = criterion(logits, target)
                        meter.mark("forward")
                        accelerator.backward(loss * batches.weight(step))
                        meter.mark("backward")
                    interrupt.at_once = None  # all is compiled: from here on an update is finished and saved
                    guard.add(loss, batch.index)
                    if batches.weight(step):  # else another process counts these clips
                        meter.add(loss.detach(), logits.detach(), label)
                    if update and guard.allows(epoch + 1, step + 1):
                        if config.optim.clip_grad_norm or config.optim.clip_grad_value:
                            accelerator.unscale_gradients()  # only once: accelerate's own clipping does it each time
                        if config.optim.clip_grad_norm:
                            nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad_norm)
                        if config.optim.clip_grad_value:
                            nn.utils.clip_grad_value_(model.parameters(), config.optim.clip_grad_value)
                        at = step // accumulate, steps // accumulate
                        state["lr"] = schedule.set(optimizer, epoch, *at, batches.rate(step))
                        optimizer.step()
                        guard.stepped(optimizer.step_was_skipped)
                        if average and not optimizer.step_was_skipped:  # as the scaler of fp16 does
                            average.update_parameters(network)
                        meter.mark("optimizer")
                    if update:
                        optimizer.zero_grad()
                    if meter.due() or step + 1 == steps:
                        display.show(**meter.read())
                    display.advance()
                    if state["steps"] == step == 0:
                        board.clips(video, 0)
                    if update:
                        state.update(clips=batches.done(step + 1), steps=before + step + 1, meter=meter.sums)
                    if update and step + 1 < steps:
                        if steps_are_due():
                            with meter.paused():
                                report(f"{name}, step {step + 1}", meter.read(processes.sum), evaluated=True)
                            train_mode(model)
                        if patience_is_over():
                            break
                    if update and stop_if_asked():
                        save()
                else:
                    due = (epoch + 1) % config.train.eval_every == 0 or epoch + 1 == epochs
                    report(name, meter.read(processes.sum), evaluated=due or steps_are_due())
                    state.update(epoch=epoch + 1, clips=0, meter=None)
                save()
        except StoppedAtOnce:
            raise
        except (Interrupted, TooManyBadFiles) as error:
            save()
            error.told_elsewhere = not processes.is_first
            raise
        if patience_is_over():
            display.line(f"stopped early: no better validation in {config.train.patience} evaluations (train.patience)")

        split = "test" if "test" in manifests else "val"
        display.describe(f"testing on {split}")
        views = config.test.num_clips, config.test.num_crops
        test_clips = eval_loader(manifests[split], config, *views, rank, world_size)
        scores = {}
        for suffix, keeper in keepers.items():
            best = processes.first(lambda keeper=keeper: load_weights(keeper.best).state)
            pieces.load(network, best)
            with pieces.evaluating(network):
                scores[suffix] = evaluate(network, test_clips, config, accelerator, stop_if_asked, bad[split].add)

    summary = {
        "tested_on": split,
        "test_clips": len(scores[""].label),
        "views": num_views(config.data, *views),
        "skipped_updates": guard.skipped,
        "bad_files": {name: len(files) for name, files in bad.items()},
        "seconds": started + time.perf_counter(),
        "peak_memory_bytes": peak_memory_bytes(accelerator.device),
        "folder": str(run.folder),
        "weights": str(keepers[""].best),
    }
    for suffix, keeper in keepers.items():
        summary[f"val{suffix}_top1"] = keeper.top1
        summary[f"test{suffix}_top1"] = scores[suffix].accuracy()
        summary[f"test{suffix}_top5"] = scores[suffix].accuracy(5)
        if manifests["train"].multi_label:
            summary[f"val{suffix}_map"] = keeper.mean_average_precision
            summary[f"test{suffix}_map"] = scores[suffix].mean_average_precision()
    if accelerator.is_main_process:
        run.summarize(summary)
    display.line(summary_lines(summary))
    return summary


def _fresh_state(classes: tuple[str, ...]) -> dict[str, Any]:
    """Where a run stands: what `last/checkpoint.pt` holds."""
    return {
        "classes": list(classes),
        "epoch": 0,  # epochs finished
        "clips": 0,  # done of the one that is not, by all processes
        "train_clips": None,  # of how many
        "meter": None,  # and their sums
        "steps": 0,  # batches done of the whole run
        "rows": 0,  # of metrics.csv
        "reported": 0,  # batches done when the last of them was written
        "lr": 0.0,  # of the last update
        "seconds": 0.0,
        "model": None,
        "parts": None,  # name -> state of the optimiser and whatever else changes as the run goes on
        "random": [],  # what each process draws from
        "bad": {},  # split -> unreadable files: path -> index, reason
    }


def _clips_for_norms(config: Config, train: Manifest, accelerator: Accelerator) -> Iterator[Tensor]:
    """Training clips of the size that the network is evaluated at, the same at each call."""
    whole = config.train.model_copy(update={"multigrid": MultigridConfig()})
    config = config.model_copy(update={"train": whole})
    loader = train_loader(train, config, accelerator.process_index, accelerator.num_processes)
    memory_format = MEMORY_FORMATS[config.train.memory_format]
    while True:
        for batch in loader:
            if batch.video is not None:
                clips = normalize(to_device(batch, config.data, accelerator.device), config.data.mean, config.data.std)
                yield clips.contiguous(memory_format=memory_format)
