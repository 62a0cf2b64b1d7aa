"""Chooses the settings of a training of somebody's own videos, each with its reason.

The settings without public weights are those of configs/study/actions_r3d_18.yaml, with which docs/study-actions.md was
measured. Those with public weights are usual ones of fine-tuning; nobody measured them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softpool3d.choosing.look import Machine, Videos
from softpool3d.config import Config
from softpool3d.config_file import make_config
from softpool3d.datasets.transforms import tells_direction
from softpool3d.yaml_text import parse_value

_FRAMES = "data.num_frames"
LARGE, SMALL = "mvit_v2_s", "r3d_18"  # with Kinetics weights: on a GPU with room for it, and elsewhere
_ROOM_GB = 12
# frames, side of the crop and width without public weights: those of the study, and, not measured here, larger ones
_ON_CPUS, _ON_A_GPU = (12, 48, 16), (16, 112, 64)
_SHORT_S, _LONG_S = 10, 30  # videos of one action: the median is below the first, and all are below the second


@dataclass(frozen=True)
class Choice:
    """Settings by their dotted keys, and why they were chosen."""

    settings: dict[str, Any]
    why: str

    def __str__(self) -> str:
        words = (f"{key}={_text(value)}" for key, value in self.settings.items())
        return f"{self.why[0].upper()}{self.why[1:]}.\n    {' '.join(words)}"


def weights_for(machine: Machine, asked: Mapping[str, Any]) -> str | None:
    """Returns the public weights that a training would best start from; None if the user says what it starts from."""
    if {"model.name", "model.weights", "model.width"} & asked.keys():
        return None
    large = machine.gpu and machine.memory_gb >= _ROOM_GB
    return f"{LARGE if large else SMALL}:kinetics400"


def asked_for(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the settings that overrides set, by their dotted keys; mistakes among them are found later."""
    pairs = (override.partition("=") for override in overrides)
    return {key: parse_value(text, tuple(key.split(".")), Config) for key, _, text in pairs}


def choose(
    videos: Videos, machine: Machine, weights: str | None, obstacle: str, asked: Mapping[str, Any]
) -> list[Choice]:
    """Returns the settings for a training.

    Args:
        weights: those of `weights_for`.
        obstacle: why they cannot be had; "" if they can.
        asked: what the user sets. These settings win, and the others are chosen to go with them.
    """
    tuned = weights is not None and not obstacle
    choices = [*_fine_tuned(machine, weights, asked)] if tuned else [*_from_scratch(machine, obstacle, asked)]
    frames = next(choice.settings[_FRAMES] for choice in choices if _FRAMES in choice.settings)
    choices += [_time(videos, _number(asked, _FRAMES, frames)), _flips(videos)]
    choices += [*_balance(videos), _length(videos, tuned), _batch(videos, machine, weights if tuned else None)]
    left = [Choice({k: v for k, v in c.settings.items() if k not in asked}, c.why) for c in choices]
    return [choice for choice in left if choice.settings]


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


def _fine_tuned(machine: Machine, weights: str, asked: Mapping[str, Any]) -> Iterator[Choice]:
    name = weights.partition(":")[0]
    side = _number(asked, "data.crop_size", 224 if name == LARGE else 112)
    settings = {"model.name": name, "model.weights": weights, "model.pool.where": [], _FRAMES: 16}
    why = "it starts from Kinetics-400's weights, which know actions already: few videos then suffice"
    if not machine.gpu:
        why += f"; {SMALL} and not {LARGE}, because there is no GPU"
    yield Choice(settings, why)
    yield Choice(_sides(side), "the crop that the weights were trained with")
    rates = {"optim.name": "adamw", "optim.lr": 5e-4, "optim.weight_decay": 0.05, "optim.layer_decay": 0.75}
    rates |= {"optim.head_epochs": 1, "optim.warmup_epochs": 1, "optim.label_smoothing": 0.1}
    rates |= {"optim.clip_grad_norm": 5.0}
    yield Choice(rates, "the head is new and learns alone for an epoch; then all do, the first layers slowest")


