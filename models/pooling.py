"""The places in a network where pooling can go, as `model.pool.where` names them.

    existing     each pooling layer that the network has, its head's included: the paper's rule; kernel, stride,
                 padding and ceil_mode are kept
    stem         of these, the ones in the stem alone, as in SoftPool's own ImageNet networks
    downsample   each strided convolution: it gets stride 1 and a pooling takes over the stride
    temporal     before the stages that `model.pool.temporal` names: time is halved
    head         the global pooling before the classifier
    attention    the depthwise convolutions by which MViT pools queries, keys and values; their weights go

In a residual block, the pooling of `downsample` comes after the convolution in the main path, and before the 1x1
convolution of the shortcut:

    as it was     x -+-> conv, stride 2 -> conv ---------------+-> sum
                     +-> 1x1 conv, stride 2 -------------------+

    downsample    x -+-> conv -> pooling, stride 2 -> conv ----+-> sum
                     +-> pooling, stride 2 -> 1x1 conv --------+

The kinds are in models/pools/, the layers and their swap in models/sites.py.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import get_args

import torch
from torch import Tensor, nn

from softpool3d.config import PoolConfig, PoolPlace
from softpool3d.errors import UsageError
from softpool3d.models.network import Staged, evaluating
from softpool3d.models.pools import KINDS, NoGlobalForm, Window, make_pool, strided
from softpool3d.models.sites import ATTENTION, Change, PoolingReport, Site, find_sites, swap


def places(network: nn.Module) -> tuple[str, ...]:
    """Returns the places that a network has."""
    sites = find_sites(network)[0]
    has = {site.place for site in sites} | {"existing"}
    if isinstance(network, Staged):
        has |= {"temporal"} if network.pools_time else set()
        has |= {"stem"} if any(_in_stem(network, site) for site in sites) else set()
    return tuple(place for place in get_args(PoolPlace) if place in has)


def place_pooling(
    network: Staged, options: PoolConfig, name: str, clip: tuple[int, ...], step: int = 1
) -> PoolingReport:
    """Puts `options.kind` into each place of `options.where`, in place.

    Args:
        clip: a shape that the network can run on, (N, C, T, H, W) or (N, C, H, W), with the frames it is made for.
        step: the network takes frames in multiples of this.

    Raises:
        UsageError: for a place that the network does not have, or a kind that has no form for it.
    """
    has = places(network)
    for place in options.where:
        if place not in has:
            raise UsageError(f"pool.where: {name} has no place {place!r} (it has {', '.join(has)})")
    sites, left = find_sites(network)
    where = set(options.where) | ({"head"} if "existing" in options.where else set())
    if KINDS[options.at("head").kind].windows_only and "head" not in options.where:
        where.discard("head")
    if options.kind == "conv":
        where.discard("downsample")  # kind conv: strided convolutions stay as they are
    if "attention" in where:  # the pooling there takes over the stride, too
        sites = [site for site in sites if not (site.place == "downsample" and site.name.endswith(ATTENTION))]
        where.discard("attention" if options.kind == "conv" else "")
    sites = [site for site in sites if site.place in where or "stem" in where and _in_stem(network, site)]
    if options.paper_stem:
        sites = _with_paper_stem(network, sites, name)

    def run() -> None:
        network(torch.zeros(clip))

    try:
        report = swap(network, sites, options, left, run)
    except NoGlobalForm as error:
        raise UsageError(f"pool.kind: {error}; pool.head=avg says what stands there") from None
    if "temporal" in where:
        report = PoolingReport((*report.changes, *_pool_time(network, options, name, clip, step)), report.left)
    return report


def _with_paper_stem(network: Staged, sites: list[Site], name: str) -> list[Site]:
    changed, found = [], False
    for site in sites:
        if _in_stem(network, site):
            found, w = True, site.geometry
            site = replace(site, geometry=replace(strided(w.stride), after_max=w.after_max))
        changed.append(site)
    if not found:
        raise UsageError(f"pool.paper_stem: {name} has no pooling in its stem")
    return changed


def _in_stem(network: Staged, site: Site) -> bool:
    """Whether a site is a pooling of the network's own, in its stem, that makes the picture smaller."""
    w = site.geometry
    if site.place != "existing" or not isinstance(w, Window) or prod(w.stride) == 1:
        return False
    return any(site.layer is module for block in network.stages()["stem"] for module in block.modules())


class _EachPathway(nn.Module):
    """One pooling for each pathway of SlowFast."""

    def __init__(self, pools: list[nn.Module]) -> None:
        super().__init__()
        self.pathways = nn.ModuleList(pools)

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        return [pool(part) for pool, part in zip(self.pathways, x, strict=True)]


def _pool_time(network: Staged, options: PoolConfig, name: str, clip: tuple[int, ...], step: int) -> list[Change]:
    """Halves time before each stage of `options.temporal`, whatever strides the network has of its own."""
    names = list(network.stages())
    for stage in options.temporal:
        if names.index(stage) == 0:
            raise UsageError(
                "pool.temporal: the stem is where the clip enters; name stages after it (stage1 to stage4)"
            )

    window, stages = strided((2, 1, 1)), sorted(options.temporal)
    temporal = nn.ModuleDict()
    for stage, features in zip(names[1:], _features(network, clip), strict=False):
        if stage in stages:
            pools = [make_pool(options, window, part.shape[1]) for part in _parts(features)]
            temporal[stage] = pools[0] if isinstance(features, Tensor) else _EachPathway(pools)
    network.temporal = temporal
    if not _has_time(network, clip, clip[2]):
        longer = range((clip[2] // step + 1) * step, 1024, step)
        least = next(frames for frames in longer if _has_time(network, clip, frames))
        raise UsageError(
            f"num_frames: {name} has no time left to halve before {' and '.join(stages)} with {clip[2]} frames; "
            f"give {least} at least"
        )
    return [Change(stage, "temporal", "-", f"{options.kind} {window}") for stage in stages]


def _has_time(network: Staged, clip: tuple[int, ...], frames: int) -> bool:
    """Whether each temporal pooling sees two frames at least, and the network's own layers after it find enough."""
    seen: list[int] = []
    hooks = [
        pool.register_forward_pre_hook(lambda _, inputs: seen.extend(p.shape[2] for p in _parts(inputs[0])))
        for pool in network.temporal.values()
    ]
    try:
        _features(network, (*clip[:2], frames, *clip[3:]))
    except RuntimeError:  # "output size is too small"
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return min(seen) >= 2


def _features(network: Staged, clip: tuple[int, ...]) -> list:
    before, network.features_only = network.features_only, True
    try:
        with evaluating(network), torch.no_grad():
            return network(torch.zeros(clip))
    finally:
        network.features_only = before


def _parts(features: Tensor | list[Tensor]) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else features
