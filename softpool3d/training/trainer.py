"""The training of a network: `train` begins a run or goes on with one, and `Training` is that run in one process.

A training with another loss, a teacher or another update is a subclass with one method more (docs/architecture.md).
"""

from __future__ import annotations

from contextlib import closing, nullcontext
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from softpool3d.config import Config
from softpool3d.datasets.loader import Batch, eval_loader, num_views, to_device
from softpool3d.datasets.transforms import normalize
from softpool3d.errors import WorkError
from softpool3d.evaluation.evaluator import evaluate
from softpool3d.evaluation.scores import Scores
from softpool3d.runs.checkpoint import load_weights, save_state
from softpool3d.runs.lock import release
from softpool3d.runs.resume import begin, result
from softpool3d.runs.run import Run
from softpool3d.runtime.devices import make_accelerator, out_of_memory_explained, random_state
from softpool3d.runtime.interrupt import Interrupted
from softpool3d.runtime.processes import Processes
from softpool3d.training.bad_files import TooManyBadFiles
from softpool3d.training.board import check_trackers
from softpool3d.training.closing import closing_lines
from softpool3d.training.meter import Meter
from softpool3d.training.norms import clips_for_norms, precise_statistics
from softpool3d.training.optim import train_mode
from softpool3d.training.progress_report import epoch_line, metrics_row, show, summary_lines, summary_of
from softpool3d.training.setup import Setup


