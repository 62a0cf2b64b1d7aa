"""Going on with a run: which one, from which checkpoint, and whether its configuration is still what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softpool3d.config import Config, load_config, validate, with_what_is_set
from softpool3d.engine import lock
from softpool3d.engine.checkpoint import load_last_state
from softpool3d.engine.run import Run
from softpool3d.errors import UsageError
from softpool3d.files import remove_abandoned
from softpool3d.foreign import parse_json

# What may be changed when a run is resumed: none of it changes what is learned. The sizes of batches are compared as
# clips of an update.
FREE_KEYS = (
    "name",
    "output",
    "device",
    "model.checkpointing",
    "data.root",
    "data.num_workers",
    "data.prefetch",
    "data.cache",
    "data.decode_timeout_s",
    "data.max_bad_fraction",
    "train.batch_size",
    "train.accumulate",
    "train.global_batch",
    "train.eval_every",
    "train.keep_best",
    "train.on_nonfinite",
    "train.shard",
    "train.trackers",
    "train.patience",
    "train.timeout_minutes",
    "checkpoint.",
    "test.",
)


def begin(
    config: Config, run: Run | None, processes: int, *, auto: bool, force: bool
) -> tuple[Run | None, Config, dict[str, Any] | None, list[str]]:
    """What a training starts with: the run that it goes on with, which is locked then, the configuration, the run's
    state, and lines for the user. No run: a new one is to be made. A run without state: it begins anew in its folder.

    Args:
        run: given by the user; else it is looked for with `auto`, or where torchrun starts its processes again.
        force: take a configuration that changes what is learned.

    Raises:
        UsageError: if the run cannot be gone on with.
    """
    if run is None:
        job = lock.job()
        found = started_run(config, None if auto else job) if auto or job else None
        if found is None:
            return None, config, None, []
        run, config = found
    lock.lock(run.folder)
    for folder in (run.folder, run.checkpoint.parent):
        remove_abandoned(folder)
    state, note = load_last_state(run.checkpoint)
    lines = [note] if note else []
    if state is None:
        if (run.folder / "metrics.csv").exists():
            raise UsageError(f"nothing to resume from: no file {run.checkpoint}")
        return run, config, None, [f"{run.folder} has no checkpoint yet: starting from the beginning"]
    config, changes = check_changes(state, config, processes, force)
    return run, config, state, lines + changes


def started_run(config: Config, job: str | None) -> tuple[Run, Config] | None:
    """The newest run of this name, and its configuration with what `config` sets; None if there is none.

    Args:
        job: of this torchrun alone (see lock.py), and unfinished.
    """
    base = Path(config.output).expanduser() / config.name
    numbered = [folder for folder in base.parent.glob(f"{base.name}-*") if folder.name[len(base.name) + 1 :].isdigit()]
    folders = [base, *sorted(numbered, key=lambda folder: int(folder.name[len(base.name) + 1 :]))]
    for folder in reversed(folders):
        if not (folder / "config.yaml").is_file():
            continue
        run = Run(folder)
        if job is None or (lock.owner_of(folder).get("job") == job and finished(run) is None):
            return run, with_what_is_set(load_config(folder / "config.yaml"), config)
    return None


def finished(run: Run) -> dict[str, Any] | None:
    """The summary of a run in which nothing is left to be done."""
    path = run.folder / "summary.json"
    if not path.is_file() or path.stat().st_mtime < run.checkpoint.stat().st_mtime:
        return None
    try:
        summary = parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        raise UsageError(f"{path} is damaged; remove it, and the run's last epoch is tested again")
    return summary


def check_changes(state: dict[str, Any], config: Config, processes: int, force: bool) -> tuple[Config, list[str]]:
    """The configuration to go on with, and lines that say what is changed.

    With another number of processes or another `train.batch_size`, an update keeps its clips: what one process cannot
    take at once is accumulated.

    Raises:
        UsageError: listing the changes, if there are some that change what is learned, unless `force`.
    """
    before, lines = validate(state["config"]), []
    clips = state["update_size"]
    train = config.train
    if train.update(processes)[0] != clips and (train.accumulate, train.global_batch) == (
        before.train.accumulate,
        before.train.global_batch,
    ):
        train = train.model_copy(update={"accumulate": 1, "global_batch": clips})
        config = config.model_copy(update={"train": train})
    if processes != state["processes"] or train.batch_size != before.train.batch_size:
        size, accumulate = train.update(processes)
        lines.append(
            f"{processes} processes, {state['processes']} before: an update has {size} clips"
            + (f", in {accumulate} batches of each process" if accumulate > 1 else "")
        )
    old, new = before.flat(), config.flat()
    changed = {key: f"{key}: {old[key]} -> {new[key]}" for key in new if old[key] != new[key]}
    meaning = [text for key, text in changed.items() if not key.startswith(FREE_KEYS)]
    if train.update(processes)[0] != clips:
        meaning.append(f"clips of an update (train.global_batch): {clips} -> {train.update(processes)[0]}")
    if meaning and not force:
        raise UsageError(
            "--resume goes on with the run's own settings, and these would change what is learned: "
            f"{'; '.join(meaning)}; leave them, start a new run from this one's weights with model.weights=..., or "
            "add --force-resume"
        )
    place = ("name", "output", "train.accumulate", "train.global_batch")
    return config, lines + [f"changed: {text}" for key, text in changed.items() if key not in place]
