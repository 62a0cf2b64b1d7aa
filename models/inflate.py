"""Inflation: a network for images becomes one for clips (Carreira, Zisserman, CVPR 2017, arXiv 1705.07750)."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from softpool3d.errors import UsageError
from softpool3d.models.network import Staged
from softpool3d.models.pools.geometry import Pool
from softpool3d.ops.modules import AdaptiveSoftPool2d, AdaptiveSoftPool3d, SoftPool2d, SoftPool3d


def inflate(network: nn.Module, temporal_kernel: int | None = None) -> nn.Module:
    """Returns a copy of a 2-D network that takes clips (N, C, T, H, W) instead of images (N, C, H, W).

    A kernel of k x k becomes t x k x k: its weights are repeated t times over time and divided by t. So if all frames
    of a clip are one picture, the middle ones give what the picture gave (section 2.4.1). The number of frames stays:
    poolings and strides are spatial, and `pool.temporal` halves time where that is wanted. Names of parameters stay.

    Args:
        network: its layers are torch's and softpool3d's two-dimensional ones.
        temporal_kernel: t, odd, for kernels above 1x1; None: as large as k, or k + 1 if that is even, as in I3D.

    Raises:
        UsageError: if the network has no two-dimensional layer, or t is even.
    """
    if temporal_kernel is not None and (temporal_kernel < 1 or temporal_kernel % 2 == 0):
        raise UsageError(f"temporal_kernel: an odd number keeps the number of frames, {temporal_kernel} does not")
    network = copy.deepcopy(network)
    changed = False
    for name, module in list(network.named_modules()):
        layer = _inflated(module, temporal_kernel)
        if layer is not None:
            changed = True
            if name == "":
                return layer.train(module.training)
            network.set_submodule(name, layer.train(module.training))
    if not changed:
        raise UsageError(f"inflate: {type(network).__name__} has no two-dimensional layer")
    if isinstance(network, Staged):
        network.dims, network.pools_time = 3, True
    return network


def inflate_weight(weight: Tensor, time: int) -> Tensor:
    """Turns (O, I, H, W) into (O, I, T, H, W), with the same response to what does not move."""
    return (weight / time).unsqueeze(2).repeat(1, 1, time, 1, 1)


def _inflated(module: nn.Module, temporal_kernel: int | None) -> nn.Module | None:
    """Returns the three-dimensional counterpart of a layer, or None for a layer that needs none."""
    if isinstance(module, nn.Conv2d):
        return _conv(module, temporal_kernel)
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(module.num_features, module.eps, module.momentum, module.affine, device="meta")
        norm.track_running_stats = module.track_running_stats
        norm._parameters, norm._buffers = dict(module._parameters), dict(module._buffers)
        return norm
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, SoftPool2d)):
        kernel, stride, padding = (_pair(v) for v in (module.kernel_size, module.stride, module.padding))
        geometry = ((1, *kernel), (1, *(stride or kernel)), (0, *padding))
        if isinstance(module, nn.AvgPool2d):
            return nn.AvgPool3d(*geometry, module.ceil_mode, module.count_include_pad, module.divisor_override)
        dilation = (1, *_pair(module.dilation))
        if isinstance(module, nn.MaxPool2d):
            return nn.MaxPool3d(*geometry, dilation, module.return_indices, module.ceil_mode)
        pool = SoftPool3d(*geometry, dilation, module.ceil_mode)
        pool.share_beta(module)
        return pool
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, AdaptiveSoftPool2d)):
        size = _pair(module.output_size)
        size = (1 if size == (1, 1) else None, *size)
        if isinstance(module, AdaptiveSoftPool2d):
            pool = AdaptiveSoftPool3d(size)
            pool.share_beta(module)
            return pool
        return (nn.AdaptiveAvgPool3d if isinstance(module, nn.AdaptiveAvgPool2d) else nn.AdaptiveMaxPool3d)(size)
    if isinstance(module, nn.Dropout2d):
        return nn.Dropout3d(module.p, module.inplace)
    if isinstance(module, Pool):
        raise UsageError(f"inflate first, then replace poolings: {type(module).__name__} has parameters for images")
    return None


def _conv(conv: nn.Conv2d, temporal_kernel: int | None) -> nn.Conv3d:
    height = conv.kernel_size[0]
    time = 1 if height == 1 else temporal_kernel or (height if height % 2 else height + 1)
    if isinstance(conv.padding, str):
        raise UsageError("inflate: a convolution with padding given as a word is not known")
    inflated = nn.Conv3d(
        conv.in_channels,
        conv.out_channels,
        (time, *conv.kernel_size),
        stride=(1, *conv.stride),
        padding=(time // 2, *conv.padding),
        dilation=(1, *conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    inflated.weight = nn.Parameter(inflate_weight(conv.weight.detach(), time), conv.weight.requires_grad)
    inflated.bias = conv.bias
    return inflated


def _pair(value) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else () if value is None else (value, value)
