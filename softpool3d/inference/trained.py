"""Loads trained networks, wherever their weights come from.

best.safetensors        a weights file of ours, which holds network, classes and preprocessing
model.onnx, model.pt2   what `softpool3d export` wrote
nothing                 the small network that ships with the package
r3d_18:kinetics400      torchvision's public weights, fetched once
X3D_M.pyth, x3d_m:FILE  a file that others published (runs/published.py)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from softpool3d.config import Config
from softpool3d.inference.exported import is_exported, load_exported
from softpool3d.models import build_model
from softpool3d.runs.checkpoint import load_into
from softpool3d.runs.published import open_weights

SHIPPED = Path(str(files("softpool3d"))) / "weights" / "x3d_xs_motion.safetensors"


@dataclass(frozen=True)
class Trained:
    """A network that knows its classes and preprocessing.

    network: maps clips, float (N, C, T, H, W), to logits (N, classes). Whoever runs a module moves it to the device and
        sets it to evaluation; anything else is called as it is, with clips on the device.
    note: what was assumed about a file that does not describe itself, for people to read.
    """

    network: nn.Module | Callable[[Tensor], Tensor]
    config: Config
    classes: tuple[str, ...]
    note: str = ""


def load_trained(weights: str | Path | None = None, device: torch.device | None = None, trust: bool = False) -> Trained:
    """Loads a network from a weights file, an exported file, torchvision's public weights, or this package.

    Args:
        weights: as in the list above; None for the network that ships with the package.
        device: where an exported network is to run; others are moved there later.
        trust: load a .pt2 file too, which can run code.

    Raises:
        UsageError: if there are no such weights, or their network is not recognised.
        WorkError: if torchvision's weights cannot be fetched.
    """
    if weights is not None and is_exported(weights):
        exported = load_exported(Path(weights).expanduser(), device or torch.device("cpu"), trust)
        return Trained(exported, exported.config, exported.classes)
    loaded = open_weights(SHIPPED if weights is None else weights)
    network = build_model(loaded.config, len(loaded.classes))
    load_into(network, loaded.state, loaded.origin)
    return Trained(network, loaded.config, loaded.classes, loaded.note)
