"""The networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import nn

from softpool3d.config import Config, ModelConfig
from softpool3d.errors import UsageError
from softpool3d.models.pooling import place_pooling
from softpool3d.models.r3d import r3d_18
from softpool3d.models.x3d import x3d_l, x3d_m, x3d_s, x3d_xs

# name -> builder(model config, num_classes, num_frames, crop_size)
_BUILDERS: dict[str, Callable[[ModelConfig, int, int, int], nn.Module]] = {
    "r3d_18": r3d_18,
    "x3d_xs": x3d_xs,
    "x3d_s": x3d_s,
    "x3d_m": x3d_m,
    "x3d_l": x3d_l,
}


def names() -> tuple[str, ...]:
    """The networks that `build_model` knows."""
    return tuple(_BUILDERS)


def build_model(config: Config, num_classes: int) -> nn.Module:
    """The network that `config.model` describes, with its pooling in place and random weights.

    It takes float clips (N, 3, T, H, W) and returns logits (N, num_classes); `config.data` says for which T, H and W it
    is made, other sizes work as far as the network's stride allows. With `config.model.pool.where` empty it is
    torchvision's or pytorchvideo's own network: same parameter names, same outputs for the same weights.

    Raises:
        UsageError: for an unknown network, a place that it does not have, or clips too small for it.
    """
    model, data = config.model, config.data
    try:
        build = _BUILDERS[model.name]
    except KeyError:
        near = difflib.get_close_matches(model.name, _BUILDERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"model.name: unknown network {model.name!r}{hint} (known: {', '.join(_BUILDERS)})") from None
    network = build(model, num_classes, data.num_frames, data.crop_size)
    return place_pooling(network, model.pool, model.name)
