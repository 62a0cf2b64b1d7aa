"""Networks of pytorchvideo's builders: X3D, Slow, C2D, I3D, CSN, R(2+1)D with bottlenecks, SlowFast.

    name                        paper
    x3d_xs, _s, _m, _l          Feichtenhofer, CVPR 2020, arXiv 2004.04730
    slow_r50, slowfast_r50      Feichtenhofer et al., ICCV 2019, arXiv 1812.03982
    c2d_r50                     Wang et al., CVPR 2018, arXiv 1711.07971
    i3d_r50                     Carreira, Zisserman, CVPR 2017, arXiv 1705.07750
    csn_r101                    Tran et al., ICCV 2019, arXiv 1904.02811
    r2plus1d_r50                Tran et al., CVPR 2018, arXiv 1711.11248

X3D XS, S and M are one network; they differ in the clips they are given.
"""

from __future__ import annotations

import warnings
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from softpool3d.models.network import Options, Staged
from softpool3d.models.pools.basic import AvgPool
from softpool3d.models.pools.geometry import Window, per_dimension

_X3D_STEM_WIDTH = 24  # 12 channels times the width factor 2 of the paper's networks
_ALPHA = 4  # SlowFast: frames of the fast pathway for each of the slow one


class BlockNet(Staged):
    """pytorchvideo's `Net`, whose blocks are a stem, residual stages, perhaps poolings between them, and a head.

    Its head averages over windows of the published clip's size, and then over the windows. If a clip is smaller than a
    window, the window shrinks; otherwise the head is pytorchvideo's own.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks
        last = len(blocks) - 1
        self.untouched = (f"blocks.{last}.output_pool",)  # averages logits
        heads = []
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.Conv3d):  # torch.compile takes the numpy integers in there for data
                module.stride = per_dimension(module.stride, 3)
            if type(module).__name__ == "Swish":  # its backward is Python that torch.compile cannot trace
                self.set_submodule(name, nn.SiLU())
            if isinstance(module, nn.AvgPool3d):
                heads.append(name)
                kernel, stride, padding = (
                    per_dimension(v, 3) for v in (module.kernel_size, module.stride, module.padding)
                )
                self.set_submodule(name, AvgPool(Window(kernel, stride, padding, (1, 1, 1), shrinks=True)))
        self.head_pools = tuple(heads)

    def stages(self) -> dict[str, list[nn.Module]]:
        found: dict[str, list[nn.Module]] = {"stem": [self.blocks[0]]}
        waiting: list[nn.Module] = []
        for block in self.blocks[1:-1]:
            if hasattr(block, "res_blocks"):
                found[f"stage{len(found)}"] = [*waiting, *block.res_blocks]
                waiting = []
            else:
                waiting.append(block)  # a pooling between two stages opens the later one
        return found

    def classify(self, x: Tensor) -> Tensor:
        return self.blocks[-1](x)

    def logits_layer(self) -> str:
        return f"blocks.{len(self.blocks) - 1}.proj"


class SlowFast(BlockNet):
    """Takes one clip, or the list [slow, fast]. The slow pathway sees a quarter of the frames, as in PySlowFast."""

    def enter(self, clip: Tensor | list[Tensor]) -> list[Tensor]:
        if not isinstance(clip, Tensor):
            return list(clip)
        frames = clip.shape[2]
        index = torch.linspace(0, frames - 1, frames // _ALPHA, device=clip.device).long()
        return [clip.index_select(2, index), clip]

    def leave(self, x: list[Tensor]) -> list[Tensor]:
        return list(x)

    def call(self, block: nn.Module, x: list[Tensor]) -> list[Tensor]:
        return block(list(x))  # the block writes into its list

    def stages(self) -> dict[str, list[nn.Module]]:
        return {name: [self.blocks[i]] for i, name in enumerate(("stem", "stage1", "stage2", "stage3", "stage4"))}

    def classify(self, x: list[Tensor]) -> Tensor:
        return self.blocks[-1](self.blocks[-2](list(x)))


def _models() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it scripts its activations with torch.jit, now deprecated
        import pytorchvideo.models as models
        import pytorchvideo.models.csn
        import pytorchvideo.models.r2plus1d
        import pytorchvideo.models.slowfast
        import pytorchvideo.models.x3d  # noqa: F401
    return models


def _common(options: Options) -> dict[str, Any]:
    return {"model_num_class": options.num_classes, "dropout_rate": options.dropout, "head_activation": None}


def _x3d(options: Options, depth_factor: float) -> BlockNet:
    network = _models().x3d.create_x3d(
        **_common(options),
        input_channel=options.in_channels,
        input_clip_length=options.num_frames,
        input_crop_size=options.crop_size,
        width_factor=2.0 * options.width / _X3D_STEM_WIDTH,
        depth_factor=depth_factor,
    )
    return BlockNet(network.blocks)


x3d_xs = x3d_s = x3d_m = partial(_x3d, depth_factor=2.2)
x3d_l = partial(_x3d, depth_factor=5.0)


def _resnet(options: Options, **settings: Any) -> BlockNet:
    build = _models().resnet.create_resnet
    stem = {"input_channel": options.in_channels, "stem_dim_out": options.width}
    return BlockNet(build(**_common(options), **stem, model_depth=50, **settings).blocks)


slow_r50 = partial(_resnet, stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(8, 7, 7))
c2d_r50 = partial(
    _resnet, stem_conv_kernel_size=(1, 7, 7), stage1_pool=nn.MaxPool3d, stage_conv_a_kernel_size=((1, 1, 1),) * 4
)
i3d_r50 = partial(
    _resnet,
    stem_conv_kernel_size=(5, 7, 7),
    stage1_pool=nn.MaxPool3d,
    stage_conv_a_kernel_size=(
        (3, 1, 1),
        [(3, 1, 1), (1, 1, 1)],
        [(3, 1, 1), (1, 1, 1)],
        [(1, 1, 1), (3, 1, 1)],
    ),
)


def csn_r101(options: Options) -> BlockNet:
    network = _models().csn.create_csn(
        **_common(options),
        input_channel=options.in_channels,
        stem_dim_out=options.width,
        model_depth=101,
        stem_pool=nn.MaxPool3d,
        head_pool_kernel_size=(4, 7, 7),
    )
    return BlockNet(network.blocks)


def r2plus1d_r50(options: Options) -> BlockNet:
    network = _models().r2plus1d.create_r2plus1d(
        **_common(options), input_channel=options.in_channels, stem_dim_out=options.width
    )
    return BlockNet(network.blocks)


def slowfast_r50(options: Options) -> SlowFast:
    network = _models().slowfast.create_slowfast(
        **_common(options),
        input_channels=(options.in_channels,) * 2,
        stem_dim_outs=(options.width, options.width // 8),
        model_depth=50,
        slowfast_fusion_conv_kernel_size=(7, 1, 1),
    )
    return SlowFast(network.blocks)
