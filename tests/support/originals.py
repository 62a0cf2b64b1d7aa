"""The networks as their own libraries build them, with random weights and running statistics, to compare with."""

from __future__ import annotations

import warnings

import torch
import torchvision
from torch import nn

IMAGES = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet161", "densenet169", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"),
]
TORCHVISION = ["r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s"]
PYTORCHVIDEO = ["x3d_xs", "x3d_s", "x3d_m", "x3d_l", "slow_r50", "c2d_r50", "i3d_r50", "csn_r101", "r2plus1d_r50"]
HARA = ["r3d_34", "r3d_50", "r3d_101"]
X3D = {"x3d_xs": (4, 160, 2.2), "x3d_s": (13, 160, 2.2), "x3d_m": (16, 224, 2.2), "x3d_l": (16, 312, 5.0)}


def original(name: str, num_classes: int = 7, frames: int | None = None, crop: int | None = None) -> nn.Module:
    """`frames` and `crop` matter to X3D's head alone; the published ones if not given."""
    if name in (*IMAGES, "resnext101_32x4d"):
        network = image_network(name, num_classes)
    elif name in TORCHVISION:
        network = getattr(torchvision.models.video, name)(num_classes=num_classes)
    elif name in HARA:
        network = HaraResNet({"r3d_34": 34, "r3d_50": 50, "r3d_101": 101}[name], num_classes)
    elif name in X3D:
        from pytorchvideo.models.x3d import create_x3d

        length, size, depth = X3D[name]
        network = create_x3d(
            input_clip_length=frames or length,
            input_crop_size=crop or size,
            depth_factor=depth,
            model_num_class=num_classes,
            head_activation=None,
        )
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorchvideo.models.hub as hub
        extra = {"head_activation": None} if name == "r2plus1d_r50" else {}
        network = getattr(hub, name)(model_num_class=num_classes, **extra)
    return randomize(network).eval()


def randomize(network: nn.Module) -> nn.Module:
    """Random running statistics and affine weights, so that a norm in another's place shows."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.0, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.1, generator=generator)
    return network


class HaraResNet(nn.Module):
    """The ResNet of Hara's 3D-ResNets-PyTorch as its checkpoints name it, restated: 7x7x7 stem, shortcut type B."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        layers = {34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
        self.conv1 = nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        channels = 64
        for index, blocks in enumerate(layers):
            planes, made = 64 * 2**index, []
            for block in range(blocks):
                made.append(HaraBlock(channels, planes, 2 if index and not block else 1, depth > 34))
                channels = planes * (4 if depth > 34 else 1)
            self.add_module(f"layer{index + 1}", nn.Sequential(*made))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = nn.functional.max_pool3d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3, 4)))


class HaraBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = planes * 4 if bottleneck else planes
        kernels, widths = ((1, 3, 1), (planes, planes, out)) if bottleneck else ((3, 3), (planes, planes))
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        self.count = len(kernels)
        before = channels
        for number, (kernel, width, step) in enumerate(zip(kernels, widths, strides, strict=True), 1):
            self.add_module(f"conv{number}", nn.Conv3d(before, width, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm3d(width))
            before = width
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv3d(channels, out, 1, stride, bias=False), nn.BatchNorm3d(out))

    def forward(self, x):
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = y.relu() if number < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def run_original(network: nn.Module, name: str, clip: torch.Tensor) -> torch.Tensor:
    """SlowFast's own network takes its two pathways."""
    if name != "slowfast_r50":
        return network(clip)
    frames = clip.shape[2]
    slow = clip.index_select(2, torch.linspace(0, frames - 1, frames // 4).long())
    return network([slow, clip])


def pyslowfast_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """pytorchvideo's state dict of X3D, SlowFast, Slow, C2D or I3D under the names of PySlowFast's checkpoints."""
    two = any("multipathway_blocks" in name for name in state)
    x3d = any(".pre_conv." in name for name in state)
    pooled = not any(name.startswith("blocks.2.") for name in state)  # C2D, I3D: a pooling is a block of its own there
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        block, rest, pathway = int(parts[1]), parts[2:], "0"
        block -= pooled and block > 2
        if rest[0] == "multipathway_fusion":
            layer = "conv_f2s" if rest[1] == "conv_fast_to_slow" else "bn"
            renamed[f"s{block + 1}_fuse.{layer}.{rest[2]}"] = tensor
            continue
        if rest[0] == "multipathway_blocks":
            pathway, rest = rest[1], rest[2:]
        if rest[0] == "res_blocks":
            unit, rest = rest[1], rest[2:]
            if rest[0] == "branch2":
                layer = rest[1]
                if x3d and layer == "norm_b":
                    rest = (
                        ["b_bn", *rest[3:]] if rest[2] == "0" else ["se", {"0": "fc1", "2": "fc2"}[rest[4]], *rest[5:]]
                    )
                else:
                    kind, letter = layer.split("_")
                    rest = [letter if kind == "conv" else f"{letter}_bn", *rest[2:]]
                rest = ["branch2", *rest]
            else:
                rest = [{"branch1_conv": "branch1", "branch1_norm": "branch1_bn"}[rest[0]], *rest[1:]]
            renamed[f"s{block + 1}.pathway{pathway}_res{unit}.{'.'.join(rest)}"] = tensor
        elif block == 0:
            if x3d and rest[0] == "conv":
                rest = [{"conv_t": "conv_xy", "conv_xy": "conv"}[rest[1]], *rest[2:]]
            else:
                rest = ["bn" if rest[0] == "norm" else rest[0], *rest[1:]]
            renamed[f"s1.pathway{pathway}_stem.{'.'.join(rest)}"] = tensor
        else:
            layers = {"pre_conv": "conv_5", "pre_norm": "conv_5_bn", "post_conv": "lin_5"}
            layer, rest = ("projection", rest[1:]) if rest[0] == "proj" else (layers[rest[1]], rest[2:])
            renamed[f"head.{layer}.{'.'.join(rest)}"] = tensor
    assert two == any("pathway1" in name for name in renamed) and len(renamed) == len(state)
    return renamed


def image_network(name: str, num_classes: int) -> nn.Module:
    """torchvision's; it has no function for resnext101_32x4d."""
    if name != "resnext101_32x4d":
        return getattr(torchvision.models, name)(num_classes=num_classes)
    block, layers = torchvision.models.resnet.Bottleneck, [3, 4, 23, 3]
    return torchvision.models.ResNet(block, layers, num_classes, groups=32, width_per_group=4)


class SeedResNet(torchvision.models.ResNet):
    """The ResNets of SoftPool's repository (main/models/resnet.py), restated: 2x2 SoftPool in the stem, all else is
    torchvision's."""

    def __init__(self, name: str, num_classes: int) -> None:
        plain = image_network(name, num_classes)
        nn.Module.__init__(self)
        self.__dict__.update(plain.__dict__)
        del self._modules["maxpool"]
        randomize(self).eval()

    def maxpool(self, x: torch.Tensor) -> torch.Tensor:
        return seed_soft_pool(x)


def seed_network(name: str, num_classes: int) -> nn.Module:
    return (seed_densenet if name.startswith("densenet") else SeedResNet)(name, num_classes)


def seed_densenet(name: str, num_classes: int) -> nn.Module:
    """The DenseNets of SoftPool's repository (main/models/densent.py): means stay in the transitions."""
    network = image_network(name, num_classes)
    network.features.pool0 = SeedSoftPool()
    return randomize(network).eval()


class SeedSoftPool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return seed_soft_pool(x)


def seed_soft_pool(x: torch.Tensor) -> torch.Tensor:
    """2x2 SoftPool as the paper defines it."""
    weights = x.exp()
    return nn.functional.avg_pool2d(weights * x, 2) / nn.functional.avg_pool2d(weights, 2)
