"""The registry: each network is its original library's, counted and compared."""

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from originals import IMAGES

from softpool3d.config import ModelConfig, PoolConfig
from softpool3d.config_file import load_config
from softpool3d.errors import UsageError
from softpool3d.models import build_model, create, names
from softpool3d.models.flops import count_flops, training_total
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


def test_the_zoo_counted_c2d_in_training_mode():
    """docs/models.md says why the zoo's figure is above what evaluation counts."""
    network, clip = create("c2d_r50"), torch.zeros(SPECS["c2d_r50"].clip_shape())
    assert training_total(count_flops(network, clip)) / 1e9 == pytest.approx(SPECS["c2d_r50"].gflops, abs=0.005)
    network, clip = create("c2d_r50", width=8, num_frames=2, crop_size=64), torch.zeros(1, 3, 2, 64, 64)
    counted = FlopCountAnalysis(network.train(), clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert training_total(count_flops(network, clip)) == counted.total()


@pytest.mark.parametrize("name", IMAGES)
def test_image_networks_have_torchvision_s_parameters(name):
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, name)(num_classes=7), create(name, 7)
    assert parameters(ours) == parameters(theirs)
    assert round(sum(p.numel() for p in create_on_meta(name).parameters()) / 1e6, 2) == SPECS[name].millions


def create_on_meta(name):
    with torch.device("meta"):
        return create(name, 1000)


def test_soft_pooling_where_the_network_pools_costs_the_pooling_alone():
    clip = torch.zeros(1, 3, 4, 64, 64)
    plain = count_flops(create("r3d_50", 5, num_frames=4, crop_size=64), clip)
    soft = create("r3d_50", 5, num_frames=4, crop_size=64, pool="soft")
    assert sum(p.numel() for p in soft.parameters()) == sum(p.numel() for p in create("r3d_50", 5).parameters())
    # stem: 64 channels, 2x16x16 outputs, 27 positions each; head: 2048 channels of 1x2x2
    pooling = 2 * 64 * 2 * 16 * 16 * 27 + 2 * 2048 * 4
    counted = count_flops(soft, clip)
    assert counted.total() - plain.total() == pooling
    names = ("soft_pool3d", "adaptive_soft_pool3d")
    assert sum(counted.by_operator()[name] for name in names) == pooling


@pytest.mark.parametrize("name", names())
def test_the_least_clip_and_what_is_less(name):
    entry = SPECS[name]
    frames, crop = (None if entry.is_image else entry.least[0]), entry.least[1]
    # width as small as it goes: every network is built and run here
    width = {"mvit_v2_s": 16}.get(name, max(4, entry.width_step))
    network = create(name, 5, num_frames=frames, crop_size=crop, width=width, in_channels=2).eval()
    shape = entry.clip_shape(frames, crop, channels=2)
    assert network(torch.randn(shape)).shape == (1, 5)
    with pytest.raises(UsageError, match=rf"^crop_size: {name} needs {crop} pixels at least, not {crop - 1}$"):
        create(name, 5, crop_size=crop - 1)
    if frames and frames > 1:
        with pytest.raises(UsageError, match=rf"^num_frames: {name} needs {frames} frames at least, not {frames - 1}$"):
            create(name, 5, num_frames=frames - 1)
    larger = (*shape[:-2], crop + 16, crop + 16)  # made for one size, it takes others
    if name != "mvit_v2_s":
        assert network(torch.randn(larger)).shape == (1, 5)


def test_other_sizes_than_those_it_was_made_for():
    for name, made, given in (
        ("x3d_xs", (4, 64), (6, 96)),
        ("x3d_xs", (8, 96), (4, 64)),
        ("slow_r50", (8, 64), (3, 40)),
        ("mvit_v2_s", (4, 64), (8, 96)),
    ):
        width = {"x3d_xs": 24, "slow_r50": 8, "mvit_v2_s": 16}[name]
        for pool in (None, "soft"):
            network = create(name, 5, num_frames=made[0], crop_size=made[1], width=width, pool=pool).eval()
            assert network(torch.randn(1, 3, given[0], given[1], given[1])).shape == (1, 5)


def test_width_dropout_and_head():
    narrow = create("r3d_18", 5, width=8, dropout=0.3)
    assert narrow.fc.in_features == 64 and narrow.dropout.p == 0.3
    assert create("s3d", 5, width=16).classifier[1].in_channels == 256
    assert create("x3d_xs", 5, width=48).blocks[0].conv.conv_t.out_channels == 48
    assert create("densenet161", 5, width=48).features.denseblock1.denselayer1.conv2.out_channels == 24
    for name, features in (("r3d_18", 64), ("slowfast_r50", 288), ("s3d", 128), ("mvit_v2_s", 128), ("resnet18", 64)):
        width = 16 if name == "mvit_v2_s" else 8
        bare = create(name, 5, width=width, num_frames=8, crop_size=64, head="none").eval()
        clip = SPECS[name].clip_shape(None if SPECS[name].is_image else 8, 64)
        assert bare(torch.randn(clip)).shape == (1, features)


def test_slowfast_takes_one_clip_or_both_pathways():
    network = create("slowfast_r50", 5, num_frames=8, crop_size=32, width=8).eval()
    clip = torch.randn(1, 3, 8, 32, 32)
    pathways = [clip[:, :, [0, 7]], clip]
    torch.testing.assert_close(network(clip), network(pathways))
    assert len(pathways) == 2 and pathways[0].shape[1] == 3  # the caller's list is the caller's
    with pytest.raises(UsageError, match="num_frames: slowfast_r50 takes frames in multiples of 4, not 6"):
        create("slowfast_r50", num_frames=6)


