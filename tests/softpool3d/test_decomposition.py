"""SoftPool in standard operators: the compiled operator's values, and graphs that hold nothing else."""

import itertools
import random

import pytest
import torch
from torch import nn

import softpool3d
from softpool3d import AdaptiveSoftPool2d, AdaptiveSoftPool3d, SoftPool2d, SoftPool3d, adaptive_soft_pool3d, soft_pool3d
from softpool3d.ops.decomposition import adaptive_soft_pool3d as adaptive_decomposed
from softpool3d.ops.decomposition import decompositions
from softpool3d.ops.decomposition import soft_pool3d as decomposed


def drawn(seed: int, count: int):
    """Windows that max pooling accepts, on inputs of all sizes and scales, with each kind of beta."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    found = 0
    while found < count:
        size = [draw.randint(1, 9) for _ in range(3)]
        kernel = [draw.randint(1, 4) for _ in range(3)]
        stride = [draw.randint(1, 3) for _ in range(3)]
        padding = [draw.randint(0, k // 2) for k in kernel]
        dilation = [draw.randint(1, 3) for _ in range(3)]
        geometry = (kernel, stride, padding, dilation, draw.random() < 0.5)
        x = torch.randn(2, 3, *size, dtype=torch.float64) * draw.choice([1, 50, 1e4])
        betas, beta = draw.choice([(None, 1.0), (None, -2.0), (None, 0.0), (torch.randn(3).double(), 1.0)])
        try:
            wanted = soft_pool3d(x, *geometry, beta if betas is None else betas)
        except RuntimeError:
            continue
        found += 1
        yield x, betas, beta, geometry, wanted


def test_values_and_sizes_over_windows():
    empty = 0
    for x, betas, beta, geometry, wanted in drawn(0, 150):
        torch.testing.assert_close(decomposed(x, betas, beta, *geometry), wanted, rtol=1e-10, atol=1e-10)
        empty += bool((wanted == 0).any())
    assert empty  # windows with nothing inside were among them


def test_values_and_sizes_over_bins():
    draw = random.Random(0)
    for x, betas, beta, _, _ in drawn(1, 60):
        size = [draw.randint(1, n + 2) for n in x.shape[2:]]
        wanted = adaptive_soft_pool3d(x, size, beta if betas is None else betas)
        torch.testing.assert_close(adaptive_decomposed(x, betas, beta, size), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_values_and_types(dtype):
    """exp of these would overflow, or all weights of a window underflow; in half types, sums would not fit either."""
    large = {torch.float32: 3e36, torch.float16: 6e4, torch.bfloat16: 3e36}[dtype]
    x = torch.tensor([-large, large, -1000, -1010, 90, 89, 1e-3, 2e-3], dtype=dtype).view(1, 1, 2, 2, 2)
    for geometry in (([1, 1, 2], [1, 1, 2]), ([2, 2, 2], [1, 1, 1])):
        rest = ([0, 0, 0], [1, 1, 1], False)
        y = decomposed(x, None, 1.0, *geometry, *rest)
        assert y.dtype == dtype and y.isfinite().all()
        torch.testing.assert_close(y, soft_pool3d(x, *geometry, *rest))


class Network(nn.Module):
    """Every form of the operator between two convolutions."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv, soft, adaptive = (
            (nn.Conv3d, SoftPool3d, AdaptiveSoftPool3d) if dims == 3 else (nn.Conv2d, SoftPool2d, AdaptiveSoftPool2d)
        )
        self.layers = nn.Sequential(
            conv(3, 4, 3, padding=1),
            soft(3, 2, 1, ceil_mode=True, beta="learnable", num_channels=4),
            soft(2, 1, 1, dilation=2, beta=2.5),
            adaptive((4,) * dims),
            conv(4, 4, 1),
            adaptive(1),
        )
        with torch.no_grad():
            self.layers[1].raw_beta.copy_(torch.tensor([-0.3, 0.0, 0.05, 0.1]))

    def forward(self, x):
        return self.layers(x).flatten(1)


@pytest.mark.parametrize("dims", [2, 3])
def test_any_network_in_onnx_runtime(dims, tmp_path):
    """The recipe of docs/export.md: sizes of the batch and of the first axis are open."""
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = Network(dims).eval()
    x = torch.randn(2, 3, *(11, 9, 10)[:dims])
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    program = program.run_decompositions(softpool3d.decompositions())
    assert not any("softpool3d" in str(node.target) for node in program.graph.nodes)
    torch.onnx.export(program, f=tmp_path / "network.onnx", external_data=False, verbose=False)
    session = ort.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for batch, scale in itertools.product((1, 4), (1.0, 300.0)):
        x = torch.randn(batch, 3, *(11, 9, 10)[:dims]) * scale
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), network(x), rtol=1e-4, atol=1e-5)


def test_without_a_library_there_is_nothing_to_decompose(monkeypatch):
    missing = {"cpu": {"loaded": False}}
    monkeypatch.setattr("softpool3d.ops.library.build_info", lambda: missing)
    assert decompositions() == {}
