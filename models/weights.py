"""Weights that others published: their files read, their names translated, and a report of what was loaded.

    layout         files                                       networks
    torchvision    by name (`model.weights=r3d_18`) or a .pth  r3d_18, mc3_18, r2plus1d_18, s3d, mvit_v2_s, images
                   SoftPool's own ImageNet checkpoints         images
    pytorchvideo   X3D_M.pyth, SLOWFAST_8x8_R50.pyth, ...      those of blocknet.py
    pyslowfast     checkpoints of PySlowFast                   X3D, SlowFast, Slow, C2D, I3D
    hara           r3d50_K_200ep.pth and its kind              r3d_34, r3d_50, r3d_101
    softpool3d     best.safetensors of a run                   all

Each layout is one function below, from its names to ours. Files are read without running pickled code.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from softpool3d.errors import UsageError, WorkError
from softpool3d.models.inflate import inflate_weight
from softpool3d.models.network import Staged

State = dict[str, Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """What the published weights expect of a clip whose values lie in [0, 1]; sizes in pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int
    crop_size: int


@dataclass
class Source:
    """Weights as they were read: names are ours, shapes are the file's."""

    state: State
    origin: str  # the file or the name, for messages
    layout: str
    adapted: tuple[tuple[str, str], ...] = ()  # (name, how) of what the translation changed
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class WeightsReport:
    """What became of a file's weights.

    Attributes:
        loaded: how many tensors were loaded.
        left_out: tensors of the file that were not, and why: the classifier where the number of classes differs.
        missing: tensors of the network that keep their initial values: such a classifier, parameters of poolings.
        adapted: tensors whose size was fitted, and how.
        classes, preprocessing: of the weights, where the file's library tells them.
    """

    origin: str
    layout: str
    loaded: int
    left_out: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    adapted: tuple[tuple[str, str], ...] = ()
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None

    def __str__(self) -> str:
        lines = [f"{self.origin} ({self.layout}): {self.loaded} tensors loaded"]
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
    """Weights for the network `name`: a file of any layout above, or the name of torchvision's.

    Raises:
        UsageError: there is no such file or name, or it holds no weights.
        WorkError: torchvision could not fetch its file.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read_file(path)
    published = torchvision_weights(str(source))
    if published is None:
        public = ", ".join(sorted(TORCHVISION))
        raise UsageError(f"weights: no weights file {source}, and no public weights of that name (there are: {public})")
    if str(source) != name:
        raise UsageError(f"weights: {source} are the weights of another network; {name} cannot take them")
    try:
        state = published.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise WorkError(f"weights: cannot fetch {published.url} ({error}); give a file instead") from None
    return Source(from_torchvision(state), str(source), "torchvision", **_meta(published))


def _read_file(path: Path) -> Source:
    if path.suffix == ".safetensors":
        return Source(*_read_safetensors(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"weights: {path} holds Python objects beside tensors, and those are not run ({_first_line(error)}); save "
            "its state_dict alone with torch.save"
        ) from None
    except Exception as error:  # damaged bytes surface as any of a dozen types
        raise UsageError(f"weights: {path} is no file of torch.save, or it is damaged ({_first_line(error)})") from None
    state = _find_state(content)
    if state is None:
        names = ", ".join(map(str, list(content)[:4])) if isinstance(content, Mapping) else ""
        what = f"a dict of {names}" if names else f"a {type(content).__name__}"
        raise UsageError(f"weights: {path} is no state dict of a network: it holds {what}")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    layout, translate = layout_of(state)
    state = translate(state)
    return Source(state, str(path), layout, fold_shortcut_norm(state) if layout == "pyslowfast" else ())


def _read_safetensors(path: Path) -> tuple[State, str, str]:
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"weights: {path} is not a safetensors file, or it is damaged ({error})") from None
    return state, str(path), "softpool3d"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _find_state(content: Any) -> State | None:
    """The dict of tensors in a checkpoint, itself or under one of the usual keys."""
    if not isinstance(content, Mapping):
        return None
    for key in ("model_state", "state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return tensors if tensors and len(tensors) == len(content) else None


# --- layouts: each from its names to ours ----------------------------------------------------------------------------


def from_torchvision(state: State) -> State:
    """Names are ours, but for DenseNets' of before 2018: norm.1 for norm1, and so on (torchvision renames them too)."""
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", name): t for name, t in state.items()}


def from_pytorchvideo(state: State) -> State:
    """Names are ours."""
    return state