def train(
    config: Config,
    resume: Run | None = None,
    console: Console | None = None,
    *,
    auto_resume: bool = False,
    force_resume: bool = False,
    training: type[Training] | None = None,
) -> dict[str, Any]:
    """Trains and validates a network, and tests the best weights at the end; returns the summary that it writes.

    Args:
        config: the whole configuration. A new run's folder is made as `Run.create` says.
        resume: the run to go on with, from its last checkpoint; `config` is then the run's own.
        auto_resume: go on with the newest run of `config`'s name, if there is one.
        force_resume: go on even if changes of the configuration change what is learned.
        training: `Training`, or a subclass of it.

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
                show(console, lines, "yellow")
            if state is not None and (summary := processes.first(lambda: result(run, config, state))):
                if processes.is_first:
                    show(console, [f"{run.folder} is finished", summary_lines(summary)])
                return summary
            whole = (training or Training)(config, accelerator, processes, console)
            whole.prepare(run, state, force_resume)
            return whole.run()
    finally:
        release()


class Training(Setup):
    """A run, as one of its processes works on it: `prepare` it, then `run` it."""

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Trains to the end, then tests the best weights; returns the summary."""
        config = self.config
        with (
            self.processes.losing_none(self.go_on),
            self.interrupt,
            self.board,
            self.display,
            out_of_memory_explained(config),
        ):
            # before the first step is done a signal ends the run at once; several processes stop at the same step
            self.interrupt.at_once = f"stopped; {self.go_on}" if self.processes.count == 1 else None
            try:
                for files in self.bad.values():  # found before an interruption, held to the current limit
                    files.share(self.processes)
                for epoch in range(self.state.epoch, config.train.epochs):
                    if self.patience_is_over():
                        break
                    self.epoch(epoch)
            except (Interrupted, TooManyBadFiles) as error:
                self.save()
                error.told_elsewhere = not self.processes.is_first
                raise
            if self.patience_is_over():
                evaluations = f"{config.train.patience} evaluations (train.patience)"
                self.display.line(f"stopped early: no better validation in {evaluations}")
            summary = self.test()
        if self.processes.is_first:
            self.disk.summarize(summary)
            self.display.line("\n".join([summary_lines(summary), *closing_lines(self)]))
        return summary

    def epoch(self, epoch: int) -> None:
        """Trains on all training clips once, or on those left of an interrupted epoch; saves the state."""
        name = f"epoch {epoch + 1:{len(str(self.config.train.epochs))}}/{self.config.train.epochs}"
        self.display.describe(name)
        state, batches = self.state, self.batches
        batches.set_position(epoch, state.clips)
        first, steps, before = batches.first, batches.steps_in(epoch), state.steps - batches.first
        self.meter = Meter(state.meter, self.device)
        if 0 < first < steps and self.evaluation_is_due():  # this evaluation was interrupted
            self.report(f"{name}, step {first}")
        train_mode(self.model)
        for step, batch in enumerate(self.meter.timed(self.train_clips), first):
            updated = self.step(batch, epoch, step)
            last = step + 1 == steps
            if self.meter.due() or last:  # here the host waits for the device, as for a report and a checkpoint
                self.display.show(**self.meter.read())
            self.display.advance()
            if not updated:
                continue
            state.clips, state.steps, state.meter = batches.done(step + 1), before + step + 1, self.meter.sums
            if not last:
                if self.evaluation_is_due():
                    with self.meter.paused():
                        self.report(f"{name}, step {step + 1}")
                    train_mode(self.model)
                if self.patience_is_over():
                    break
            if self.stop_if_asked():
                self.save()
        else:
            due = (epoch + 1) % self.config.train.eval_every == 0 or epoch + 1 == self.config.train.epochs
            self.report(name, evaluated=due or self.evaluation_is_due())
            state.epoch, state.clips, state.meter = epoch + 1, 0, None
        self.save()

    def step(self, batch: Batch, epoch: int, step: int) -> bool:
        """Takes one batch forward and backward; after the last batch of an update, updates the weights.

        Returns whether it was the last batch of an update.
        """
        clips, target, label = self.inputs(batch, epoch, step)
        self.meter.mark("data")
        updates, weight = (step + 1) % self.batches.accumulate == 0, self.batches.weight(step)
        self.guard.before_forward()
        with nullcontext() if updates else self.accelerator.no_sync(self.model):
            with self.accelerator.autocast():
                logits = self.model(clips).float()
            loss = self.loss(logits, target, clips)
            self.meter.mark("forward")
            self.accelerator.backward(loss * weight)
            self.meter.mark("backward")
        self.interrupt.at_once = None  # all is compiled: from here on an update is finished and saved
        self.guard.add(loss, batch.index)
        if weight:  # else another process counts these clips
            self.meter.add(loss.detach(), logits.detach(), label)
        if updates and self.guard.allows(epoch + 1, step + 1, self.optimizer):
            self.update(epoch, step)
        if updates:
            self.optimizer.zero_grad()
        return updates

    def update(self, epoch: int, step: int) -> None:
        """Updates the weights by the clipped gradients, at the schedule's rate, and then their average."""
        self.clip_gradients()
        at = step // self.batches.accumulate, self.batches.steps_in(epoch) // self.batches.accumulate
        self.state.lr = self.schedule.set(self.optimizer, epoch, *at, self.batches.rate(step))
        self.optimizer.step()
        skipped = self.optimizer.step_was_skipped  # by the scaler of fp16
        self.guard.stepped(skipped)
        if self.average and not skipped:
            self.average.update_parameters(self.network, self.guard.verdict)
        self.meter.mark("optimizer")

    # --- the parts of a step ------------------------------------------------------------------------------------------

    def inputs(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns clips, targets and labels of a batch, on the device.

        The clips are float32 (N, C, T, H, W), normalised and mixed; the targets are what mixing makes of the labels.

        Raises:
            WorkError: if none of the batch's files could be read.
        """
        self.bad["train"].add(batch.bad, batch.damaged)
        if batch.video is None:
            raise WorkError("no readable file was found for a whole batch of training clips")
        video = to_device(batch, self.config.data, self.device)
        label = batch.label.to(self.device, non_blocking=True)
        if self.state.steps == step == 0:
            self.board.clips(video, 0)
        clips = normalize(video, self.config.data.mean, self.config.data.std)
        clips, target = self.mix(clips, label, self.draw(epoch, step))
        return clips.contiguous(memory_format=self.memory_format), target, label

    def loss(self, logits: Tensor, target: Tensor, clips: Tensor) -> Tensor:
        """Returns what is minimised, the mean over the clips of a batch: a tensor of shape ().

        Args:
            logits: float32 (N, classes), of the clips.
            target, clips: what `inputs` returned.
        """
        return self.criterion(logits, target)

    def clip_gradients(self) -> None:
        optim = self.config.optim
        if optim.clip_grad_norm or optim.clip_grad_value:
            self.accelerator.unscale_gradients()  # only once: accelerate's own clipping does it each time
        if optim.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_grad_norm)
        if optim.clip_grad_value:
            nn.utils.clip_grad_value_(self.model.parameters(), optim.clip_grad_value)

    def draw(self, epoch: int, step: int) -> int:
        """Returns the seed of what is drawn for a batch: the same after an interruption, another in each process."""
        steps = self.batches.steps_in(epoch)
        number = (self.config.seed * self.config.train.epochs + epoch) * steps + step
        return number * self.processes.count + self.processes.rank

    # --- between updates ----------------------------------------------------------------------------------------------

    def evaluation_is_due(self) -> bool:
        """Whether a multiple of train.eval_every_steps batches was reached since the last row of metrics.csv."""
        every = self.config.train.eval_every_steps
        return every is not None and self.state.steps // every > self.state.reported // every

    def patience_is_over(self) -> bool:
        return all(keeper.patience_is_over() for keeper in self.keepers.values())

    def stop_if_asked(self) -> bool:
        """Shares signals, bad files and the clock among the processes; returns whether it is time to save.

        It is called after each update and each batch of an evaluation.

        Raises:
            Interrupted: after a signal to any of them.
        """
        every = 60 * self.config.checkpoint.every_minutes
        save_now = self.processes.is_first and 0 < every < self.seconds() - self.state.seconds
        fresh = any(files.has_news for files in self.bad.values())
        asked, save_now, fresh = self.processes.most(self.interrupt.requested, save_now, fresh)
        if fresh:
            for files in self.bad.values():
                files.share(self.processes)
        if asked:
            raise Interrupted(f"stopped; {self.go_on}", asked)
        return bool(save_now)

    def evaluate(self) -> dict[str, Scores]:
        """Returns the validation scores of the weights ("") and of their average ("_ema")."""
        scores = {}
        for suffix, network in self.networks.items():
            self.processes.share_buffers(network)
            if self.config.train.precise_norm:
                with closing(clips_for_norms(self.config, self.manifests["train"], self.accelerator)) as clips:
                    precise_statistics(network, clips, self.config.train.precise_norm, self.accelerator)
            with self.layout.evaluating(network):
                scores[suffix] = evaluate(
                    network, self.val_clips, self.config, self.accelerator, self.stop_if_asked, self.bad["val"].add
                )
        return scores

    def report(self, at: str, evaluated: bool = True) -> None:
        """Evaluates, keeps the best weights, and writes a row of metrics.csv and a line on the terminal.

        Args:
            at: where in the run, as "epoch 3/10".
            evaluated: False leaves the evaluation out.
        """
        self.guard.settle()
        trained, state, epoch = self.meter.read(self.processes.sum), self.state, self.state.epoch + 1
        scores, better = {}, False
        if evaluated:
            self.display.describe(f"{at}, validation")
            scores, file = self.evaluate(), f"epoch{epoch:04}-step{state.steps:07}"
            for suffix, keeper in self.keepers.items():
                weights = self.layout.state(self.networks[suffix])
                is_best = keeper.offer(weights, scores[suffix], file, self.processes.is_first)
                if is_best and self.processes.is_first:
                    keeper.write_scores(scores[suffix], self.manifests["val"], "val", views=(1, 1))
                better |= is_best
            if better:
                self.judged["val"] = scores[""]
        if self.processes.is_first:
            multi_label = self.manifests["train"].multi_label
            row = metrics_row(
                epoch, state.steps, state.lr, trained, scores, list(self.networks), multi_label, self.seconds()
            )
            self.disk.log(row)
            self.board.scalars(row)
            if better:
                self.board.confusion(scores[""], self.classes, state.steps)
        self.display.line(epoch_line(at, trained, scores, better))
        self.display.describe(at)
        state.rows, state.reported = state.rows + 1, state.steps

    def save(self) -> None:
        """Writes the checkpoint that resuming needs."""
        self.guard.settle()
        state = self.state
        state.model = self.layout.state(self.network)
        state.parts = {name: part.state_dict() for name, part in self.parts.items()}
        state.random = self.processes.gather(random_state(self.device))
        state.bad = {name: files.files for name, files in self.bad.items()}
        state.seconds, state.cpu_seconds = self.seconds(), self.cpu_seconds()
        meter = None if state.meter is None else torch.stack(self.processes.gather(state.meter.cpu()))
        self.processes.first(lambda: save_state(self.disk.checkpoint, {**vars(state), "meter": meter}))

    def test(self) -> dict[str, Any]:
        """Tests the best weights on the test split, or where there is none on validation's; returns the summary."""
        split = "test" if "test" in self.manifests else "val"
        self.display.describe(f"testing on {split}")
        views = self.config.test.num_clips, self.config.test.num_crops
        clips = eval_loader(self.manifests[split], self.config, *views, self.processes.rank, self.processes.count)
        scores = {}
        for suffix, keeper in self.keepers.items():
            best = self.processes.first(lambda keeper=keeper: load_weights(keeper.best).state)
            self.layout.load(self.network, best)
            with self.layout.evaluating(self.network):
                scores[suffix] = evaluate(
                    self.network, clips, self.config, self.accelerator, self.stop_if_asked, self.bad[split].add
                )
            self.processes.first(
                lambda s=suffix: self.keepers[s].write_scores(scores[s], self.manifests[split], split, views)
            )
        self.judged[split] = scores[""]
        return summary_of(self, split, num_views(self.config.data, *views), scores)

    @property
    def go_on(self) -> str:
        return f"go on with: softpool3d train --resume {self.disk.folder}"
