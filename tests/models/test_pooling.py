"""Where pooling goes in the networks, and replace_pooling on anybody's."""

import copy

import pytest
import torch
from originals import randomize
from torch import nn

import softpool3d
from softpool3d.config import PoolConfig
from softpool3d.errors import UsageError
from softpool3d.models import create
from softpool3d.models.pooling import places
from softpool3d.models.pools import KINDS
from softpool3d.models.pools.geometry import Pool
from softpool3d.models.registry import SPECS
from softpool3d.models.sites import PooledConv2d, PooledConv3d, find_sites
from softpool3d.ops.modules import AdaptiveSoftPool2d, AdaptiveSoftPool3d, SoftPool1d, SoftPool2d, SoftPool3d

# one of each family, as narrow as it goes
FAMILIES = {
    "r3d_18": dict(width=4, num_frames=4, crop_size=64),
    "r3d_50": dict(width=4, num_frames=4, crop_size=64),
    "r2plus1d_18": dict(width=4, num_frames=4, crop_size=64),
    "s3d": dict(width=4, num_frames=8, crop_size=64),
    "x3d_xs": dict(width=8, num_frames=4, crop_size=64),
    "i3d_r50": dict(width=4, num_frames=4, crop_size=64),
    "csn_r101": dict(width=4, num_frames=4, crop_size=64),
    "r2plus1d_r50": dict(width=4, num_frames=4, crop_size=64),
    "slowfast_r50": dict(width=8, num_frames=8, crop_size=64),
    "mvit_v2_s": dict(width=8, num_frames=4, crop_size=64),
    "resnet18": dict(width=4, crop_size=64),
    "densenet121": dict(width=4, crop_size=64),
}


def clip_for(name, **kwargs):
    settings = FAMILIES[name]
    return torch.randn(SPECS[name].clip_shape(settings.get("num_frames"), settings["crop_size"]), **kwargs)