def from_hara(state: State) -> State:
    """conv1, bn1 -> stem.0, stem.1; layerL.B.convK, bnK -> layerL.B.convK.0, .1."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^conv1\.", "stem.0.", name)
        name = re.sub(r"^bn1\.", "stem.1.", name)
        name = re.sub(r"^(layer\d\.\d+)\.conv(\d)\.", r"\1.conv\2.0.", name)
        renamed[re.sub(r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.1.", name)] = tensor
    return renamed


def from_pyslowfast(state: State) -> State:
    """s1.pathway0_stem, s2.pathway1_res0.branch2.a, head.projection -> pytorchvideo's blocks.

    A network of one pathway has no pathway in pytorchvideo's names; X3D's stem and head have names of their own.
    """
    pathways = 2 if any(".pathway1_" in name for name in state) else 1
    is_x3d = any(name.startswith("head.conv_5.") for name in state)
    # pytorchvideo counts a pooling between stages as a block (C2D, I3D); PySlowFast has it outside of its stages
    has_pool = pathways == 1 and not is_x3d and _pools_after_stage1(state)
    return {_pyslowfast_name(name, pathways, is_x3d, has_pool): tensor for name, tensor in state.items()}


def fold_shortcut_norm(state: State) -> tuple[tuple[str, str], ...]:
    """PySlowFast's X3D normalises the first stage's shortcut, pytorchvideo's does not: folds that norm away, in place.

    Its scale goes into the shortcut's convolution, its shift into the bias of the norm at the other branch's end, which
    is added to it: in evaluation the network is the same.
    """
    block = "blocks.1.res_blocks.0"
    names = {key: f"{block}.branch1_norm.{key}" for key in ("weight", "bias", "running_mean", "running_var")}
    end = f"{block}.branch2.norm_c.bias"
    if "blocks.5.pool.pre_conv.weight" not in state or not {*names.values(), end} <= state.keys():
        return ()
    norm = {key: state.pop(name) for key, name in names.items()}
    state.pop(f"{block}.branch1_norm.num_batches_tracked", None)
    scale = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
    state[f"{block}.branch1_conv.weight"] = state[f"{block}.branch1_conv.weight"] * scale.view(-1, 1, 1, 1, 1)
    state[end] = state[end] + norm["bias"] - norm["running_mean"] * scale
    return ((f"{block}.branch1_conv.weight", "the norm that PySlowFast has behind it folded in"),)


def _pools_after_stage1(state: State) -> bool:
    """C2D and I3D: no temporal kernel anywhere, or one already in the first stage; Slow: from the third stage on."""
    weights = [state.get(f"s{stage}.pathway0_res0.branch2.a.weight") for stage in (2, 4)]
    return [w.shape[2] for w in weights if w is not None] in ([1, 1], [3, 3])


def _pyslowfast_name(name: str, pathways: int, is_x3d: bool, has_pool: bool) -> str:
    last = 6 if pathways == 2 or has_pool else 5
    if match := re.fullmatch(r"s(\d)\.pathway(\d)_stem\.(.*)", name):
        stage, pathway, rest = match.groups()
        if is_x3d:
            # pytorchvideo's conv_t is the spatial convolution here, and its conv_xy the temporal one
            rest = re.sub(r"^conv_xy\.", "conv.conv_t.", re.sub(r"^conv\.", "conv.conv_xy.", rest))
        rest = re.sub(r"^bn\.", "norm.", rest)
        return f"blocks.0.multipathway_blocks.{pathway}.{rest}" if pathways == 2 else f"blocks.0.{rest}"
    if match := re.fullmatch(r"s(\d)_fuse\.(conv_f2s|bn)\.(.*)", name):
        stage, layer, rest = match.groups()
        layer = {"conv_f2s": "conv_fast_to_slow", "bn": "norm"}[layer]
        return f"blocks.{int(stage) - 1}.multipathway_fusion.{layer}.{rest}"
    if match := re.fullmatch(r"s(\d)\.pathway(\d)_res(\d+)\.(.*)", name):
        stage, pathway, block, rest = match.groups()
        index = int(stage) - 1
        index += 1 if has_pool and index > 1 else 0
        rest = re.sub(r"^branch1_bn\.", "branch1_norm.", re.sub(r"^branch1\.", "branch1_conv.", rest))
        rest = re.sub(r"^branch2\.([abc])\.", r"branch2.conv_\1.", rest)
        if is_x3d:
            rest = re.sub(r"^branch2\.b_bn\.", "branch2.norm_b.0.", rest)
            rest = re.sub(r"^branch2\.se\.fc1\.", "branch2.norm_b.1.block.0.", rest)
            rest = re.sub(r"^branch2\.se\.fc2\.", "branch2.norm_b.1.block.2.", rest)
        rest = re.sub(r"^branch2\.([abc])_bn\.", r"branch2.norm_\1.", rest)
        middle = f"multipathway_blocks.{pathway}." if pathways == 2 else ""
        return f"blocks.{index}.{middle}res_blocks.{block}.{rest}"
    if match := re.fullmatch(r"head\.(projection|conv_5|conv_5_bn|lin_5|lin_5_bn)\.(.*)", name):
        layer, rest = match.groups()
        layers = {"conv_5": "pool.pre_conv", "conv_5_bn": "pool.pre_norm", "lin_5": "pool.post_conv"}
        return f"blocks.{last}.{layers.get(layer, 'proj')}.{rest}"
    return name  # unknown, and reported as such


Layout = tuple[str, Callable[[State], State]]


def layout_of(state: State) -> Layout:
    """Which of the layouts a state dict has, by its names."""
    if any(".pathway0_" in name for name in state):
        return "pyslowfast", from_pyslowfast
    if any(name.startswith("blocks.") and ("res_blocks" in name or ".proj." in name) for name in state):
        return "pytorchvideo", from_pytorchvideo
    if "conv1.weight" in state and state["conv1.weight"].dim() == 5:
        return "hara", from_hara
    return "torchvision", from_torchvision


# --- torchvision's own ------------------------------------------------------------------------------------------------

TORCHVISION = (
    *("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet161", "densenet169", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"),
)


def torchvision_weights(name: str) -> Any | None:
    """torchvision's default weights of a network, by its name."""
    if name not in TORCHVISION:
        return None
    from torchvision.models import get_model_weights

    return get_model_weights(name).DEFAULT