def _from_scratch(machine: Machine, obstacle: str, asked: Mapping[str, Any]) -> Iterator[Choice]:
    frames, side, width = _ON_A_GPU if machine.gpu else _ON_CPUS
    side = _number(asked, "data.crop_size", side)
    if not {"model.name", "model.weights"} & asked.keys():
        settings = {"model.name": SMALL, "model.width": width, "model.pool.kind": "soft", "model.pool.beta": 4.0}
        settings |= {"model.pool.where": ["downsample", "head"], "model.pool.head": "avg"}
        why = (
            "it learns from nothing, so it is a small network, with SoftPool where it halves time and space: "
            f"Kinetics-400's weights cannot be had ({obstacle}), and with them few videos go much further"
        )
        yield Choice(settings, why)
    yield Choice({_FRAMES: frames, **_sides(side)}, f"frames and pixels that {machine} can train on in minutes")
    rates = {"optim.name": "adamw", "optim.lr": 4e-3, "optim.weight_decay": 0.01, "optim.warmup_epochs": 1}
    rates |= {"optim.label_smoothing": 0.05, "optim.clip_grad_norm": 5.0}
    yield Choice(rates, "rates that were tuned for max and average pooling on small videos of actions")


def _sides(side: int) -> dict[str, Any]:
    return {"data.crop_size": side, "data.short_side": side, "data.train_short_side": [side, round(side * 7 / 6)]}


def _number(asked: Mapping[str, Any], key: str, own: int) -> int:
    """Returns the number that the user sets, or our own; what is no number is found when the settings are checked."""
    value = asked.get(key)
    return value if isinstance(value, int) and value > 0 else own


def _time(videos: Videos, frames: int) -> Choice:
    if videos.seconds.median <= _SHORT_S and videos.seconds.high <= _LONG_S:
        why = f"videos of {videos.seconds.text(' s', 1)} show one action each: the frames are spread over the whole"
        return Choice({"data.sampling": "uniform", "test.num_clips": 1}, why)
    fps = min(6.0, videos.fps.low)
    settings = {"data.sampling": "dense", "data.target_fps": fps, "data.sampling_rate": 1, "test.num_clips": 5}
    why = (
        f"videos of {videos.seconds.text(' s', 1)} are long: a clip is one stretch of {(frames - 1) / fps:.1f} s, "
        "anywhere in training, five of them in the test"
    )
    return Choice(settings, why)


def _flips(videos: Videos) -> Choice:
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


def _epochs(videos: Videos, tuned: bool = False) -> int:
    enough, least, most = (3000, 8, 20) if tuned else (7750, 20, 40)
    return max(least, min(most, round(enough / videos.clips["train"])))


def _length(videos: Videos, tuned: bool) -> Choice:
    epochs = _epochs(videos, tuned)
    return Choice({"train.epochs": epochs}, f"{epochs} times through the {videos.clips['train']} training clips")


def _batch(videos: Videos, machine: Machine, weights: str | None) -> Choice:
    size = min(_clips_at_once(machine, weights), videos.clips["train"])
    settings: dict[str, Any] = {"train.batch_size": size, "data.num_workers": _workers(machine)}
    if machine.bf16:
        settings["train.precision"] = "bf16"
    return Choice(settings, f"a batch that fits, on {machine}")


def _clips_at_once(machine: Machine, weights: str | None) -> int:
    if not machine.gpu:
        return 8
    needs_gb = 1.5 if (weights or "").startswith(LARGE) else 0.4
    return max(4, min(16, int(0.8 * machine.memory_gb / needs_gb)))


def _workers(machine: Machine) -> int:
    """Returns the processes that decode: on a CPU the network needs most cores itself."""
    return min(machine.cores, 8) if machine.gpu else machine.cores // 4


def _text(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
