"""Trained networks, wherever their weights come from.

best.safetensors        a weights file of ours: network, classes and preprocessing are in it
model.onnx, model.pt2   what `softpool3d export` wrote
nothing                 the small network that ships with the package
r3d_18:kinetics400      torchvision's public weights, fetched once
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from softpool3d.config import Config
from softpool3d.engine.checkpoint import load_into, load_weights
from softpool3d.errors import UsageError
from softpool3d.inference.exported import is_exported, load_exported
from softpool3d.models import build_model
from softpool3d.models.registry import load_pretrained

SHIPPED = Path(str(files("softpool3d"))) / "weights" / "x3d_xs_motion.safetensors"

# Frames of a clip, and a second, that torchvision's video-level accuracies were measured with (5 clips, 1 crop).
_PUBLIC = {
    "r3d_18": (16, 15.0),
    "mc3_18": (16, 15.0),
    "r2plus1d_18": (16, 15.0),
    "s3d": (128, 15.0),
    "mvit_v2_s": (16, 7.5),
}


@dataclass(frozen=True)
class Trained:
    """A network that knows its classes and preprocessing.

    network: float (N, C, T, H, W) -> logits (N, classes). A module is moved to the device and put into evaluation by
        whoever runs it; anything else is called as it is, with clips on the device.
    """

    network: nn.Module | Callable[[Tensor], Tensor]
    config: Config
    classes: tuple[str, ...]


def load_trained(weights: str | Path | None = None, device: torch.device | None = None, trust: bool = False) -> Trained:
    """The network of a weights file, exported or not, of torchvision's by name, or the shipped one.

    Args:
        device: where an exported network is to run; others are moved there later.
        trust: load a .pt2 file too, which can run code.

    Raises:
        UsageError: if there are no such weights, or they are not ours.
        WorkError: if torchvision's cannot be fetched.
    """
    name, colon, trained_on = str(weights).partition(":")
    if weights is not None and colon and not Path(weights).exists():
        return _public(str(weights), name, trained_on)
    path = SHIPPED if weights is None else Path(weights).expanduser()
    if is_exported(path):
        exported = load_exported(path, device or torch.device("cpu"), trust)
        return Trained(exported, exported.config, exported.classes)
    loaded = load_weights(path)
    network = build_model(loaded.config, len(loaded.classes))
    load_into(network, loaded.state, path)
    return Trained(network, loaded.config, loaded.classes)


def _public(weights: str, name: str, trained_on: str) -> Trained:
    if name not in _PUBLIC or trained_on != "kinetics400":
        known = ", ".join(f"{name}:kinetics400" for name in _PUBLIC)
        raise UsageError(
            f"--weights {weights}: no file of that name, and no public weights either (there are: {known})"
        )
    num_frames, fps = _PUBLIC[name]
    sampling = {"num_frames": num_frames, "sampling_rate": 1, "target_fps": fps}
    values = {
        "name": name,
        "model": {"name": name, "weights": name, "pool": {"where": []}},
        "data": {"dataset": "kinetics400", **sampling},
        "test": {"num_clips": 5},
    }
    config = Config.model_validate(values)
    network = build_model(config, 400)
    loaded = load_pretrained(network, config)
    wanted = loaded.preprocessing
    data = {
        **values["data"],
        "mean": list(wanted.mean),
        "std": list(wanted.std),
        "train_short_side": [wanted.short_side, wanted.short_side],
        "short_side": wanted.short_side,
        "crop_size": wanted.crop_size,
    }
    # what is fetched is in the network now; nobody has to fetch it to read the configuration again
    model = {**values["model"], "weights": None}
    return Trained(network, Config.model_validate({**values, "data": data, "model": model}), loaded.classes)
