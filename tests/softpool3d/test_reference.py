"""The reference, which is the specification, and the fallback, which runs without a library, against brute force."""

import random
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softpool3d.ops.fallback import adaptive_soft_pool3d_fallback, soft_pool3d_fallback
from softpool3d.ops.reference import adaptive_soft_pool3d_reference, pooled_size, soft_pool3d_reference

each_pool = pytest.mark.parametrize(
    "pool3d", [soft_pool3d_reference, soft_pool3d_fallback], ids=["reference", "fallback"]
)
each_adaptive = pytest.mark.parametrize(
    "pool3d", [adaptive_soft_pool3d_reference, adaptive_soft_pool3d_fallback], ids=["reference", "fallback"]
)


def random_problem(draw: random.Random, dtype):
    size = [draw.randint(1, 6) for _ in range(3)]
    spread = draw.choice([0.1, 1.0, 10.0, 1000.0])
    x = (torch.randn(2, 3, *size, dtype=torch.float64) * spread).to(dtype)
    beta = draw.choice([1.0, 0.0, -2.0, torch.tensor([0.5, -1.0, 3.0])])
    return size, x, beta


def check(truth, x, beta, windows, pool):
    x = x.requires_grad_()
    if isinstance(beta, torch.Tensor):
        beta = beta.clone().requires_grad_()
    y = pool(x, beta)
    g = torch.randn_like(y)
    y.backward(g)
    number = beta.detach().numpy() if isinstance(beta, torch.Tensor) else beta
    expected, dx, dbeta = truth.brute_force(x, windows, number, g)
    truth.close(y, expected, x.dtype, x.abs().max().item())
    truth.close(x.grad, dx, x.dtype, max(1.0, dx.abs().max().item()), ulps=64)
    if isinstance(beta, torch.Tensor):
        truth.close(beta.grad, dbeta, torch.float32, x.double().abs().max().item() ** 2 * g.abs().sum().item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@each_pool
def test_pool(truth, dtype, pool3d):
    draw = random.Random(0)
    torch.manual_seed(0)
    checked = 0
    while checked < 40:
        size, x, beta = random_problem(draw, dtype)
        kernel = [draw.randint(1, 3) for _ in size]
        stride = [draw.randint(1, 3) for _ in size]
        padding = [draw.randint(0, k // 2) for k in kernel]
        dilation = [draw.randint(1, 3) for _ in size]
        ceil_mode = draw.random() < 0.5
        out = [pooled_size(*v, ceil_mode) for v in zip(size, kernel, stride, padding, dilation, strict=True)]
        if min(out) < 1:
            continue
        windows = truth.pooled_windows(size, kernel, stride, padding, dilation, out)
        args = (kernel, stride, padding, dilation, ceil_mode)
        check(truth, x, beta, windows, lambda t, b, args=args: pool3d(t, *args, b))
        checked += 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each_adaptive
def test_adaptive_pool(truth, dtype, pool3d):
    draw = random.Random(0)
    torch.manual_seed(0)
    for _ in range(30):
        size, x, beta = random_problem(draw, dtype)
        out = [draw.randint(1, 7) for _ in size]
        windows = truth.adaptive_windows(size, out)
        check(truth, x, beta, windows, lambda t, b, out=out: pool3d(t, out, b))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("beta", [1.0, 0.0, 1e-30, 50.0, -50.0, 1e30])
@each_pool
def test_extremes(truth, dtype, beta, pool3d):
    big = 1e308 if dtype == torch.float64 else 3e38
    inf, nan = float("inf"), float("nan")
    rows = [
        [big] * 4,
        [big, -big, big, -big],
        [-big, -big, big, 0],
        [1, 2, big, 3],
        [1000, 1001, 1002, 1003],
        [nan, inf, 0, 1],
        [inf, -inf, 0, 1],
        [-inf, 1, 2, 3],
        [-inf] * 4,
    ]
    x = torch.tensor(rows, dtype=torch.float64).to(dtype)[:, None, None, None]
    y = pool3d(x, (1, 1, 4), (1, 1, 4), (0, 0, 0), (1, 1, 1), False, beta)
    expected = truth.brute_force(x, [[[0]], [[0]], [[0, 1, 2, 3]]], beta)[0]
    for one, value, clip in zip(y, expected, x, strict=True):
        truth.close(one, value, dtype, clip[clip.isfinite()].abs().max().item() if clip.isfinite().any() else 0.0)
    finite = x[:5].clone().requires_grad_()
    pool3d(finite, (1, 1, 4), (1, 1, 4), (0, 0, 0), (1, 1, 1), False, beta).sum().backward()
    assert finite.grad.isfinite().all()


@each_pool
def test_empty_window_and_infinities_pass_no_gradient(pool3d):
    x = torch.tensor([5.0, float("inf"), float("-inf")]).reshape(3, 1, 1, 1, 1).expand(-1, -1, 1, 1, 3).clone()
    x.requires_grad_()
    y = pool3d(x, (1, 1, 2), (1, 1, 1), (0, 0, 1), (1, 1, 4))  # both taps outside
    assert (y == 0).all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert (grad == 0).all()
    y = pool3d(x, (1, 1, 3), (1, 1, 3), (0, 0, 0), (1, 1, 1))
    (grad,) = torch.autograd.grad(y[y.isfinite()].sum() + y[~y.isfinite()].sum(), x)
    torch.testing.assert_close(grad[0], torch.full_like(grad[0], 1 / 3))
    assert (grad[1:] == 0).all()


def drawn(count: int, dtype=torch.float64):
    """Windows and bins over inputs with infinities and NaN, and each kind of beta."""
    draw = random.Random(1)
    torch.manual_seed(1)
    while count:
        size, x, beta = random_problem(draw, dtype)
        kernel, stride = ([draw.randint(1, 4) for _ in size] for _ in range(2))
        padding = [draw.randint(0, k // 2) for k in kernel]
        dilation, ceil_mode = [draw.randint(1, 3) for _ in size], draw.random() < 0.5
        if min(pooled_size(*v, ceil_mode) for v in zip(size, kernel, stride, padding, dilation, strict=True)) < 1:
            continue
        share = torch.rand_like(x)
        x[share < 0.1], x[(share > 0.1) & (share < 0.4)], x[share > 0.99] = torch.inf, -torch.inf, torch.nan
        count -= 1
        beta = torch.tensor([0.5, -1.0, 0.0]) if isinstance(beta, torch.Tensor) else beta
        yield x, beta, (kernel, stride, padding, dilation, ceil_mode), [draw.randint(1, n + 2) for n in size]


def test_the_fallback_is_the_reference_where_values_are_infinite_or_nan():
    for x, beta, window, out in drawn(150):
        for ours, plain, geometry in [
            (soft_pool3d_fallback, soft_pool3d_reference, window),
            (adaptive_soft_pool3d_fallback, adaptive_soft_pool3d_reference, (out,)),
        ]:
            got, wanted = (pool(x, *geometry, beta=beta) for pool in (ours, plain))
            torch.testing.assert_close(got, wanted, equal_nan=True, rtol=1e-9, atol=1e-9)
            t = x.nan_to_num(1.0, torch.inf, -torch.inf).requires_grad_()
            got, wanted = (torch.autograd.grad(pool(t, *geometry, beta=beta).sum(), t)[0] for pool in (ours, plain))
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [1, 2])
def test_the_fallback_s_half_gradients_are_rounded_once(kernel):
    x = torch.randn(2, 3, 3, 5, 7, dtype=torch.bfloat16).requires_grad_()
    beta = torch.ones(3, requires_grad=True)
    window = ([kernel] * 3, [1] * 3, [0] * 3, [1] * 3, False)
    (got, by_beta), (wanted, _) = (
        torch.autograd.grad(soft_pool3d_fallback(t, *window, beta).double().sum(), (t, beta)) for t in (x, x.double())
    )
    assert ((got.double() - wanted).abs() <= 0.51 * torch.finfo(x.dtype).eps * wanted.abs() + 1e-6).all()
    assert kernel > 1 or (by_beta == 0).all()  # not None


class Peak(TorchDispatchMode):
    """The most bytes that were alive at once in tensors made while it was on."""

    def __init__(self):
        super().__init__()
        self.alive, self.most, self.sizes = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return result

    def note(self, storage):
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.alive += storage.nbytes()
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self.forget, key)

    def forget(self, key):
        self.alive -= self.sizes.pop(key)


def peak(pool, *arguments, backward: bool) -> float:
    """The most memory that a pool takes beyond its input, in inputs."""
    x = torch.randn(1, 4, 16, 24, 24, requires_grad=backward)
    with Peak() as found:
        y = pool(x, *arguments)
        if backward:
            y.sum().backward()
    return found.most / x.untyped_storage().nbytes()


@pytest.mark.parametrize(("stride", "forward", "both"), [(1, 20, 60), (2, 10, 18)])
def test_the_fallback_needs_no_memory_of_27_windows(stride, forward, both):
    window = ([3] * 3, [stride] * 3, [1] * 3, [1] * 3)
    for backward, most in [(False, forward), (True, both)]:
        assert peak(soft_pool3d_fallback, *window, backward=backward) < most
    assert peak(soft_pool3d_reference, *window, backward=True) > both  # so the measure sees windows


def test_the_fallback_s_bins_need_little_memory():
    for size in ([1] * 3, [5] * 3):
        assert peak(adaptive_soft_pool3d_fallback, size, backward=False) < 8
        assert peak(adaptive_soft_pool3d_fallback, size, backward=True) < 16
