import pytest
import torch
import torchvision
from torch import nn

from softpool3d.config import PoolConfig, load_config
from softpool3d.errors import UsageError
from softpool3d.models import build_model, names
from softpool3d.models.pooling import PooledConv3d, place_pooling
from softpool3d.modules import AdaptiveSoftPool3d, SoftPool3d


def network(*overrides, classes=5):
    return build_model(load_config("r3d_softpool", ["model.pool.where=[]", *overrides]), classes).eval()


def test_r3d_18_is_torchvisions():
    theirs = torchvision.models.video.r3d_18(num_classes=11).eval()
    ours = network("model.width=64", classes=11)
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(2, 3, 8, 56, 56)
    with torch.inference_mode():
        torch.testing.assert_close(ours(clip), theirs(clip))
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(("name", "frames", "crop"), [("x3d_xs", 4, 64), ("x3d_m", 6, 96)])
def test_x3d_is_pytorchvideos(name, frames, crop):
    from pytorchvideo.models.x3d import create_x3d

    theirs = create_x3d(input_clip_length=frames, input_crop_size=crop, model_num_class=7, head_activation=None).eval()
    ours = network(f"model.name={name}", "model.width=null", f"data.num_frames={frames}", *sizes(crop), classes=7)
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(2, 3, frames, crop, crop)
    with torch.inference_mode():
        torch.testing.assert_close(ours(clip), theirs(clip))


def sizes(crop):
    return f"data.crop_size={crop}", f"data.short_side={crop}", f"data.train_short_side=[{crop},{crop}]"


def test_x3d_parameters():
    millions = sum(p.numel() for p in network("model.name=x3d_m", "model.width=null", classes=400).parameters()) / 1e6
    assert millions == pytest.approx(3.79, abs=0.01)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kind", ["soft", "avg", "max"])
@pytest.mark.parametrize("where", ["existing", "downsample", "head", "downsample,head"])
def test_pooling_keeps_shapes_and_weights(name, kind, where):
    overrides = [f"model.name={name}", "data.num_frames=4", *sizes(64)]
    overrides += ["model.width=8"] if name == "r3d_18" else []
    plain = network(*overrides)
    pooled = network(*overrides, f"model.pool.kind={kind}", f"model.pool.where=[{where}]")
    pooled.load_state_dict(plain.state_dict())
    clip = torch.randn(2, 3, 4, 64, 64)
    shapes = [], []
    for model, seen in zip((plain, pooled), shapes, strict=True):
        for module in model.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(lambda m, i, o, seen=seen: seen.append(tuple(o.shape)))
    with torch.inference_mode():
        a, b = plain(clip), pooled(clip)
    assert a.shape == b.shape == (2, 5)
    assert shapes[0] == shapes[1]
    same = kind == "avg" and "downsample" not in where  # their own pooling is average pooling
    assert torch.allclose(a, b, atol=1e-5) == same


def test_where_pooling_goes():
    pooled = network("model.pool.where=[downsample, head]")
    convs = {path: m for path, m in pooled.named_modules() if isinstance(m, PooledConv3d)}
    main, shortcut = "layer2.0.conv1.0", "layer2.0.downsample.0"
    assert set(convs) == {"stem.0"} | {p.replace("2", n, 1) for n in "234" for p in (main, shortcut)}
    assert all(m.stride == (1, 1, 1) and isinstance(m.pool, SoftPool3d) for m in convs.values())
    assert convs["stem.0"].pool.kernel_size == (1, 2, 2)
    assert convs[shortcut].pool_first and not convs[main].pool_first
    assert isinstance(pooled.avgpool, AdaptiveSoftPool3d)
    assert not isinstance(network("model.pool.where=[downsample]").avgpool, AdaptiveSoftPool3d)


def test_max_pooling_over_a_pointwise_convolution_commutes_with_its_subsampling():
    """A shortcut pools its input, then convolves: with a window of one position that is the strided convolution."""
    conv = nn.Conv3d(3, 4, 1, stride=2)
    pooled = PooledConv3d(conv, nn.MaxPool3d(1, 2))
    clip = torch.randn(1, 3, 4, 6, 6)
    torch.testing.assert_close(pooled(clip), conv(clip))


def test_width_and_dropout():
    assert network("model.width=8").fc.in_features == 64
    assert network("model.dropout=0.3").dropout.p == 0.3
    wide = network("model.name=x3d_xs", "model.width=48", "data.num_frames=4", *sizes(64))
    assert wide.blocks[0].conv.conv_t.out_channels == 48


def test_a_place_that_the_network_does_not_have():
    network = nn.Sequential(nn.Conv3d(3, 4, 3))
    network.head_pool = "pool"
    with pytest.raises(UsageError, match=r"model.pool.where: tiny has no place 'head' \(it has existing\)"):
        place_pooling(network, PoolConfig(where=["head"]), "tiny")


def test_what_is_wrong_with_a_network():
    with pytest.raises(UsageError, match="model.width: the channels of x3d_xs come in multiples of 8, not 20"):
        network("model.name=x3d_xs", "model.width=20")
    with pytest.raises(UsageError, match="unknown network 'r3d18'; did you mean r3d_18"):
        network("model.name=r3d18")
    with pytest.raises(UsageError, match="data.crop_size: x3d_xs needs 32 pixels at least, not 16"):
        network("model.name=x3d_xs", *sizes(16))
