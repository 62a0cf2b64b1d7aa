"""X3D (arXiv 2004.04730) on pytorchvideo's builders.

    name     clips of     depth factor     parameters (400 classes)
    x3d_xs   4 x 160      2.2              3.79 M
    x3d_s    13 x 160     2.2              3.79 M
    x3d_m    16 x 224     2.2              3.79 M
    x3d_l    16 x 312     5.0              6.15 M

XS, S and M are one network; they differ in the clips they are given (`data.num_frames`, `data.crop_size`).
"""

from __future__ import annotations

import warnings
from functools import partial

from torch import nn

from softpool3d.config import ModelConfig
from softpool3d.errors import UsageError

_SPATIAL_STRIDE = 32
_STEM_WIDTH = 24  # 12 channels times the width factor 2 of the paper's networks


def _x3d(config: ModelConfig, num_classes: int, num_frames: int, crop_size: int, depth_factor: float) -> nn.Module:
    if crop_size < _SPATIAL_STRIDE:
        raise UsageError(f"data.crop_size: {config.name} needs {_SPATIAL_STRIDE} pixels at least, not {crop_size}")
    width = config.width or _STEM_WIDTH
    if width % 8:
        raise UsageError(f"model.width: the channels of {config.name} come in multiples of 8, not {width}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it scripts its activations with torch.jit, now deprecated
        from pytorchvideo.models.x3d import create_x3d
    network = create_x3d(
        input_clip_length=num_frames,
        input_crop_size=crop_size,
        model_num_class=num_classes,
        dropout_rate=config.dropout,
        width_factor=2.0 * width / _STEM_WIDTH,
        depth_factor=depth_factor,
        head_activation=None,  # logits; pytorchvideo's own default is a softmax
    )
    network.head_pool = "blocks.5.pool.pool"
    return network


x3d_xs = x3d_s = x3d_m = partial(_x3d, depth_factor=2.2)
x3d_l = partial(_x3d, depth_factor=5.0)
