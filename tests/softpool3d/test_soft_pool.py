"""Values and gradients against brute force: rank, geometry, beta, type and memory layout drawn at random."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import softpool3d

POOLS = {1: softpool3d.soft_pool1d, 2: softpool3d.soft_pool2d, 3: softpool3d.soft_pool3d}
ADAPTIVE = {
    1: softpool3d.adaptive_soft_pool1d,
    2: softpool3d.adaptive_soft_pool2d,
    3: softpool3d.adaptive_soft_pool3d,
}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last", "sliced", "transposed", "expanded", "channel slice"]


def tensor(shape, dtype, layout, seed, spread):
    """A random tensor of that shape with that memory layout."""
    generator = torch.Generator().manual_seed(seed)

    def random(shape):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)

    if layout == "sliced":
        return random([2 * n for n in shape])[tuple(slice(n % 2, None, 2) for n in shape)]
    if layout == "transposed":
        return random(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    if layout == "expanded":
        return random([1 if i % 2 else n for i, n in enumerate(shape)]).expand(shape)
    if layout == "channel slice":  # of a wider channels_last tensor
        wide = random([shape[0], *shape[2:], shape[1] + 3]).movedim(-1, 1)
        return wide[:, 1:-2]
    x = random(shape)
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x


@st.composite
def problems(draw):
    dims = draw(st.integers(1, 3))
    batch = draw(st.integers(0, 2))
    channels = draw(st.sampled_from([1, 2, 3, 5, 16, 19, 37]))
    size, kernel, stride, padding, dilation = [], [], [], [], []
    for axis in range(dims):
        longest = 45 if axis == dims - 1 else 7
        size.append(draw(st.integers(1, longest)))
        dilation.append(draw(st.sampled_from([1, 1, 1, 2, 3])))
        k = draw(st.integers(1, min(5, size[-1]) if draw(st.booleans()) else size[-1]))
        padding.append(draw(st.integers(0, k // 2)))
        kernel.append(k)
        stride.append(draw(st.integers(1, k + 2)))
    return dict(
        dims=dims,
        shape=[batch, channels, *size],
        geometry=(kernel, stride, padding, dilation),
        ceil_mode=draw(st.booleans()),
        beta=draw(st.sampled_from([1.0, 0.0, -1.0, 0.3, 4.0, "tensor"])),
        dtype=draw(st.sampled_from(DTYPES)),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**31)),
        spread=draw(st.sampled_from([0.1, 1.0, 1.0, 20.0, 500.0])),  # beyond some 40, the exact way
        unbatched=draw(st.booleans()),
    )


def triple(values, fill):
    return [fill] * (3 - len(values)) + list(values)


def check(truth, pool, windows, problem):
    """y, dL/dx and dL/dbeta of `pool(x, beta)` against brute force."""
    dims, shape, dtype = problem["dims"], problem["shape"], problem["dtype"]
    x = tensor(shape, dtype, problem["layout"], problem["seed"], problem["spread"])
    if problem["unbatched"] and shape[0] == 1:
        x = x[0]
    x = x.detach().requires_grad_()
    channels = shape[1]
    beta = problem["beta"]
    if beta == "tensor":
        beta = torch.linspace(-1, 2, channels).requires_grad_()
    y = pool(x, beta)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y.backward(g)

    x5 = x.detach().reshape(shape[0], channels, *triple(shape[2:], 1))
    g5 = g.reshape(shape[0], channels, *(len(w) for w in windows))
    betas = beta.detach().numpy() if isinstance(beta, torch.Tensor) else beta
    expected, dx, dbeta = truth.brute_force(x5, windows, betas, g5)

    assert y.dtype == dtype and x.grad.dtype == dtype
    largest = x5.double().abs().max().item() if x5.numel() else 0.0
    assert list(y.shape) == list(x.shape[:-dims]) + [len(w) for w in windows[-dims:]]
    truth.close(y.reshape(expected.shape), expected, dtype, largest)
    steepest = max(dx.abs().max().item(), 1.0) if dx.numel() else 1.0
    truth.close(x.grad.reshape(dx.shape), dx, dtype, steepest, ulps=64)
    if isinstance(beta, torch.Tensor):
        terms = largest**2 * g.double().abs().sum().item()
        truth.close(beta.grad, dbeta, torch.float32, terms)


EXAMPLES = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@EXAMPLES
@given(problem=problems())
def test_pool_equals_brute_force(truth, level, problem):
    dims, shape = problem["dims"], problem["shape"]
    kernel, stride, padding, dilation = problem["geometry"]
    max_pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
    try:
        like = max_pool(torch.zeros([1, *shape[1:]]), kernel, stride, padding, dilation, problem["ceil_mode"])
    except RuntimeError:  # the output would be empty; test_geometry.py looks at these
        return
    windows = truth.pooled_windows(
        triple(shape[2:], 1),
        triple(kernel, 1),
        triple(stride, 1),
        triple(padding, 0),
        triple(dilation, 1),
        triple(like.shape[2:], 1),
    )

    def pool(x, beta):
        return POOLS[dims](x, kernel, stride, padding, dilation, problem["ceil_mode"], beta)

    check(truth, pool, windows, problem)


@EXAMPLES
@given(problem=problems(), data=st.data())
def test_adaptive_pool_equals_brute_force(truth, level, problem, data):
    dims, shape = problem["dims"], problem["shape"]
    out = [data.draw(st.integers(1, min(n, 5) + 1)) for n in shape[2:]]
    windows = truth.adaptive_windows(triple(shape[2:], 1), triple(out, 1))
    check(truth, lambda x, beta: ADAPTIVE[dims](x, out, beta), windows, problem)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "geometry",
    [
        ((2, 2, 2), (2, 2, 2), (0, 0, 0)),
        ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ((2, 1, 1), (2, 1, 1), (0, 0, 0)),
        ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
        ((4, 6, 37), (4, 6, 37), (0, 0, 0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("beta", [1.0, "tensor"])
def test_networks_geometries(truth, level, beta, geometry, dtype, layout):
    """The windows that networks use, on rows of several vectors and on several tiles."""
    kernel, stride, padding = geometry
    shape = [1, 19, 4, 6, 37]
    like = F.max_pool3d(torch.zeros(shape), kernel, stride, padding)
    problem = dict(dims=3, shape=shape, beta=beta, dtype=dtype, layout=layout, seed=0, spread=2.0, unbatched=False)
    windows = truth.pooled_windows(shape[2:], kernel, stride, padding, (1, 1, 1), like.shape[2:])

    def pool(x, beta):
        return softpool3d.soft_pool3d(x, kernel, stride, padding, beta=beta)

    check(truth, pool, windows, problem)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("beta", [1.0, "tensor"])
@pytest.mark.parametrize(
    "shape, kernel",
    [
        ([1, 24, 2, 3, 700], (2, 1, 2)),  # a row of more than one tile
        ([1, 24, 2, 2, 701], (2, 1, 1)),
        ([1, 520, 2, 2, 19], (1, 1, 2)),  # channels of more than one tile
        ([2, 24, 2, 3, 19], (1, 1, 3)),
        ([2, 3, 5, 60, 61], None),  # a sum of several parts
        ([2, 37, 3, 20, 21], None),
    ],
    ids=str,
)
def test_beyond_one_tile(truth, level, shape, kernel, beta, layout):
    """Rows, channels and sums that are cut into pieces."""
    problem = dict(dims=3, shape=shape, beta=beta, dtype=torch.float32, layout=layout, seed=0, spread=2.0)
    problem["unbatched"] = False
    if kernel is None:
        windows = truth.adaptive_windows(shape[2:], (1, 1, 1))
        check(truth, lambda x, beta: softpool3d.adaptive_soft_pool3d(x, 1, beta), windows, problem)
        return
    out = [n // k for n, k in zip(shape[2:], kernel, strict=True)]
    windows = truth.pooled_windows(shape[2:], kernel, kernel, (0, 0, 0), (1, 1, 1), out)
    check(truth, lambda x, beta: softpool3d.soft_pool3d(x, kernel, beta=beta), windows, problem)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_outlier_spoils_only_what_it_touches(level, layout):
    """Windows without the outlier keep their values and gradients to the last bit."""
    x = tensor([2, 20, 6, 12, 40], torch.float32, layout, 0, 1.0).requires_grad_()
    args = dict(kernel_size=3, stride=2, padding=1)
    y = softpool3d.soft_pool3d(x, **args)
    y.sum().backward()
    spoiled = x.detach().clone()
    spoiled[1, 7, 2, 5, 11] = 1000.0
    spoiled.requires_grad_()
    z = softpool3d.soft_pool3d(spoiled, **args)
    z.sum().backward()
    # Rows of windows that hold the outlier go another way, with other roundings.
    torch.testing.assert_close(z[0], y[0], rtol=0, atol=0)
    away = torch.ones_like(y, dtype=torch.bool)
    away[1, 7, 1, 2:4, 5:7] = False
    torch.testing.assert_close(z[away], y[away], rtol=0, atol=2e-6)
    assert (z[1, 7, 1, 2:4, 5:7] == 1000.0).all()
    torch.testing.assert_close(spoiled.grad[0], x.grad[0], rtol=0, atol=0)
    assert spoiled.grad[1, 7, 2, 5, 11] == 4.0  # of one window in T, two in H and W each


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_output_keeps_the_layout(dims, layout):
    x = tensor([2, 5, 4, 6, 8][: dims + 2], torch.float32, layout, 0, 1.0)
    for y in (POOLS[dims](x), ADAPTIVE[dims](x, 3)):
        channels_last = layout in ("channels_last", "channel slice")
        assert (y.stride(1) == 1) == channels_last
        assert y.movedim(1, -1).is_contiguous() if channels_last else y.is_contiguous()


def test_no_memory_but_for_the_results():
    """channels_last, and slices that keep rows or channels together, run as they lie: the output, and in the backward
    the gradient, is all that is allocated."""

    def allocated(call):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = call()
        taken = sum(e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0)
        return result, taken

    geometry = ([3] * 3, [2] * 3, [1] * 3, [1] * 3, False)
    base = torch.randn(2, 8, 8, 32, 32)
    for x in (
        base,
        base.contiguous(memory_format=torch.channels_last_3d),
        base[:, 2:5, ::2],
        base.transpose(0, 2),
    ):
        y, taken = allocated(lambda x=x: torch.ops.softpool3d.soft_pool3d(x, None, 1.0, *geometry))
        assert taken == y.numel() * y.element_size()
        g = torch.ones_like(y)
        _, taken = allocated(
            lambda x=x, g=g: torch.ops.softpool3d.soft_pool3d_backward(g, x, None, 1.0, *geometry, True, False)
        )
        assert taken == x.numel() * x.element_size()


def test_nothing_but_the_input_is_saved():
    x = torch.randn(2, 3, 4, 8, 8, requires_grad=True)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        softpool3d.soft_pool3d(x, 3, 2, 1)
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]


def test_batch_of_zero():
    x = torch.randn(0, 3, 4, 6, 8, requires_grad=True)
    for y in (softpool3d.soft_pool3d(x), softpool3d.adaptive_soft_pool3d(x, 1)):
        assert y.shape[:2] == (0, 3)
        y.sum().backward()
    assert x.grad.shape == x.shape


def test_many_threads_give_the_same_bits():
    x = torch.randn(3, 5, 6, 20, 22, requires_grad=True)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = softpool3d.soft_pool3d(x, 3, 2, 1)
            results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