def conv_shapes(network, clip):
    seen, hooks = [], []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            hooks.append(module.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape))))
    with torch.no_grad():
        y = network(clip)
    for hook in hooks:
        hook.remove()
    return seen, y


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("where", ["existing", "downsample", "head", "existing,downsample"])
def test_pooling_keeps_shapes_names_and_weights(name, where):
    plain = randomize(create(name, 5, **FAMILIES[name])).eval()
    where = where.split(",")
    if not set(where) <= set(places(plain)):
        assert name == "mvit_v2_s"
        return
    clip = clip_for(name)
    shapes, logits = conv_shapes(plain, clip)
    for kind in ("soft", "max"):
        pooled = create(name, 5, pool=PoolConfig(kind=kind, where=where), **FAMILIES[name]).eval()
        assert pooled.pooling.changes
        pooled.load_state_dict(plain.state_dict())
        there, other = conv_shapes(pooled, clip)
        assert there == shapes and other.shape == logits.shape and other.isfinite().all()
        own = kind == "max" and name == "mvit_v2_s" and "downsample" not in where  # it pools by the maximum itself
        assert torch.equal(other, logits) == own


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_in_a_network(kind):
    where = ["existing", "downsample", "temporal"]
    pool = PoolConfig(kind=kind, where=where, temporal=["stage1"], beta="learnable" if kind == "soft" else 1.0)
    network = create("r3d_50", 5, pool=pool, **FAMILIES["r3d_50"])
    before = {name for name, _ in create("r3d_50", 5, **FAMILIES["r3d_50"]).named_parameters()}
    own = {name: p for name, p in network.named_parameters() if name not in before}
    assert before <= {name for name, _ in network.named_parameters()} and bool(own) == bool(
        KINDS[kind].learns or kind == "soft"
    )
    # zero gammas would stop the gradients on their way to the blocks
    nn.init.ones_(network.layer4[0].conv3[1].weight)
    network(torch.randn(2, 3, 4, 64, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own.values())


def test_where_pooling_goes():
    pooled = create("r3d_18", 5, width=4, pool=PoolConfig(where=["downsample", "head"]))
    convs = {path: m for path, m in pooled.named_modules() if isinstance(m, PooledConv3d)}
    main, shortcut = "layer2.0.conv1.0", "layer2.0.downsample.0"
    assert set(convs) == {"stem.0"} | {p.replace("2", n, 1) for n in "234" for p in (main, shortcut)}
    assert all(m.stride == (1, 1, 1) and isinstance(m.pool, SoftPool3d) for m in convs.values())
    assert convs["stem.0"].pool.kernel_size == (1, 2, 2)
    assert convs[shortcut].pool_first and not convs[main].pool_first
    assert isinstance(pooled.avgpool, AdaptiveSoftPool3d)
    assert str(pooled.pooling).startswith("8 layers replaced")


def test_existing_keeps_kernel_stride_and_padding():
    pooled = create("s3d", 5, width=4, pool="soft")
    pools = [m for m in pooled.features.modules() if isinstance(m, SoftPool3d)]
    assert len(pools) == 4 + 9 and not any(isinstance(m, nn.MaxPool3d) for m in pooled.modules())
    assert pools[0].kernel_size == (1, 3, 3) and pools[0].stride == (1, 2, 2) and pools[0].padding == (0, 1, 1)


def test_the_paper_s_stem():
    pooled = create("resnet18", 5, width=4, pool=PoolConfig(paper_stem=True))
    assert (pooled.maxpool.kernel_size, pooled.maxpool.stride, pooled.maxpool.padding) == ((2, 2), (2, 2), (0, 0))
    both = create("slowfast_r50", 5, pool=PoolConfig(paper_stem=True), **FAMILIES["slowfast_r50"])
    stems = both.blocks[0].multipathway_blocks
    assert [stem.pool.kernel_size for stem in stems] == [(1, 2, 2)] * 2
    for size in (32, 33, 35):  # sizes stay
        assert pooled.eval()(torch.randn(1, 3, size, size)).shape == (1, 5)
    with pytest.raises(UsageError, match="^pool.paper_stem: r3d_18 has no pooling in its stem$"):
        create("r3d_18", 5, pool=PoolConfig(paper_stem=True))


def test_the_stem_alone():
    """SoftPool's own DenseNets have means in their transitions, and in the head."""
    for name, pool in (("resnet18", "maxpool"), ("densenet121", "features.pool0")):
        soft = create(name, 5, width=8, pool=PoolConfig(where=["stem"], paper_stem=True))
        assert [change.name for change in soft.pooling] == [pool]
        assert soft.get_submodule(pool).kernel_size == (2, 2) and isinstance(soft.avgpool, nn.AdaptiveAvgPool2d)
    kept = create("resnet18", 5, width=8, pool=PoolConfig(where=["stem"]))
    assert kept.maxpool.kernel_size == (3, 3)
    both = create("resnet18", 5, width=8, pool=PoolConfig(where=["stem", "downsample"]))
    assert {change.place for change in both.pooling} == {"existing", "downsample"}
    with pytest.raises(UsageError, match="x3d_xs has no place 'stem'"):
        create("x3d_xs", 5, pool=PoolConfig(where=["stem"]))


def test_attention_pooling_of_mvit():
    settings = FAMILIES["mvit_v2_s"]
    pools = {kind: PoolConfig(kind=kind, where=["existing", "attention"]) for kind in ("soft", "max", "avg")}
    clip = clip_for("mvit_v2_s")
    for pool in pools.values():
        network = create("mvit_v2_s", 5, pool=pool, **settings).eval()
        assert not any(isinstance(m, nn.Conv3d) for m in network.blocks.modules())
        assert network(clip).shape == (1, 5)
    conv = create("mvit_v2_s", 5, pool=PoolConfig(kind="conv", where=["attention"]), **settings)
    assert not conv.pooling.changes  # it pools by convolution already


@pytest.mark.parametrize("name", ["r3d_18", "slowfast_r50", "i3d_r50"])
def test_temporal_pooling_halves_time(name):
    settings = {**FAMILIES[name], "num_frames": 32}
    pool = PoolConfig(where=["temporal"], temporal=["stage2", "stage4"])
    networks = [create(name, 5, pool=p, features_only=True, **settings).eval() for p in (None, pool)]
    clip = torch.randn(1, 3, 32, 64, 64)

    def frames(network):
        return [(f[1] if isinstance(f, list) else f).shape[2] for f in network(clip)]

    plain, halved = map(frames, networks)
    assert [a // b for a, b in zip(plain, halved, strict=True)] == [1, 1, 2, 2, 4]
    networks[1].features_only = False
    assert networks[1](clip).shape == (1, 5)
    with pytest.raises(
        UsageError, match=r"^num_frames: .* no time left to halve before stage2 and stage4 with \d+ frames; give"
    ) as e:
        create(name, 5, pool=pool, **{**settings, "num_frames": 4})
    least = int(str(e.value).split("give ")[1].split()[0])
    create(name, 5, pool=pool, **{**settings, "num_frames": least})
    with pytest.raises(UsageError, match="num_frames: "):
        create(name, 5, pool=pool, **{**settings, "num_frames": least - SPECS[name].frames_step})


def test_temporal_pooling_leaves_time_for_the_networks_own():
    pool = PoolConfig(where=["temporal"], temporal=["stage2"])
    with pytest.raises(UsageError, match=r"^num_frames: s3d has no time left .* with 8 frames; give 9 at least"):
        create("s3d", 5, pool=pool, num_frames=8, crop_size=32)
    assert create("s3d", 5, pool=pool, num_frames=9, crop_size=32).eval()(torch.randn(1, 3, 9, 32, 32)).shape == (1, 5)


def test_places_that_are_not_there():
    with pytest.raises(
        UsageError, match=r"^pool.where: mvit_v2_s has no place 'head' \(it has existing, downsample, att"
    ):
        create("mvit_v2_s", 5, pool=PoolConfig(where=["head"]))
    with pytest.raises(
        UsageError, match=r"^pool.where: resnet18 has no place 'temporal' \(it has existing, stem, downsam"
    ):
        create("resnet18", 5, pool=PoolConfig(where=["temporal"], temporal=["stage1"]))
    with pytest.raises(UsageError, match="^pool.kind: avgpool: blur slides.*; pool.head=avg says what stands there"):
        create("r3d_18", 5, pool=PoolConfig(kind="blur", where=["head"]))
    with pytest.raises(UsageError, match="the stem is where the clip enters"):
        create("r3d_18", 5, pool=PoolConfig(where=["temporal"], temporal=["stem"]))
    with pytest.raises(ValueError, match="temporal names no stages; set both"):
        PoolConfig(where=["temporal"])
    with pytest.raises(ValueError, match="where does not hold `temporal`"):
        PoolConfig(temporal=["stage1"])
    with pytest.raises(ValueError, match="add stem or existing to where"):
        PoolConfig(where=["downsample"], paper_stem=True)


def test_max_pooling_over_a_pointwise_convolution_commutes_with_its_subsampling():
    """A shortcut pools its input, then convolves: with a window of one position that is the strided convolution."""
    conv = nn.Conv3d(3, 4, 1, stride=2)
    pooled = PooledConv3d(conv, nn.MaxPool3d(1, 2))
    clip = torch.randn(1, 3, 4, 6, 6)
    torch.testing.assert_close(pooled(clip), conv(clip))


# --- replace_pooling --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A network of nobody's library: shared pooling, strides, an adaptive head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stage = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), self.pool, nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True))
        self.head = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.head(self.stage(self.pool(self.first(x)))).flatten(1))


IMAGE = torch.randn(2, 3, 37, 37)


def test_replace_pooling_keeps_weights_names_and_sizes():
    net, plain = Net().train(), None
    plain = copy.deepcopy(net)
    report = softpool3d.replace_pooling(net, kind="soft")
    assert [(c.name, c.place) for c in report] == [
        ("pool", "existing"),
        ("stage.1", "existing"),
        ("stage.3", "existing"),
        ("head", "head"),
    ]
    assert isinstance(net.pool, SoftPool2d) and net.stage[1] is net.pool  # one layer stays one
    assert isinstance(net.head, AdaptiveSoftPool2d) and net.stage[3].ceil_mode
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True))
    assert net(IMAGE).shape == plain(IMAGE).shape and net.pool.training
    assert "4 layers replaced" in str(report) and "pool     existing: MaxPool2d -> soft 3x3 / 2x2 pad 1x1" in str(
        report
    )


