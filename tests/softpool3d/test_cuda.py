"""The operator on an NVIDIA GPU: what the other files say of the CPU, and what only a GPU can get wrong."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F

import softpool3d
from softpool3d.ops import library

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]

DEVICE = "cuda"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last", "sliced", "transposed", "expanded", "channel slice", "misaligned"]
OP = torch.ops.softpool3d
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def compiled_library():
    cuda = library.build_info()["cuda"]
    assert cuda["loaded"], f"the CUDA library is not loaded: {cuda['why']}; {cuda['remedy']}"


def tensor(shape, dtype, layout, seed=0, spread=1.0):
    """A random tensor of that shape and memory layout on the GPU."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(shape):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(DEVICE, dtype)

    if layout == "sliced":
        return fresh([2 * n for n in shape])[tuple(slice(n % 2, None, 2) for n in shape)]
    if layout == "transposed":
        return fresh(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    if layout == "expanded":
        return fresh([1 if i % 2 else n for i, n in enumerate(shape)]).expand(shape)
    if layout == "channel slice":  # of a wider channels_last tensor
        return fresh([shape[0], *shape[2:], shape[1] + 3]).movedim(-1, 1)[:, 1:-2]
    if layout == "misaligned":  # no address is a multiple of 16
        flat = fresh([1 + torch.Size(shape).numel()])
        return flat[1:].view(shape)
    x = fresh(shape)
    return x.contiguous(memory_format=torch.channels_last_3d) if layout == "channels_last" else x


def check(truth, x, pool, windows, beta, ulps=8):
    """y (up to `ulps` roundings), dL/dx and dL/dbeta of `pool(x, beta)` against brute force."""
    x = x.detach().requires_grad_()
    if isinstance(beta, torch.Tensor):
        beta = beta.to(DEVICE).requires_grad_()
    y = pool(x, beta)
    assert y.device == x.device and y.dtype == x.dtype
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, y.dtype)
    y.backward(g)
    betas = beta.detach().cpu().numpy() if isinstance(beta, torch.Tensor) else beta
    expected, dx, dbeta = truth.brute_force(x.detach().cpu(), windows, betas, g.cpu())
    largest = x.detach().double().abs().max().item() if x.numel() else 0.0
    truth.close(y, expected, x.dtype, largest, ulps)
    truth.close(x.grad, dx, x.dtype, max(dx.abs().max().item(), 1.0) if dx.numel() else 1.0, ulps=64)
    if isinstance(beta, torch.Tensor):
        truth.close(beta.grad, dbeta, torch.float32, largest**2 * g.double().abs().sum().item())


