"""What a training works with: its data, network, optimiser and folder, built anew or as a checkpoint left them."""

from __future__ import annotations

import time
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from softpool3d.config import Config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.loader import eval_loader, train_loader
from softpool3d.datasets.overview import overview
from softpool3d.datasets.transforms import BatchMix
from softpool3d.evaluation.losses import build_loss, choose_loss
from softpool3d.evaluation.scores import Scores
from softpool3d.models import build_model, load_pretrained
from softpool3d.runs.checkpoint import load_into
from softpool3d.runs.lock import lock
from softpool3d.runs.pretrained import adopt_statistics, name_classes
from softpool3d.runs.provenance import write_provenance
from softpool3d.runs.resume import keep_update, restore
from softpool3d.runs.run import Run
from softpool3d.runtime.devices import MEMORY_FORMATS, placed, seed_everything, set_random_state
from softpool3d.runtime.interrupt import Interrupt
from softpool3d.runtime.processes import Processes
from softpool3d.runtime.progress import Display
from softpool3d.training.average import Average
from softpool3d.training.bad_files import BadFiles, write_bad_files
from softpool3d.training.board import Board, Trackers
from softpool3d.training.guard import LossGuard
from softpool3d.training.keeper import Keeper
from softpool3d.training.norms import convert_norms
from softpool3d.training.optim import Schedule, build_optimizer, freeze, is_fused
from softpool3d.training.preflight import check_classes, check_count, check_order, check_size
from softpool3d.training.progress_report import header, show, show_data
from softpool3d.training.sharding import layout
from softpool3d.training.state import State


