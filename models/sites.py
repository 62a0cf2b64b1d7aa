"""Finds the layers where pooling can go, and swaps them.

Names and shapes of the other parameters stay as they are, so weights fit a network with or without the swap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from softpool3d.config import PoolConfig
from softpool3d.errors import UsageError
from softpool3d.models.network import Staged, evaluating
from softpool3d.models.pools import (
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
    """What a swap of poolings changed, layer by layer, which layers it left alone and why, and a hint at what else."""

    changes: tuple[Change, ...]
    left: tuple[tuple[str, str], ...] = ()
    hint: str = ""

    def __len__(self) -> int:
        return len(self.changes)

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __str__(self) -> str:
        width = max((len(c.name) for c in self.changes), default=0)
        lines = [f"{len(self.changes)} layer{'' if len(self.changes) == 1 else 's'} replaced"]
        lines += [f"  {c.name:{width}}  {c.place}: {c.before} -> {c.after}" for c in self.changes]
        lines += [f"  {name} left as it is: {why}" for name, why in self.left]
        lines += [f"  {self.hint}"] if self.hint else []
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
    """Returns all sites of a network, and the layers that look like one and are none, with the reason."""
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
        if conv is not None and staged and network.attention_pools and name.endswith(ATTENTION):
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
            left.append((name, "it returns indices (return_indices=True), which no other pooling has"))
    return sites, left


ATTENTION = ("pool_q.pool", "pool_k.pool", "pool_v.pool")


def _window_of(conv: nn.Module) -> Window:
    return Window(*(per_dimension(v, 3) for v in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)))


def swap(
    network: nn.Module,
    sites: Iterable[Site],
    options: PoolConfig,
    left: Iterable[tuple[str, str]],
    run: Callable[[], object],
) -> PoolingReport:
    """Puts a pooling of `options.kind` into each of `sites`, or into none if one raises.

    Args:
        run: runs the network once, for kinds that need to know the channels of each layer.

    Raises:
        UsageError: for a kind that has no form for one of them; names the layer.
    """
    sites = list(sites)
    wanting = [site for site in sites if needs_channels(options.at(site.place))]
    channels = channels_at(network, wanting, run) if wanting else {}
    parameter = next(network.parameters(), torch.empty(0))
    layers: dict[int, nn.Module] = {}
    for site in sites:
        if id(site.layer) in layers:  # a layer that is at two places stays one layer
            continue
        if site in wanting and id(site.layer) not in channels:
            raise UsageError(f"{site.name}: the example input does not reach it, so its channels are not known")
        try:
            layer = site.replacement(options.at(site.place), channels.get(id(site.layer)))
        except UsageError as error:
            raise type(error)(f"{site.name}: {error}") from None
        dtype = parameter.dtype if parameter.is_floating_point() else None
        pool = layer.pool if isinstance(layer, _PooledConv) else layer
        pool.to(device=parameter.device, dtype=dtype)
        layers[id(site.layer)] = layer.train(site.layer.training)
    changes = []
    for site in sites:
        layer = layers[id(site.layer)]
        network.set_submodule(site.name, layer)
        before = type(site.layer).__name__
        changes.append(Change(site.name, site.place, before, f"{options.at(site.place).kind} {site.geometry}"))
    return PoolingReport(tuple(changes), tuple(left))


def channels_at(network: nn.Module, sites: Iterable[Site], run: Callable[[], object]) -> dict[int, int]:
    """Returns, by the id of each site's layer, the channels that its pooling will see."""
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
