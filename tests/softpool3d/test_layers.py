"""Features of a network's layers: by default those that its head has pooled, else what a layer gives, pooled."""

import pytest
import torch
from scores import write_data_set, write_weights

from softpool3d import Classifier, soft_pool3d
from softpool3d.errors import UsageError
from softpool3d.inference.layers import UpTo
from softpool3d.models.registry import SPECS, create


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return write_weights(folder / "w.safetensors", write_data_set(folder / "data", 3, 2, 2))


@pytest.mark.parametrize("name", ["r3d_18", "s3d", "x3d_xs", "slowfast_r50", "mvit_v2_s", "resnet18", "densenet121"])
@torch.inference_mode()
def test_every_kind_of_network_gives_its_features(name):
    entry = SPECS[name]
    settings = {"num_frames": entry.least[0], "crop_size": entry.least[1], "width": 8}
    network, headless = (create(name, 5, head=head, **settings).eval() for head in ("classifier", "none"))
    headless.load_state_dict(network.state_dict(), strict=False)
    clips = torch.randn(2, 3, entry.least[0], entry.least[1], entry.least[1])
    logits = network(clips)
    pooled = UpTo(network)
    assert torch.equal(pooled(clips), headless(clips))
    network.features_only = True
    maps = network(clips)[-1]
    network.features_only = False
    maps = maps if isinstance(maps, list) else [maps]  # SlowFast's pathways
    for pool, by_hand in (("avg", lambda x: x.mean(2)), ("max", lambda x: x.amax(2)), ("soft", _soft)):
        expected = torch.cat([by_hand(x.flatten(2)) for x in maps], 1)
        torch.testing.assert_close(UpTo(network, "stage4", pool)(clips), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(network(clips), logits), "the hooks stay, and do nothing while others use the network"


def _soft(x):
    shares = x.softmax(2)
    return (shares * x).sum(2)


def test_soft_is_the_operator_of_this_package():
    network = create("r3d_18", 5, num_frames=4, crop_size=32, width=4).eval()
    with torch.inference_mode():
        clips = torch.randn(1, 3, 4, 32, 32)
        maps = network.stem(clips)
        pooled = soft_pool3d(maps, tuple(maps.shape[2:])).flatten(1)
        torch.testing.assert_close(UpTo(network, "stem", "soft")(clips), pooled)


def test_a_layer_whose_output_is_overwritten_is_read_in_time():
    network = create("r3d_18", 5, num_frames=4, crop_size=32, width=4).eval()
    with torch.inference_mode():
        clips = torch.randn(1, 3, 4, 32, 32)
        before = network.stem[1](network.stem[0](clips))
        assert before.min() < 0  # the layer after it is a ReLU in place
        torch.testing.assert_close(UpTo(network, "stem.1")(clips), before.mean((2, 3, 4)))


def test_the_classifier_s_features(weights):
    classifier = Classifier(weights, device="cpu")
    frames = torch.randint(0, 255, (30, 3, 40, 48), dtype=torch.uint8)
    label = classifier(frames)[0]
    found = classifier.features(frames)
    assert found.shape == (32,) and found.dtype == torch.float32 and found.device.type == "cpu"
    views = classifier.sample(frames)
    rows = classifier.embedder().predictor(views.clips)
    assert len(rows) == 2 and rows[0].ne(rows[1]).any()
    torch.testing.assert_close(found, rows.mean(0))
    assert classifier.features(frames, "stage2", "max").shape == (8,)
    video = weights.parent / "data" / "video 0.mp4"
    assert classifier.features(video).shape == (32,)
    assert classifier(frames)[0].probability == pytest.approx(label.probability, abs=1e-5)
    with torch.inference_mode():
        network = torch.compile(UpTo(classifier.model, "stage2", "max"), backend="eager", fullgraph=True)
        clips = torch.randn(2, 3, 4, 32, 32)
        torch.testing.assert_close(network(clips), UpTo(classifier.model, "stage2", "max")(clips))


@pytest.mark.parametrize(
    ("layer", "pool", "message"),
    [
        ("stage5", None, "--layer stage5: there is no such layer; there are stem, stage1, .*stage4, and modules by"),
        ("layer9.0", None, r"such as layer\d\.0 and"),
        ("", None, "there is no such layer"),
        ("stage4", "sum", "--pool sum: it is one of avg, max, soft"),
        (None, "max", "--pool needs --layer"),
    ],
)
def test_layers_that_are_not_there(weights, layer, pool, message):
    with pytest.raises(UsageError, match=message):
        Classifier(weights, device="cpu").embedder(layer, pool)


def test_a_module_without_an_output(weights):
    with pytest.raises(UsageError, match="--layer dropout2d: there is no such layer"):
        Classifier(weights, device="cpu").embedder("dropout2d")
    classifier = Classifier("motion", device="cpu")
    with pytest.raises(UsageError, match="--layer blocks: this module gives no tensor of its own"):
        classifier.features(torch.zeros(8, 3, 64, 64, dtype=torch.uint8), "blocks")


def test_an_exported_network_has_no_layers(weights, tmp_path):
    from softpool3d.inference.exporter import export_weights

    export_weights(weights, "onnx", tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="an exported network has no layers to take features of; give the weights"):
        Classifier(tmp_path / "a.onnx", device="cpu").features(torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
