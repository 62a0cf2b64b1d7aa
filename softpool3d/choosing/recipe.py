"""Chooses the settings of a training of somebody's own videos, each with its reason.

The settings without public weights are those of configs/study/actions_r3d_18.yaml, with which docs/study-actions.md was
measured. Those with public weights are usual ones of fine-tuning; nobody measured them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from softpool3d.choosing.look import Machine, Videos
from softpool3d.choosing.start import LARGE, SMALL, Start
from softpool3d.config import Config
from softpool3d.config_file import make_config
from softpool3d.datasets.transforms import tells_direction
from softpool3d.yaml_text import parse_value

_FRAMES = "data.num_frames"
# frames, side of the crop and width without public weights: those of the study, and, not measured here, larger ones
_ON_CPUS, _ON_A_GPU = (12, 48, 16), (16, 112, 64)
_UPDATE = 16  # clips of one update on a GPU
_VALIDATING, _VALIDATIONS = 0.05, 5  # most of an epoch's time that validating may take, fewest times that it is done
_SHORT_S, _LONG_S = 10, 30  # videos of one action: the median is below the first, and all are below the second


@dataclass(frozen=True)
class Choice:
    """Settings by their dotted keys, and why they were chosen."""

    settings: dict[str, Any]
    why: str

    def __str__(self) -> str:
        words = (f"{key}={_text(value)}" for key, value in self.settings.items())
        reason = f"{self.why[0].upper()}{self.why[1:]}."
        return f"{reason}\n    {' '.join(words)}" if self.settings else reason


def asked_for(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the settings that overrides set, by their dotted keys; mistakes among them are found later."""
    pairs = (override.partition("=") for override in overrides)
    return {key: parse_value(text, tuple(key.split(".")), Config) for key, _, text in pairs}


def choose(videos: Videos, machine: Machine, start: Start, asked: Mapping[str, Any]) -> list[Choice]:
    """Returns the settings for a training.

    Args:
        asked: what the user sets. These settings win, and the others are chosen to go with them.
    """
    epochs = _number(asked, "train.epochs", _epochs(videos, start))
    first, *choices = _fine_tuned(start, epochs, asked) if start.weights else _from_scratch(machine, start, asked)
    frames = next(choice.settings[_FRAMES] for choice in choices if _FRAMES in choice.settings)
    choices += [_time(videos, _number(asked, _FRAMES, frames), asked), _flips(videos, machine, start)]
    choices += [*_balance(videos), *_length(videos, epochs), _batch(videos, machine, start)]
    left = [Choice({k: v for k, v in c.settings.items() if k not in asked}, c.why) for c in (first, *choices)]
    return [choice for number, choice in enumerate(left) if choice.settings or number == 0]


def configure(choices: list[Choice], fixed: Sequence[str], overrides: Sequence[str]) -> Config:
    """Returns the configuration of choices, with what is fixed and the user's overrides.

    Raises:
        UsageError: naming the override that is wrong, or that does not go with the rest.
    """
    values: dict[str, Any] = {}
    for choice in choices:
        for key, value in choice.settings.items():
            *sections, name = key.split(".")
            section = values
            for part in sections:
                section = section.setdefault(part, {})
            section[name] = value
    return make_config(values, {}, [*fixed, *overrides])


def _fine_tuned(start: Start, epochs: int, asked: Mapping[str, Any]) -> Iterator[Choice]:
    yield Choice({**start.network, "model.weights": start.weights}, f"it starts from {start.why}")
    side = _number(asked, "data.crop_size", start.side)
    yield Choice({_FRAMES: start.frames, **_sides(side)}, "the clips that the weights were trained with")
    rates = _adamw(5e-4, 0.05, asked) | {"optim.layer_decay": 0.75, "optim.head_epochs": min(1, epochs - 1)}
    rates |= {"optim.warmup_epochs": min(1, epochs - 1), "optim.label_smoothing": 0.1, "optim.clip_grad_norm": 5.0}
    why = "the head is new and learns alone for an epoch; then all do, the first layers slowest"
    yield Choice(rates, why if epochs > 1 else "one epoch: the head, which is new, learns with all others")


def _from_scratch(machine: Machine, start: Start, asked: Mapping[str, Any]) -> Iterator[Choice]:
    frames, side, width = _ON_A_GPU if machine.gpu else _ON_CPUS
    side = _number(asked, "data.crop_size", side)
    if "model.name" in asked:
        yield Choice({}, f"it learns from nothing: {start.why}")
    else:
        settings = {"model.name": SMALL, "model.width": width, "model.pool.kind": "soft", "model.pool.beta": 4.0}
        settings |= {"model.pool.where": ["downsample", "head"], "model.pool.head": "avg"}
        kind = asked.get("model.pool.kind", "soft")
        if kind != "soft":
            del settings["model.pool.beta"]
        pooling = "SoftPool" if kind == "soft" else f"{kind} pooling"
        why = f"it learns from nothing, so it is a small network, with {pooling} where it halves time and space"
        yield Choice(settings, f"{why}: {start.why}")
    yield Choice({_FRAMES: frames, **_sides(side)}, f"frames and pixels that {machine} can train on in minutes")
    rates = _adamw(4e-3, 0.01, asked) | {"optim.warmup_epochs": 1}
    rates |= {"optim.label_smoothing": 0.05, "optim.clip_grad_norm": 5.0}
    yield Choice(rates, "rates that were tuned for max and average pooling on small videos of actions")


