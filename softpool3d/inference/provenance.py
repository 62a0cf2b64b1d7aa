"""What made a result: two results whose values are equal here go together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from softpool3d.inference.predictor import Engine
from softpool3d.inference.trained import Trained

# what changes the clips that a network sees in testing
_SAMPLING = {"num_frames", "sampling_rate", "sampling", "sample_by", "target_fps", "short_clip"}
_PICTURE = {"short_side", "mean", "std"}


def made_by(trained: Trained, engine: Engine, precision: str | None, clips: int, **own: Any) -> dict[str, Any]:
    """Returns the weights, the network and its preprocessing, ready for JSON.

    Args:
        precision: as it was asked for; None for that of training.
        clips: clips of each video.
        own: what else makes a result of this kind.
    """
    data = engine.config.data
    return {
        "weights": trained.origin,
        "sha256": digest(trained.network),
        "network": engine.config.model.name,
        **own,
        "clips": clips,
        "crops": engine.num_crops,
        **data.model_dump(mode="json", include=_SAMPLING | _PICTURE),
        "crop_size": data.tested_crop,
        "precision": precision or engine.config.train.precision,
    }


def digest(network: Any) -> str:
    """Returns a SHA-256 in hex: of a network's parameters and buffers, the same whatever file they come from; or of the
    file of an exported one."""
    found = hashlib.sha256()
    for part in _tensors(network) if isinstance(network, nn.Module) else network.content():
        found.update(part)
    return found.hexdigest()


def _tensors(network: nn.Module) -> Iterable[bytes | Tensor]:
    for name, tensor in sorted(network.state_dict().items()):
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode()
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
