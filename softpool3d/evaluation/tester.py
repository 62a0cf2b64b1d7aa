"""Testing a network on a split: every video once, in several views, under any number of processes.

What was done is kept in the results' folder while the work goes on, so that a test that was stopped, or killed, goes on
where it was when the same command is given again, with another number of processes too.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
import zipfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from softpool3d import __version__
from softpool3d.config import Config, Effect, keys_of
from softpool3d.config_file import load_config, override_config
from softpool3d.datasets import read_manifests
from softpool3d.datasets.loader import eval_loader, num_views
from softpool3d.datasets.manifest import Manifest
from softpool3d.datasets.overview import absent_classes, few
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.errors import UsageError
from softpool3d.evaluation.evaluator import joined, scored_batches
from softpool3d.evaluation.losses import choose_loss
from softpool3d.evaluation.metrics import Metrics, measure
from softpool3d.evaluation.results import RESULTS, show, write_csv, write_results
from softpool3d.evaluation.scores import FILE, Scores, VideoScores, video_names
from softpool3d.files import write_atomically
from softpool3d.models import build_model, load_pretrained
from softpool3d.runs.checkpoint import load_into
from softpool3d.runs.lock import Taken, claim
from softpool3d.runs.pretrained import adopt_statistics, name_classes
from softpool3d.runs.published import open_weights
from softpool3d.runtime.devices import MEMORY_FORMATS, make_accelerator, out_of_memory_explained
from softpool3d.runtime.interrupt import Interrupt, Interrupted
from softpool3d.runtime.processes import Processes
from softpool3d.runtime.progress import Progression

SAVE_EVERY_S = 60.0
_GO_ON = "the same command goes on where it was"
_NAMED = 10  # unreadable files that are printed; all of them are in bad_files.csv

# what may differ from the weights' own configuration: the rest is the network, and how it was trained
OVERRIDES = ("data.", "test.", "device", "train.precision", "train.memory_format")


@dataclass
class Subject:
    """A network to test: its weights loaded, on the CPU. classes: None where the data set has to name them."""

    model: nn.Module
    config: Config
    classes: tuple[str, ...] | None
    weights: Path | str
    note: str = ""


def subject_of_weights(path: str | Path, overrides: list[str]) -> Subject:
    """The network of weights of any origin (published.py).

    Raises:
        UsageError: if the file cannot be used, or an override is not among `OVERRIDES`.
    """
    for override in overrides:
        if not override.startswith(OVERRIDES):
            raise UsageError(
                f"the network is the weights' own: {override} cannot be changed "
                f"(these can: {', '.join(key.rstrip('.') for key in OVERRIDES)})"
            )
    loaded = open_weights(path)
    model = build_model(loaded.config, len(loaded.classes))
    load_into(model, loaded.state, loaded.origin)
    config, classes = override_config(loaded.config, overrides), loaded.classes if loaded.named else None
    return Subject(model, config, classes, loaded.origin, loaded.note)


def subject_of_config(cfg: str | Path, overrides: list[str]) -> Subject:
    """The network of a configuration with public weights in `model.weights`.

    Raises:
        UsageError: if there are none, or they do not fill the network with as many classes as the data set has.
    """
    config = load_config(cfg, overrides)
    if not config.model.weights:
        raise UsageError("--cfg: testing needs weights; add model.weights=FILE, or give --weights of a run")
    train = read_manifests(config.data)["train"]
    config = choose_loss(config, train)
    model = build_model(config, len(train.classes))
    report = load_pretrained(model, config)
    if report.missing:
        raise UsageError(
            f"model.weights: {report.origin} leaves {report.missing[0]} without a value, and a network that is not "
            "trained cannot be tested; is it a file for another data set?"
        )
    config, adopted = adopt_statistics(config, report)
    return Subject(model, config, report.classes or None, report.origin, f"{report}\n{adopted}".rstrip())


def test(
    subject: Subject,
    split: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Tests on a split and writes a folder of results (results.py); returns what is in its results.json.

    Args:
        split: train, val or test; the test split, or val where there is none, if not given.
        out: the folder; <folder of the weights>/test if not given, or test-2, ... where another test's results are.
        overwrite: test anew, where results are there already; they stay until the new ones are.

    Raises:
        UsageError: for a request that cannot be met; nothing was written then. Also while another process is at it.
        WorkError: if not one video could be read, or the network's answers are no numbers.
        Interrupted: after Ctrl-C or SIGTERM; what was done is kept.
    """
    with ExitStack() as claims:
        return _test(subject, split, out, overwrite, console or Console(), claims)


