"""Grad-CAM finds what a class depends on; maps before and after poolings are those of the network."""

import numpy as np
import pytest
import torch
from torch import nn
from videos import write_numbered

from softpool3d.config_file import load_config
from softpool3d.inference.classifier import Classifier
from softpool3d.models import build_model, create
from softpool3d.models.network import Staged
from softpool3d.runs.checkpoint import load_weights, save_weights
from softpool3d.visual.features import draw, feature_maps
from softpool3d.visual.gradcam import explain, grad_cam, overlay
from softpool3d.visual.source import read_source

CLASSES = ("a", "b", "c")
OVERRIDES = ["model.width=4", "data.num_frames=4", "model.pool.where=[existing,downsample]", "model.pool.beta=2"]


class Bright(Staged):
    """Class 0 counts red, class 1 minus red; nothing is learned."""

    def __init__(self):
        super().__init__()
        self.block = nn.AvgPool3d(2)

    def stages(self):
        return {"stem": [], "stage4": [self.block]}

    def classify(self, x):
        red = x[:, 0].mean((1, 2, 3))
        return torch.stack([red, -red], 1)


def test_heat_lies_where_the_class_is():
    clip = torch.zeros(1, 3, 8, 16, 16)
    clip[:, 0, 4:, 8:, :8] = 1.0
    heat = grad_cam(Bright(), clip, 0)
    assert heat.shape == (8, 16, 16)
    assert heat[6, 12, 3] > 0 and heat[1, 12, 3] == 0 and heat[6, 3, 3] == 0 and heat[6, 12, 12] == 0
    assert not grad_cam(Bright(), clip, 1).any()  # red speaks against it


