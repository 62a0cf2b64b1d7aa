"""Files that hold weights. Reading them runs no pickled code; writing them replaces the old file whole or not at all.

A weights file (`best.safetensors`) describes itself: configuration (preprocessing included) and class names are in its
metadata, so that `classify` needs that file alone. A run's state (`last/checkpoint.pt`) holds all that resuming needs.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from softpool3d import __version__
from softpool3d.config import Config
from softpool3d.config_file import validate
from softpool3d.errors import UsageError
from softpool3d.file_kinds import what_is
from softpool3d.files import write_atomically
from softpool3d.foreign import parse_json
from softpool3d.models.checkpoints import tensors_of
from softpool3d.models.weights import Figures
from softpool3d.naming import no_weights

FORMAT = "1"  # of weights files
STATE_FORMAT = 2  # of a run's state


@dataclass
class Weights:
    """What a weights file holds.

    origin: the file, or the name of public weights.
    named: whether the classes have names; else they are 0, 1, ...
    note: lines for the user about what was assumed of weights that do not describe themselves.
    figures: the accuracy that was published for them.
    """

    state: dict[str, Tensor]
    config: Config
    classes: tuple[str, ...]
    origin: str = ""
    named: bool = True
    note: str = ""
    figures: Figures | None = None


def describe(config: Config, classes: tuple[str, ...]) -> dict[str, str]:
    """Returns the metadata by which a weights file describes itself."""
    return {
        "softpool3d": FORMAT,
        "version": __version__,
        "config": config.model_dump_json(),
        "classes": json.dumps(classes, ensure_ascii=False),
    }


def read_description(metadata: Mapping[str, str], path: str | Path) -> tuple[Config, tuple[str, ...]]:
    """Returns the configuration and classes that `describe` wrote.

    Raises:
        UsageError: if the metadata lacks them, is damaged, or is of another version.
    """
    if "softpool3d" not in metadata:
        raise UsageError(f"{path} was not written by softpool3d: it does not name its network and classes")
    if metadata["softpool3d"] != FORMAT:
        raise UsageError(f"{path} was written by a newer softpool3d ({metadata.get('version')}); update to read it")
    try:
        config, classes = validate(parse_json(metadata["config"])), parse_json(metadata["classes"])
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes is not a list of names")
        return config, tuple(classes)
    except (KeyError, ValueError, UsageError) as error:
        raise UsageError(f"{path}: its description cannot be read ({error})") from None


def save_weights(
    path: str | Path, model: nn.Module | Mapping[str, Tensor], config: Config, classes: tuple[str, ...]
) -> None:
    """Writes the weights file of a network, or of its state dict."""
    # safetensors' own convention: tensors in PyTorch's order of dimensions
    metadata = {"format": "pt", **describe(config, classes)}
    weights = model.state_dict() if isinstance(model, nn.Module) else model
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(path, safetensors_bytes(state, metadata))


def load_weights(path: str | Path) -> Weights:
    """Reads a weights file written by `save_weights`.

    Raises:
        UsageError: if there is none, it is damaged, or softpool3d did not write it.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(no_weights(path))
    state, metadata = tensors_of(path)
    return Weights(state, *read_description(metadata, path), str(path))


def load_into(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Loads `state` into `model`, all of it.

    Raises:
        UsageError: naming the first parameter that does not fit.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise UsageError(f"{source} holds another network: it lacks {name} {tuple(tensor.shape)}")
        if state[name].shape != tensor.shape:
            raise UsageError(
                f"{source} holds another network: {name} is {tuple(state[name].shape)} there "
                f"and {tuple(tensor.shape)} here"
            )
    extra = next((name for name in state if name not in own), None)
    if extra is not None:
        raise UsageError(f"{source} holds another network: it has {extra}, which this network lacks")
    model.load_state_dict(state)


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes a run's state: tensors and plain values in nested dicts and lists. Keeps the one before it.

    Raises:
        WorkError: if it cannot be written; the earlier ones are as they were then.
    """
    buffer = io.BytesIO()
    torch.save({**state, "softpool3d": STATE_FORMAT, "version": __version__}, buffer)
    write_atomically(path, buffer.getvalue(), previous=previous_state(path))


def previous_state(path: str | Path) -> Path:
    """Returns where `save_state` keeps the state before the one at `path`."""
    return Path(path).with_name("previous.pt")


def load_last_state(path: str | Path) -> tuple[dict[str, Any] | None, str]:
    """Reads the last state that `save_state` wrote, or the one before it if the last is damaged.

    Returns:
        The state, or None if there is none; and a sentence for the user, empty for the last state.

    Raises:
        UsageError: if every state is damaged, or one was written by another version.
    """
    there = [file for file in (Path(path), previous_state(path)) if file.is_file()]
    if not there:
        return None, ""
    try:
        return load_state(there[0]), ""
    except Damaged as damaged:
        try:
            state = load_state(there[1])
        except (Damaged, IndexError):
            raise damaged from None
        return state, f"{there[0]} is damaged; going on from the checkpoint before it, {there[1].name}"


class Damaged(UsageError):
    """A checkpoint whose bytes are not those that were written."""


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads what `save_state` wrote.

    Raises:
        UsageError: if there is none, it is damaged, or another version of softpool3d wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"nothing to resume from: no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself looks at no checksum
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        written, version = int(state["softpool3d"]), state.get("version", "an early version")
    except Exception as error:  # damaged bytes surface as any of a dozen types
        raise Damaged(
            f"checkpoint {path} is damaged ({what_is(path) or type(error).__name__}); start anew, or from the run's "
            "best.safetensors with model.weights=..."
        ) from None
    if written > STATE_FORMAT:
        raise UsageError(f"checkpoint {path} was written by a newer softpool3d ({version}); update to go on with it")
    if written < STATE_FORMAT:
        raise UsageError(
            f"checkpoint {path} was written by an older softpool3d ({version}), and this one cannot go on with it; go "
            "on with that one, or start from the run's best.safetensors with model.weights=..."
        )
    return state