def _test(
    subject: Subject, split: str | None, out: Path | None, overwrite: bool, console: Console, claims: ExitStack
) -> dict[str, Any]:
    config = subject.config
    accelerator = make_accelerator(config)
    processes = Processes(accelerator)

    def say(text: str) -> None:
        if processes.is_first:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    manifests = read_manifests(config.data)
    split, manifest = _pick(manifests, split, subject)
    classes = subject.classes or manifest.classes
    request = _request(subject, config, split, manifest, classes)
    if subject.note:
        say(subject.note)

    def prepare() -> tuple[Path, Scores | None, bool]:
        folder = _folder(subject, out, request, overwrite, claims)
        if (folder / RESULTS).is_file() and not overwrite:
            return folder, None, True
        return folder, _kept(folder, request), False

    folder, kept, finished = processes.first(prepare)
    if finished:
        say(f"tested already; --overwrite does it again ({folder})")
        result = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        if processes.is_first:
            found = VideoScores.load(folder / FILE)
            show(console, measure(found.scores, found.classes), folder)
        return result

    views = num_views(config.data, config.test.num_clips, config.test.num_crops)
    model = subject.model.to(accelerator.device, memory_format=MEMORY_FORMATS[config.train.memory_format]).eval()
    say(
        f"{config.model.name}, {config.data.dataset}: {len(manifest)} {split} videos in {views} "
        f"view{'s' if views > 1 else ''}, on {accelerator.device}"
        + (f", {processes.count} processes" if processes.count > 1 else "")
    )
    if absent := absent_classes(split, classes, manifest.class_counts() == 0):
        say(absent)
    if kept is not None:
        say(f"going on: {len(kept.index)} of them were tested before the interruption")

    began = time.perf_counter()
    with processes.losing_none(_GO_ON), out_of_memory_explained(config, testing=True):
        scores, bad = _score(model, manifest, config, accelerator, processes, folder, request, kept, console)
    names = video_names(manifest.clips)
    about = {
        "softpool3d": __version__,
        "weights": str(subject.weights),
        "dataset": config.data.dataset,
        "source": manifest.source,
        "split": split,
        "num_clips": config.test.num_clips,
        "num_crops": config.test.num_crops,
        "average": config.test.average,
        "request": request,
    }
    extra = {"unreadable": len(bad), "seconds": round(time.perf_counter() - began, 2)}

    def finish() -> tuple[Metrics, dict[str, Any]]:
        rows = [[split, error.index, error.path, error.reason] for error in bad]
        if rows:
            write_csv(folder / "bad_files.csv", ["split", "index", "path", "reason"], rows)
        else:
            (folder / "bad_files.csv").unlink(missing_ok=True)
        videos = tuple(names[index] for index in scores.index.tolist())
        metrics = write_results(folder, VideoScores(scores, videos, classes, about), extra)
        shutil.rmtree(folder / "partial", ignore_errors=True)
        return metrics, json.loads((folder / RESULTS).read_text(encoding="utf-8"))

    metrics, result = processes.first(finish)
    if processes.is_first:
        show(console, metrics, folder)
    return result


def _score(
    model: nn.Module,
    manifest: Manifest,
    config: Config,
    accelerator: Accelerator,
    processes: Processes,
    folder: Path,
    request: str,
    kept: Scores | None,
    console: Console,
) -> tuple[Scores, list[DecodeError]]:
    """Scores of all videos that can be read, and the errors of those that cannot."""
    rank, world_size = processes.rank, processes.count
    done = kept.index.tolist() if kept else []
    left = np.setdiff1d(np.arange(len(manifest)), done)
    clips = [manifest.clips[index] for index in left.tolist()]
    loader = eval_loader(
        replace(manifest, clips=clips), config, config.test.num_clips, config.test.num_crops, rank, world_size
    )
    mine: list[Scores] = []
    bad: list[DecodeError] = []
    saved = time.perf_counter()

    def keep() -> None:
        if mine:
            _save_part(folder / "partial" / f"process-{rank}.npz", joined(mine), request)

    bar = Progression("videos", len(manifest), len(done), console, processes.is_first)
    with Interrupt() as interrupt, bar:
        try:
            for batch, probabilities in scored_batches(model, loader, config, accelerator):
                for error in batch.bad:
                    bad.append(DecodeError(error.path, error.reason, int(left[error.index])))
                    if len(bad) <= _NAMED:
                        bar.line(f"skipped: {error}", "yellow")
                for path, what in batch.damaged.items():
                    bar.line(f"note: {path}: {what}", "yellow")
                if probabilities is not None:
                    mine.append(Scores(probabilities, batch.label, torch.from_numpy(left)[batch.index]))
                bar.advance((len(batch.index) + len(batch.bad)) * world_size)
                if interrupt.requested:
                    raise Interrupted(f"stopped; {_GO_ON}", interrupt.requested)
                if time.perf_counter() - saved > SAVE_EVERY_S:
                    keep()
                    saved = time.perf_counter()
        finally:
            keep()  # before the processes wait for each other: one may be missing
        parts = processes.gather((joined(mine) if mine else None, bad))
    found = [scores for scores, _ in parts if scores is not None]
    errors = [error for _, some in parts for error in some]
    return joined([*found, kept] if kept else found), sorted(errors, key=lambda error: error.index)