@pytest.mark.parametrize("name", ["r3d_18", "x3d_xs", "slowfast_r50", "mvit_v2_s"])
def test_every_kind_of_network(name):
    torch.manual_seed(0)
    frames = {"slowfast_r50": 8, "mvit_v2_s": 4}.get(name, 4)
    network = create(name, num_classes=3, num_frames=frames, crop_size=64, width=8).eval()
    clip = torch.rand(1, 3, frames, 64, 64)
    maps = [grad_cam(network, clip, target) for target in range(3)]
    assert all(m.shape == (frames, 64, 64) and m.isfinite().all() for m in maps)
    assert any(m.any() for m in maps)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny network with SoftPool in all places, not trained."""
    torch.manual_seed(0)
    config = load_config("r3d_softpool", OVERRIDES)
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_weights(path, build_model(config, len(CLASSES)), config, CLASSES)
    return path


def test_a_video_is_explained_frame_by_frame(weights, tmp_path):
    classifier = Classifier(weights, "cpu")
    source = read_source(write_numbered(tmp_path / "clip.mp4", 37), short_side=40)
    found = explain(classifier, source)
    assert found.heat.shape == (37, *source.frames.shape[-2:])
    assert found.heat.min() == 0 and 0.5 < found.heat.max() <= 1
    labelled = classifier(source.path)[0]
    assert found.label == labelled.name and found.probability == pytest.approx(labelled.probability, abs=0.2)
    coloured = overlay(source.frames, found.heat)
    assert coloured.dtype == torch.uint8 and coloured.shape == source.frames.shape
    assert explain(classifier, source, "c").label == "c"


@pytest.mark.parametrize("average", ["softmax", "logits"])
@pytest.mark.parametrize("loss", ["binary", "cross_entropy"])
def test_the_probability_is_the_one_that_classify_gives(loss, average, weights, tmp_path):
    """A network of sigmoids too; one view, which both of them see."""
    config = load_config("r3d_softpool", [*OVERRIDES, f"optim.loss={loss}", f"test.average={average}"])
    network = build_model(config, len(CLASSES))
    network.load_state_dict(load_weights(weights).state)
    with torch.no_grad():
        network.fc.bias.copy_(torch.tensor([1.0, -1.0, 0.5]))  # sigmoids that do not sum to 1
    save_weights(tmp_path / "best.safetensors", network, config, CLASSES)
    classifier = Classifier(tmp_path / "best.safetensors", "cpu", num_clips=1)
    source = read_source(write_numbered(tmp_path / "clip.mp4", 13))  # frames of one clip
    for label in classifier(source.path):
        assert explain(classifier, source, label.name).probability == pytest.approx(label.probability, abs=1e-5)


def test_probabilities_of_several_views_are_averaged_as_in_testing(weights, tmp_path, monkeypatch):
    classifier, seen = Classifier(weights, "cpu"), []
    monkeypatch.setattr(classifier, "average", lambda logits: seen.append(logits) or torch.tensor([0.2, 0.7, 0.1]))
    found = explain(classifier, read_source(write_numbered(tmp_path / "clip.mp4", 37)))
    assert [tuple(logits.shape) for logits in seen] == [(3, 3)] and found.label == "b"
    assert found.probability == pytest.approx(0.7)


def test_maps_are_those_of_the_layers(weights):
    classifier = Classifier(weights, "cpu")
    clip = torch.rand(1, 3, 4, 64, 64)
    maps = feature_maps(classifier, clip)
    assert len(maps) >= 3
    for item in maps:
        own, soft = item.after.values()
        assert own.shape == soft.shape and list(item.after)[1] == "soft, beta 2"
        assert not torch.equal(own, soft)
    seen = {}
    layer = classifier.model.get_submodule(maps[0].name)
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.update(output=output[0]))
    with torch.no_grad():
        classifier.model(clip)
    hook.remove()
    if not getattr(layer, "pool_first", False):
        torch.testing.assert_close(list(maps[0].after.values())[1], seen["output"])
    picture = draw(maps, 3, "caption")
    assert picture.dtype == np.uint8 and picture.shape[1] == 3 * 116 - 4


def test_commands(weights, tmp_path, run):
    clip = write_numbered(tmp_path / "clip.mp4", 12)
    base = ("explain", clip, "--weights", weights)
    made = run(*base, "--method", "gradcam", "--out", tmp_path / "cam.mp4")
    assert made.returncode == 0, made.stderr
    assert "Grad-CAM at stage4" in made.stdout and (tmp_path / "cam.mp4").stat().st_size > 1000
    made = run(*base, "--method", "features", "--out", tmp_path / "maps.png", "--channels", "2")
    assert made.returncode == 0, made.stderr
    assert "poolings: " in made.stdout and (tmp_path / "maps.png").stat().st_size > 1000

    maps = ("--method", "features", "--out", tmp_path / "a.png")

    def refused(code, text, *arguments):
        result = run(*arguments)
        assert result.returncode == code and f"error: {text}" in result.stderr.replace(str(tmp_path) + "/", ""), (
            result.stderr
        )
        assert "Traceback" not in result.stderr

    refused(2, "cam.mp4 exists", *base, "--out", tmp_path / "cam.mp4")
    refused(2, "--layers stage9: no pooling has such a name (there are ", *base, *maps, "--layers", "stage9")
    refused(2, "--method cam: unknown (known: gradcam, features)", *base, "--method", "cam")
    refused(2, "--out a.mp4: unknown format", *base, "--method", "features", "--out", tmp_path / "a.mp4")
    refused(2, "--stage stage5: unknown", *base, "--stage", "stage5", "--out", tmp_path / "a.mp4")
    refused(
        2,
        "--class d: the weights know no such class (they know a, b, c)",
        *base,
        "--class",
        "d",
        "--out",
        tmp_path / "a.mp4",
    )
    refused(2, "clip.mp4 is not a safetensors", "explain", clip, "--weights", clip, "--out", tmp_path / "a.mp4")
    refused(
        2,
        "no file absent.mp4",
        "explain",
        tmp_path / "absent.mp4",
        "--weights",
        weights,
        "--out",
        tmp_path / "a.mp4",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cam.mp4", "clip.mp4", "maps.png"]
