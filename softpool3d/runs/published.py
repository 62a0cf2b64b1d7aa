"""Opens weights of any origin: those of a run describe themselves, those of others are recognised by their layers.

best.safetensors, runs/mine   of training: network, classes and preprocessing are in the file
motion                        the small network that ships with the package: eight synthetic motions
kinetics400                   the best of torchvision's for the 400 actions of Kinetics, fetched once (KINETICS)
r3d_18:kinetics400            torchvision's, fetched once; of pictures resnet50:imagenet1k, resnet50:imagenet1k_v1
X3D_M.pyth                    a file of torchvision, PyTorchVideo, PySlowFast or Hara, by the names of its layers
x3d_m:FILE                    the same, where its layers do not tell
resnet50_softpool:FILE        SoftPool's own, whose layers are those of torchvision's
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from softpool3d.config import Config
from softpool3d.config_file import load_config
from softpool3d.datasets.manifest import read_classes
from softpool3d.errors import UsageError
from softpool3d.file_kinds import is_pickled, is_safetensors, what_is
from softpool3d.models import build_model
from softpool3d.models.recognise import count_classes, recognise
from softpool3d.models.registry import SEED, SPECS, spec
from softpool3d.models.weights import (
    TORCHVISION,
    Preprocessing,
    Source,
    fit,
    preprocessing_of,
    read_file,
    read_weights,
    torchvision_weights,
)
from softpool3d.naming import spelled_out, weights_named
from softpool3d.runs.checkpoint import Weights, load_weights

# Frames of a clip, and frames a second, with which torchvision measured its video-level accuracies (5 clips, 1 crop).
_TORCHVISION = {
    "r3d_18": (16, 15.0),
    "mc3_18": (16, 15.0),
    "r2plus1d_18": (16, 15.0),
    "s3d": (128, 15.0),
    "mvit_v2_s": (16, 7.5),
}
# Networks without a recipe in configs/kinetics400: the nearest recipe, and the settings that differ from it in
# PySlowFast's configs/Kinetics/{X3D_L, pytorchvideo/C2D_8x8_R50, CSN_32x2_R101, R2PLUS1D_16x4_R50}.yaml.
_LIKE = {
    "x3d_l": (
        "x3d_m",
        "data.train_short_side=[356,446]",
        "data.short_side=356",
        "data.crop_size=312",
        "data.test_crop_size=356",
    ),
    "c2d_r50": ("i3d_r50",),
    "csn_r101": ("slow_r50", "data.num_frames=32", "data.sampling_rate=2"),
    "r2plus1d_r50": ("slow_r50", "data.num_frames=16", "data.sampling_rate=4"),
    "r3d_34": ("r3d_50",),
    "r3d_101": ("r3d_50",),
}
SOFTPOOL = "_softpool"  # ends the names of the recipes of SoftPool's own ImageNet networks
_OF_SOFTPOOL = {f"{name}{SOFTPOOL}" for name, entry in SPECS.items() if SEED in entry.weights}
# slow_r50 was published with the same layers for two kinds of clips; the name of the file tells which.
_SLOW = {"8x8": (), "4x16": ("data.num_frames=4", "data.sampling_rate=16")}
# Hara's files of 2018 (resnet-50-kinetics.pth) take pixels from 0 to 255 minus a mean; the recipe is that of 2020.
_HARA_2018 = (
    f"data.mean={[round(value / 255, 6) for value in (114.7748, 107.7354, 99.4750)]}",
    f"data.std={[round(1 / 255, 8)] * 3}",
)


def open_weights(weights: str | Path) -> Weights:
    """Returns the weights of a file, a run's folder, or a public name, as listed at the top of this file.

    Raises:
        UsageError: if there are none, they are damaged, or their network is not recognised, naming what to add.
        WorkError: if torchvision's weights cannot be fetched.
    """
    weights = spelled_out(weights)
    text, path = str(weights), Path(weights).expanduser()
    name, colon, rest = text.partition(":")
    if colon and not path.exists():
        file = Path(rest).expanduser()
        return _recognised(file, name) if file.is_file() else _fetched(text, name, rest)
    path = weights_named(path) or path
    return load_weights(path) if _is_ours(path) else _recognised(path, None)


def _is_ours(path: Path) -> bool:
    """Whether `load_weights` reads a file. It also reports one that is missing, or not what its name says."""
    if not path.is_file() or not is_safetensors(path):
        return not path.is_file() or path.suffix == ".safetensors" or not (is_pickled(path) or what_is(path))
    try:
        with safe_open(path, "pt") as file:
            return "softpool3d" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True


def _fetched(weights: str, name: str, trained_on: str) -> Weights:
    if not trained_on or torchvision_weights(name, trained_on) is None:
        pictures = ", ".join(name for name in TORCHVISION if SPECS[name].is_image)
        known = f"{', '.join(f'{name}:kinetics400' for name in _TORCHVISION)}; and with :imagenet1k {pictures}"
        raise UsageError(
            f"--weights {weights}: no file of that name, and no public weights either (there are: {known})"
        )
    source = read_weights(weights, name)
    config = _settings_of_torchvision(name, source.preprocessing)
    with torch.device("meta"):
        network = build_model(config, len(source.classes))
    state, _ = fit(network, source, name)
    return Weights(state, config, source.classes, weights, figures=source.figures)


# --- files that do not describe themselves ----------------------------------------------------------------------------


def _recognised(path: Path, name: str | None) -> Weights:
    """Returns the weights of a file that does not describe itself; `name` is the network if the user gave it."""
    source = read_file(path)
    name, how = _network_of(source, path) if name is None else (name, "as it was named")
    recipe, name = name, name.removesuffix(SOFTPOOL) if name in _OF_SOFTPOOL else name
    outputs = count_classes(name, source)
    if recipe != name:
        config, clips = _settings_of_softpool(recipe)
    else:
        config, clips = settings_of(name, source.layout, path, how, outputs, source.preprocessing)
    with torch.device("meta"):
        network = build_model(config, max(outputs, 1))
    state, report = fit(network, source, name)
    if report.missing:
        raise UsageError(
            f"{path} leaves {report.missing[0]} of {name} without a value, and a network that is not trained cannot be "
            "used; training can start from it (model.weights=FILE)"
        )
    classes, named, told = _classes(source, path, outputs, spec(name).is_image)
    data = config.data
    of = "pictures" if data.of_pictures else f"clips of {data.num_frames} frames"
    seen = (
        f"  taken for {recipe}, {how}\n"
        f"  {of}, {clips}; short side {data.short_side}, crop "
        f"{data.tested_crop}, mean {data.mean}, std {data.std}\n"
        f"  classes: {told}"
    )
    return Weights(state, config, classes, str(path), named, f"{report}\n{seen}", source.figures)


def _network_of(source: Source, path: Path) -> tuple[str, str]:
    """Returns the network's name, and words for how it was recognised."""
    names, nearest = recognise(source)
    if len(names) == 1:
        return names[0], "by its layers"
    if not names:
        raise UsageError(
            f"{path}: its layers are those of no network here{f'; {nearest}' if nearest else ''} (there are: "
            f"{', '.join(SPECS)})"
        )
    pattern = "|".join(name.replace("_", "[_-]?") for name in names)
    in_name = {found.lower() for found in re.findall(rf"(?i)(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", path.stem)}
    if len(in_name) == 1:
        said = re.sub(r"[^a-z0-9]", "", in_name.pop())
        return next(n for n in names if n.replace("_", "") == said), "by its layers and the name of the file"
    raise UsageError(
        f"{path}: {', '.join(names)} have the same layers, and differ in the clips that they were trained on; say "
        f"which one it is, as in --weights {names[0]}:{path}"
    )


