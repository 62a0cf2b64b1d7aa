"""3D-ResNets on torchvision's blocks.

r3d_18, mc3_18, r2plus1d_18    torchvision's (Tran et al., arXiv 1711.11248)
r3d_34, r3d_50, r3d_101        Hara et al. (arXiv 1711.09577, 2004.04968): 7x7x7 stem and a max pooling after it
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.models.video.resnet import (
    BasicBlock,
    Bottleneck,
    Conv2Plus1D,
    Conv3DNoTemporal,
    Conv3DSimple,
    VideoResNet,
)

from softpool3d.models.network import Options, Staged


class R3D(Staged, VideoResNet):
    """torchvision's VideoResNet, whose input channels, width and dropout can be chosen.

    ::

        clip -> stem /(1,2,2) (-> maxpool /2) -> layer1 -> layer2 /2 -> layer3 /2 -> layer4 /2 -> avgpool -> fc
                channels: width                  width     2 width      4 width      8 width  (x4 with bottlenecks)

    Args:
        stem: the layers before `maxpool`, with `options.width` channels at their end.
        layers: blocks of each of the four stages; `convs`: what their convolutions are.
        max_pool: whether a 3x3x3 max pooling with stride 2 follows the stem.
    """

    head_pools = ("avgpool",)

    def __init__(
        self,
        options: Options,
        stem: nn.Sequential,
        layers: Sequence[int],
        convs: Sequence[type[nn.Module]],
        block: type[nn.Module] = BasicBlock,
        max_pool: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # the parent's constructor builds the network at width 64
        width = options.width
        self.inplanes = width
        self.stem = stem
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1) if max_pool else nn.Identity()
        for index, (blocks, conv) in enumerate(zip(layers, convs, strict=True)):
            layer = self._make_layer(block, conv, width * 2**index, blocks, stride=1 if index == 0 else 2)
            self.add_module(f"layer{index + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(options.dropout)
        self.fc = nn.Linear(8 * width * block.expansion, options.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (BasicBlock, Bottleneck)):
                # Blocks begin as identities (arXiv 1706.02677, section 5.1): from scratch on few clips, the network
                # otherwise stays at chance for a number of epochs that is a matter of luck.
                last = module.conv3 if isinstance(module, Bottleneck) else module.conv2
                nn.init.zeros_(last[1].weight)

    def stages(self) -> dict[str, list[nn.Module]]:
        layers = {f"stage{i}": list(getattr(self, f"layer{i}")) for i in range(1, 5)}
        return {"stem": [self.stem, self.maxpool], **layers}

    def classify(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))

    def logits_layer(self) -> str:
        return "fc"


def _conv_norm_relu(channels: int, width: int, kernel: tuple, stride: tuple) -> list[nn.Module]:
    padding = tuple(k // 2 for k in kernel)
    conv = nn.Conv3d(channels, width, kernel, stride=stride, padding=padding, bias=False)
    return [conv, nn.BatchNorm3d(width), nn.ReLU(inplace=True)]


def _torchvision(options: Options, convs: Sequence[type[nn.Module]]) -> R3D:
    stem = nn.Sequential(*_conv_norm_relu(options.in_channels, options.width, (3, 7, 7), (1, 2, 2)))
    return R3D(options, stem, (2, 2, 2, 2), convs)


r3d_18 = partial(_torchvision, convs=(Conv3DSimple,) * 4)
mc3_18 = partial(_torchvision, convs=(Conv3DSimple, *(Conv3DNoTemporal,) * 3))


def r2plus1d_18(options: Options) -> R3D:
    middle = max(1, round(options.width * 45 / 64))
    space = _conv_norm_relu(options.in_channels, middle, (1, 7, 7), (1, 2, 2))
    time = _conv_norm_relu(middle, options.width, (3, 1, 1), (1, 1, 1))
    return R3D(options, nn.Sequential(*space, *time), (2, 2, 2, 2), (Conv2Plus1D,) * 4)


def _hara(options: Options, block: type[nn.Module], layers: Sequence[int]) -> R3D:
    stem = nn.Sequential(*_conv_norm_relu(options.in_channels, options.width, (7, 7, 7), (1, 2, 2)))
    return R3D(options, stem, layers, (Conv3DSimple,) * 4, block, max_pool=True)


r3d_34 = partial(_hara, block=BasicBlock, layers=(3, 4, 6, 3))
r3d_50 = partial(_hara, block=Bottleneck, layers=(3, 4, 6, 3))
r3d_101 = partial(_hara, block=Bottleneck, layers=(3, 4, 23, 3))
