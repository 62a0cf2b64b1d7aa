"""The layouts of published weights: each has a function that turns its names into ours.

layout         files                                       networks
torchvision    by name (`model.weights=r3d_18`) or a .pth  r3d_18, mc3_18, r2plus1d_18, s3d, mvit_v2_s, images
               SoftPool's own ImageNet checkpoints         images
pytorchvideo   X3D_M.pyth, SLOWFAST_8x8_R50.pyth, ...      those of blocknet.py
pyslowfast     checkpoints of PySlowFast                   X3D, SlowFast, Slow, C2D, I3D
hara           r3d50_K_200ep.pth and its kind              r3d_34, r3d_50, r3d_101
softpool3d     best.safetensors of a run                   all
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

State = dict[str, Tensor]
Layout = tuple[str, Callable[[State], State]]

# How the name of a network's first layer begins in any of the layouts. What stands before that is a wrapper's.
FIRST_LAYERS = (
    r"stem\.0\.|conv1\.weight$|features\.0\.|features\.conv0\.|conv_proj\.|"  # torchvision's, and Hara's conv1
    r"blocks\.0\.|s1\.pathway0_stem\."  # PyTorchVideo's, PySlowFast's
)


def from_torchvision(state: State) -> State:
    """Renames norm.1 of DenseNets from before 2018 to norm1, and so on, as torchvision does. Other names are ours."""
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", name): t for name, t in state.items()}


def from_pytorchvideo(state: State) -> State:
    """Renames nothing: the names are ours."""
    return state


def from_hara(state: State) -> State:
    """Renames conv1, bn1 to stem.0, stem.1, and layerL.B.convK, bnK to layerL.B.convK.0, .1."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^conv1\.", "stem.0.", name)
        name = re.sub(r"^bn1\.", "stem.1.", name)
        name = re.sub(r"^(layer\d\.\d+)\.conv(\d)\.", r"\1.conv\2.0.", name)
        renamed[re.sub(r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.1.", name)] = tensor
    return renamed


def from_pyslowfast(state: State) -> State:
    """Renames s1.pathway0_stem, s2.pathway1_res0.branch2.a, head.projection to pytorchvideo's blocks.

    A network of one pathway has no pathway in pytorchvideo's names; X3D's stem and head have names of their own.
    """
    pathways = 2 if any(".pathway1_" in name for name in state) else 1
    is_x3d = any(name.startswith("head.conv_5.") for name in state)
    # pytorchvideo counts a pooling between stages as a block (C2D, I3D); PySlowFast has it outside of its stages
    has_pool = pathways == 1 and not is_x3d and _pools_after_stage1(state)
    return {_pyslowfast_name(name, pathways, is_x3d, has_pool): tensor for name, tensor in state.items()}


def fold_shortcut_norm(state: State) -> tuple[tuple[str, str], ...]:
    """Folds away, in place, the norm of X3D's first shortcut, which PySlowFast has and pytorchvideo lacks.

    Its scale goes into the shortcut's convolution. Its shift goes into the bias of the norm at the other branch's end,
    whose output is added to the shortcut's. In evaluation the network is the same.

    Returns:
        (name, how) of the tensor that was changed; () if there is no such norm.
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
    return ((f"{block}.branch1_conv.weight", "the norm that PySlowFast has after it is folded in"),)


def _pools_after_stage1(state: State) -> bool:
    """Whether it is C2D (no temporal kernels) or I3D (from the first stage on), and not Slow (from the third on)."""
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


def layout_of(state: State) -> Layout:
    """Returns the layout of a state dict, by its names."""
    if any(".pathway0_" in name for name in state):
        return "pyslowfast", from_pyslowfast
    if any(name.startswith("blocks.") and ("res_blocks" in name or ".proj." in name) for name in state):
        return "pytorchvideo", from_pytorchvideo
    if "conv1.weight" in state and state["conv1.weight"].dim() == 5:
        return "hara", from_hara
    return "torchvision", from_torchvision
