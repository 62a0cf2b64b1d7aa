"""What all networks share: features, gradient checkpointing, torch.compile, torch.export, inflation."""

import copy
import warnings

import pytest
import torch
from originals import randomize
from torch import nn

from softpool3d.config import PoolConfig
from softpool3d.errors import UsageError
from softpool3d.models import create, inflate
from softpool3d.models.registry import SPECS
from softpool3d.ops.modules import AdaptiveSoftPool2d, AdaptiveSoftPool3d, SoftPool2d, SoftPool3d

# one of each way of running blocks
SMALL = {
    "r3d_50": dict(width=4, num_frames=4, crop_size=32),
    "s3d": dict(width=4, num_frames=8, crop_size=32),
    "x3d_xs": dict(width=8, num_frames=4, crop_size=32),
    "slowfast_r50": dict(width=8, num_frames=4, crop_size=32),
    "mvit_v2_s": dict(width=8, num_frames=4, crop_size=32),
    "densenet121": dict(width=8, crop_size=32),
    "resnet18": dict(width=8, crop_size=32),
}


def make(name, **settings):
    torch.manual_seed(0)
    return randomize(create(name, 5, **{**SMALL[name], **settings}))


def clips(name, count=2):
    torch.manual_seed(1)
    shape = SPECS[name].clip_shape(SMALL[name].get("num_frames"), SMALL[name]["crop_size"])
    return torch.randn(count, *shape[1:])


@pytest.mark.parametrize("name", SMALL)
def test_features_are_what_the_classifier_is_given(name):
    network = make(name).eval()
    with torch.no_grad():
        logits = network(clips(name))
        network.features_only = True
        features = network(clips(name))
        network.features_only = False
    assert len(features) == 5
    last = features[-1]
    if name == "mvit_v2_s":  # the class token is not part of the map
        assert [f.shape[1] for f in features] == [8, 8, 16, 32, 64]
    else:
        torch.testing.assert_close(network.classify(last), logits)
    parts = [f if isinstance(f, list) else [f] for f in features]
    sizes = [p[0].shape[-1] for p in parts]
    assert sizes == sorted(sizes, reverse=True) and all(p.dim() == clips(name).dim() for part in parts for p in part)


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_changes_memory_alone(name):
    """The same losses, gradients and running statistics, bit by bit; fewer saved tensors."""
    plain = make(name, pool="soft").train()
    saving = make(name, pool="soft", checkpointing=True).train()
    clip, kept = clips(name), []
    for network in (plain, saving):
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        torch.manual_seed(2)  # of stochastic depth
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = network(clip).square().sum()
        kept.append(count)
        loss.backward()
    assert kept[1] < kept[0] * 0.6
    for (key, a), b in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None and torch.equal(a.grad, b.grad), key


@pytest.mark.parametrize("name", ["x3d_xs", "slowfast_r50", "densenet121"])
def test_export(name):
    where = ["existing"] if SPECS[name].is_image else ["existing", "downsample"]
    network = make(name, pool=PoolConfig(where=where)).eval()
    clip = clips(name, 1)
    exported = torch.export.export(network, (clip,)).module()
    torch.testing.assert_close(exported(clip), network(clip))


