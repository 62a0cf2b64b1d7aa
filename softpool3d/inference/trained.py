"""Loads trained networks, wherever their weights come from.

best.safetensors        a weights file of ours, which holds network, classes and preprocessing
model.onnx, model.pt2   what `softpool3d export` wrote
motion                  the small network that ships with the package
r3d_18:kinetics400      torchvision's public weights, fetched once
nothing                 Kinetics-400's by torchvision, where they can be had, else `motion`
X3D_M.pyth, x3d_m:FILE  a file that others published (runs/published.py)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from softpool3d.config import Config
from softpool3d.datasets.sources.motion import CLASSES
from softpool3d.inference.exported import is_exported, load_exported
from softpool3d.models import build_model
from softpool3d.models.public import kept_at, obstacle, size_mb
from softpool3d.models.weights import torchvision_weights
from softpool3d.naming import KINETICS, SHIPPED
from softpool3d.runs.checkpoint import load_into
from softpool3d.runs.published import open_weights


@dataclass(frozen=True)
class Trained:
    """A network that knows its classes and preprocessing.

    network: maps clips, float (N, C, T, H, W), to logits (N, classes). Whoever runs a module moves it to the device and
        sets it to evaluation; anything else is called as it is, with clips on the device.
    note: what was assumed about a file that does not describe itself, or which network answers where none was named,
        for people to read.
    origin: the file of the weights, or the name of public ones; "" for an exported network.
    """

    network: nn.Module | Callable[[Tensor], Tensor]
    config: Config
    classes: tuple[str, ...]
    note: str = ""
    origin: str = ""


def load_trained(weights: str | Path | None = None, device: torch.device | None = None, trust: bool = False) -> Trained:
    """Loads a network from a weights file, an exported file, torchvision's public weights, or this package.

    Args:
        weights: as in the list above; None for `default_weights`.
        device: where an exported network is to run; others are moved there later.
        trust: load a .pt2 file too, which can run code.

    Raises:
        UsageError: if there are no such weights, or their network is not recognised.
        WorkError: if torchvision's weights cannot be fetched.
    """
    if weights is not None and is_exported(weights):
        exported = load_exported(Path(weights).expanduser(), device or torch.device("cpu"), trust)
        return Trained(exported, exported.config, exported.classes)
    why = ""
    if weights is None:
        weights, why = default_weights()
    loaded = open_weights(weights)
    network = build_model(loaded.config, len(loaded.classes))
    load_into(network, loaded.state, loaded.origin)
    return Trained(network, loaded.config, loaded.classes, "\n".join(filter(None, (why, loaded.note))), loaded.origin)


def default_weights() -> tuple[str | Path, str]:
    """Returns the weights that answer where none are named, and a line that says what they know."""
    name, _, kind = KINETICS.partition(":")
    published = torchvision_weights(name, kind)
    if why := obstacle(published):
        return SHIPPED, (
            "no --weights: the network that ships with softpool3d answers, which knows eight synthetic motions alone "
            f"({', '.join(CLASSES)}). Labels of real actions need --weights kinetics400, a file of "
            f"{size_mb(published)} MB ({why}), or weights of your own"
        )
    accuracy = published.meta["_metrics"]["Kinetics-400"]["acc@1"]
    there = kept_at(published)
    where = f"{'kept in' if there.is_file() else 'fetched once into'} {there.parent}"
    return KINETICS, (
        f"no --weights: {KINETICS} answers, torchvision's network for the 400 actions of Kinetics (top-1 "
        f"{accuracy:.1f}% there; {size_mb(published)} MB, {where})"
    )