def test_back_again_is_the_network_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d((3, None)))
    before = net(IMAGE)
    softpool3d.replace_pooling(net, "edscw", names="1")
    softpool3d.replace_pooling(net, "soft")
    assert not torch.allclose(net(IMAGE), before)
    softpool3d.replace_pooling(net, "max")
    assert torch.equal(net(IMAGE), before)


def test_by_type_by_name_and_by_place():
    net = Net()
    assert [c.name for c in softpool3d.replace_pooling(net, types=nn.AvgPool2d)] == ["stage.3"]
    assert [c.name for c in softpool3d.replace_pooling(Net(), names=["sta*.3", "head"])] == ["stage.3", "head"]
    assert [c.name for c in softpool3d.replace_pooling(Net(), where="head")] == ["head"]
    report = softpool3d.replace_pooling(net, where=["downsample"])
    assert [(c.name, c.before, c.place) for c in report] == [("first", "Conv2d", "downsample")]
    assert isinstance(net.first, PooledConv2d) and net(IMAGE).shape == (2, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_anybody_s_network(kind):
    net = Net()
    net.stage[1] = nn.MaxPool2d(3, 2, 1)
    names = ["pool", "stage.*", "first"]
    report = softpool3d.replace_pooling(net, kind, where=["existing", "downsample"], names=names, example=IMAGE)
    assert len(report) == 4 and net(IMAGE).shape == (2, 5)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)  # no parameter waits for its size
    net(IMAGE).sum().backward()
    optimizer.step()