@pytest.mark.parametrize("seed", range(300))
def test_random_pools_equal_brute_force(truth, seed):
    draw = random.Random(seed)
    while True:
        shape = [draw.randint(0, 2), draw.choice([1, 2, 3, 8, 16, 19])]
        shape += [draw.randint(1, 7), draw.randint(1, 9), draw.choice([draw.randint(1, 40), 16, 32])]
        kernel = [draw.randint(1, min(5, n)) for n in shape[2:]]
        stride = [draw.randint(1, k + 2) for k in kernel]
        padding = [draw.randint(0, k // 2) for k in kernel]
        dilation = [draw.choice([1, 1, 1, 2, 3]) for _ in kernel]
        ceil_mode = draw.random() < 0.5
        try:
            like = F.max_pool3d(torch.zeros([1, *shape[1:]]), kernel, stride, padding, dilation, ceil_mode)
        except RuntimeError:  # the output would be empty
            continue
        break
    beta = draw.choice([1.0, 0.0, -1.0, 0.3, 4.0, torch.linspace(-1, 2, shape[1])])
    x = tensor(shape, draw.choice(DTYPES), draw.choice(LAYOUTS), seed, draw.choice([0.1, 1.0, 20.0]))
    windows = truth.pooled_windows(shape[2:], kernel, stride, padding, dilation, like.shape[2:])
    check(
        truth,
        x,
        lambda x, beta: softpool3d.soft_pool3d(x, kernel, stride, padding, dilation, ceil_mode, beta),
        windows,
        beta,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out", [1, (1, 2, 2), (2, 3, 5), (3, 4, 21)], ids=str)
def test_adaptive_pools_equal_brute_force(truth, out, dtype, layout):
    """Bins of equal and unequal size, from a whole clip, which takes several blocks, to a single position."""
    x = tensor([2, 8, 6, 16, 20], dtype, layout)
    windows = truth.adaptive_windows(x.shape[2:], out if isinstance(out, tuple) else (out,) * 3)
    beta = torch.linspace(0.5, 1.5, 8)
    # Up to 480 weights are added up.
    check(truth, x, lambda x, beta: softpool3d.adaptive_soft_pool3d(x, out, beta), windows, beta, ulps=24)


NETWORK_POOLS = [
    ((2, 2, 2), (2, 2, 2), (0, 0, 0)),
    ((1, 2, 2), (1, 2, 2), (0, 0, 0)),
    ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((2, 1, 1), (2, 1, 1), (0, 0, 0)),
    ((3, 3, 3), (3, 3, 3), (0, 0, 0)),
    ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((8, 28, 28), (8, 28, 28), (0, 0, 0)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", NETWORK_POOLS, ids=str)
def test_networks_pools_equal_the_cpu(geometry, dtype, layout):
    """Planes as large as in networks: every kernel with blocks enough to go wrong between them."""
    x = tensor([2, 16, 8, 28, 56], dtype, layout)
    kernel, stride, padding = geometry
    results = []
    for device, wide in ((DEVICE, dtype), ("cpu", torch.float64)):
        z = x.to(device, wide).requires_grad_() if device == "cpu" else x.detach().requires_grad_()
        beta = torch.linspace(0.5, 2, 16, device=device, dtype=torch.float64).requires_grad_()
        y = softpool3d.soft_pool3d(z, kernel, stride, padding, beta=beta)
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(device, wide)
        results.append((y, *torch.autograd.grad(y, (z, beta), g)))
    (y, dx, dbeta), (true_y, true_dx, true_dbeta) = results
    # The CPU's float64 has roundings of its own: of exp(beta x), as many as |beta x| is large, times the spread of x.
    eps, own = torch.finfo(dtype).eps, 400 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(y.cpu().double(), true_y, rtol=2 * eps, atol=8 * eps + own)
    steepest = max(1.0, true_dx.abs().max().item())
    torch.testing.assert_close(dx.cpu().double(), true_dx, rtol=4 * eps, atol=(64 * eps + 4 * own) * steepest)
    # Every term carries a rounding of float32, relative to the square of a value.
    allowed = 1e-6 * x.double().square().max().item() * true_y.numel() / 16
    torch.testing.assert_close(dbeta.cpu(), true_dbeta, rtol=0, atol=allowed)


@pytest.mark.parametrize("beta", [1.0, 0.0, 1e-30, 1e-4, 50.0, -1.0, -50.0, 1e30, -1e30])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("repeats", [1, 300], ids=["small windows", "large windows"])
def test_extreme_values(truth, dtype, layout, beta, repeats):
    big = {torch.float64: 1e308, torch.float32: 3e38, torch.float16: 65504.0, torch.bfloat16: 3e38}[dtype]
    tiny = torch.finfo(dtype).smallest_normal / 4
    rows = [
        [big] * 4, [-big] * 4, [big, -big, big, -big], [-big, -big, big, 0], [big, 0, 1, -1], [1, 2, big, 3],
        [-1, -2, -3, -4], [-100, -100.5, -101, -99], [7] * 4, [tiny, 0, tiny, tiny], [1000, 1001, 1002, 1003],
        [NAN, 1, 2, 3], [NAN, INF, 1, 2], [INF, 1, 2, 3], [INF, -INF, 1, 2], [INF, big, -big, 0],
        [-INF, 1, 2, 3], [-INF, -INF, -INF, 5], [-INF, -big, 0, 1], [-INF] * 4, [INF] * 4,
    ]  # fmt: skip
    x = torch.tensor(rows, dtype=torch.float64).repeat(1, repeats)[:, None, None, None, :]
    x = x.expand(-1, 8, -1, -1, -1).to(DEVICE, dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last_3d)
    width = 4 * repeats
    y = softpool3d.soft_pool3d(x, (1, 1, width), beta=beta)
    expected = truth.brute_force(x.cpu(), [[[0]], [[0]], [list(range(width))]], beta)[0]
    for row, one, value in zip(rows, y, expected, strict=True):
        finite = [abs(v) for v in row if abs(v) < INF]
        # Of equal weights, 1200 are added up.
        truth.close(one, value, dtype, max(finite, default=0.0), ulps=8 if repeats == 1 else 64)


@pytest.mark.parametrize("beta", [1e39, INF, -1e39, -INF])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", NETWORK_POOLS, ids=str)
def test_a_beta_beyond_the_type_is_max_or_min_pooling(geometry, dtype, layout, beta):
    """As a float and as a tensor, and the gradient goes to the maxima, in equal parts."""
    kernel, stride, padding = geometry
    x = tensor([2, 16, 8, 28, 56], dtype, layout)
    sign = 1 if beta > 0 else -1
    z = x.double().requires_grad_()
    y = sign * F.max_pool3d(sign * z, kernel, stride, padding)
    (dx,) = torch.autograd.grad(y.sum(), z)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for of in (beta, torch.tensor(beta, dtype=torch.float64).to(DEVICE, wide).expand(16)):
        w = x.detach().requires_grad_()
        found = softpool3d.soft_pool3d(w, kernel, stride, padding, beta=of)
        assert torch.equal(found.double(), y)
        (grad,) = torch.autograd.grad(found.sum(), w)
        assert grad.isfinite().all()
        if dtype in (torch.float64, torch.float32):  # the halves have windows with several maxima
            torch.testing.assert_close(grad.double(), dx, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", NETWORK_POOLS, ids=str)
def test_the_gradients_of_a_window_with_nan_are_nan(geometry, dtype, layout):
    """Whatever the incoming gradient is, even 0; no other window's are."""
    kernel, stride, padding = geometry
    x = tensor([2, 16, 8, 28, 56], dtype, layout)
    x[1, 3, 2, 5, 7] = NAN
    z, beta = x.requires_grad_(), torch.ones(16, device=DEVICE, requires_grad=True)
    y = softpool3d.soft_pool3d(z, kernel, stride, padding, beta=beta)
    dx, dbeta = torch.autograd.grad(y, (z, beta), torch.zeros_like(y))
    windows = y.isnan().double()
    assert windows.any()
    # average pooling's gradient tells which positions they hold
    spread = torch.zeros_like(x, dtype=torch.float64, requires_grad=True)
    (hit,) = torch.autograd.grad(F.avg_pool3d(spread, kernel, stride, padding), spread, windows)
    assert torch.equal(dx.isnan(), hit > 0)
    assert dbeta.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize("offset", [10.0, 1e4])
@pytest.mark.parametrize("geometry", NETWORK_POOLS, ids=str)
def test_beta_gradient_of_values_far_from_0_and_close_together(geometry, offset, spread, layout):
    kernel, stride, padding = geometry
    x = tensor([2, 16, 8, 28, 56], torch.float32, layout, spread=spread).add_(offset)
    found = []
    for z in (x, x.double()):
        beta = torch.full((16,), 0.01, dtype=z.dtype, device=DEVICE, requires_grad=True)
        softpool3d.soft_pool3d(z, kernel, stride, padding, beta=beta).sum().backward()
        found.append(beta.grad.double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


def test_an_empty_window_gives_0_and_takes_no_gradient():
    # kernel 2, dilation 4: the first window's taps lie at -1 and 3, of which none is inside
    x = tensor([1, 2, 1, 1, 3], torch.float32, "contiguous").requires_grad_()
    y = softpool3d.soft_pool3d(x, (1, 1, 2), 1, (0, 0, 1), (1, 1, 4))
    y.sum().backward()
    assert y.flatten().tolist() == [0.0, 0.0] and x.grad.abs().sum() == 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "pool",
    [
        lambda x, beta: softpool3d.soft_pool3d(x, 2, beta=beta),
        lambda x, beta: softpool3d.soft_pool3d(x, 3, 2, 1, beta=beta),
        lambda x, beta: softpool3d.soft_pool3d(x, 2, 3, 1, 2, True, beta=beta),
        lambda x, beta: softpool3d.adaptive_soft_pool3d(x, (2, 3, 1), beta),
        lambda x, beta: softpool3d.adaptive_soft_pool3d(x, 1, beta),
    ],
)
def test_gradcheck_and_gradgradcheck(pool, layout):
    x = tensor([1, 2, 3, 5, 5], torch.float64, layout).requires_grad_()
    beta = torch.tensor([0.7, -1.2], dtype=torch.float64, device=DEVICE).requires_grad_()
    assert torch.autograd.gradcheck(pool, (x, beta))
    assert torch.autograd.gradgradcheck(pool, (x, beta))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("geometry", NETWORK_POOLS, ids=str)
def test_backward_is_bitwise_repeatable(geometry, layout):
    kernel, stride, padding = geometry
    x = tensor([4, 24, 8, 28, 56], torch.float32, layout).requires_grad_()
    beta = torch.linspace(0.5, 2, 24, device=DEVICE).requires_grad_()
    first = None
    for _ in range(20):
        y = softpool3d.soft_pool3d(x, kernel, stride, padding, beta=beta)
        grads = torch.autograd.grad(y.sin().sum(), (x, beta))
        first = first or grads
        assert all(torch.equal(a, b) for a, b in zip(first, grads, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_is_that_of_output_and_gradient(layout):
    x = tensor([4, 32, 16, 56, 56], torch.float32, layout).requires_grad_()
    slack = 1 << 20  # the allocator's rounding
    for kernel, stride, padding in NETWORK_POOLS[:6]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = softpool3d.soft_pool3d(x, kernel, stride, padding)
        assert torch.cuda.max_memory_allocated() - before <= y.nbytes + slack
        g = torch.ones_like(y)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        (dx,) = torch.autograd.grad(y, x, g)
        assert torch.cuda.max_memory_allocated() - before <= dx.nbytes + slack


# --- inside torch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(layout, dtype):
    x = tensor([2, 3, 4, 6, 9], dtype, layout).requires_grad_()
    betas = torch.tensor([0.5, 1.0, -2.0], device=DEVICE).requires_grad_()
    pool = ([3, 3, 3], [2, 2, 2], [1, 1, 1], [1, 1, 1], False)
    torch.library.opcheck(OP.soft_pool3d, (x, betas, 1.0, *pool))
    torch.library.opcheck(OP.adaptive_soft_pool3d, (x, betas, 1.0, [1, 2, 3]))
    y, z = OP.soft_pool3d(x, betas, 1.0, *pool), OP.adaptive_soft_pool3d(x, betas, 1.0, [1, 2, 3])
    x, betas = x.detach(), betas.detach()
    for wanted in [(True, True), (True, False), (False, True)]:
        torch.library.opcheck(OP.soft_pool3d_backward, (torch.ones_like(y), x, betas, 1.0, *pool, *wanted))
        torch.library.opcheck(OP.adaptive_soft_pool3d_backward, (torch.ones_like(z), x, betas, 1.0, [1, 2, 3], *wanted))


def network(beta=1.0):
    torch.manual_seed(0)
    channels = 5 if beta == "learnable" else None
    return torch.nn.Sequential(
        torch.nn.Conv3d(3, 5, 3, padding=1),
        softpool3d.SoftPool3d(3, 2, 1, beta=beta, num_channels=channels),
        softpool3d.AdaptiveSoftPool3d(1),
    ).to(DEVICE)


@pytest.mark.parametrize("beta", [1.0, "learnable"])
def test_compile_without_a_graph_break(beta):
    net = network(beta)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True)
    x = tensor([2, 3, 4, 8, 8], torch.float32, "contiguous")
    net(x).square().sum().backward()
    compiled(x).square().sum().backward()
    for one, other in zip(net.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_type_alone(dtype):
    x = tensor([2, 3, 4, 8, 8], torch.float32, "contiguous")
    with torch.autocast(DEVICE, dtype):
        assert softpool3d.soft_pool3d(x).dtype == torch.float32
        assert softpool3d.soft_pool3d(x.to(dtype)).dtype == dtype
        assert network()(x).dtype == dtype


def test_vmap():
    x = tensor([3, 2, 4, 4, 6, 8], torch.float32, "contiguous")
    beta = torch.rand(3, 4, device=DEVICE)
    got = torch.vmap(lambda x, beta: softpool3d.soft_pool3d(x, beta=beta))(x, beta)
    expected = torch.stack([softpool3d.soft_pool3d(a, beta=b) for a, b in zip(x, beta, strict=True)])
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


# --- streams, graphs, devices, sizes ------------------------------------------------------------------------


def test_runs_on_the_current_stream():
    """The input is ready late on a stream of its own: a kernel on any other would read it before."""
    x = torch.zeros(1, 8, 8, 32, 32, device=DEVICE, requires_grad=True)
    value = tensor(x.shape, torch.float32, "contiguous")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles; some 0.1 s
        with torch.no_grad():
            x.copy_(value)
        y = softpool3d.soft_pool3d(x, 3, 2, 1)
        (dx,) = torch.autograd.grad(y.square().sum(), x)
    stream.synchronize()
    z = value.clone().requires_grad_()
    expected = softpool3d.soft_pool3d(z, 3, 2, 1)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    torch.testing.assert_close(dx, torch.autograd.grad(expected.square().sum(), z)[0], rtol=0, atol=0)


@pytest.mark.parametrize("pool", [lambda x: softpool3d.soft_pool3d(x, 3, 2, 1),
                                  lambda x: softpool3d.adaptive_soft_pool3d(x, 1)])  # fmt: skip
def test_cuda_graph(pool):
    """Forward and backward are captured, with the workspace of large windows, and replayed on new numbers."""
    x = tensor([2, 8, 8, 32, 32], torch.float32, "contiguous").requires_grad_()

    def step():
        y = pool(x)
        return y, torch.autograd.grad(y.square().sum(), x)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, dx = step()
    for seed in (1, 2):
        with torch.no_grad():
            x.copy_(tensor(x.shape, torch.float32, "contiguous", seed))
        graph.replay()
        torch.cuda.synchronize()
        for got, expected in zip((y, dx), step(), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_the_device_is_the_tensors():
    x = tensor([2, 8, 4, 16, 16], torch.float32, "contiguous")
    with torch.cuda.device(0):
        there = x.to("cuda:1").requires_grad_()
        y = softpool3d.soft_pool3d(there, 3, 2, 1)
        (dx,) = torch.autograd.grad(y.square().sum(), there)
        assert y.device == dx.device == torch.device("cuda:1")
        assert torch.cuda.current_device() == 0
    here = x.to("cuda:0").requires_grad_()
    z = softpool3d.soft_pool3d(here, 3, 2, 1)
    torch.testing.assert_close(y.cpu(), z.cpu(), rtol=0, atol=0)
    torch.testing.assert_close(dx.cpu(), torch.autograd.grad(z.square().sum(), here)[0].cpu(), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="device"):
        softpool3d.soft_pool3d(here, beta=torch.ones(8, device="cuda:1"))


def test_beta_on_another_device_is_an_error():
    with pytest.raises(RuntimeError, match="device"):
        OP.soft_pool3d(
            tensor([1, 2, 2, 2, 2], torch.float32, "contiguous"),
            torch.ones(2),
            1.0,
            *([2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False),
        )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 6, 16, 2880, 2880), (1, 2, 1, 33000, 33000)], ids=["planes", "one plane"])
@pytest.mark.parametrize("geometry", NETWORK_POOLS[1:3], ids=str)
def test_more_than_2_to_the_31_elements(geometry, shape, layout):
    """Both ends of the tensor, between which 32-bit indices would wrap around, against pools of parts."""
    kernel, stride, padding = geometry
    elements = torch.Size(shape).numel()
    assert elements > 2**31
    if torch.cuda.mem_get_info()[0] < 2 * 3.5 * elements:
        pytest.skip(f"needs {7 * elements / 1e9:.0f} GB of GPU memory")
    format = torch.channels_last_3d if layout == "channels_last" else torch.contiguous_format
    x = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16, memory_format=format).normal_()
    x.requires_grad_()
    y = softpool3d.soft_pool3d(x, kernel, stride, padding)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    rows = 64
    for part in (slice(None, rows), slice(-rows, None)):
        for n, c in ((0, 0), (-1, -1)):
            z = x.detach()[n, c, -1:, part, part].unsqueeze(0).contiguous().requires_grad_()
            w = softpool3d.soft_pool3d(z, kernel, stride, padding)
            (dz,) = torch.autograd.grad(w, z, torch.ones_like(w))
            # Away from the cut, and from windows that reach over it.
            inner = slice(None, rows - 4) if part.start is None else slice(4, None)
            half = slice(None, rows // 2 - 2) if part.start is None else slice(-(rows // 2) + 2, None)
            # A tile's place decides the order of its sums: the last bit of a few.
            bit = {"rtol": torch.finfo(torch.bfloat16).eps, "atol": 1e-6}
            torch.testing.assert_close(dx[n, c, -1, part, part][inner, inner], dz[0, 0, inner, inner], **bit)
            torch.testing.assert_close(y[n, c, -1, half, half], w[0, 0, half, half], **bit)
