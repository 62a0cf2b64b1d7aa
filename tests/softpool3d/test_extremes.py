"""Values at the edges of the types, NaN and infinities, empty windows, and extreme beta."""

import pytest
import torch

import softpool3d
from softpool3d.ops.fallback import soft_pool3d_fallback
from softpool3d.ops.reference import soft_pool3d_reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")


def clips(*rows, dtype=torch.float32, channels_last):
    """Each row of 4 numbers as a (1, 2, 1, 1, 4) clip, pooled by 4 into one number; two channels alike."""
    x = torch.tensor(rows, dtype=torch.float64)[:, None, None, None, :].expand(-1, 2, -1, -1, -1).to(dtype)
    return x.contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)


ROWS = {
    "largest": lambda big: [
        [big] * 4,
        [-big] * 4,
        [big, -big, big, -big],
        [-big, -big, big, 0],
        [big, 0, 1, -1],
    ],
    "negative": lambda big: [
        [-1, -2, -3, -4],
        [-100, -100.5, -101, -99],
        [-0.01, -0.02, -5, -80],
        [-1, -1, -1, -1],
    ],
    "equal": lambda big: [[0, 0, 0, 0], [7, 7, 7, 7], [-250, -250, -250, -250]],
    "one huge": lambda big: [[1, 2, big, 3], [big / 2, 0, 0, 0], [0, -big, 1, 2]],
    "far from 0": lambda big: [[1000, 1001, 1002, 1003], [-5000, -5001, -5000, -5002], [88, 89, 90, 200]],
}


@pytest.mark.parametrize("beta", [1.0, 0.0, 1e-30, 1e-4, 50.0, -1.0, -50.0, 1e30, -1e30])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_finite_values_are_exact(truth, level, rows, dtype, channels_last, beta):
    big = {torch.float64: 1e308, torch.float32: 3e38, torch.float16: 65504.0, torch.bfloat16: 3e38}[dtype]
    x = clips(*ROWS[rows](big), dtype=dtype, channels_last=channels_last)
    y = softpool3d.soft_pool3d(x, (1, 1, 4), beta=beta)
    expected = truth.brute_force(x, [[[0]], [[0]], [[0, 1, 2, 3]]], beta)[0]
    assert torch.isfinite(y).all()
    for one, value, clip in zip(y, expected, x, strict=True):
        truth.close(one, value, dtype, clip.abs().max().item())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_denormals(level, dtype, channels_last):
    """The mean of denormals, which beta cannot tell apart, to one or two of the smallest steps."""
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = clips([step * 1, step * 3, step * 5, step * 7], [-step * 9] * 4, dtype=dtype, channels_last=channels_last)
    y = softpool3d.soft_pool3d(x, (1, 1, 4))
    assert (y[0].double() - 4 * step).abs().max() <= 2 * step
    assert (y[1].double() + 9 * step).abs().max() <= 2 * step


@pytest.mark.parametrize("beta", [1.0, 0.0, 50.0, -1.0])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinities(truth, level, dtype, channels_last, beta):
    rows = [
        [NAN, 1, 2, 3],
        [NAN, INF, -INF, 0],
        [NAN, NAN, NAN, NAN],
        [INF, 1, 2, 3],
        [INF, -INF, 0, 0],
        [INF, INF, INF, INF],
        [-INF, 1, 2, 3],
        [-INF, -INF, -INF, 5],
        [-INF, -INF, -INF, -INF],
    ]
    x = clips(*rows, dtype=dtype, channels_last=channels_last).requires_grad_()
    y = softpool3d.soft_pool3d(x, (1, 1, 4), beta=beta)
    mean = truth.brute_force(clips([1, 2, 3, 3], channels_last=False)[..., :3], [[[0]], [[0]], [[0, 1, 2]]], beta)[0]
    wanted = torch.tensor([NAN, NAN, NAN, INF, INF, INF, mean.flatten()[0].item(), 5, -INF], dtype=torch.float64)
    truth.close(y[:, 0].flatten(), wanted, dtype, 3.0)
    truth.close(y[:, 1].flatten(), wanted, dtype, 3.0)

    y.backward(torch.ones_like(y))
    assert x.grad[:3, ..., 0].isnan().all()
    assert (x.grad[3:6] == 0).all()  # y is infinite: there is no derivative
    assert (x.grad[6, ..., 0] == 0).all() and x.grad[6].isfinite().all() and (x.grad[6, ..., 1:] != 0).any()
    assert (x.grad[7, ..., :3] == 0).all() and (x.grad[7, ..., 3] == 1).all()
    assert (x.grad[8] == 0).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_stays_in_its_windows(level, channels_last):
    x = torch.randn(2, 17, 6, 9, 21)
    x[1, 4, 3, 5, 7] = NAN
    x = x.contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    y = softpool3d.soft_pool3d(x, 3, 2, 1)
    hit = torch.zeros_like(y, dtype=torch.bool)
    hit[1, 4, 1:3, 2:4, 3:5] = True
    assert torch.equal(y.isnan(), hit)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_empty_window_gives_0_and_takes_no_gradient(level, dtype, channels_last):
    """Kernel 2 with dilation 4 and padding 1 around three: the window's taps are at -1 and 3, both outside."""
    x = torch.full((1, 3, 3, 3, 3), 5.0, dtype=dtype)
    x = x.contiguous(
        memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format
    ).requires_grad_()
    for value in (5.0, NAN, INF):
        x.data.fill_(value)
        for axis in range(3):
            kernel, padding, dilation = [1, 1, 1], [0, 0, 0], [1, 1, 1]
            kernel[axis], padding[axis], dilation[axis] = 2, 1, 4
            y = softpool3d.soft_pool3d(x, kernel, 1, padding, dilation)
            assert y.shape[2 + axis] == 1 and y.numel() == 27 and (y == 0).all()
            (grad,) = torch.autograd.grad(y.sum(), x)
            assert (grad == 0).all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_gradients_of_any_size(truth, level, size, channels_last):
    """Incoming gradients far from 1 keep their relative precision, whatever the weights' sums are."""
    for offset in (-38.0, 0.0, 38.0):
        x = torch.randn(1, 17, 2, 4, 24) + offset
        x = x.contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
        x.requires_grad_()
        g = torch.randn(1, 17, 1, 2, 12) * size
        softpool3d.soft_pool3d(x).backward(g)
        windows = truth.pooled_windows((2, 4, 24), (2,) * 3, (2,) * 3, (0,) * 3, (1,) * 3, (1, 2, 12))
        dx = truth.brute_force(x, windows, 1.0, g)[1]
        # beta |x| roundings: x - y is a difference of numbers of that size
        truth.close(x.grad, dx, torch.float32, dx.abs().max().item(), ulps=64)


