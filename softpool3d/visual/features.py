"""Feature maps before and after each pooling of a network, by SoftPool and by the network's original pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from softpool3d.config import PoolConfig
from softpool3d.config_file import pool_config
from softpool3d.errors import WorkError
from softpool3d.inference.classifier import Classifier
from softpool3d.models import build_model
from softpool3d.models.sites import Site, find_sites
from softpool3d.visual.sheet import text_bar

_CELL, _GAP = 112, 4


@dataclass(frozen=True)
class PoolingMaps:
    """The maps before a pooling, float (C, T, H, W), and after it by several kinds: label -> float (C, T', H', W')."""

    name: str
    place: str
    before: Tensor
    after: dict[str, Tensor]


@torch.no_grad()
def feature_maps(classifier: Classifier, clip: Tensor) -> list[PoolingMaps]:
    """Returns the maps before and after each pooling of the network, in the order of its layers.

    If poolings were swapped before training, only these layers are shown: what the network had there originally (a max
    pooling, or the stride of a convolution), the trained pooling, and SoftPool. If none was swapped, SoftPool (beta 1)
    is shown beside each of the network's own. Global poolings leave no map to draw and are left out.

    Args:
        clip: float (1, C, T, H, W), normalised.

    Raises:
        WorkError: if no pooling of the network leaves maps.
    """
    config, model = classifier.config, classifier.model
    plain = config.model.model_copy(update={"pool": PoolConfig(where=[])})
    own = build_model(config.model_copy(update={"model": plain}), len(classifier.classes))
    own.load_state_dict(model.state_dict(), strict=False)  # without the parameters of learned poolings
    own.to(clip.device).eval()
    sites = [site for site in find_sites(own)[0] if site.place != "attention"]
    swapped = [site for site in sites if type(model.get_submodule(site.name)) is not type(site.layer)]
    chosen = swapped or sites
    inputs = layer_inputs(model, clip, [site.name for site in chosen])
    maps = [_maps(site, model.get_submodule(site.name), inputs[site.name], config.model.pool) for site in chosen]
    maps = [m for m in maps if min(min(x.shape[2:]) for x in m.after.values()) > 1]
    if not maps:
        raise WorkError(f"{config.model.name} with these weights has global poolings alone: no maps to draw after them")
    return maps


def layer_inputs(model: nn.Module, clip: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Returns a copy of each named layer's input; copies, because later layers may write into it."""
    seen: dict[str, Tensor] = {}

    def note(name: str):
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].clone()

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    try:
        model(clip)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _maps(site: Site, there: nn.Module, x: Tensor, trained: PoolConfig) -> PoolingMaps:
    swapped = type(there) is not type(site.layer)
    layer = there if swapped else site.replacement(pool_config(kind="soft"), None).to(x.device).eval()
    soft = site.replacement(pool_config(kind="soft"), None).to(x.device).eval()
    if site.place == "downsample":  # after a convolution that has lost its stride, or before a pointwise one
        before = _input_of_pool(layer, x)
        layer, soft = layer.pool, soft.pool
        stride = site.geometry.stride
        after = {f"own: stride {_by(stride)}": before[(..., *(slice(None, None, s) for s in stride))]}
    else:
        before = x
        after = {f"own: {type(site.layer).__name__}": site.layer(x)}
    if swapped and trained.kind != "soft":
        after[f"trained: {trained.kind}"] = layer(before)
        layer = soft
    beta = trained.beta if swapped and trained.kind == "soft" else 1.0
    after[f"soft, beta {beta if isinstance(beta, str) else format(beta, 'g')}"] = layer(before)
    place = f"{site.place}, {site.geometry}"
    return PoolingMaps(site.name, place, _first(before), {label: _first(y) for label, y in after.items()})


def _first(x: Tensor) -> Tensor:
    """Returns the maps of the first clip or picture of a batch, (C, T, H, W), on the CPU; a picture's have T = 1."""
    return (x if x.ndim == 5 else x.unsqueeze(2))[0].cpu()


def _input_of_pool(layer: nn.Module, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = layer.pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    try:
        layer(x)
    finally:
        hook.remove()
    return seen[0]


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def draw(maps: Sequence[PoolingMaps], channels: int, caption: str) -> np.ndarray:
    """Draws the maps at mid-clip, as uint8 (H, W, 3): of each pooling, the `channels` channels that vary most.

    A channel's colours have the same scale before and after the pooling.
    """
    width = channels * (_CELL + _GAP) - _GAP
    rows = []
    for item in maps:
        middle = item.before[:, item.before.shape[1] // 2]
        chosen = middle.flatten(1).std(1).argsort(descending=True)[:channels].sort().values
        low = item.before[chosen].amin((1, 2, 3), keepdim=True)
        scale = (item.before[chosen].amax((1, 2, 3), keepdim=True) - low).clamp_min(1e-12)
        rows.append(text_bar([f"{item.name}   {item.place}; channels {', '.join(map(str, chosen.tolist()))}"], width))
        for label, x in {"before": item.before, **item.after}.items():
            pictures = ((x[chosen, x.shape[1] // 2][:, None] - low) / scale)[:, 0]
            cells = [_cell(picture.clamp(0, 1).numpy()) for picture in pictures]
            line = np.concatenate(cells, axis=1)[:, :width]
            rows.append(text_bar([f"  {label}  {_by(x.shape[1:])}"], width))
            rows.append(np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0))))
    rows.append(text_bar([caption], width))
    return np.concatenate(rows)


def _cell(values: np.ndarray) -> np.ndarray:
    """Draws a map of values in [0, 1] in colours, each value as a block; uint8 (height, _CELL + _GAP, 3)."""
    from matplotlib import colormaps

    height = round(_CELL * values.shape[0] / values.shape[1])
    rows, columns = (np.arange(n) * size // n for n, size in ((height, values.shape[0]), (_CELL, values.shape[1])))
    picture = (colormaps["viridis"](values[rows][:, columns])[..., :3] * 255).round().astype(np.uint8)
    return np.pad(picture, ((0, 0), (0, _GAP), (0, 0)))
