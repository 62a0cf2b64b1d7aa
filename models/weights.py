"""Loads weights that others published into a network, and reports what was loaded.

checkpoints.py reads the files, without running pickled code. layouts.py has the layouts that they may have, and turns
their names into ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softpool3d.errors import UsageError
from softpool3d.models.checkpoints import read_state
from softpool3d.models.inflate import inflate_weight
from softpool3d.models.layouts import State, fold_shortcut_norm, from_torchvision, layout_of
from softpool3d.models.network import Staged
from softpool3d.models.public import fetch
from softpool3d.naming import no_weights, spelled_out, weights_named


@dataclass(frozen=True)
class Preprocessing:
    """What the published weights expect of a clip whose values lie in [0, 1]; sizes in pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int
    crop_size: int


@dataclass(frozen=True)
class Figures:
    """The accuracy that was published for weights. top1: in percent; source: whose it is, and how it was measured."""

    dataset: str
    top1: float
    source: str


@dataclass
class Source:
    """Weights as they were read: names are ours, shapes are the file's."""

    state: State
    origin: str  # the file or the name, for messages
    layout: str
    adapted: tuple[tuple[str, str], ...] = ()  # (name, how) of what the translation changed
    notes: tuple[str, ...] = ()  # how the network was found: prefixes, an average of weights
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    figures: Figures | None = None


@dataclass(frozen=True)
class WeightsReport:
    """What became of a file's weights.

    Attributes:
        loaded: how many tensors were loaded.
        left_out: tensors of the file that were not, and why: as the classifier if the number of classes differs.
        missing: tensors of the network that keep their initial values: such a classifier, parameters of poolings.
        adapted: tensors whose size was fitted, and how.
        notes: how the network was found in the file: prefixes that were taken off, an average of weights.
        classes, preprocessing, figures: those of the weights, if their library or run tells them.
    """

    origin: str
    layout: str
    loaded: int
    left_out: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    adapted: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    figures: Figures | None = None

    def __str__(self) -> str:
        lines = [f"{self.origin} ({self.layout}): {self.loaded} tensors loaded"]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  left out: {name} ({why})" for name, why in self.left_out]
        lines += [f"  not in the file, starts anew: {name}" for name in self.missing]
        lines += [f"  adapted: {name} ({how})" for name, how in self.adapted]
        if self.preprocessing:
            p = self.preprocessing
            lines.append(
                f"  trained with data.mean={list(p.mean)} data.std={list(p.std)} data.short_side={p.short_side} "
                f"data.crop_size={p.crop_size}"
            )
        return "\n".join(lines)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_weights(source: str | Path, name: str) -> Source:
    """Reads weights for the network `name`: from a file of any layout, a run's folder, or by a public name.

    Raises:
        UsageError: if there is no such file or name, or it holds no weights.
        WorkError: if torchvision could not fetch its file.
    """
    source = spelled_out(source)
    if (file := weights_named(source)) is not None:
        return read_file(file)
    theirs, _, kind = str(source).partition(":")
    published = torchvision_weights(theirs, kind)
    if published is None:
        public = ", ".join(sorted(TORCHVISION))
        raise UsageError(f"weights: {no_weights(source)}, and no public weights of that name (there are: {public})")
    if theirs != name:
        own = f"{name}:{kind}" if kind else name
        instead = f", or model.weights={own}" if torchvision_weights(name, kind) is not None else ""
        raise UsageError(
            f"weights: {source} are the weights of another network; {name} cannot take them: set "
            f"model.name={theirs}{instead}"
        )
    return Source(from_torchvision(fetch(published)), str(source), "torchvision", **_meta(published))


def read_file(path: Path) -> Source:
    """Reads the weights of a file, whatever network they are of, under our names.

    Raises:
        UsageError: if it holds no weights, or those of several networks.
    """
    found = read_state(path)
    if "softpool3d" in found.metadata:
        return Source(found.state, str(path), "softpool3d", **_of_a_run(found.metadata))
    layout, translate = layout_of(found.state)
    state = translate(found.state)
    adapted = fold_shortcut_norm(state) if layout == "pyslowfast" else ()
    return Source(state, str(path), layout, adapted, tuple(found.notes), **_torchvision_file(path.name))


