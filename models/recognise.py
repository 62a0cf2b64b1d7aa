"""Recognises the network that weights belong to, by the names and shapes of their layers."""

from __future__ import annotations

from functools import cache

import torch

from softpool3d.errors import UsageError
from softpool3d.models.network import Staged
from softpool3d.models.registry import PYTORCHVIDEO, SPECS, create
from softpool3d.models.weights import Source, classifier_of, fit


def recognise(source: Source) -> tuple[tuple[str, ...], str]:
    """Returns the networks that have just these layers, and how the nearest other differs, if any is near.

    Networks that differ only in the clips they are given have the same layers: X3D XS, S and M.
    """
    in_blocks = source.layout in ("pytorchvideo", "pyslowfast")
    of_pictures = max((tensor.ndim for tensor in source.state.values()), default=0) == 4
    found, nearest, why = [], 0.5, ""
    for name, entry in SPECS.items():
        if entry.is_image != of_pictures or in_blocks != (PYTORCHVIDEO in entry.weights):
            continue
        network = _shapes(name)
        try:
            fit(network, source, name)
            difference = _other_input(network, source)
        except UsageError as error:
            difference = str(error).partition(f"than {name}: ")[2]
        if not difference:
            found.append(name)
            continue
        own = network.state_dict()
        alike = sum(key in source.state and source.state[key].shape == own[key].shape for key in own) / len(own)
        if alike > nearest:
            nearest, why = alike, f"nearest is {name}, but {difference}"
    return tuple(found), why


def _other_input(network: Staged, source: Source) -> str:
    """Returns how the weights' input differs where `fit` would adapt it, as for flow or pictures; "" if it does not."""
    own, head = network.state_dict(), f"{network.logits_layer()}."
    for key, tensor in source.state.items():
        if tensor.dim() >= 4 and key in own and tensor.shape != own[key].shape and not key.startswith(head):
            return f"{key} is {tuple(tensor.shape)} there and {tuple(own[key].shape)} here"
    return ""


@cache
def _shapes(name: str) -> Staged:
    """Makes a network without values, which takes a tenth of a second and no memory."""
    with torch.device("meta"):
        return create(name, 1)


def count_classes(name: str, source: Source) -> int:
    """Returns the number of outputs of the weights' classifier; 0 if they have none that the network could take."""
    weight = classifier_of(source.state, _shapes(name))
    return 0 if weight is None else len(weight)
