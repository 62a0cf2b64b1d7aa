"""Public weights: the original network with random weights, saved in its format, loaded, and run beside ours."""

import pickle

import pytest
import torch
from originals import HARA, PYTORCHVIDEO, TORCHVISION, original, pyslowfast_state, randomize, run_original
from safetensors.torch import save_file
from torch import nn

from softpool3d.errors import UsageError
from softpool3d.models import create
from softpool3d.models.registry import SPECS
from softpool3d.models.weights import TORCHVISION as NAMES
from softpool3d.models.weights import read_weights, torchvision_weights

# The clips on which the original runs: heads of pytorchvideo and torchvision's S3D are made for one size
CLIPS = {
    "s3d": (16, 224),
    "mvit_v2_s": (16, 224),
    "slow_r50": (8, 224),
    "c2d_r50": (8, 224),
    "i3d_r50": (8, 224),
    "csn_r101": (32, 224),
    "r2plus1d_r50": (16, 224),
    "slowfast_r50": (32, 224),
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def check(name, wrap, tmp_path, change=None):
    """Saves what `wrap` makes of the original's state dict, loads it into ours, and compares outputs and names."""
    entry = SPECS[name]
    frames, crop = CLIPS.get(name, (None if entry.is_image else 4, 64))
    theirs = original(name, frames=frames, crop=crop)
    if change:
        change(theirs)
    path = tmp_path / "weights.pth"
    torch.save(wrap(theirs.state_dict()), path)
    ours = create(name, 7, num_frames=frames, crop_size=crop, weights=path).eval()
    report = ours.loaded_weights
    assert report.loaded == len(ours.state_dict()) and not report.left_out and not report.missing
    clip = torch.randn(entry.clip_shape(frames, crop))
    torch.testing.assert_close(ours(clip), run_original(theirs, name, clip), atol=1e-5, rtol=1e-5)
    return ours, theirs


@pytest.mark.parametrize("name", [*TORCHVISION, "resnet18", "resnext50_32x4d", "densenet121"])
def test_torchvision(name, tmp_path):
    ours, theirs = check(name, dict, tmp_path)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize("name", [*(n for n in PYTORCHVIDEO if n not in ("x3d_s", "x3d_m")), "slowfast_r50"])
def test_pytorchvideo(name, tmp_path):
    ours, theirs = check(name, lambda state: {"model_state": state}, tmp_path)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("name", HARA)
def test_hara(name, tmp_path):
    def wrap(state):
        return {"epoch": 200, "arch": "resnet", "state_dict": {f"module.{k}": v for k, v in state.items()}}

    assert check(name, wrap, tmp_path)[0].loaded_weights.layout == "hara"


@pytest.mark.parametrize("name", ["x3d_m", "slowfast_r50", "slow_r50", "c2d_r50", "i3d_r50"])
def test_pyslowfast(name, tmp_path):
    def wrap(state):
        return {"epoch": 256, "model_state": pyslowfast_state(state), "cfg": "MODEL:\n  ARCH: x3d\n"}

    def normalise_shortcut(network):
        """The norm that PySlowFast's X3D has and pytorchvideo's has not."""
        network.blocks[1].res_blocks[0].branch1_norm = randomize(nn.BatchNorm3d(24)).eval()

    change = normalise_shortcut if name == "x3d_m" else None
    report = check(name, wrap, tmp_path, change)[0].loaded_weights
    assert report.layout == "pyslowfast" and len(report.adapted) == (name == "x3d_m")


def test_pyslowfast_s_own_names():
    """Names as published checkpoints have them, so that the translation above is not only its own inverse."""
    theirs = original("x3d_m")
    theirs.blocks[1].res_blocks[0].branch1_norm = nn.BatchNorm3d(24)
    x3d = pyslowfast_state(theirs.state_dict())
    for name, shape in {
        "s1.pathway0_stem.conv_xy.weight": (24, 3, 1, 3, 3),
        "s1.pathway0_stem.conv.weight": (24, 1, 5, 1, 1),
        "s1.pathway0_stem.bn.running_var": (24,),
        "s2.pathway0_res0.branch1.weight": (24, 24, 1, 1, 1),
        "s2.pathway0_res0.branch1_bn.weight": (24,),
        "s2.pathway0_res0.branch2.a.weight": (54, 24, 1, 1, 1),
        "s2.pathway0_res0.branch2.b.weight": (54, 1, 3, 3, 3),
        "s2.pathway0_res0.branch2.se.fc1.weight": (8, 54, 1, 1, 1),
        "s2.pathway0_res0.branch2.c_bn.bias": (24,),
        "head.conv_5.weight": (432, 192, 1, 1, 1),
        "head.conv_5_bn.weight": (432,),
        "head.lin_5.weight": (2048, 432, 1, 1, 1),
        "head.projection.weight": (7, 2048),
    }.items():
        assert tuple(x3d[name].shape) == shape
    slowfast = pyslowfast_state(original("slowfast_r50").state_dict())
    for name, shape in {
        "s1.pathway1_stem.conv.weight": (8, 3, 5, 7, 7),
        "s1_fuse.conv_f2s.weight": (16, 8, 7, 1, 1),
        "s1_fuse.bn.weight": (16,),
        "s2.pathway0_res0.branch1.weight": (256, 80, 1, 1, 1),
        "s5.pathway1_res2.branch2.c.weight": (256, 64, 1, 1, 1),
        "head.projection.weight": (7, 2304),
    }.items():
        assert tuple(slowfast[name].shape) == shape
    i3d = pyslowfast_state(original("i3d_r50").state_dict())
    for name, shape in {
        "s1.pathway0_stem.conv.weight": (64, 3, 5, 7, 7),
        "s2.pathway0_res2.branch2.a.weight": (64, 256, 3, 1, 1),
        "s3.pathway0_res0.branch1.weight": (512, 256, 1, 1, 1),
        "s3.pathway0_res0.branch2.a.weight": (128, 256, 3, 1, 1),
        "s4.pathway0_res5.branch2.a.weight": (256, 1024, 1, 1, 1),
        "s5.pathway0_res1.branch2.a.weight": (512, 2048, 3, 1, 1),
        "head.projection.weight": (7, 2048),
    }.items():
        assert tuple(i3d[name].shape) == shape


def test_the_seed_s_imagenet_checkpoints(tmp_path):
    """DataParallel's names beside the optimiser's state; older DenseNets have dots in their layers' names."""

    def wrap(state):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1).state_dict()
        state = {f"module.{name.replace('norm1', 'norm.1').replace('conv2', 'conv.2')}": t for name, t in state.items()}
        return {
            "epoch": 90,
            "arch": "densenet121",
            "state_dict": state,
            "best_acc1": torch.tensor(7.0),
            "optimizer": optimizer,
        }

    check("densenet121", wrap, tmp_path)