@pytest.mark.parametrize("beta", [1.0, 50.0, 1e30, -1e30])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_extreme_inputs_are_finite(truth, level, channels_last, beta):
    rows = [row for make in ROWS.values() for row in make(3e38)]
    x = clips(*rows, channels_last=channels_last).requires_grad_()
    g = torch.ones(len(rows), 2, 1, 1, 1)
    softpool3d.soft_pool3d(x, (1, 1, 4), beta=beta).backward(g)
    assert x.grad.isfinite().all()
    dx = truth.brute_force(x, [[[0]], [[0]], [[0, 1, 2, 3]]], beta, g)[1]
    truth.close(x.grad, dx, torch.float32, dx.abs().max().item(), ulps=64)


def with_beta(pool, x, beta):
    """y and dL/dx for L = sum of y."""
    x = x.detach().requires_grad_()
    y = pool(x, beta)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def compiled(x, beta):
    return softpool3d.soft_pool3d(x, (1, 2, 2), beta=beta)


def plain(x, beta):
    return soft_pool3d_reference(x, (1, 2, 2), (1, 2, 2), (0, 0, 0), (1, 1, 1), False, beta)


def fallback(x, beta):
    return soft_pool3d_fallback(x, (1, 2, 2), (1, 2, 2), (0, 0, 0), (1, 1, 1), False, beta)


@pytest.mark.parametrize("beta", [3e38, 1e39, 1e308, INF, -3e38, -1e39, -INF])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [4, 40])
def test_a_beta_beyond_the_type_is_max_or_min_pooling(level, width, dtype, channels_last, beta):
    x = torch.randn(2, 19, 3, 8, width).to(dtype)
    x[0, :, 0, :2, :2] = 3  # a window of equal values
    x[1, :, 1, :2, :2] = torch.tensor([-1.0, 2.0, 2.0, -1.0]).view(2, 2)  # two maxima, two minima
    x = x.contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    sign = 1 if beta > 0 else -1
    y = sign * torch.nn.functional.max_pool3d(sign * x.float(), (1, 2, 2))
    best = x.float() == y.repeat_interleave(2, 3).repeat_interleave(2, 4)
    dx = best / torch.nn.functional.avg_pool3d(best.float(), (1, 2, 2), divisor_override=1).repeat_interleave(
        2, 3
    ).repeat_interleave(2, 4)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for pool in (compiled, plain, fallback):
        for of in (beta, torch.tensor(beta, dtype=torch.float64).to(wide).expand(19)):
            got, grad = with_beta(pool, x, of)
            assert torch.equal(got.float(), y) and torch.equal(grad.float(), dx.to(dtype).float())


def test_one_beta_of_several_may_be_infinite_or_nan(level):
    x = torch.randn(2, 3, 2, 4, 40)
    betas = torch.tensor([1.0, INF, NAN])
    for pool in (compiled, plain, fallback):
        y, dx = with_beta(pool, x, betas)
        for channel, beta in ((0, 1.0), (1, INF)):
            one = slice(channel, channel + 1)
            alone, alone_dx = with_beta(pool, x[:, one], beta)
            torch.testing.assert_close(y[:, one], alone)
            torch.testing.assert_close(dx[:, one], alone_dx)
        assert y[:, 2].isnan().all() and dx[:, 2].isnan().all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("width", [4, 40])
def test_the_gradients_of_a_window_with_nan_are_nan(level, width, channels_last):
    """Whatever the incoming gradient is, even 0; no other window's are."""
    x = torch.randn(1, 2, 2, 4, width)
    x[0, 0, 0, 1, 1] = NAN
    x = x.contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    hit = torch.zeros_like(x, dtype=torch.bool)
    hit[0, 0, 0, :2, :2] = True
    for pool in (compiled, plain, fallback):
        for incoming in (0.0, 1.0):
            z, beta = x.detach().requires_grad_(), torch.ones(2, requires_grad=True)
            g = torch.ones(1, 2, 2, 2, width // 2)
            g[0, 0, 0, 0, 0] = incoming
            dx, dbeta = torch.autograd.grad(pool(z, beta), (z, beta), g)
            assert torch.equal(dx.isnan(), hit) and dbeta.isnan().tolist() == [True, False]
            (dx,) = torch.autograd.grad(pool(z, 1.0), z, g)
            assert torch.equal(dx.isnan(), hit)