def _meta(published: Any) -> dict[str, Any]:
    transforms = published.transforms()
    (crop, *_), (side, *_) = transforms.crop_size, transforms.resize_size
    preprocessing = Preprocessing(tuple(transforms.mean), tuple(transforms.std), side, crop)
    return {"classes": tuple(published.meta["categories"]), "preprocessing": preprocessing}


# --- into a network --------------------------------------------------------------------------------------------------


def load_public(network: Staged, source: Source, name: str) -> WeightsReport:
    """Loads weights into a network: all of its body, and its classifier where that has the same size.

    Raises:
        UsageError: a layer of the body is missing or has another shape; names the layer and both shapes.
    """
    own = network.state_dict()
    logits = (f"{network.logits_layer()}.weight", f"{network.logits_layer()}.bias")
    pooling = {f"{path}." for path, module in network.named_modules() if _belongs_to_pooling(path, module)}
    state, left_out, missing, adapted = {}, [], [], list(source.adapted)
    for key, wanted in own.items():
        tensor = source.state.get(key)
        if tensor is None:
            if not key.startswith(tuple(pooling)) and key not in logits:
                raise UsageError(_another(source, name, f"it lacks {key} {tuple(wanted.shape)}"))
            missing.append(key)
            continue
        if tensor.shape != wanted.shape:
            tensor, how = _fit(key, tensor, wanted)
            if tensor is None and key in logits:
                shapes = f"{tuple(source.state[key].shape)} there, {tuple(wanted.shape)} here"
                left_out.append((key, f"head of another size: {shapes}"))
                missing.append(key)
                continue
            if tensor is None:
                there = tuple(source.state[key].shape)
                raise UsageError(_another(source, name, f"{key} is {there} there and {tuple(wanted.shape)} here"))
            adapted.append((key, how))
        state[key] = tensor
    attention = [key for key in source.state if key not in own and _of_replaced_attention(network, key)]
    left_out += [(key, "a pooling without weights stands there") for key in attention]
    left_out += [(key, "no such classifier here") for key in source.state if key in logits and key not in own]
    known = {*own, *attention, *logits}
    extra = next((key for key in source.state if key not in known), None)
    if extra is not None:
        raise UsageError(_another(source, name, f"it has {extra}, which {name} lacks"))
    network.load_state_dict(state, strict=False)
    return WeightsReport(
        source.origin,
        source.layout,
        len(state),
        tuple(left_out),
        tuple(missing),
        tuple(adapted),
        source.classes,
        source.preprocessing,
    )


def _another(source: Source, name: str, why: str) -> str:
    return f"weights: {source.origin} holds another network than {name}: {why}"


def _belongs_to_pooling(path: str, module: nn.Module) -> bool:
    from softpool3d.models.pools import geometry_of

    return path.startswith("temporal.") or geometry_of(module) is not None


def _of_replaced_attention(network: Staged, key: str) -> bool:
    path = key.rpartition(".")[0]
    return network.attention_pools and path.endswith(("pool_q.pool", "pool_k.pool", "pool_v.pool"))


def _fit(key: str, tensor: Tensor, wanted: Tensor) -> tuple[Tensor | None, str]:
    """A tensor of the wanted shape where there is an established way, and what that was."""
    shape = tuple(wanted.shape)
    if ".rel_pos_" in key and tensor.dim() == 2 and tensor.shape[1] == shape[1]:
        fitted = F.interpolate(tensor.t()[None], size=shape[0], mode="linear")[0].t()
        return fitted, f"relative positions interpolated from {tensor.shape[0]} to {shape[0]}"
    how = []
    if tensor.dim() == 4 and len(shape) == 5 and tensor.shape[2:] == shape[3:]:
        tensor = inflate_weight(tensor, shape[2])
        how.append(f"inflated to {shape[2]} frames")
    first = tensor.dim() >= 4 and tensor.shape[1] == 3 and tensor.shape[0] == shape[0] and tensor.shape[2:] == shape[2:]
    if tensor.shape != wanted.shape and first:
        count = shape[1]
        if count == 1:
            tensor = tensor.sum(1, keepdim=True)
            how.append("three input channels summed into one, as for a grey picture")
        else:
            tensor = tensor.repeat(1, -(-count // 3), *[1] * (tensor.dim() - 2))[:, :count] * (3 / count)
            how.append(f"three input channels repeated to {count}, scaled by 3/{count}")
    return (tensor, ", ".join(how)) if tuple(tensor.shape) == shape else (None, "")
