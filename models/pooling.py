"""The places in a network where pooling can go, and the swap.

    existing     each pooling layer that the network has, its head's included: the paper's rule; kernel, stride,
                 padding and ceil_mode are kept
    downsample   each strided convolution: it gets stride 1 and the pooling takes over the stride,
                 behind the convolution in the main path, before the 1x1 convolution of a shortcut
    temporal     before the stages that `model.pool.temporal` names: time is halved
    head         the global pooling before the classifier
    attention    the depthwise convolutions by which MViT pools queries, keys and values; their weights go

Names and shapes of the other parameters stay as they are in all of it, so weights fit with or without. The kinds are in
models/pools/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from softpool3d.config import PoolConfig
from softpool3d.errors import UsageError
from softpool3d.models.network import Staged
from softpool3d.models.pools import (
    KINDS,
    Bins,
    Geometry,
    Window,
    geometry_of,
    make_pool,
    needs_channels,
    per_dimension,
    strided,
)

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Change:
    """One layer that was swapped."""

    name: str
    place: str
    before: str
    after: str


@dataclass(frozen=True)
class PoolingReport:
    """What a swap of poolings did, layer by layer, and which it left alone and why."""

    changes: tuple[Change, ...]
    left: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.changes)

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __str__(self) -> str:
        width = max((len(c.name) for c in self.changes), default=0)
        lines = [f"{len(self.changes)} layers replaced"]
        lines += [f"  {c.name:{width}}  {c.place}: {c.before} -> {c.after}" for c in self.changes]
        lines += [f"  {name} left as it is: {why}" for name, why in self.left]
        return "\n".join(lines)


class _PooledConv:
    """A strided convolution whose stride a pooling layer has taken over; its parameters are the convolution's own."""

    def __init__(self, conv: nn.Module, pool: nn.Module) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=1,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.pool = pool
        self.pool_first = _is_pointwise(conv)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.pool(input)) if self.pool_first else self.pool(super().forward(input))


class PooledConv1d(_PooledConv, nn.Conv1d):
    pass


class PooledConv2d(_PooledConv, nn.Conv2d):
    pass


class PooledConv3d(_PooledConv, nn.Conv3d):
    pass


def _is_pointwise(conv: nn.Module) -> bool:
    # pooling first is the same size, and cheaper, where the convolution looks at one position only
    return prod(conv.kernel_size) == 1


@dataclass(frozen=True)
class Site:
    """A layer where pooling can go."""

    name: str
    layer: nn.Module
    place: str
    geometry: Geometry

    @property
    def pools_output(self) -> bool:
        """Whether the pooling sees the layer's output, and not its input."""
        return self.place == "downsample" and not _is_pointwise(self.layer)

    def replacement(self, options: PoolConfig, channels: int | None) -> nn.Module:
        pool = make_pool(options, self.geometry, channels)
        if self.place != "downsample":
            return pool
        kind = (PooledConv1d, PooledConv2d, PooledConv3d)[self.geometry.dims - 1]
        return kind(self.layer, pool)


def find_sites(network: nn.Module) -> tuple[list[Site], list[tuple[str, str]]]:
    """All places of a network, and the layers that look like one and are none, with the reason."""
    staged = isinstance(network, Staged)
    head = network.head_pools if staged else ()
    untouched = network.untouched if staged else ()
    sites, left = [], []
    opaque = [f"{path}." for path in untouched]  # pools that belong to a layer that is one, or took over a stride
    for name, module in network.named_modules(remove_duplicate=False):
        if name in untouched or name.startswith(tuple(opaque)):
            continue
        if isinstance(module, _PooledConv):
            opaque.append(f"{name}.")
        conv = next((kind for kind in _CONVS if isinstance(module, kind)), None)
        if conv is not None and staged and network.attention_pools and name.endswith(_ATTENTION):
            sites.append(Site(name, module, "attention", _window_of(module)))
        if conv is not None and prod(module.stride) > 1:
            if isinstance(module, _PooledConv) or type(module).forward is not conv.forward:
                left.append((name, f"{type(module).__name__} has a forward of its own"))
            elif hasattr(module, "parametrizations") or not isinstance(module.weight, nn.Parameter):
                left.append((name, "its weight is parametrized"))
            else:
                sites.append(
                    Site(name, module, "downsample", strided(per_dimension(module.stride, len(module.stride))))
                )
        elif (geometry := geometry_of(module)) is not None:
            opaque.append(f"{name}.")
            place = "head" if name in head or (not staged and geometry == Bins((1,) * geometry.dims)) else "existing"
            sites.append(Site(name, module, place, geometry))
        elif getattr(module, "return_indices", False):
            left.append((name, "what comes after it needs its indices"))
    return sites, left


_ATTENTION = ("pool_q.pool", "pool_k.pool", "pool_v.pool")


def _window_of(conv: nn.Module) -> Window:
    return Window(*(per_dimension(v, 3) for v in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)))


