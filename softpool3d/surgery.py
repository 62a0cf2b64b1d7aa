"""`replace_pooling`: puts another pooling into any network, and keeps its weights and their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from softpool3d.config_file import pool_config
from softpool3d.errors import UsageError

if TYPE_CHECKING:
    from softpool3d.models.sites import PoolingReport, Site


def replace_pooling(
    module: nn.Module,
    kind: str = "soft",
    *,
    where: str | Sequence[str] = "existing",
    types: type[nn.Module] | tuple[type[nn.Module], ...] | None = None,
    names: str | Sequence[str] | None = None,
    beta: float | str = 1.0,
    p: float = 2.0,
    example: Tensor | Sequence[Tensor] | None = None,
) -> PoolingReport:
    """Replaces pooling layers of `module` in place; its parameters keep their names and values.

        report = replace_pooling(torchvision.models.resnet50(), kind="soft")
        replace_pooling(network, "soft", where="downsample", names="layer[34].*", beta="learnable", example=image)
        print(report)

    Args:
        module: any network of one- to three-dimensional layers. Only layers that are modules can be found; a pooling
            that its forward calls as a function (F.max_pool2d) cannot.
        kind: a kind of pooling, as `softpool3d models --pools` lists them.
        where: "existing" (pooling layers, adaptive ones and heads included; kernel, stride, padding, dilation and
            ceil_mode are kept), "downsample" (strided convolutions get stride 1 and a pooling takes over the stride),
            "head" (global pooling), or several of them.
        types: only layers of these classes.
        names: only layers whose dotted name matches one of these patterns (as file names do: "layer4.*").
        beta: of the kind "soft": a number, or "learnable" for one per channel.
        p: the exponent of the kind "lp".
        example: an input (or the inputs) of the network, for kinds that have parameters per channel. Without it the
            channels are those that show for a picture or clip of 224x224 with the channels of the first convolution.

    Returns:
        A report of what was changed, layer by layer, to be printed.

    Raises:
        UsageError: if nothing matches, or an argument is wrong. The network is then as it was.
    """
    from softpool3d.models.pools import NoGlobalForm
    from softpool3d.models.sites import find_sites, swap

    places = [where] if isinstance(where, str) else list(where)
    known = ("existing", "downsample", "head")
    if unknown := [place for place in places if place not in known]:
        raise UsageError(f"where: {unknown[0]!r} is no place of any network (these are: {', '.join(known)})")
    if not places:
        raise UsageError(f"where names no place (these are: {', '.join(known)})")
    options = pool_config(kind=kind, beta=beta, p=p)
    for argument, value, default, of in (("beta", beta, 1.0, "soft"), ("p", p, 2.0, "lp")):
        if value != default and kind != of:
            raise UsageError(f"{argument}={value!r} is of kind={of!r}, and has no effect on {kind!r}")
    patterns = ["*"] if names is None else [names] if isinstance(names, str) else list(names)
    sites, left = find_sites(module)
    wanted = set(places) | ({"head"} if "existing" in places else set())
    named = [
        site
        for site in sites
        if (types is None or isinstance(site.layer, types))
        and any(fnmatch.fnmatchcase(site.name, pattern) for pattern in patterns)
    ]
    chosen = [site for site in named if site.place in wanted]
    if any(site.name == "" for site in chosen):
        raise UsageError(
            f"the module is itself a {type(module).__name__}; give the network that holds it, or make the new layer"
        )
    if not chosen:
        raise UsageError(_nothing(module, sites, left, places, types, names))

    def run() -> None:
        if example is None:
            _imagine(module, options.kind)
        else:
            module(*([example] if isinstance(example, Tensor) else example))

    try:
        report = swap(module, chosen, options, left, run)
    except NoGlobalForm as error:
        raise UsageError(f"{error}; leave that layer out with names or types, or take another kind") from None
    return replace(report, hint=_hint(named, places))


def _hint(sites: list[Site], places: list[str]) -> str:
    """Returns a sentence about strided convolutions that pooling could take over, where nobody asked for it."""
    strided = sum(site.place == "downsample" for site in sites)
    if "downsample" in places or not strided:
        return ""
    return f'strided convolutions left as they are: {strided}; where=["existing", "downsample"] pools there too'


def _imagine(module: nn.Module, kind: str) -> None:
    """Runs the network on an input that has a shape only, which costs no memory and no arithmetic."""
    first = next((m for m in module.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    try:
        if first is None:
            raise ValueError("it has no convolution")
        with FakeTensorMode(allow_non_fake_inputs=True):
            module(torch.empty(1, first.in_channels, *(32, 224, 224)[-len(first.kernel_size) :]).to(first.weight))
    except UsageError:
        raise
    except Exception as error:  # whatever a network raises that takes another input
        raise UsageError(
            f"{kind} has parameters for each channel, and how many a layer sees did not show by itself "
            f"({type(error).__name__}); give an `example` input of {type(module).__name__}"
        ) from error


def _nothing(module: nn.Module, sites: list[Site], left: list[tuple[str, str]], places: list[str], types, names) -> str:
    filters = [f"where={'+'.join(places)}"]
    filters += [f"types={types}"] if types is not None else []
    filters += [f"names={names!r}"] if names is not None else []
    have = [f"{site.name} ({site.place})" for site in sites]
    more = f", ... ({len(have)} in all)" if len(have) > 5 else ""
    found = f"it has {', '.join(have[:5])}{more}" if have else "no layer of it pools or has a stride"
    found += "".join(f"; {name} is left as it is: {why}" for name, why in left)
    return (
        f"nothing to change in {type(module).__name__} with {', '.join(filters)}: {found}. Pooling that a "
        "forward calls as a function (F.max_pool2d) cannot be replaced; make it a layer first"
    )
