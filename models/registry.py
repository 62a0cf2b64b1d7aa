"""The networks by name; `create` makes one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from softpool3d.config import Config, PoolConfig
from softpool3d.config_file import pool_config
from softpool3d.errors import SoftPool3dError, UsageError
from softpool3d.models import blocknet, image, mvit, r3d, s3d
from softpool3d.models.inflate import inflate as inflate_network
from softpool3d.models.network import Options, Staged
from softpool3d.models.pooling import place_pooling
from softpool3d.models.weights import WeightsReport, load_public, read_weights

PYTORCHVIDEO = "PyTorchVideo zoo"
SEED = "SoftPool's"  # of its own repository
_SLOWFAST, _TORCHVISION = "PySlowFast", "torchvision"


@dataclass(frozen=True)
class Spec:
    """A network of the registry.

    Attributes:
        frames, crop: the published input; `frames` is None for images.
        width: channels of the stem; other widths are multiples of `width_step`.
        least: the fewest frames and pixels that it takes; `frames_step`: frames come in multiples of it.
        millions, gflops: published parameters and multiply-adds, as their source rounds them; None where none are.
        weights: whose public weights it can load.
    """

    build: Callable[[Options], Staged]
    paper: str
    frames: int | None
    crop: int
    width: int = 64
    width_step: int = 1
    least: tuple[int, int] = (1, 16)
    frames_step: int = 1
    millions: float | None = None
    gflops: float | None = None
    weights: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        return self.frames is None

    def clip_shape(self, num_frames: int | None = None, crop_size: int | None = None, channels: int = 3) -> tuple:
        """Returns (1, C, T, H, W) of one clip, or (1, C, H, W) of one image; the published size if none is given."""
        crop = crop_size or self.crop
        time = () if self.is_image and num_frames is None else (num_frames or self.frames,)
        return (1, channels, *time, crop, crop)


_block = partial(Spec, width_step=1, least=(1, 32), weights=(PYTORCHVIDEO, _SLOWFAST))
_x3d = partial(Spec, paper="arXiv 2004.04730", width=24, width_step=8, least=(1, 32), weights=(PYTORCHVIDEO, _SLOWFAST))
_hara = partial(Spec, paper="arXiv 1711.09577", frames=16, crop=112, least=(1, 32), weights=("Hara",))
_tran = partial(Spec, paper="arXiv 1711.11248", frames=16, crop=112, weights=(_TORCHVISION,))
_image = partial(Spec, frames=None, crop=224, least=(1, 32), weights=(_TORCHVISION, SEED))
_he = partial(_image, paper="arXiv 1512.03385")
_dense = partial(_image, paper="arXiv 1608.06993")
_next = partial(_image, paper="arXiv 1611.05431")

SPECS: dict[str, Spec] = {
    "r3d_18": _tran(r3d.r3d_18, millions=33.37, gflops=40.70),
    "r3d_34": _hara(r3d.r3d_34),
    "r3d_50": _hara(r3d.r3d_50),
    "r3d_101": _hara(r3d.r3d_101),
    "mc3_18": _tran(r3d.mc3_18, millions=11.70, gflops=43.34),
    "r2plus1d_18": _tran(r3d.r2plus1d_18, millions=31.51, gflops=40.52),
    "s3d": Spec(
        s3d.S3D, "arXiv 1712.04851", 16, 224, least=(5, 17), millions=8.32, gflops=17.98, weights=(_TORCHVISION,)
    ),
    "x3d_xs": _x3d(blocknet.x3d_xs, frames=4, crop=160, millions=3.79, gflops=0.60),
    "x3d_s": _x3d(blocknet.x3d_s, frames=13, crop=160, millions=3.79, gflops=1.96),
    "x3d_m": _x3d(blocknet.x3d_m, frames=16, crop=224, millions=3.79, gflops=4.73),
    "x3d_l": _x3d(blocknet.x3d_l, frames=16, crop=312, millions=6.15, gflops=18.37),
    "slow_r50": _block(blocknet.slow_r50, "arXiv 1812.03982", 8, 256, millions=32.45, gflops=54.52),
    "c2d_r50": _block(blocknet.c2d_r50, "arXiv 1711.07971", 8, 256, least=(2, 32), millions=24.33, gflops=25.89),
    "i3d_r50": _block(blocknet.i3d_r50, "arXiv 1705.07750", 8, 256, least=(2, 32), millions=28.04, gflops=37.53),
    "slowfast_r50": _block(
        blocknet.slowfast_r50,
        "arXiv 1812.03982",
        32,
        256,
        width_step=8,
        least=(4, 32),
        frames_step=4,
        millions=34.57,
        gflops=65.71,
    ),
    "csn_r101": _block(
        blocknet.csn_r101, "arXiv 1904.02811", 32, 256, millions=22.21, gflops=75.62, weights=(PYTORCHVIDEO,)
    ),
    "r2plus1d_r50": _block(
        blocknet.r2plus1d_r50, "arXiv 1711.11248", 16, 256, millions=28.11, gflops=76.45, weights=(PYTORCHVIDEO,)
    ),
    "mvit_v2_s": Spec(
        mvit.MViT,
        "arXiv 2112.01526",
        16,
        224,
        width=96,
        least=(2, 32),
        millions=34.54,
        gflops=64.22,
        weights=(_TORCHVISION,),
    ),
    "resnet18": _he(image.resnet18, millions=11.69, gflops=1.81),
    "resnet34": _he(image.resnet34, millions=21.80, gflops=3.66),
    "resnet50": _he(image.resnet50, millions=25.56, gflops=4.09),
    "resnet101": _he(image.resnet101, millions=44.55, gflops=7.80),
    "resnet152": _he(image.resnet152, millions=60.19, gflops=11.51),
    "densenet121": _dense(image.densenet121, millions=7.98, gflops=2.83),
    "densenet161": _dense(image.densenet161, width=96, millions=28.68, gflops=7.73),
    "densenet169": _dense(image.densenet169, millions=14.15, gflops=3.36),
    "resnext50_32x4d": _next(image.resnext50_32x4d, width_step=16, millions=25.03, gflops=4.23),
    "resnext101_32x4d": _next(image.resnext101_32x4d, width_step=16, weights=(SEED,)),
    "resnext101_32x8d": _next(
        image.resnext101_32x8d, width_step=8, millions=88.79, gflops=16.41, weights=(_TORCHVISION,)
    ),
    "wide_resnet50_2": _image(image.wide_resnet50_2, paper="arXiv 1605.07146", millions=68.88, gflops=11.40),
}


def names() -> tuple[str, ...]:
    """Returns the names of the networks that `create` knows."""
    return tuple(SPECS)


def spec(name: str) -> Spec:
    """Returns the registry's entry of a network.

    Raises:
        UsageError: for an unknown name, with the nearest ones.
    """
    try:
        return SPECS[name]
    except KeyError:
        near = difflib.get_close_matches(name, SPECS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"name: unknown network {name!r}{hint} (known: {', '.join(SPECS)})") from None


def create(
    name: str,
    num_classes: int = 400,
    *,
    pool: str | PoolConfig | None = None,
    in_channels: int = 3,
    num_frames: int | None = None,
    crop_size: int | None = None,
    width: int | None = None,
    dropout: float = 0.0,
    head: str = "classifier",
    weights: str | Path | None = None,
    inflate: bool = False,
    checkpointing: bool = False,
    features_only: bool = False,
) -> Staged:
    """Makes a network by name, with random or public weights.

        model = create("slowfast_r50", num_classes=51, pool="soft")
        model = create("x3d_m", 101, pool=PoolConfig(kind="soft", where=["downsample"]), weights="X3D_M.pyth")
        print(model.pooling)           # what was swapped
        print(model.loaded_weights)    # what of the weights was loaded

    It takes float clips (N, C, T, H, W), and returns logits (N, num_classes). An image network takes images
    (N, C, H, W), or clips of one frame. With `pool` None it is the original library's own network: it has the same
    parameter names, and gives the same outputs for the same weights.

    Args:
        pool: a kind, which goes where the network pools already (`where: [existing]`); or a PoolConfig; or None.
        in_channels: channels of the clip: 3 for RGB, 2 for flow. Public weights are fitted, and the report says how.
        num_frames, crop_size: frames and pixels of the clips that it is made for; the published ones if not given.
        width: channels of the stem, which the others are proportional to; the published one if not given.
        dropout: the probability before the last layer.
        head: "classifier"; or "none", which returns the pooled features, (N, features), instead of logits.
        weights: a file, or a name; see softpool3d.models.weights.
        inflate: turns an image network into a video network by repeating its weights over time.
        checkpointing: in training, computes activations again in the backward instead of keeping them.
        features_only: forward returns five feature maps, of the stem and four stages, instead of logits.

    Raises:
        UsageError: for an unknown network, a place that it lacks, clips too small for it, or weights of another one.
    """
    entry = spec(name)
    if inflate and not entry.is_image:
        raise UsageError(f"inflate: {name} takes clips already; image networks are inflated ({', '.join(_images())})")
    if head not in ("classifier", "none"):
        raise UsageError(f"head: {head!r} is neither 'classifier' nor 'none'")
    published = 8 if inflate else entry.frames or 1
    frames, crop, channels = (
        default if given is None else given
        for given, default in ((num_frames, published), (crop_size, entry.crop), (width, entry.width))
    )
    options = Options(num_classes, in_channels, frames, crop, channels, dropout)
    _check(name, entry, options)
    network = entry.build(options)
    if inflate:
        network = inflate_network(network)
    if head == "none":
        network.set_submodule(network.logits_layer(), nn.Identity())
    if pool is not None:
        chosen = pool if isinstance(pool, PoolConfig) else pool_config(kind=pool)
        time = () if entry.is_image and not inflate else (frames,)
        clip = (1, in_channels, *time, entry.least[1], entry.least[1])
        network.pooling = place_pooling(network, chosen, name, clip, entry.frames_step)
    if weights is not None:
        network.loaded_weights = load_public(network, read_weights(weights, name), name)
    network.checkpointing, network.features_only = checkpointing, features_only
    return network


def load_pretrained(network: Staged, config: Config) -> WeightsReport:
    """Loads `config.model.weights` into a network of `build_model`.

    Raises:
        UsageError: naming the key of the configuration.
    """
    model = config.model
    try:
        return load_public(network, read_weights(model.weights, model.name), model.name)
    except SoftPool3dError as error:
        raise type(error)(f"model.{error}") from None


def check_clip(name: str, num_frames: int, crop_size: int) -> None:
    """Raises UsageError if clips are too small for the network, or have frames in other multiples than it takes."""
    entry = spec(name)
    least_frames, least_crop = entry.least
    if num_frames < least_frames:
        raise UsageError(f"num_frames: {name} needs {least_frames} frames at least, not {num_frames}")
    if num_frames % entry.frames_step:
        raise UsageError(f"num_frames: {name} takes frames in multiples of {entry.frames_step}, not {num_frames}")
    if crop_size < least_crop:
        raise UsageError(f"crop_size: {name} needs {least_crop} pixels at least, not {crop_size}")


def build_model(config: Config, num_classes: int) -> Staged:
    """Makes the network that `config.model` describes, for clips as `config.data` describes them, with random weights.

    Raises:
        UsageError: as `create`, naming the key of the configuration.
    """
    model, data = config.model, config.data
    try:
        if spec(model.name).is_image and not model.inflate and data.num_frames > 1:
            raise UsageError(
                f"num_frames: {model.name} takes pictures, which are clips of one frame, not {data.num_frames}; set "
                "data.num_frames=1, or model.inflate=true, with which it takes longer clips"
            )
        return create(
            model.name,
            num_classes,
            pool=model.pool,
            num_frames=data.num_frames,
            crop_size=data.crop_size,
            width=model.width,
            dropout=model.dropout,
            inflate=model.inflate,
            checkpointing=model.checkpointing,
        )
    except UsageError as error:
        section = "data" if str(error).startswith(("num_frames:", "crop_size:")) else "model"
        raise UsageError(f"{section}.{error}") from None


def _images() -> list[str]:
    return [name for name, entry in SPECS.items() if entry.is_image]


def _check(name: str, entry: Spec, options: Options) -> None:
    for argument in ("num_classes", "in_channels", "width"):
        value = getattr(options, argument)
        if value < 1:
            raise UsageError(f"{argument}: {value} is none; give 1 at least")
    if not 0 <= options.dropout < 1:
        raise UsageError(f"dropout: {options.dropout} is no probability from 0 to below 1")
    check_clip(name, options.num_frames, options.crop_size)
    if options.width % entry.width_step:
        raise UsageError(f"width: the channels of {name} come in multiples of {entry.width_step}, not {options.width}")
