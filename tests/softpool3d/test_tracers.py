"""Networks with SoftPool under torch's tracers: torch.fx, torch.jit, torch.onnx.export, torch.compile."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.video import r3d_18

import softpool3d
from softpool3d.models import create
from softpool3d.models.pools import KINDS


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.pool = softpool3d.SoftPool3d(3, 2, 1, beta="learnable", num_channels=4)
        self.head = softpool3d.AdaptiveSoftPool3d(1)

    def forward(self, x):
        return self.head(self.pool(self.conv(x)).relu()).flatten(1)


class Functions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1)

    def forward(self, x):
        x = softpool3d.soft_pool3d(input=self.conv(x), kernel_size=2, beta=0.5)
        return softpool3d.adaptive_soft_pool3d(x, output_size=(1, 2, 2)).flatten(1)


class Flat(nn.Module):
    """One and two dimensions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            softpool3d.SoftPool2d(2), nn.Flatten(2), softpool3d.SoftPool1d(3), softpool3d.AdaptiveSoftPool1d(4)
        )

    def forward(self, x):
        return softpool3d.soft_pool1d(self.layers(softpool3d.adaptive_soft_pool2d(x[:, :, 0], (8, 6))), 2)


NETWORKS = {"layers": Layers, "functions": Functions, "flat": Flat}
each_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def clip(*shape):
    return torch.randn(shape or (2, 3, 4, 8, 9), generator=torch.Generator().manual_seed(0))


@each_network
def test_fx(make):
    network = make().eval()
    traced = torch.fx.symbolic_trace(network)
    for x in (clip(), clip(1, 3, 5, 12, 10)):
        assert torch.equal(traced(x), network(x))
    assert any("soft_pool" in str(node.target) for node in traced.graph.nodes)
    traced.graph.lint()


def pooled(network, **options):
    softpool3d.replace_pooling(network, "soft", **options)
    return network


@pytest.mark.parametrize(
    ("make", "shape", "nodes"),
    [
        (lambda: create("r3d_18", 5, width=4, pool="soft"), (1, 3, 4, 32, 32), ["layer2.1", "avgpool"]),
        (
            lambda: create("x3d_xs", 5, pool="soft", num_frames=4, crop_size=64),
            (1, 3, 4, 64, 64),
            ["blocks.5.pool.pool"],
        ),
        (lambda: create("s3d", 5, width=4, pool="soft"), (1, 3, 16, 64, 64), ["features.2", "avgpool"]),
        (lambda: create("resnet18", 5, width=4, pool="soft"), (1, 3, 64, 64), ["maxpool", "layer2.0", "avgpool"]),
        (lambda: pooled(r3d_18(num_classes=5), where="downsample"), (1, 3, 4, 32, 32), ["stem", "layer3"]),
        (lambda: pooled(resnet18(num_classes=5), beta=2.0), (1, 3, 64, 64), ["maxpool", "avgpool"]),
        (lambda: pooled(resnet18(num_classes=5), beta="learnable"), (1, 3, 64, 64), ["maxpool", "avgpool"]),
    ],
    ids=["our r3d_18", "our x3d_xs", "our s3d", "our resnet18", "r3d_18", "resnet18", "resnet18, learnable"],
)
def test_networks_under_fx(make, shape, nodes):
    network, x = make().eval(), clip(*shape)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(network)(x), network(x))
        seen = {}
        for name in nodes:
            layer = network.get_submodule(name)
            hook = layer.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
            network(x)
            hook.remove()
        features = create_feature_extractor(network, nodes)(x)
    assert list(features) == nodes and all(torch.equal(features[name], seen[name]) for name in nodes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pooling_under_fx(kind):
    """Each is one module of the graph."""
    network = nn.Sequential(nn.Conv3d(3, 4, 3), nn.MaxPool3d(2), nn.ReLU()).eval()
    softpool3d.replace_pooling(network, kind)
    traced = torch.fx.symbolic_trace(network)
    assert torch.equal(traced(clip()), network(clip()))


@each_network
def test_jit_trace(make, tmp_path):
    network, x = make(), clip()  # with gradients asked for
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.jit.trace(network, x).save(tmp_path / "network.pt")
    traced = torch.jit.load(tmp_path / "network.pt")
    for x in (clip(), clip(1, 3, 6, 12, 11)):
        assert torch.equal(traced(x), network(x))


def test_jit_trace_says_that_it_keeps_a_size():
    with pytest.warns(torch.jit.TracerWarning, match="adaptive_soft_pool3d: None keeps the sizes of this input"):
        torch.jit.trace(softpool3d.AdaptiveSoftPool3d((1, None, 2)), clip())


@pytest.mark.parametrize("make", [*NETWORKS.values(), lambda: softpool3d.soft_pool3d], ids=[*NETWORKS, "function"])
def test_jit_script_says_what_to_use(make):
    with pytest.raises(RuntimeError) as found:
        torch.jit.script(make())
    assert str(found.value).startswith(
        "softpool3d: torch.jit.script cannot compile SoftPool; use torch.export.export or "
    )
    assert "\n" not in str(found.value)


@each_network
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_export(make, dynamo, tmp_path):
    """As anybody calls it: nothing of ours has to be known."""
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    network, x = make().eval(), clip()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), tmp_path / "network.onnx", dynamo=dynamo, verbose=False)
    session = ort.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), network(x).detach(), rtol=1e-4, atol=1e-5)


def test_numpy_s_numbers_compiled():
    """Sizes of numpy's are tensors to the compiler, with fullgraph an error in torch's pools too; modules keep ints."""
    x = clip()
    for sizes in (np.int64(2), (np.int64(1), np.int32(2), 2)):
        wanted = softpool3d.soft_pool3d(x, sizes, beta=1.5)
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = torch.compile(lambda x, s=sizes: softpool3d.soft_pool3d(x, s, beta=1.5), backend="aot_eager")(x)
        assert torch.equal(got, wanted)
        layer = softpool3d.SoftPool3d(sizes, beta=np.float32(1.5))
        assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), wanted)
    torch._dynamo.reset()
    beta = np.float32(1.5)
    compiled = torch.compile(lambda x: softpool3d.soft_pool3d(x, 2, beta=beta), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), softpool3d.soft_pool3d(x, 2, beta=1.5))
    torch._dynamo.reset()
