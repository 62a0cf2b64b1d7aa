"""The reference is the specification: it is held against brute force by itself, as the kernels are."""

import random

import pytest
import torch

from softpool3d.ops.reference import adaptive_soft_pool3d_reference, pooled_size, soft_pool3d_reference


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
def test_pool(truth, dtype):
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
        check(truth, x, beta, windows, lambda t, b, args=args: soft_pool3d_reference(t, *args, b))
        checked += 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_adaptive_pool(truth, dtype):
    draw = random.Random(0)
    torch.manual_seed(0)
    for _ in range(30):
        size, x, beta = random_problem(draw, dtype)
        out = [draw.randint(1, 7) for _ in size]
        windows = truth.adaptive_windows(size, out)
        check(truth, x, beta, windows, lambda t, b, out=out: adaptive_soft_pool3d_reference(t, out, b))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("beta", [1.0, 0.0, 1e-30, 50.0, -50.0, 1e30])
def test_extremes(truth, dtype, beta):
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
    y = soft_pool3d_reference(x, (1, 1, 4), (1, 1, 4), (0, 0, 0), (1, 1, 1), False, beta)
    expected = truth.brute_force(x, [[[0]], [[0]], [[0, 1, 2, 3]]], beta)[0]
    for one, value, clip in zip(y, expected, x, strict=True):
        truth.close(one, value, dtype, clip[clip.isfinite()].abs().max().item() if clip.isfinite().any() else 0.0)
    finite = x[:5].clone().requires_grad_()
    soft_pool3d_reference(finite, (1, 1, 4), (1, 1, 4), (0, 0, 0), (1, 1, 1), False, beta).sum().backward()
    assert finite.grad.isfinite().all()


def test_empty_window_and_infinities_pass_no_gradient():
    x = torch.tensor([5.0, float("inf"), float("-inf")]).reshape(3, 1, 1, 1, 1).expand(-1, -1, 1, 1, 3).clone()
    x.requires_grad_()
    y = soft_pool3d_reference(x, (1, 1, 2), (1, 1, 1), (0, 0, 1), (1, 1, 4))  # both taps outside
    assert (y == 0).all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert (grad == 0).all()
    y = soft_pool3d_reference(x, (1, 1, 3), (1, 1, 3), (0, 0, 0), (1, 1, 1))
    (grad,) = torch.autograd.grad(y[y.isfinite()].sum() + y[~y.isfinite()].sum(), x)
    torch.testing.assert_close(grad[0], torch.full_like(grad[0], 1 / 3))
    assert (grad[1:] == 0).all()