def _adamw(lr: float, decay: float, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns rates for AdamW; another optimiser keeps its own."""
    if asked.get("optim.name", "adamw") != "adamw":
        return {}
    return {"optim.name": "adamw", "optim.lr": lr, "optim.weight_decay": decay}


def _sides(side: int) -> dict[str, Any]:
    return {"data.crop_size": side, "data.short_side": side, "data.train_short_side": [side, round(side * 7 / 6)]}


def _number(asked: Mapping[str, Any], key: str, own: int) -> int:
    """Returns the number that the user sets, or our own; what is no number is found when the settings are checked."""
    value = asked.get(key)
    return value if isinstance(value, int) and value > 0 else own


def _time(videos: Videos, frames: int, asked: Mapping[str, Any]) -> Choice:
    short = videos.seconds.median <= _SHORT_S and videos.seconds.high <= _LONG_S
    if asked.get("data.sampling", "uniform" if short else "dense") == "uniform":
        why = f"videos of {videos.seconds.text(' s', 1)} show one action each: the frames are spread over the whole"
        why = why if short else "the frames are spread over the whole video, as you say"
        return Choice({"data.sampling": "uniform", "test.num_clips": 1}, why)
    fps = min(6.0, videos.fps.median)
    settings = {"data.sampling": "dense", "data.target_fps": fps, "data.sampling_rate": 1, "test.num_clips": 5}
    long = "" if short else f"videos of {videos.seconds.text(' s', 1)} are long: "
    stretch = f"a clip is one stretch of {(frames - 1) / fps:.1f} s, anywhere in training, five of them in the test"
    return Choice(settings, f"{long}{stretch}")


def _flips(videos: Videos, machine: Machine, start: Start) -> Choice:
    if not start.weights and not machine.gpu:
        why = "no clip is mirrored: on three sets of real actions a network this small, trained this briefly, was worse"
        return Choice({"data.flip": False}, f"{why} with mirrored ones")
    directed = [name for name in videos.classes if tells_direction(name)]
    if not directed:
        return Choice({"data.flip": True}, "half of the clips are mirrored: no class is named after a direction")
    some = ", ".join(directed[:3]) + (", ..." if len(directed) > 3 else "")
    why = f"half of the clips are mirrored, but none of the {len(directed)} classes that are named after a direction"
    return Choice({"data.flip": True}, f"{why} ({some})")


def _balance(videos: Videos) -> Iterator[Choice]:
    if videos.most > 3 * videos.fewest and not videos.multi_label:
        why = f"classes have {videos.fewest} to {videos.most} clips: the rarer one is, the more its clips count"
        yield Choice({"optim.class_weights": "balanced"}, why)


def _epochs(videos: Videos, start: Start) -> int:
    """Returns fewer epochs, the more clips there are; from nothing by what docs/own-videos.md measured."""
    clips = videos.clips["train"]
    if start.weights:
        return max(8, min(20, round(3000 / clips)))
    as_in_the_study = min(24, 480 * len(videos.classes) / clips)  # fewer where a class has more than 20 clips
    return max(10, min(40, round(max(as_in_the_study, 4000 / clips))))  # 500 updates at the least


def _length(videos: Videos, epochs: int) -> Iterator[Choice]:
    train, val = videos.clips["train"], videos.clips["val"]
    yield Choice({"train.epochs": epochs}, f"{epochs} times through the {train} training clips")
    share = val / (3 * train)  # of an epoch's time: a clip costs a third of what it costs in training
    every = min(ceil(share / _VALIDATING), epochs // _VALIDATIONS)
    if every > 1:
        why = (
            f"validation after {every} epochs at a time: after each it would take {share / (1 + share):.0%} of the time"
        )
        yield Choice({"train.eval_every": every}, why)


def _batch(videos: Videos, machine: Machine, start: Start) -> Choice:
    size = min(_clips_at_once(machine, start), videos.clips["train"])
    settings: dict[str, Any] = {"train.batch_size": size, "data.num_workers": _workers(machine)}
    if machine.gpu and size <= _UPDATE // 2 and videos.clips["train"] >= _UPDATE:
        settings["train.accumulate"] = _UPDATE // size
    if machine.bf16:
        settings["train.precision"] = "bf16"
    return Choice(settings, f"a batch that fits, on {machine}")


def _clips_at_once(machine: Machine, start: Start) -> int:
    if not machine.gpu:
        return 8
    needs_gb = 1.5 if start.network.get("model.name") == LARGE else 0.4
    return max(4, min(_UPDATE, int(0.8 * machine.memory_gb / needs_gb)))


def _workers(machine: Machine) -> int:
    """Returns the processes that decode: on a CPU the network needs most cores itself."""
    return min(machine.cores, 8) if machine.gpu else machine.cores // 4


def _text(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
