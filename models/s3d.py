"""S3D (Xie et al., ECCV 2018, arXiv 1712.04851) on torchvision's blocks."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torchvision.models.video.s3d import S3D as TorchvisionS3D
from torchvision.models.video.s3d import SepInceptionBlock3D, TemporalSeparableConv
from torchvision.ops.misc import Conv3dNormActivation

from softpool3d.models.network import Options, Staged
from softpool3d.models.pools.basic import AvgPool
from softpool3d.models.pools.geometry import Window

# channels of the inception blocks' branches at width 64: b0, b1 (middle, out), b2 (middle, out), b3
_STAGES = {
    2: [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)],
    3: [
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ],
    4: [(256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)],
}


class S3D(Staged, TorchvisionS3D):
    """torchvision's S3D with a width of its own; module names are torchvision's."""

    head_pools = ("avgpool",)

    def __init__(self, options: Options) -> None:
        nn.Module.__init__(self)

        def scaled(channels: int) -> int:
            return max(1, round(channels * options.width / 64))

        norm = partial(nn.BatchNorm3d, eps=0.001, momentum=0.001)
        width, inside = scaled(64), scaled(192)
        layers = [
            TemporalSeparableConv(options.in_channels, width, 7, 2, 3, norm),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            Conv3dNormActivation(width, width, kernel_size=1, stride=1, norm_layer=norm),
            TemporalSeparableConv(width, inside, 3, 1, 1, norm),
        ]
        pools = {
            2: nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            3: nn.MaxPool3d(3, stride=2, padding=1),
            4: nn.MaxPool3d(2, stride=2),
        }
        self._starts = [0, 2]
        for stage, blocks in _STAGES.items():
            self._starts.append(len(layers))
            layers.append(pools[stage])
            for channels in blocks:
                b0, b1_middle, b1, b2_middle, b2, b3 = (scaled(c) for c in channels)
                layers.append(SepInceptionBlock3D(inside, b0, b1_middle, b1, b2_middle, b2, b3, norm))
                inside = b0 + b1 + b2 + b3
        self.features = nn.Sequential(*layers)
        self.avgpool = AvgPool(Window((2, 7, 7), (1, 1, 1), (0, 0, 0), (1, 1, 1), shrinks=True))
        self.classifier = nn.Sequential(nn.Dropout(options.dropout), nn.Conv3d(inside, options.num_classes, 1))

    def stages(self) -> dict[str, list[nn.Module]]:
        ends = [*self._starts[1:], len(self.features)]
        names = ("stem", "stage1", "stage2", "stage3", "stage4")
        spans = zip(names, self._starts, ends, strict=True)
        return {name: list(self.features[start:end]) for name, start, end in spans}

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(x)).mean((2, 3, 4))

    def logits_layer(self) -> str:
        return "classifier.1"