def test_r3d_blocks_begin_as_identities():
    for name, last in (("r3d_18", "conv2"), ("r3d_50", "conv3")):
        block = create(name, 5, width=4).layer2[1]
        x = torch.rand(1, block.conv1[0].in_channels, 2, 4, 4)
        assert not getattr(block, last)[1].weight.any()
        torch.testing.assert_close(block.eval()(x), x)


def config(*overrides):
    return load_config("r3d_softpool", ["model.width=null", *overrides])


def test_a_configuration_s_network():
    network = build_model(config("model.name=x3d_s", "model.dropout=0.3", "model.checkpointing=true"), 5)
    assert network.blocks[5].dropout.p == 0.3 and network.checkpointing
    assert {change.place for change in network.pooling} == {"downsample", "head"}
    inflated = build_model(config("model.name=resnet18", "model.inflate=true", "model.width=8"), 5)
    assert inflated.eval()(torch.randn(1, 3, 8, 64, 64)).shape == (1, 5)


def test_each_key_of_the_model_reaches_its_network():
    def made(*overrides):
        return build_model(config("model.width=8", "model.pool.where=[head]", *overrides), 5)

    assert made().stem[0].out_channels == 8 and made("model.width=12").stem[0].out_channels == 12
    assert type(made()).__name__ == "R3D" != type(made("model.name=x3d_xs", "data.crop_size=32")).__name__
    assert (made().dropout.p, made("model.dropout=0.3").dropout.p) == (0, 0.3)
    assert not made().checkpointing and made("model.checkpointing=true").checkpointing
    x = torch.randn(1, 64, 2, 3, 3)
    flat = x.flatten(2)
    softly = {beta: ((beta * flat).softmax(2) * flat).sum(2) for beta in (1, 3)}
    powers = {p: flat.abs().pow(p).mean(2).pow(1 / p) for p in (2, 3)}
    for overrides, expected in {
        (): softly[1],
        ("model.pool.beta=3",): softly[3],
        ("model.pool.kind=max",): flat.amax(2),
        ("model.pool.kind=avg",): flat.mean(2),
        ("model.pool.kind=lp",): powers[2],
        ("model.pool.kind=lp", "model.pool.p=3"): powers[3],
    }.items():
        torch.testing.assert_close(made(*overrides).avgpool(x).flatten(1), expected)
    assert made("model.pool.beta=learnable").avgpool.raw_beta.requires_grad
    started = made("model.pool.beta=learnable", "model.pool.beta_start=4").avgpool.beta
    torch.testing.assert_close(started, torch.full((64,), 4.0))
    conv = made("model.pool.kind=conv", "model.pool.where=[downsample,head]", "model.pool.head=max")
    assert [(change.place, change.after.split()[0]) for change in conv.pooling] == [("head", "max")]
    torch.testing.assert_close(conv.avgpool(x).flatten(1), flat.amax(2))
    for where, place in (("downsample", "downsample"), ("head", "head"), ("existing", "head")):  # it pools there alone
        assert {change.place for change in made(f"model.pool.where=[{where}]").pooling} == {place}
    temporal = made("model.pool.where=[temporal]", "model.pool.temporal=[stage2,stage3]")
    assert [change.name for change in temporal.pooling] == ["stage2", "stage3"]
    image = ["model.name=resnet18", "model.inflate=true", "model.pool.where=[existing]"]
    assert isinstance(made(*image).conv1, torch.nn.Conv3d)
    assert [made(*image, *more).maxpool.kernel_size for more in ([], ["model.pool.paper_stem=true"])] == [
        (1, 3, 3),
        (1, 2, 2),
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=r3d18"], r"^model.name: unknown network 'r3d18'; did you mean r3d_18 or .*\(known: r3d_18, "),
        (
            ["model.name=x3d_xs", "model.width=20"],
            "^model.width: the channels of x3d_xs come in multiples of 8, not 20$",
        ),
        (
            ["model.name=x3d_xs", "data.crop_size=16"],
            "^data.crop_size: x3d_xs needs 32 pixels at least, not 16$",
        ),
        (["model.name=s3d", "data.num_frames=4"], "^data.num_frames: s3d needs 5 frames at least, not 4$"),
        (
            ["model.name=resnet18"],
            "^data.num_frames: resnet18 takes pictures, which are clips of one frame, not 8; set data.num_frames=1",
        ),
        (["model.inflate=true"], "^model.inflate: r3d_18 takes clips already"),
        (
            ["model.pool.where=[attention]"],
            r"^model.pool.where: r3d_18 has no place 'attention' \(it has existing, downsample, temporal, head\)$",
        ),
    ],
)
def test_what_is_wrong_with_a_network(overrides, message):
    with pytest.raises(UsageError, match=message):
        build_model(config(*overrides), 5)


def test_what_is_wrong_with_arguments():
    with pytest.raises(UsageError, match="^head: 'linear' is neither 'classifier' nor 'none'$"):
        create("r3d_18", head="linear")
    with pytest.raises(UsageError, match="^num_classes: 0 is none"):
        create("r3d_18", 0)
    for argument in ("num_frames", "crop_size", "width", "in_channels"):
        with pytest.raises(UsageError, match=f"^{argument}: "):
            create("r3d_18", **{argument: 0})
    with pytest.raises(UsageError, match="^dropout: 1.5 is no probability"):
        create("r3d_18", dropout=1.5)
    with pytest.raises(UsageError, match="kind = 'softmax': input should be 'soft', 'avg'"):
        create("r3d_18", pool="softmax")
    assert ModelConfig().pool == PoolConfig()
