"""MViTv2-S (Li et al., CVPR 2022, arXiv 2112.01526) on torchvision's blocks."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig
from torchvision.models.video.mvit import MViT as TorchvisionMViT

from softpool3d.models.network import Options, Staged

_DEPTHS = (1, 2, 11, 2)
_KV_STRIDES = (8, 4, 2, 1)


class MViT(Staged, TorchvisionMViT):
    """torchvision's MViT on clips of any size: relative positions are interpolated to it.

    Queries, keys and values are pooled by strided depthwise convolutions (places `downsample` and `attention`), the
    shortcut by max pooling (place `existing`). The patch embedding stays as it is.
    """

    untouched = ("conv_proj",)
    attention_pools = True
    pools_time = False

    def __init__(self, options: Options) -> None:
        super().__init__(
            spatial_size=(options.crop_size, options.crop_size),
            temporal_size=options.num_frames,
            block_setting=mvit_blocks(options.width),
            residual_pool=True,
            residual_with_cls_embed=False,
            rel_pos_embed=True,
            proj_after_attn=True,
            dropout=options.dropout,
            stochastic_depth_prob=0.2,
            num_classes=options.num_classes,
        )
        if options.in_channels != 3:
            old = self.conv_proj
            self.conv_proj = nn.Conv3d(options.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)

    def stages(self) -> dict[str, list[nn.Module]]:
        found, start = {"stem": []}, 0
        for index, depth in enumerate(_DEPTHS):
            found[f"stage{index + 1}"] = list(self.blocks[start : start + depth])
            start += depth
        return found

    def enter(self, clip: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        x = self.conv_proj(clip)
        return self.pos_encoding(x.flatten(2).transpose(1, 2)), tuple(x.shape[2:])

    def call(self, block: nn.Module, x: tuple[Tensor, tuple[int, ...]]) -> tuple[Tensor, tuple[int, ...]]:
        return block(*x)

    def leave(self, x: tuple[Tensor, tuple[int, ...]]) -> Tensor:
        tokens, sizes = x
        return tokens[:, 1:].transpose(1, 2).unflatten(2, sizes)  # without the class token

    def classify(self, x: tuple[Tensor, tuple[int, ...]]) -> Tensor:
        return self.head(self.norm(x[0])[:, 0])

    def logits_layer(self) -> str:
        return "head.1"


def mvit_blocks(width: int) -> list[MSBlockConfig]:
    """Returns the blocks of table 1 of the paper: stages of 1, 2, 4 and 8 heads of `width` channels."""
    settings = []
    for stage, depth in enumerate(_DEPTHS):
        for block in range(depth):
            first = block == 0 and stage > 0
            settings.append(
                MSBlockConfig(
                    num_heads=2**stage,
                    input_channels=width * 2 ** (stage - 1 if first else stage),
                    output_channels=width * 2**stage,
                    kernel_q=[3, 3, 3],
                    kernel_kv=[3, 3, 3],
                    stride_q=[1, 2, 2] if first else [1, 1, 1],
                    stride_kv=[1, _KV_STRIDES[stage], _KV_STRIDES[stage]],
                )
            )
    return settings


def mvit_v2_s(options: Options) -> MViT:
    return MViT(options)