class Setup:
    """The data, network, optimiser and folder of a run, which `prepare` makes.

    Attributes:
        config: the configuration that this process works by.
        asked: the configuration that the user asked for. It differs from `config` in the batches of an update, once
            the number of processes has changed.
        manifests: split -> clips.
        network: the network; `model`: the same as training calls it, shared by several processes.
        average: an average of the network's weights (train.ema), or None.
        networks: "" -> the network, "_ema" -> its average, where there is one; `keepers`: the files of each.
        layout: how a network lies in the memory of several processes.
        disk: the run's folder and the files in it.
        state: where the run stands; `parts`: what else changes as it goes on, each with a state_dict.
        bad: split -> its unreadable files.
        judged: split -> what the best weights answered for its clips, as far as this process has seen it.
    """

    def __init__(self, config: Config, accelerator: Accelerator, processes: Processes, console: Console) -> None:
        self.config, self.accelerator, self.processes, self.console = config, accelerator, processes, console
        self.device, self.memory_format = accelerator.device, MEMORY_FORMATS[config.train.memory_format]
        self.interrupt = Interrupt()
        self.judged: dict[str, Scores] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifests["train"].classes

    def prepare(self, run: Run | None, saved: dict[str, Any] | None, force: bool) -> None:
        """Reads, builds and restores everything, and makes the run's folder where there is none.

        Args:
            run: None for a run without a folder yet.
            saved: what its checkpoint holds; None for a run that begins.
            force: go on even if the number of training clips has changed.

        Raises:
            UsageError: for a request that cannot be met; nothing was written then.
        """
        seed_everything(self.config.seed)
        self._read_data(run, saved, force)
        self._build_network(run, saved)
        self._build_optimizer()
        self._open_folder(run)
        self._take_up(saved)
        self._open_displays()

    def _read_data(self, run: Run | None, saved: dict[str, Any] | None, force: bool) -> None:
        self.manifests = read_manifests(self.config.data)
        found = self.processes.first(lambda: overview(self.manifests, self.config.data))
        if self.processes.is_first:
            show_data(self.console, found)
        self.config = choose_loss(self.config, self.manifests["train"])
        self.state = State(list(self.classes)) if saved is None else State.of(saved)
        if saved is None:
            return
        self.manifests = name_classes(self.manifests, tuple(self.state.classes))
        check_order(run.checkpoint, self.state.classes, self.classes)
        check_count(run.checkpoint, saved, self.manifests["train"], force)
        check_classes(run.checkpoint, self.state.classes, self.classes)

    def _build_network(self, run: Run | None, saved: dict[str, Any] | None) -> None:
        model = build_model(self.config, len(self.classes))
        if saved is not None:
            load_into(model, self.state.model, run.checkpoint)
        elif self.config.model.weights:
            self._take_weights(model)
        # the folder gets the user's configuration, not the one that these processes make of it
        self.asked = self.config
        if saved is not None:
            self.config = keep_update(self.config, self.state.update_size, self.processes.count)
        config = self.config
        freeze(model, config.optim.freeze)
        model = convert_norms(model, config.train, self.device)
        self.network = placed(model, self.device, config.train.memory_format)
        self.average = Average(self.network, config.train.ema) if config.train.ema else None
        self.networks = {"": self.network} | ({"_ema": self.average.module} if self.average else {})
        if config.train.compile:
            self.network.compile()
        self.layout = layout(config.train, self.accelerator)
        self.model = self.layout.wrap(self.network, self.accelerator)
        if self.average:
            self.layout.place(self.average.module, self.accelerator)

    def _take_weights(self, model: Any) -> None:
        loaded = load_pretrained(model, self.config)
        self.config, adopted = adopt_statistics(self.config, loaded)
        self.manifests = name_classes(self.manifests, loaded.classes)
        check_order(f"model.weights: {self.config.model.weights}", loaded.classes, self.classes)
        self.state.classes = list(self.classes)
        if self.processes.is_first:
            show(self.console, [f"{loaded}\n{adopted}".rstrip()])

    def _build_optimizer(self) -> None:
        config, rank, count = self.config, self.processes.rank, self.processes.count
        self.criterion = build_loss(config, self.manifests["train"], self.device)
        self.optimizer = self.accelerator.prepare(
            build_optimizer(self.network, config.optim, fused=is_fused(config.train, self.device))
        )
        self.train_clips = train_loader(self.manifests["train"], config, rank, count)
        self.val_clips = eval_loader(self.manifests["val"], config, rank=rank, world_size=count)
        self.batches = batches = self.train_clips.batch_sampler
        self.mix = BatchMix(len(self.classes), config.train.mixup, config.train.cutmix)
        self.schedule = Schedule(config.optim, config.train.epochs, batches.update_size * config.train.repeats)
        check_size(config, batches, self.manifests["train"])

    def _open_folder(self, run: Run | None) -> None:
        self.disk = run or self.processes.first(lambda: Run.create(self.asked))
        self.processes.first(lambda: lock(self.disk.folder) or self.disk.set_config(self.asked))
        self.keepers = {suffix: Keeper(self.disk.folder, self.asked, self.classes, suffix) for suffix in self.networks}
        self.guard = LossGuard(
            self.network,
            self.average,
            self.config.train.on_nonfinite,
            self.manifests["train"],
            self.disk.folder,
            self.accelerator,
        )
        parts = {"optimizer": self.layout.optimizer_part(self.network, self.optimizer)}
        parts |= {"scaler": self.accelerator.scaler, "guard": self.guard}
        parts |= {"average": self.layout.average_part(self.average)} if self.average else {}
        parts |= {f"keeper{suffix}": keeper for suffix, keeper in self.keepers.items()}
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def _take_up(self, saved: dict[str, Any] | None) -> None:
        state, processes = self.state, self.processes
        if saved is not None:
            anew = restore(self.parts, self.optimizer, saved, self.config)
            if processes.is_first:
                show(self.console, anew, "yellow")
                self.disk.keep_rows(state.rows)
            if state.meter is not None:
                sums = state.meter.reshape(-1, 3)  # of each process; earlier checkpoints have one sum of all
                same = len(sums) == processes.count
                state.meter = sums[processes.rank] if same else sums.sum(0) * processes.is_first
        if processes.rank < len(state.random):
            set_random_state(state.random[processes.rank], self.device)
        elif processes.rank:
            seed_everything(self.config.seed + processes.rank * 1_000_003 + state.steps)
        state.model = state.parts = None
        if saved is not None:
            saved.clear()  # all is loaded, and need not be held twice
        state.train_clips, state.config = len(self.manifests["train"]), self.asked.model_dump()
        state.processes, state.update_size = processes.count, self.batches.update_size * self.config.train.repeats
        self._started = state.seconds - time.perf_counter()
        self._cpu_started = state.cpu_seconds - time.process_time()

    def seconds(self) -> float:
        """Returns the seconds that the run took, including the time before interruptions."""
        return self._started + time.perf_counter()

    def cpu_seconds(self) -> float:
        """Returns the CPU time of this process, likewise: what else the machine does hardly changes it."""
        return self._cpu_started + time.process_time()

    def _open_displays(self) -> None:
        config, state, batches, is_first = self.config, self.state, self.batches, self.processes.is_first
        batches.set_position(state.epoch, state.clips)
        left = sum(map(batches.steps_in, range(state.epoch, config.train.epochs)))
        evaluated = len(self.manifests["val"]) / (3 * config.train.eval_every * len(self.manifests["train"]))
        total = state.steps - batches.first + left
        self.display = Display(total, state.steps, self.console, is_first, beside=evaluated)
        limit = config.data.max_bad_fraction
        self.bad = {
            name: BadFiles(name, len(manifest), limit, self._note_bad_file, state.bad.get(name))
            for name, manifest in self.manifests.items()
        }
        count = self.processes.count
        self.display.line(header(config, self.disk.folder, self.network, self.device, batches.multigrid, count))
        trackers = Trackers(self.disk.folder, config, self.accelerator, self.display.line)
        self.processes.first(trackers.start)
        if is_first:  # before the board, whose thread does not report a full disk clearly
            write_provenance(self.disk.folder, self.manifests, self.accelerator)
        self.board = Board(self.disk.folder, self.accelerator, state.steps, trackers)

    def _note_bad_file(self, text: str) -> None:
        self.display.line(text, "yellow")
        if self.processes.is_first:
            write_bad_files(self.disk.folder / "bad_files.csv", self.bad.values())