def swap(
    network: nn.Module,
    sites: Iterable[Site],
    options: PoolConfig,
    left: Iterable[tuple[str, str]] = (),
    run: Callable[[], object] | None = None,
) -> PoolingReport:
    """Puts a pooling of `options.kind` into each of `sites`; all of them, or none where one raises.

    Args:
        run: runs the network once, for kinds that need to know the channels of each layer.

    Raises:
        UsageError: for a kind that has no form for one of them; names the layer.
    """
    sites = list(sites)
    channels: dict[int, int] = {}
    if needs_channels(options):
        if run is None:
            raise UsageError(
                f"pool.kind: {options.kind} has parameters for each channel, and how many a layer sees shows when the "
                "network runs; give an `example` input"
            )
        channels = channels_at(network, sites, run)
    parameter = next(network.parameters(), torch.empty(0))
    layers: dict[int, nn.Module] = {}
    for site in sites:
        if id(site.layer) in layers:  # one layer at two places stays one
            continue
        if needs_channels(options) and id(site.layer) not in channels:
            raise UsageError(f"{site.name}: the example input does not reach it, so its channels are not known")
        try:
            layer = site.replacement(options, channels.get(id(site.layer)))
        except UsageError as error:
            raise UsageError(f"{site.name}: {error}") from None
        dtype = parameter.dtype if parameter.is_floating_point() else None
        pool = layer.pool if isinstance(layer, _PooledConv) else layer
        pool.to(device=parameter.device, dtype=dtype)
        layers[id(site.layer)] = layer.train(site.layer.training)
    changes = []
    for site in sites:
        layer = layers[id(site.layer)]
        network.set_submodule(site.name, layer)
        before = type(site.layer).__name__
        changes.append(Change(site.name, site.place, before, f"{options.kind} {site.geometry}"))
    return PoolingReport(tuple(changes), tuple(left))


def channels_at(network: nn.Module, sites: Iterable[Site], run: Callable[[], object]) -> dict[int, int]:
    """id of a site's layer -> the channels that its pooling will see."""
    seen: dict[int, int] = {}
    hooks = []
    for site in sites:

        def note(layer, inputs, output, site=site):
            channels = (output if site.pools_output else inputs[0]).shape[1]
            if seen.setdefault(id(layer), channels) != channels:
                raise UsageError(
                    f"{site.name} is one layer at several places that see {seen[id(layer)]} and {channels} channels; a "
                    "pooling with parameters per channel cannot stand there"
                )

        hooks.append(site.layer.register_forward_hook(note))
    try:
        with evaluating(network), torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """eval() for a while; each module's own mode comes back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def places(network: nn.Module) -> tuple[str, ...]:
    """The places that a network has."""
    has = {site.place for site in find_sites(network)[0]} | {"existing"}
    if isinstance(network, Staged) and network.pools_time:
        has.add("temporal")
    return tuple(place for place in ("existing", "downsample", "temporal", "head", "attention") if place in has)


def place_pooling(
    network: Staged, options: PoolConfig, name: str, clip: tuple[int, ...], step: int = 1
) -> PoolingReport:
    """Puts `options.kind` into each place of `options.where`, in place.

    Args:
        clip: (N, C, T, H, W) or (N, C, H, W) that the network can be run on, with the frames that it is made for.
        step: its frames come in multiples of it.

    Raises:
        UsageError: for a place that the network does not have, or a kind that has no form for it.
    """
    has = places(network)
    for place in options.where:
        if place not in has:
            raise UsageError(f"pool.where: {name} has no place {place!r} (it has {', '.join(has)})")
    sites, left = find_sites(network)
    where = set(options.where) | ({"head"} if "existing" in options.where else set())
    if KINDS[options.kind].windows_only and "head" not in options.where:
        where.discard("head")
    if options.kind == "conv":
        where.discard("downsample")  # strided convolutions, as the network was
    if "attention" in where:  # what goes there takes the stride along
        sites = [site for site in sites if not (site.place == "downsample" and site.name.endswith(_ATTENTION))]
        where.discard("attention" if options.kind == "conv" else "")
    sites = [site for site in sites if site.place in where]
    if options.paper_stem:
        sites = _with_paper_stem(network, sites, name)

    def run() -> None:
        network(torch.zeros(clip))

    report = swap(network, sites, options, left, run)
    if "temporal" in where:
        report = PoolingReport((*report.changes, *_pool_time(network, options, name, clip, step)), report.left)
    return report


def _with_paper_stem(network: Staged, sites: list[Site], name: str) -> list[Site]:
    stem = {id(m) for block in network.stages()["stem"] for m in block.modules()}
    changed, found = [], False
    for site in sites:
        w = site.geometry
        if id(site.layer) in stem and isinstance(w, Window) and site.place == "existing" and prod(w.stride) > 1:
            found = True
            site = replace(site, geometry=replace(strided(w.stride), after_max=w.after_max))
        changed.append(site)
    if not found:
        raise UsageError(f"pool.paper_stem: {name} has no pooling in its stem")
    return changed


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
                "pool.temporal: the stem is where the clip enters; name stages behind it (stage1 to stage4)"
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
    """Whether each temporal pooling sees two frames, and the network's own layers behind them find enough."""
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