def settings_of(
    name: str, layout: str, path: Path, how: str, outputs: int, wanted: Preprocessing | None = None
) -> tuple[Config, str]:
    """Returns the configuration that the weights were published with, and words for its frames and its source.

    Args:
        wanted: their preprocessing, where the file tells it.
    """
    if spec(name).is_image:
        words = (
            "as torchvision measured them" if wanted else "as torchvision measured its first weights of such networks"
        )
        return _settings_of_torchvision(name, wanted or preprocessing_of(torchvision_weights("resnet18"))), words
    if name in _TORCHVISION:
        config = _settings_of_torchvision(name, wanted or preprocessing_of(torchvision_weights(name)))
        return config, f"{config.data.target_fps:g} a second, as torchvision measured them"
    recipe, *changes = _LIKE.get(name, (name,))
    where = f"as in configs/kinetics400/{recipe}.yaml"
    if name == "slow_r50":
        kinds = [kind for kind in _SLOW if re.search(rf"(?<!\d){kind}(?!\d)", path.stem)]
        if len(kinds) == 1:
            changes, where = _SLOW[kinds[0]], f"{kinds[0]} by the name of the file"
        elif how == "by its layers":
            raise UsageError(
                f"{path}: slow_r50 was published for clips of 8 frames, every 8th, and of 4, every 16th, with the same "
                "layers; put 8x8 or 4x16 into the file's name, or take it for the first kind: "
                f"--weights slow_r50:{path}"
            )
    if layout == "hara" and outputs == 400:
        old = re.match(r"resnet-\d+", path.stem) is not None
        changes = [*changes, *_HARA_2018] if old else changes
        where += (
            ", mean and std those of Hara's files of 2018, by the name of this one"
            if old
            else "; if it is one of Hara's of 2018, whose pixels are scaled otherwise, give it its name back "
            "(resnet-50-kinetics.pth)"
        )
    # the recipe is for training in bf16; published numbers are the network's own, in fp32
    fixed = [f"name={name}", f"model.name={name}", "train.precision=fp32"]
    config = load_config(f"kinetics400/{recipe}", [*fixed, *changes])
    rate = config.data.sampling_rate
    return config, f"{'each' if rate == 1 else f'one in {rate}'}, {where}"