def test_names_come_with_classes_and_preprocessing(monkeypatch):
    for name in NAMES:
        assert torchvision_weights(name).meta["categories"]
    published = torchvision_weights("r3d_18")
    state = original("r3d_18", num_classes=400).state_dict()
    monkeypatch.delenv("SOFTPOOL3D_OFFLINE")
    monkeypatch.setattr(type(published), "get_state_dict", lambda self, **_: state)
    model = create("r3d_18", 51, weights="r3d_18")
    report = model.loaded_weights
    assert len(report.classes) == 400 and "abseiling" in report.classes
    assert report.preprocessing.mean == pytest.approx((0.43216, 0.394666, 0.37645))
    assert (report.preprocessing.short_side, report.preprocessing.crop_size) == (128, 112)
    assert [name for name, _ in report.left_out] == ["fc.weight", "fc.bias"] == list(report.missing)
    assert "(400, 512) there, (51, 512) here" in str(report) and "data.short_side=128" in str(report)


def save(tmp_path, content, name="weights.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def test_pooling_does_not_change_what_loads(tmp_path):
    path = save(tmp_path, create("r3d_50", 7, width=4).state_dict())
    from softpool3d.config import PoolConfig

    for pool in (
        PoolConfig(where=["existing", "downsample", "temporal"], temporal=["stage1"], beta="learnable"),
        PoolConfig(kind="lip", where=["existing", "downsample"]),
    ):
        model = create("r3d_50", 7, width=4, pool=pool, weights=path)
        assert model.loaded_weights.loaded == len(torch.load(path))
        assert all(
            ".pool." in n or n.startswith(("maxpool", "avgpool", "temporal")) for n in model.loaded_weights.missing
        )
        # with them once more, now from a file that has the poolings' parameters as well
        again = save(tmp_path, model.state_dict(), "pooled.pth")
        assert not create("r3d_50", 7, width=4, pool=pool, weights=again).loaded_weights.missing


def test_a_head_of_another_size_and_a_run_s_own_file(tmp_path):
    first = create("x3d_xs", 5, num_frames=4, crop_size=32)
    save_file(first.state_dict(), tmp_path / "best.safetensors")
    second = create("x3d_xs", 9, num_frames=4, crop_size=32, weights=tmp_path / "best.safetensors")
    assert [name for name, _ in second.loaded_weights.left_out] == ["blocks.5.proj.weight", "blocks.5.proj.bias"]
    torch.testing.assert_close(second.blocks[2].state_dict(), first.blocks[2].state_dict())


def test_other_input_channels(tmp_path):
    weight = torch.randn(8, 3, 7, 7)
    state = create("resnet18", 5, width=8).state_dict() | {"conv1.weight": weight}
    path = save(tmp_path, state)
    grey = create("resnet18", 5, width=8, in_channels=1, weights=path)
    torch.testing.assert_close(grey.conv1.weight, weight.sum(1, keepdim=True))
    six = create("resnet18", 5, width=8, in_channels=6, weights=path)
    torch.testing.assert_close(six.conv1.weight, weight[:, [0, 1, 2, 0, 1, 2]] / 2)
    assert "3 input channels repeated to 6" in str(six.loaded_weights)
    colour = create("resnet18", 5, width=8, weights=save(tmp_path, grey.state_dict(), "grey.pth"))
    torch.testing.assert_close(colour.conv1.weight, grey.conv1.weight.repeat(1, 3, 1, 1) / 3)
    # a picture of one grey value looks the same to all of them
    images = [torch.full((1, c, 32, 32), 0.7) for c in (3, 1, 6)]
    plain = create("resnet18", 5, width=8, weights=path)
    outputs = [m.conv1(x) for m, x in zip((plain, grey, six), images, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


def test_image_weights_start_a_video_network(tmp_path):
    image = create("resnet18", 5, width=8)
    video = create("resnet18", 5, width=8, inflate=True, weights=save(tmp_path, image.state_dict()))
    torch.testing.assert_close(video.layer1[0].conv1.weight.sum(2), image.layer1[0].conv1.weight)
    assert "inflated to 3 frames" in str(video.loaded_weights)


def test_relative_positions_are_interpolated(tmp_path):
    state = create("mvit_v2_s", 5, width=8, num_frames=8, crop_size=64).state_dict()
    small = create("mvit_v2_s", 5, width=8, num_frames=4, crop_size=64, weights=save(tmp_path, state))
    assert {name.rpartition(".")[2] for name, _ in small.loaded_weights.adapted} == {"rel_pos_t"}
    assert small.eval()(torch.randn(1, 3, 4, 64, 64)).shape == (1, 5)


def test_attention_weights_are_left_out_where_poolings_took_their_place(tmp_path):
    from softpool3d.config import PoolConfig

    state = create("mvit_v2_s", 5, width=8, num_frames=4, crop_size=64).state_dict()
    pool = PoolConfig(where=["attention"])
    model = create("mvit_v2_s", 5, width=8, num_frames=4, crop_size=64, pool=pool, weights=save(tmp_path, state))
    assert len(model.loaded_weights.left_out) == 3 * 16
    assert model.eval()(torch.randn(1, 3, 4, 64, 64)).shape == (1, 5)


class Unpicklable:
    """What a pickle could run."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "is no state dict of a network: it holds a list"),
        ({"epoch": 3}, "is no state dict of a network: it holds a dict of epoch"),
        ({}, "is no state dict of a network"),
        (
            {"a": Unpicklable()},
            r"holds Python objects beside tensors, and those are not run \([\w.]*Unpicklable\)",
        ),
        (b"text", "is no file of torch.save, or it is damaged"),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UsageError, match=f"^weights: .*{message}"):
        read_weights(path, "r3d_18")


def test_a_plain_pickle_is_not_run(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"x": [1]}))
    with pytest.raises(UsageError, match="^weights: "):
        read_weights(tmp_path / "a.pkl", "r3d_18")


def test_weights_of_another_network(tmp_path):
    path = save(tmp_path, create("r3d_18", 5, width=8).state_dict())
    with pytest.raises(UsageError, match=r"another network than r3d_18: stem.0.weight is \(8, .*\) there and \(4, "):
        create("r3d_18", 5, width=4, weights=path)
    with pytest.raises(UsageError, match=r"another network than x3d_xs: it lacks blocks.0.conv.conv_t.weight \(24, 3,"):
        create("x3d_xs", 5, weights=path)
    deeper = save(tmp_path, create("resnet34", 5, width=4).state_dict())
    with pytest.raises(
        UsageError, match=r"another network than resnet18: it has layer1.2.conv1.weight, which resnet18 l"
    ):
        create("resnet18", 5, width=4, weights=deeper)
    with pytest.raises(UsageError, match="mc3_18 are the weights of another network"):
        create("r3d_18", weights="mc3_18")
    with pytest.raises(UsageError, match="no weights file nowhere.pth, and no public weights of that name.*r3d_18"):
        create("r3d_18", weights="nowhere.pth")
