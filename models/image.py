"""Image networks on torchvision's blocks: those of SoftPool's ImageNet table (arXiv 2101.00440, table 4).

resnet18 ... resnet152             He et al., CVPR 2016, arXiv 1512.03385
resnext50_32x4d, resnext101_...    Xie et al., CVPR 2017, arXiv 1611.05431
wide_resnet50_2                    Zagoruyko, Komodakis, BMVC 2016, arXiv 1605.07146
densenet121, 161, 169              Huang et al., CVPR 2017, arXiv 1608.06993
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet as TorchvisionDenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from softpool3d.models.network import Options, Staged


class OfPictures(Staged):
    """A network that takes pictures (N, C, H, W), and clips of one frame (N, C, 1, H, W), which are the same.

    Once it is inflated it takes clips of any length.
    """

    dims = 2
    head_pools = ("avgpool",)
    pools_time = False

    def enter(self, clip: Tensor) -> Tensor:
        # Time goes, if there is any. The clip is not asked whether: torch.fx could not trace that.
        return clip.flatten(1, -3) if self.dims == 2 else clip


class ResNet(OfPictures, TorchvisionResNet):
    """torchvision's ResNet, whose input channels, width and dropout can be chosen."""

    def __init__(
        self, options: Options, block: type[nn.Module], layers: Sequence[int], groups: int = 1, per_group: int = 64
    ) -> None:
        nn.Module.__init__(self)
        width = options.width
        self._norm_layer, self.dilation = nn.BatchNorm2d, 1
        self.inplanes, self.groups, self.base_width = width, groups, per_group
        self.conv1 = nn.Conv2d(options.in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for index, blocks in enumerate(layers):
            layer = self._make_layer(block, width * 2**index, blocks, stride=1 if index == 0 else 2)
            self.add_module(f"layer{index + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(options.dropout)
        self.fc = nn.Linear(8 * width * block.expansion, options.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> dict[str, list[nn.Module]]:
        layers = {f"stage{i}": list(getattr(self, f"layer{i}")) for i in range(1, 5)}
        return {"stem": [self.conv1, self.bn1, self.relu, self.maxpool], **layers}

    def classify(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))

    def logits_layer(self) -> str:
        return "fc"


class DenseNet(OfPictures, TorchvisionDenseNet):
    """torchvision's DenseNet; its head's pooling is a layer, where torchvision calls a function."""

    def __init__(self, options: Options, growth: int, layers: tuple[int, int, int, int], width: int) -> None:
        growth = max(1, growth * options.width // width)
        super().__init__(growth, layers, options.width, num_classes=options.num_classes)
        if options.in_channels != 3:
            old = self.features.conv0
            self.features.conv0 = nn.Conv2d(options.in_channels, old.out_channels, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.features.conv0.weight)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(options.dropout)

    def stages(self) -> dict[str, list[nn.Module]]:
        f = self.features
        return {
            "stem": [f.conv0, f.norm0, f.relu0, f.pool0],
            "stage1": [f.denseblock1],
            "stage2": [f.transition1, f.denseblock2],
            "stage3": [f.transition2, f.denseblock3],
            "stage4": [f.transition3, f.denseblock4, f.norm5],
        }

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.avgpool(F.relu(x)).flatten(1)))

    def logits_layer(self) -> str:
        return "classifier"


resnet18 = partial(ResNet, block=BasicBlock, layers=(2, 2, 2, 2))
resnet34 = partial(ResNet, block=BasicBlock, layers=(3, 4, 6, 3))
resnet50 = partial(ResNet, block=Bottleneck, layers=(3, 4, 6, 3))
resnet101 = partial(ResNet, block=Bottleneck, layers=(3, 4, 23, 3))
resnet152 = partial(ResNet, block=Bottleneck, layers=(3, 8, 36, 3))
resnext50_32x4d = partial(ResNet, block=Bottleneck, layers=(3, 4, 6, 3), groups=32, per_group=4)
resnext101_32x4d = partial(ResNet, block=Bottleneck, layers=(3, 4, 23, 3), groups=32, per_group=4)
resnext101_32x8d = partial(ResNet, block=Bottleneck, layers=(3, 4, 23, 3), groups=32, per_group=8)
wide_resnet50_2 = partial(ResNet, block=Bottleneck, layers=(3, 4, 6, 3), per_group=128)
densenet121 = partial(DenseNet, growth=32, layers=(6, 12, 24, 16), width=64)
densenet169 = partial(DenseNet, growth=32, layers=(6, 12, 32, 32), width=64)
densenet161 = partial(DenseNet, growth=48, layers=(6, 12, 36, 24), width=96)
