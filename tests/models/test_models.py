"""The registry: each network is its original library's, counted and compared."""

import pytest
import torch
from originals import IMAGES, PYTORCHVIDEO, TORCHVISION, original

from softpool3d.config import ModelConfig, PoolConfig, load_config
from softpool3d.errors import UsageError
from softpool3d.models import build_model, create, names
from softpool3d.models.flops import count_flops
from softpool3d.models.registry import SPECS

# parameters in millions and multiply-adds of one clip in billions: fvcore's, on the original library's own network
MEASURED = {
    "x3d_xs": (3.79, 0.63),
    "x3d_s": (3.79, 2.03),
    "x3d_m": (3.79, 4.90),
    "x3d_l": (6.15, 18.93),
    "slow_r50": (32.45, 54.75),
    "slowfast_r50": (34.57, 66.07),
    "csn_r101": (22.21, 74.50),
    "r3d_18": (33.37, 40.74),
    "mc3_18": (11.70, 43.40),
    "r2plus1d_18": (31.51, 40.64),
    "s3d": (8.32, 18.07),
}


def parameters(network):
    return {name: tuple(p.shape) for name, p in network.state_dict().items()}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_the_issue_s_names():
    video = "r3d_18 r3d_34 r3d_50 r3d_101 mc3_18 r2plus1d_18 s3d x3d_xs x3d_s x3d_m x3d_l slow_r50 c2d_r50 i3d_r50 "
    video += "slowfast_r50 csn_r101 r2plus1d_r50 mvit_v2_s"
    assert set(names()) == {*video.split(), *IMAGES, "resnext101_32x4d"}


@pytest.mark.parametrize("name", MEASURED)
def test_parameters_and_flops(name):
    network = create(name).eval()
    millions, gflops = MEASURED[name]
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions
    counted = count_flops(network, torch.zeros(SPECS[name].clip_shape())).total() / 1e9
    assert counted == pytest.approx(gflops, rel=1e-3, abs=0.005)  # the table has two decimals


@pytest.mark.parametrize("name", [*TORCHVISION, *PYTORCHVIDEO, *IMAGES])
def test_each_is_its_library_s(name):
    """Same names, same shapes; same operations, counted to the last; same outputs for the same weights."""
    entry = SPECS[name]
    frames = None if entry.is_image else max(4, entry.least[0])
    # MViT and the fixed heads of pytorchvideo take the published sizes only
    crop, frames = (224, 16) if name == "mvit_v2_s" else (64, frames)
    frames, crop = (16, 224) if name == "s3d" else (frames, crop)
    fixed = {"slow_r50": 8, "c2d_r50": 8, "i3d_r50": 8, "csn_r101": 32, "r2plus1d_r50": 16}
    frames, crop = (fixed[name], 224) if name in fixed else (frames, crop)
    theirs = original(name, frames=frames, crop=crop)
    ours = create(name, 7, num_frames=frames, crop_size=crop).eval()
    assert parameters(ours) == parameters(theirs)
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(entry.clip_shape(frames, crop))
    torch.testing.assert_close(ours(clip), theirs(clip), atol=1e-5, rtol=1e-5)