def _settings_of_softpool(recipe: str) -> tuple[Config, str]:
    """Returns the configuration that SoftPool's own weights are tested with."""
    fixed = [f"name={recipe}", "train.precision=fp32"]
    return load_config(f"imagenet/{recipe}", fixed), f"as in configs/imagenet/{recipe}.yaml"


def _settings_of_torchvision(name: str, wanted: Preprocessing) -> Config:
    num_frames, fps = _TORCHVISION.get(name, (1, None))
    data: dict[str, Any] = {
        "dataset": "pictures" if spec(name).is_image else "kinetics400",
        "num_frames": num_frames,
        "sampling_rate": 1,
        "target_fps": fps,
        "mean": list(wanted.mean),
        "std": list(wanted.std),
        "train_short_side": [wanted.short_side, wanted.short_side],
        "short_side": wanted.short_side,
        "crop_size": wanted.crop_size,
        "test_spacing": "centres" if spec(name).is_image else "ends",  # as torchvision's UniformClipSampler
    }
    model = {"name": name, "pool": {"where": []}}
    views = {"num_clips": 1 if spec(name).is_image else 5}
    return Config.model_validate({"name": name, "model": model, "data": data, "test": views})


def _classes(source: Source, path: Path, outputs: int, of_pictures: bool) -> tuple[tuple[str, ...], bool, str]:
    """Returns the classes, whether they have names (else numbers), and words for where they come from."""
    beside = path.with_name("classes.txt")
    listed = read_classes(beside) or ()
    if listed and len(listed) == outputs:
        return listed, True, f"{outputs}, named by {beside}"
    other = f" ({beside} has {len(listed)})" if listed else ""
    if len(source.classes) == outputs:
        return source.classes, True, f"{outputs}, torchvision's, by the name of the file{other}"
    if of_pictures and outputs == 1000:
        names = tuple(torchvision_weights("resnet18").meta["categories"])
        return names, True, f"{outputs}, taken for ImageNet-1K's, in torchvision's order{other}"
    if outputs == 400 and not of_pictures:
        names = tuple(torchvision_weights("r3d_18").meta["categories"])
        return names, True, f"taken for Kinetics-400's, in the order of the alphabet{other}"
    numbers = tuple(map(str, range(outputs)))
    wanted = f"a classes.txt with {outputs} lines beside the file would name them"
    return numbers, False, f"{outputs} without names{other}: 0 to {outputs - 1}; {wanted}"