def test_one_and_three_dimensions_and_what_is_left():
    net = nn.Sequential(nn.Conv1d(2, 3, 3, stride=2), nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveMaxPool1d(1))
    softpool3d.replace_pooling(net, where=["existing", "downsample"])
    assert isinstance(net[1], SoftPool1d) and net(torch.randn(1, 2, 40)).shape == (1, 3, 1)
    net = nn.Sequential(nn.MaxPool3d(2, return_indices=True), nn.LPPool3d(2, 2))
    report = softpool3d.replace_pooling(net)
    assert [c.name for c in report] == ["1"] and report.left[0][1].startswith("it returns indices")
    assert "0 left as it is" in str(report)


def test_precision_and_networks_of_others():
    net = softpool3d.replace_pooling(model := Net().double(), "lip", names="stage.3", example=IMAGE.double())
    assert len(net) == 1 and model(IMAGE.double()).dtype == torch.float64
    from torchvision.models import googlenet, resnet18

    assert len(softpool3d.replace_pooling(resnet18(), "soft")) == 2
    inception = googlenet(init_weights=False, aux_logits=False).eval()
    assert len(softpool3d.replace_pooling(inception)) == 14 and inception(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"names": "stages.*"},
            r"nothing to change in Net with where=existing, names='stages.\*': it has first \(down",
        ),
        ({"types": nn.MaxPool3d}, "nothing to change in Net with where=existing, types="),
        ({"kind": "sof"}, "kind = 'sof': input should be 'soft', 'avg'"),
        ({"where": "body"}, "where: 'body' is no place of any network"),
        ({"where": []}, "where names no place .these are: existing, downsample, head"),
        ({"kind": "avg", "beta": 2.0}, "beta=2.0 is of kind='soft', and has no effect on 'avg'"),
        ({"p": 3.0}, "p=3.0 is of kind='lp', and has no effect on 'soft'"),
        ({"where": "stem"}, "where: 'stem' is no place of any network"),
        ({"where": "temporal"}, "where: 'temporal' is no place of any network"),
        ({"where": "attention"}, "where: 'attention' is no place of any network"),
        ({"kind": "blur"}, "^head: blur slides over windows and has no global form; leave that layer out with names"),
        ({"kind": "ada", "example": IMAGE}, "pool.* is one layer at several places that see 4 and 6 channels"),
    ],
)
def test_requests_that_change_nothing(arguments, message):
    net = Net()
    before = repr(net)
    with pytest.raises(UsageError, match=message):
        softpool3d.replace_pooling(net, **arguments)
    assert repr(net) == before