def _of_a_run(metadata: dict[str, str]) -> dict[str, Any]:
    """Returns the classes and preprocessing that our training writes into weights files; {} for files of others."""
    try:
        data, classes = json.loads(metadata["config"])["data"], tuple(json.loads(metadata["classes"]))
        preprocessing = Preprocessing(tuple(data["mean"]), tuple(data["std"]), data["short_side"], data["crop_size"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {"classes": classes, "preprocessing": preprocessing}


# --- torchvision's own ------------------------------------------------------------------------------------------------

TORCHVISION = (
    *("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet161", "densenet169", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"),
)


def torchvision_weights(name: str, kind: str = "") -> Any | None:
    """Returns torchvision's weights of a network, by its name; None if it has none.

    Args:
        kind: which of them, as torchvision calls them, in any case: imagenet1k_v1; without the number, or if it is "",
            the ones that torchvision recommends.
    """
    if name not in TORCHVISION:
        return None
    from torchvision.models import get_model_weights

    there = {weights.name.lower(): weights for weights in get_model_weights(name)}
    default = get_model_weights(name).DEFAULT
    known = there | {"": default, default.name.lower().rpartition("_")[0]: default}
    return known.get(kind.lower())


def _torchvision_file(name: str) -> dict[str, Any]:
    """Returns classes and preprocessing of a file that is named as torchvision's own, such as r3d_18-b3b3357e.pth."""
    from torchvision.models import get_model_weights

    published = (weights for network in TORCHVISION for weights in get_model_weights(network))
    return next((_meta(weights) for weights in published if weights.url.endswith(f"/{name}")), {})


def preprocessing_of(published: Any) -> Preprocessing:
    """Returns the preprocessing that torchvision's own weights expect."""
    transforms = published.transforms()
    (crop, *_), (side, *_) = transforms.crop_size, transforms.resize_size
    return Preprocessing(tuple(transforms.mean), tuple(transforms.std), side, crop)


def _meta(published: Any) -> dict[str, Any]:
    wanted = preprocessing_of(published)
    [(dataset, accuracies)] = published.meta["_metrics"].items()
    how = f"torchvision's {published.name}, short side {wanted.short_side}, crop {wanted.crop_size}"
    figures = Figures(
        dataset, accuracies["acc@1"], how if dataset.startswith("ImageNet") else f"{how}, 5 clips of each"
    )
    return {"classes": tuple(published.meta["categories"]), "preprocessing": wanted, "figures": figures}


# --- into a network --------------------------------------------------------------------------------------------------


def load_public(network: Staged, source: Source, name: str) -> WeightsReport:
    """Loads weights into a network: all of its body, and its classifier where that has the same size.

    Raises:
        UsageError: if a layer of the body is missing or has another shape; names the layer and both shapes.
    """
    state, report = fit(network, source, name)
    network.load_state_dict(state, strict=False)
    return report


def fit(network: Staged, source: Source, name: str) -> tuple[State, WeightsReport]:
    """Returns what `load_public` loads, and its report. The network may be without values, on the device `meta`."""
    own, path = network.state_dict(), network.logits_layer()
    logits = (f"{path}.weight", f"{path}.bias")
    theirs, wrapped, left_out = _plain_head(source.state, own, path)
    pooling = {f"{path}." for path, module in network.named_modules() if _belongs_to_pooling(path, module)}
    state, missing, adapted = {}, [], [*source.adapted, *wrapped]
    for key, wanted in own.items():
        tensor = theirs.get(key)
        if tensor is None:
            if key.endswith(".num_batches_tracked"):  # files of before PyTorch 0.4.1 have none
                state[key] = torch.zeros_like(wanted, device="cpu")
                continue
            if not key.startswith(tuple(pooling)) and key not in logits:
                raise UsageError(_another(source, name, f"it lacks {key} {tuple(wanted.shape)}"))
            missing.append(key)
            continue
        if tensor.shape != wanted.shape:
            tensor, how = _fit(key, tensor, wanted)
            if tensor is None and key in logits:
                shapes = f"{tuple(theirs[key].shape)} there, {tuple(wanted.shape)} here"
                left_out.append((key, f"head of another size: {shapes}"))
                missing.append(key)
                continue
            if tensor is None:
                there = tuple(theirs[key].shape)
                raise UsageError(_another(source, name, f"{key} is {there} there and {tuple(wanted.shape)} here"))
            adapted.append((key, how))
        state[key] = tensor
    attention = [key for key in theirs if key not in own and _of_replaced_attention(network, key)]
    left_out += [(key, "a pooling without weights stands there") for key in attention]
    left_out += [(key, "no such classifier here") for key in theirs if key in logits and key not in own]
    known = {*own, *attention, *logits}
    extra = next((key for key in theirs if key not in known), None)
    if extra is not None:
        raise UsageError(_another(source, name, f"it has {extra}, which {name} lacks"))
    told = (source.notes, source.classes, source.preprocessing, source.figures)
    report = WeightsReport(
        source.origin, source.layout, len(state), tuple(left_out), tuple(missing), tuple(adapted), *told
    )
    return state, report


def classifier_of(theirs: State, network: Staged) -> Tensor | None:
    """Returns the weight of the classifier that `fit` would load, with an output for each class; or None."""
    path = network.logits_layer()
    return _plain_head(theirs, network.state_dict(), path)[0].get(f"{path}.weight")


def _plain_head(
    theirs: State, own: Mapping[str, Tensor], path: str
) -> tuple[State, list[tuple[str, str]], list[tuple[str, str]]]:
    """Returns a state dict whose classifier has our name, what was renamed, and what was left out.

    Users of torchvision's networks put nn.Sequential(Dropout, Linear) in the classifier's place: fc.1.weight for our
    fc.weight. Or they put a single layer in the place of such a sequence: head.weight for our head.1.weight. A head of
    several layers is another one, and is left out.
    """
    root = re.sub(r"\.\d+$", "", path)
    head = [key for key in theirs if re.fullmatch(rf"{re.escape(root)}(\.\d+)*\.(weight|bias)", key) and key not in own]
    if not head or f"{path}.weight" in theirs:
        return theirs, [], []
    layers = sorted({key.rpartition(".")[0] for key in head})
    if len(layers) > 1:
        several = f"a head of several layers, {', '.join(layers)}; here it is {path}"
        return {k: t for k, t in theirs.items() if k not in head}, [], [(key, several) for key in head]
    renamed = {key: f"{path}.{key.rpartition('.')[2]}" for key in head}
    adapted = [(new, f"it is {key} in the file") for key, new in renamed.items()]
    return {renamed.get(key, key): tensor for key, tensor in theirs.items()}, adapted, []


def _another(source: Source, name: str, why: str) -> str:
    return f"weights: {source.origin} holds another network than {name}: {why}"


def _belongs_to_pooling(path: str, module: nn.Module) -> bool:
    from softpool3d.models.pools import geometry_of

    return path.startswith("temporal.") or geometry_of(module) is not None


def _of_replaced_attention(network: Staged, key: str) -> bool:
    path = key.rpartition(".")[0]
    return network.attention_pools and path.endswith(("pool_q.pool", "pool_k.pool", "pool_v.pool"))


def _fit(key: str, tensor: Tensor, wanted: Tensor) -> tuple[Tensor | None, str]:
    """Returns the tensor in the wanted shape, and how it was fitted; (None, "") if there is no established way."""
    shape = tuple(wanted.shape)
    if ".rel_pos_" in key and tensor.dim() == 2 and tensor.shape[1] == shape[1]:
        fitted = F.interpolate(tensor.t()[None], size=shape[0], mode="linear")[0].t()
        return fitted, f"relative positions interpolated from {tensor.shape[0]} to {shape[0]}"
    how = []
    if tensor.dim() == 4 and len(shape) == 5 and tensor.shape[2:] == shape[3:]:
        tensor = inflate_weight(tensor, shape[2])
        how.append(f"inflated to {shape[2]} frames")
    # grey, flow or RGB: no other convolution has so few input channels and another size of the same layer
    first = tensor.dim() >= 4 and tensor.shape[1] <= 3
    if first and tensor.shape[0] == shape[0] and tensor.shape[1] != shape[1] and tensor.shape[2:] == shape[2:]:
        had, count = tensor.shape[1], shape[1]
        if count == 1:
            tensor = tensor.sum(1, keepdim=True)
            how.append(f"{had} input channels summed into one, as for a grey picture")
        else:
            tensor = tensor.repeat(1, -(-count // had), *[1] * (tensor.dim() - 2))[:, :count] * (had / count)
            how.append(f"{had} input channels repeated to {count}, scaled by {had}/{count}")
    return (tensor, ", ".join(how)) if tuple(tensor.shape) == shape else (None, "")