@pytest.mark.parametrize("name", ["r3d_18"])
def test_compile(name):
    network = create(name, 5, width=4, pool=PoolConfig(where=["existing", "downsample"]), checkpointing=True)
    network.load_state_dict(randomize(network).state_dict())
    plain = copy.deepcopy(network)
    plain.checkpointing = False
    clip = torch.randn(2, 3, 4, 32, 32)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    compiled(clip).square().sum().backward()
    plain(clip).square().sum().backward()
    for (key, a), b in zip(plain.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3, msg=key)
    for a, b in zip(plain.buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_compile_of_x3d_s_activation():
    """pytorchvideo's Swish has a backward that torch.compile cannot trace; a block that has one stands for all."""
    block = create("x3d_xs", 5, width=8, num_frames=4, crop_size=32).blocks[1].res_blocks[0]
    clip = torch.randn(2, 8, 4, 16, 16, requires_grad=True)
    torch.compile(block, fullgraph=True, backend="aot_eager")(clip).sum().backward()
    assert clip.grad.abs().sum() > 0


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_channels_last_is_kept(two_threads):  # with one thread torch's own small convolutions lose it
    clip = clips("x3d_xs").contiguous(memory_format=torch.channels_last_3d)
    network = make("x3d_xs", pool=PoolConfig(where=["downsample", "head"])).to(memory_format=torch.channels_last_3d)
    network.features_only = True
    assert all(f.is_contiguous(memory_format=torch.channels_last_3d) for f in network(clip))


# --- inflation --------------------------------------------------------------------------------------------------------


def test_a_still_clip_gives_what_its_picture_gives():
    image = make("densenet121").eval()
    clip = clips("densenet121")
    with torch.no_grad():
        # without a temporal kernel at all positions; with one in the middle, where no padding is seen
        video = inflate(image, temporal_kernel=1)
        torch.testing.assert_close(
            video(clip.unsqueeze(2).expand(-1, -1, 3, -1, -1)), image(clip), atol=1e-5, rtol=1e-5
        )
        image, clip = create("resnet18", 5, width=4, features_only=True).eval(), torch.randn(1, 3, 64, 64)
        video = inflate(image)
        assert video.conv1.kernel_size == (7, 7, 7) and video.layer1[0].conv1.kernel_size == (3, 3, 3)
        still = clip.unsqueeze(2).expand(-1, -1, 15, -1, -1)
        for a, b in zip(image(clip)[:2], video(still)[:2], strict=True):
            torch.testing.assert_close(a, b[:, :, 7], atol=1e-5, rtol=1e-5)


def test_inflation_leaves_the_image_network_alone_and_takes_poolings_along():
    image = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1),
        nn.BatchNorm2d(4),
        SoftPool2d(2, beta="learnable", num_channels=4),
        nn.MaxPool2d((2, 1)),
        nn.AvgPool2d(2),
        AdaptiveSoftPool2d(1),
        nn.Dropout2d(0.1),
    )
    before = repr(image)
    video = inflate(image)
    assert repr(image) == before and isinstance(image[0], nn.Conv2d)
    kinds = [nn.Conv3d, nn.BatchNorm3d, SoftPool3d, nn.MaxPool3d, nn.AvgPool3d, AdaptiveSoftPool3d, nn.Dropout3d]
    assert [type(m) for m in video] == kinds
    assert video[2].kernel_size == (1, 2, 2) and video[3].stride == (1, 2, 1)
    assert video.state_dict().keys() == image.state_dict().keys()
    assert video(torch.randn(1, 3, 5, 32, 32)).shape == (1, 4, 1, 1, 1)
    assert isinstance(inflate(nn.Conv2d(3, 4, 3)), nn.Conv3d)


def test_pooling_of_an_inflated_network():
    pool = PoolConfig(where=["existing", "downsample", "temporal"], temporal=["stage2", "stage3"])
    network = create("resnet18", 5, width=4, num_frames=8, crop_size=32, inflate=True, pool=pool, features_only=True)
    assert [f.shape[2] for f in network(torch.randn(1, 3, 8, 32, 32))] == [8, 8, 4, 2, 2]


def test_what_cannot_be_inflated():
    with pytest.raises(UsageError, match="inflate: Sequential has no two-dimensional layer"):
        inflate(nn.Sequential(nn.Linear(2, 3)))
    with pytest.raises(UsageError, match="temporal_kernel: an odd number keeps the number of frames, 2 does not"):
        inflate(nn.Conv2d(3, 4, 3), temporal_kernel=2)
    with pytest.raises(UsageError, match="inflate first, then replace poolings"):
        inflate(create("resnet18", 5, width=4, pool="lip"))


def test_no_warnings_of_ours():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create("x3d_xs", 5, width=8, num_frames=4, crop_size=32)