def test_the_report_says_what_else_there_is():
    """Of R3D-18 one layer is swapped, where the reader may have thought of its seven strides."""
    said = str(softpool3d.replace_pooling(softpool3d.models.create("r3d_18", 5, width=8)))
    assert said.startswith("1 layer replaced\n") and "strided convolutions left as they are: 7; where=" in said
    both = softpool3d.replace_pooling(softpool3d.models.create("r3d_18", 5, width=8), where=["existing", "downsample"])
    assert len(both) == 8 and "left as they are" not in str(both)
    with pytest.raises(UsageError, match="0 is left as it is: it returns indices .return_indices=True"):
        softpool3d.replace_pooling(nn.Sequential(nn.MaxPool3d(2, return_indices=True)))


def test_nothing_to_replace():
    with pytest.raises(
        UsageError, match="no layer of it pools or has a stride. Pooling that a forward calls as a function"
    ):
        softpool3d.replace_pooling(nn.Linear(3, 4))
    with pytest.raises(UsageError, match="the module is itself a MaxPool2d"):
        softpool3d.replace_pooling(nn.MaxPool2d(2))


def test_sites_of_a_pooled_network_are_not_its_inner_pools():
    network = create("r3d_18", 5, width=4, pool=PoolConfig(kind="ada", where=["downsample", "head"]))
    sites, left = find_sites(network)
    assert [site.name for site in sites] == ["avgpool"] and isinstance(network.avgpool, Pool)
    assert not left


def test_channels_are_found_without_an_example():
    """Where the network takes a picture or clip: by a run on shapes alone, through branches and shared layers."""
    from torchvision.models import googlenet
    from torchvision.models.video import r3d_18

    net = googlenet(init_weights=False, aux_logits=False)
    softpool3d.replace_pooling(net, beta="learnable")
    softpool3d.replace_pooling(video := r3d_18().double(), "lip", where=["downsample", "head"])
    assert (
        len(net.maxpool1.beta) == 64 and len(net.inception3b.branch4[0].beta) == 256 and len(net.avgpool.beta) == 1024
    )
    assert all(type(p) is nn.Parameter and p.device.type == "cpu" for p in (*net.parameters(), *video.parameters()))
    assert all(type(b) is torch.Tensor for b in (*net.buffers(), *video.buffers()))
    assert net.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    assert video.eval()(torch.randn(1, 3, 4, 32, 32).double()).shape == (1, 400)


def test_an_example_is_asked_for_where_channels_do_not_show():
    only = nn.Sequential(nn.MaxPool2d(2), nn.Flatten())
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 15 * 15, 5))
    for net in (only, fixed):
        before = repr(net)
        with pytest.raises(
            UsageError, match="^soft has parameters for each channel, .*; give an `example` input of Seq"
        ):
            softpool3d.replace_pooling(net, beta="learnable")
        assert repr(net) == before
    softpool3d.replace_pooling(fixed, beta="learnable", example=torch.randn(1, 3, 32, 32))
    assert len(fixed[1].beta) == 4
