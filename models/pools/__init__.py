"""The kinds of pooling, one file per family; `KINDS` is the registry, `make_pool` the factory.

geometry.py    windows and adaptive bins, read off any pooling layer
soft.py        soft             mixed.py  mixed         lip.py   lip
basic.py       avg, max, lp     blur.py   blur          ada.py   edscw, ada
stochastic.py  stochastic       conv.py   conv
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from softpool3d.config import PoolConfig
from softpool3d.errors import UsageError
from softpool3d.models.pools.ada import AdaPool, EdscwPool
from softpool3d.models.pools.basic import LpPool, avg_pool, max_pool
from softpool3d.models.pools.blur import BlurPool
from softpool3d.models.pools.conv import ConvPool
from softpool3d.models.pools.geometry import Bins, Geometry, Window, geometry_of, per_dimension, strided
from softpool3d.models.pools.lip import LipPool
from softpool3d.models.pools.mixed import MixedPool
from softpool3d.models.pools.soft import soft_pool
from softpool3d.models.pools.stochastic import StochasticPool

__all__ = [
    "KINDS",
    "Bins",
    "Geometry",
    "Kind",
    "Window",
    "geometry_of",
    "make_pool",
    "needs_channels",
    "per_dimension",
    "strided",
]


@dataclass(frozen=True)
class Kind:
    """A kind of pooling: what it does in one line, where it was published, what makes the layer."""

    line: str
    paper: str
    make: Callable[[Geometry, int | None, PoolConfig], nn.Module]
    learns: str = ""  # its parameters
    per_channel: bool = False  # needs to know how many channels there are
    windows_only: bool = False  # has no form for a global or adaptive pooling


KINDS: dict[str, Kind] = {
    "soft": Kind(
        "softmax-weighted sum; beta 0 is avg, large beta is max",
        "Stergiou et al., ICCV 2021, arXiv 2101.00440",
        lambda g, c, o: soft_pool(g, c, o.beta, o.beta_start),
        learns="beta per channel, with beta=learnable",
    ),
    "avg": Kind("mean", "LeCun et al., Proc. IEEE 1998", lambda g, c, o: avg_pool(g)),
    "max": Kind("maximum", "Ranzato et al., CVPR 2007", lambda g, c, o: max_pool(g)),
    "lp": Kind(
        "(mean |x|^p)^(1/p), p = model.pool.p", "Gulcehre et al., arXiv 1311.1780", lambda g, c, o: LpPool(g, o.p)
    ),
    "mixed": Kind(
        "a max + (1 - a) avg",
        "Lee et al., AISTATS 2016, arXiv 1509.08985",
        lambda g, c, o: MixedPool(g),
        learns="a per layer",
    ),
    "stochastic": Kind(
        "training: a position drawn by its activation; evaluation: the expectation",
        "Zeiler and Fergus, ICLR 2013, arXiv 1301.3557",
        lambda g, c, o: StochasticPool(g),
    ),
    "blur": Kind(
        "anti-aliased: (max at stride 1,) triangle filter, subsampling",
        "Zhang, ICML 2019, arXiv 1904.11486",
        lambda g, c, o: BlurPool(g),
        windows_only=True,
    ),
    "lip": Kind(
        "local importance: weights exp(G(x)) with a learned logit G",
        "Gao et al., ICCV 2019, arXiv 1908.04156",
        lambda g, c, o: LipPool(g, c),
        learns="a 1x1 convolution and norm",
        per_channel=True,
    ),
    "edscw": Kind(
        "weights exp of the Dice-Soerensen coefficient to the window's mean",
        "Stergiou and Poppe, IEEE TIP 2023, arXiv 2111.00772",
        lambda g, c, o: EdscwPool(g),
    ),
    "ada": Kind(
        "adaPool: b edscw + (1 - b) soft",
        "Stergiou and Poppe, IEEE TIP 2023, arXiv 2111.00772",
        lambda g, c, o: AdaPool(g, c),
        learns="b per channel",
        per_channel=True,
    ),
    "conv": Kind(
        "strided depthwise convolution; strided convolutions stay as the network has them",
        "Springenberg et al., ICLR 2015 workshop, arXiv 1412.6806",
        lambda g, c, o: ConvPool(g, c),
        learns="a kernel per channel",
        per_channel=True,
        windows_only=True,
    ),
}


def needs_channels(options: PoolConfig) -> bool:
    """Whether a pooling with these options has to know the number of channels."""
    return KINDS[options.kind].per_channel or (options.kind == "soft" and options.beta == "learnable")


class NoGlobalForm(UsageError):
    """A kind that slides over windows is asked for where a network pools all positions into one."""


def make_pool(options: PoolConfig, geometry: Geometry, channels: int | None = None) -> nn.Module:
    """Makes a pooling layer of kind `options.kind`: (N, C, *sizes) -> (N, C, *output sizes) of that geometry.

    Raises:
        UsageError: if the kind has no form for the geometry (`NoGlobalForm` for all of it), or `channels` is None and
            the kind needs it.
    """
    kind = KINDS[options.kind]
    whole = isinstance(geometry, Bins) or geometry.shrinks
    if kind.windows_only and whole:
        raise NoGlobalForm(f"{options.kind} slides over windows and has no global form")
    if channels is None and needs_channels(options):
        raise UsageError(f"{options.kind} has parameters for each channel; say how many channels there are")
    return kind.make(geometry, channels, options)
