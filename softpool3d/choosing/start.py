"""What a training starts from: weights and the network that they are of, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from softpool3d.choosing.look import Machine
from softpool3d.models import public
from softpool3d.models.weights import preprocessing_of, torchvision_weights
from softpool3d.naming import spelled_out
from softpool3d.runs.published import open_weights

LARGE, SMALL = "mvit_v2_s", "r3d_18"  # with Kinetics weights: on a GPU with room for it, and elsewhere
_ROOM_GB = 11  # a card that is sold with 12 has a little less
_KINETICS, _FRAMES = "kinetics400", 16


@dataclass(frozen=True)
class Start:
    """The weights that a training starts from.

    weights: for `model.weights`; None for none.
    why: why these, or why none.
    network: the settings of their network, by dotted keys.
    frames, side: frames of their clips, and pixels of the crop.
    """

    weights: str | None
    why: str
    network: dict[str, Any] = field(default_factory=dict)
    frames: int = 0
    side: int = 0


def start_for(machine: Machine, asked: Mapping[str, Any], obstacle: Callable[[Any], str] = public.obstacle) -> Start:
    """Returns what a training starts from: the weights that the user names, or those of Kinetics-400 for the network
    that the user names or that suits the machine.

    Args:
        asked: what the user sets.
        obstacle: tells of torchvision's weights why they cannot be had; "" if they can.

    Raises:
        UsageError: if the user's weights are not there, or not to be recognised.
    """
    if "model.weights" in asked:
        return _of_the_user(asked["model.weights"])
    if asked.get("model.width") is not None:
        return Start(None, "no weights are public for a network of another width")
    large = machine.gpu and machine.memory_gb >= _ROOM_GB
    name = asked.get("model.name", LARGE if large else SMALL)
    published = torchvision_weights(name, _KINETICS) if isinstance(name, str) else None
    if published is None:
        return Start(None, f"torchvision has no weights of {name} for Kinetics-400")
    if told := obstacle(published):
        return Start(None, f"Kinetics-400's weights cannot be had ({told}), and with them few videos go much further")
    why = "Kinetics-400's weights, which know actions already: few videos then suffice"
    if name == SMALL and not machine.gpu:
        why += f"; {SMALL} and not {LARGE}, because there is no GPU"
    return _of_torchvision(f"{name}:{_KINETICS}", published, why)


def _of_torchvision(weights: str, published: Any, why: str) -> Start:
    network = {"model.name": weights.partition(":")[0], "model.pool.where": []}
    return Start(weights, why, network, _FRAMES, preprocessing_of(published).crop_size)


def _of_the_user(weights: Any) -> Start:
    if weights is None:
        return Start(None, "model.weights=null asks for none")
    why, weights = f"{weights}, as you say", str(spelled_out(weights))
    name, _, kind = weights.partition(":")
    if (published := torchvision_weights(name, kind)) is not None:
        return _of_torchvision(weights, published, why)
    config = open_weights(weights).config
    chosen = config.model.model_dump(mode="json", exclude_defaults=True, exclude={"weights"})
    return Start(weights, why, dict(_flat("model", chosen)), config.data.num_frames, config.data.crop_size)


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", value