def _pick(manifests: dict[str, Manifest], split: str | None, subject: Subject) -> tuple[str, Manifest]:
    """The split, its labels counting into the weights' classes."""
    split = split or ("test" if "test" in manifests else "val")
    if split not in manifests:
        raise UsageError(f"--split {split}: the data set has no such split (it has {', '.join(manifests)})")
    if subject.classes is None:
        outputs = len(subject.model.get_parameter(f"{subject.model.logits_layer()}.weight"))
        if len(manifests[split].classes) != outputs:
            raise UsageError(
                f"{subject.weights} tells {outputs} classes apart, and the data set has "
                f"{len(manifests[split].classes)}; set data.dataset and data.root to the data set that it was trained "
                "on"
            )
        return split, manifests[split]
    manifest = name_classes(manifests, subject.classes)[split]
    if manifest.classes == subject.classes:
        return split, manifest
    numbers = {name: number for number, name in enumerate(subject.classes)}
    unknown = [name for name in manifest.classes if name not in numbers]
    if unknown:
        raise UsageError(
            f"{subject.weights} knows {len(subject.classes)} classes ({few(subject.classes)}), and {len(unknown)} of "
            f"the data set's {len(manifest.classes)} are not among them ({few(unknown)}); set data.dataset and "
            "data.root to the data set that it was trained on, or train with model.weights=... for other classes"
        )

    def renumbered(label: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if manifest.multi_label:
            return tuple(numbers[manifest.classes[one]] for one in label)
        return numbers[manifest.classes[label]]

    clips = [replace(clip, label=renumbered(clip.label)) for clip in manifest.clips]
    return split, replace(manifest, classes=subject.classes, clips=clips)


def _request(subject: Subject, config: Config, split: str, manifest: Manifest, classes: tuple[str, ...]) -> str:
    """A digest of all that the scores depend on."""
    digest = hashlib.sha256()
    for name, tensor in subject.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    settings = {
        "version": __version__,
        "model": config.model.model_dump(),
        "data": {
            key: value for key, value in config.data.model_dump().items() if f"data.{key}" not in keys_of(Effect.HOW)
        },
        "test": config.test.model_dump(exclude={"batch_size"}),
        "loss": config.optim.loss,  # it says how logits become probabilities
        "precision": config.train.precision,
        "split": split,
        "classes": classes,
        "videos": video_names(manifest.clips),
        "labels": [clip.label for clip in manifest.clips],
    }
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()


def _folder(subject: Subject, out: Path | None, request: str, overwrite: bool, claims: ExitStack) -> Path:
    """Where the results go: a folder without any, or with those of this request; claimed."""
    if out is not None:
        claims.enter_context(claim(out, is_folder=True, request=request))
        other = _held(out)
        if other not in (None, request) and not overwrite:
            raise UsageError(f"--out {out} holds the results of another test; name another folder, or give --overwrite")
        return out
    weights = Path(subject.weights)
    base = (weights.parent if weights.is_file() else Path()) / "test"
    number = 1
    while True:
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            with ExitStack() as mine:
                mine.enter_context(claim(folder, is_folder=True, request=request))
                if _held(folder) in (None, request):
                    claims.enter_context(mine.pop_all())
                    return folder
        except Taken as taken:
            if taken.owner.get("request") == request:
                raise
        number += 1


def _held(folder: Path) -> str | None:
    """The request whose results, or part of them, a folder holds."""
    with suppress(OSError, ValueError, AttributeError):
        return json.loads((folder / RESULTS).read_text(encoding="utf-8")).get("request", "")
    if (folder / RESULTS).is_file():
        return ""
    for path in sorted((folder / "partial").glob("*.npz")):
        part = _load_part(path)
        if part is not None:
            return part[1]
    return None


def _save_part(path: Path, scores: Scores, request: str) -> None:
    content = io.BytesIO()
    arrays = {name: getattr(scores, name).numpy() for name in ("probabilities", "label", "index")}
    np.savez(content, request=np.array(request), **arrays)
    write_atomically(path, content.getvalue())


def _load_part(path: Path) -> tuple[Scores, str] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = (torch.from_numpy(file[name]) for name in ("probabilities", "label", "index"))
            return Scores(*parts), str(file["request"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # it was not written by us, or is damaged: those videos are tested again


def _kept(folder: Path, request: str) -> Scores | None:
    """What processes of an earlier call have kept, as one part, which is left in place of theirs."""
    paths = sorted((folder / "partial").glob("*.npz"))
    parts = [part for path in paths if (part := _load_part(path)) is not None]
    mine = [scores for scores, theirs in parts if theirs == request]
    if not mine:
        return None
    together = joined(mine)
    _, first = np.unique(together.index.numpy(), return_index=True)
    together = Scores(together.probabilities[first], together.label[first], together.index[first])
    _save_part(folder / "partial" / "earlier.npz", together, request)
    for path in paths:
        if path.name != "earlier.npz":
            path.unlink(missing_ok=True)
    return together
