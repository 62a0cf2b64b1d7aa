"""3D-ResNets (arXiv 1711.11248) on torchvision's blocks."""

from __future__ import annotations

from torch import nn
from torchvision.models.video.resnet import BasicBlock, Conv3DSimple, VideoResNet

from softpool3d.config import ModelConfig


class R3D(VideoResNet):
    """torchvision's VideoResNet with the width and the dropout that it fixes.

    ::

        clip -> stem 3x7x7 /(1,2,2) -> layer1 -> layer2 /2 -> layer3 /2 -> layer4 /2 -> avgpool -> dropout -> fc
                channels: width        width     2 width      4 width      8 width

    Args:
        layers: blocks of each of the four stages.
        width: channels of the stem; 64 is the original.
        dropout: before the last layer; parameter names do not depend on it.
    """

    head_pool = "avgpool"  # the global pooling: models/pooling.py swaps it where `head` is asked for

    def __init__(self, layers: tuple[int, int, int, int], num_classes: int, width: int, dropout: float) -> None:
        nn.Module.__init__(self)  # the parent's constructor builds the network at width 64
        self.inplanes = width
        self.stem = nn.Sequential(
            nn.Conv3d(3, width, kernel_size=(3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.layer1 = self._make_layer(BasicBlock, Conv3DSimple, width, layers[0])
        self.layer2 = self._make_layer(BasicBlock, Conv3DSimple, 2 * width, layers[1], stride=2)
        self.layer3 = self._make_layer(BasicBlock, Conv3DSimple, 4 * width, layers[2], stride=2)
        self.layer4 = self._make_layer(BasicBlock, Conv3DSimple, 8 * width, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8 * width * BasicBlock.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)
            elif isinstance(module, BasicBlock):
                # Blocks begin as identities (arXiv 1706.02677, section 5.1): from scratch on few clips, the network
                # otherwise stays at chance for a number of epochs that is a matter of luck.
                nn.init.zeros_(module.conv2[1].weight)

    def forward(self, x):
        x = self.stem(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.avgpool(x).flatten(1)
        return self.fc(self.dropout(x))


def r3d_18(config: ModelConfig, num_classes: int, num_frames: int, crop_size: int) -> R3D:
    """R3D-18, two blocks a stage; any clip size will do."""
    return R3D((2, 2, 2, 2), num_classes, config.width or 64, config.dropout)
