"""Resuming a run: which one, from which checkpoint, and what has changed in its configuration."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from softpool3d.config import Config, Effect, differing, has_effect
from softpool3d.config_file import check_schedule, validate, with_what_is_set
from softpool3d.errors import UsageError
from softpool3d.files import remove_abandoned
from softpool3d.foreign import parse_json
from softpool3d.runs import lock
from softpool3d.runs.checkpoint import load_last_state
from softpool3d.runs.run import Run, stored_config

# what may be changed when a run is resumed; the sizes of batches are compared as clips of an update
_FREE = Effect.WHERE, Effect.HOW, Effect.FREE, Effect.REOPENS
# settings of the optimiser that come from the configuration, not from the checkpoint
_SETTINGS = ("weight_decay", "momentum", "nesterov", "lr_scale", "waits", "fused")


def begin(
    config: Config, run: Run | None, processes: int, *, auto: bool, force: bool
) -> tuple[Run | None, Config, dict[str, Any] | None, list[str]]:
    """Finds and locks the run that a training goes on with, and reads its state.

    Args:
        run: given by the user; else it is looked for with `auto`, or where torchrun starts its processes again.
        force: take a configuration that changes what is learned.

    Returns:
        The run, or None if a new one is to be made; the configuration; the run's state, or None if the training begins
        anew; and lines for the user.

    Raises:
        UsageError: if the run cannot be resumed.
    """
    if run is None:
        job = lock.job()
        found = started_run(config, None if auto else job) if auto or job else None
        if found is None:
            return None, config, None, [] if auto else _unfinished(config)
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
    """Returns the newest run of this name, and its configuration with what `config` sets; None if there is none.

    Args:
        job: if given, only an unfinished run of this torchrun (`lock.job`) counts.
    """
    base = Path(config.output).expanduser() / config.name
    numbers = {
        int(found[1]): folder
        for folder in base.parent.glob(f"{glob.escape(base.name)}-*")
        if (found := re.fullmatch("([0-9]+)", folder.name[len(base.name) + 1 :]))
    }
    for folder in [*(numbers[number] for number in sorted(numbers, reverse=True)), base]:
        if not (folder / "config.yaml").is_file():
            continue
        run, own = Run(folder), stored_config(folder)
        if own.name != config.name:  # `exp-2` may be the second `exp`, or the first of that name
            continue
        if job is None or (lock.owner_of(folder).get("job") == job and finished(run) is None):
            return run, with_what_is_set(own, config)
    return None


def _unfinished(config: Config) -> list[str]:
    """Returns a line about the newest run of this name, if it is not finished: the user may mean to go on with it."""
    found = started_run(config, None)
    if found is None or finished(found[0]) is not None:
        return []
    folder = found[0].folder
    return [f"{folder} is not finished; this is another run. To go on with it: softpool3d train --resume {folder}"]


def finished(run: Run) -> dict[str, Any] | None:
    """Returns the summary of a run that is finished; None if it is not."""
    path = run.folder / "summary.json"
    if not path.is_file() or not run.checkpoint.is_file() or path.stat().st_mtime < run.checkpoint.stat().st_mtime:
        return None
    try:
        summary = parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        raise UsageError(f"{path} is damaged; remove it, and the run's last epoch is tested again")
    return summary


def result(run: Run, config: Config, state: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the summary of a run that is finished with this configuration too; None if it is not."""
    changed = differing([validate(state["config"]), config])
    if any(has_effect(key, Effect.REOPENS) or not has_effect(key, *_FREE) for key in changed):
        return None
    return finished(run)


def check_changes(state: dict[str, Any], config: Config, processes: int, force: bool) -> tuple[Config, list[str]]:
    """Returns the configuration to go on with, and lines that say what has changed.

    The clips of an update are written to `state`. They stay the same with another number of processes or another
    `train.batch_size` (`keep_update`).

    Raises:
        UsageError: listing the changes of what is learned, unless `force`; or if a change makes no sense.
    """
    before, lines = validate(state["config"]), []
    if config.optim.loss is None:  # the run has chosen it
        config = config.model_copy(update={"optim": config.optim.model_copy(update={"loss": before.optim.loss})})
    changed = differing([before, config])
    clips = state["update_size"]
    if "train.accumulate" in changed or "train.global_batch" in changed:
        state["update_size"] = config.train.update(processes)[0]
    if processes != state["processes"] or "train.batch_size" in changed:
        size, accumulate = keep_update(config, state["update_size"], processes).train.update(processes)
        lines.append(
            f"{processes} processes, {state['processes']} before: an update has {size} clips"
            + (f", in {accumulate} batches of each process" if accumulate > 1 else "")
        )
    texts = {key: f"{key}: {old} -> {new}" for key, (old, new) in changed.items()}
    meaning = [text for key, text in texts.items() if not has_effect(key, *_FREE)]
    if state["update_size"] != clips:
        meaning.append(f"clips of an update (train.global_batch): {clips} -> {state['update_size']}")
    if meaning and not force:
        raise UsageError(
            "--resume goes on with the run's own settings, and these would change what is learned: "
            f"{'; '.join(meaning)}; leave them, start a new run from this one's weights with model.weights=..., or "
            "add --force-resume"
        )
    if meaning:
        check_schedule(config)
    if config.train.ema and not before.train.ema and state.get("epoch", 0) >= config.train.epochs:
        raise UsageError("train.ema: the run has no epoch left whose weights could be averaged; raise train.epochs too")
    place = ("name", "output", "train.accumulate", "train.global_batch")
    return config, lines + [f"changed: {text}" for key, text in texts.items() if key not in place]


def keep_update(config: Config, clips: int, processes: int) -> Config:
    """Returns `config` with `clips` clips an update; what the processes cannot take at once is accumulated."""
    if config.train.update(processes)[0] == clips:
        return config
    train = config.train.model_copy(update={"accumulate": 1, "global_batch": clips})
    return config.model_copy(update={"train": train})


def restore(parts: dict[str, Any], optimizer: Optimizer, state: dict[str, Any], config: Config) -> list[str]:
    """Loads the saved state into the parts of a training; returns lines for the user about those that begin anew.

    Args:
        parts: name -> an object with load_state_dict.
        optimizer: keeps its settings, which are those of `config`.
    """
    saved, lines = state["parts"], []
    changed = [key for key in differing([validate(state["config"]), config]) if has_effect(key, Effect.OPTIMIZER)]
    settings = [{key: group[key] for key in _SETTINGS if key in group} for group in optimizer.param_groups]
    for name, part in parts.items():
        if name == "optimizer" and changed:
            lines.append(f"the optimiser begins anew, without what it had gathered: {', '.join(changed)} changed")
        elif name in saved:
            part.load_state_dict(saved[name])
        elif name == "average":
            lines.append("train.ema: the average of the weights begins anew")
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    _lay_out(optimizer)
    return lines


def _lay_out(optimizer: Optimizer) -> None:
    """Puts the state of a fused optimiser on each parameter's device and lays it out as the parameter.

    The kernel needs it so, and the checkpoint of an unfused optimiser, or of shards, may have it otherwise.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
                elif isinstance(value, Tensor):
                    state[name] = value.to(parameter.device)
