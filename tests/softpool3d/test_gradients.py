"""First and second derivatives: gradcheck, gradgradcheck, half types against float64, bitwise repeatability."""

import pytest
import torch

import softpool3d

# One for each kind of window: apart, touching, overlapping along some or all axes, dilated, padded, rounded up, wide.
GEOMETRIES = {
    "2/2": dict(kernel_size=2),
    "3/2 pad 1": dict(kernel_size=3, stride=2, padding=1),
    "(1,3,3)/(1,2,2)": dict(kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
    "(2,1,1)": dict(kernel_size=(2, 1, 1)),
    "apart": dict(kernel_size=1, stride=2),
    "dense": dict(kernel_size=2, stride=1),
    "dilated": dict(kernel_size=2, stride=1, dilation=(1, 2, 2)),
    "dilated, padded": dict(kernel_size=(1, 3, 2), stride=(1, 1, 3), padding=(0, 1, 1), dilation=(1, 2, 3)),
    "ceil": dict(kernel_size=2, stride=2, ceil_mode=True),
    "strided": dict(kernel_size=(2, 2, 3), stride=(2, 3, 3)),
}


def input_of(channels_last, dtype=torch.float64, shape=(2, 3, 3, 5, 7), spread=1.0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread
    x = x.to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    return x.requires_grad_()


def functions():
    for name, geometry in GEOMETRIES.items():
        yield pytest.param(lambda x, beta, g=geometry: softpool3d.soft_pool3d(x, **g, beta=beta), id=name)
    for out in (1, 2, (3, 2, 4)):
        yield pytest.param(lambda x, beta, o=out: softpool3d.adaptive_soft_pool3d(x, o, beta), id=f"adaptive {out}")


@pytest.mark.parametrize("spread", [1.0, 60.0], ids=["fast way", "exact way"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pool", list(functions()))
def test_gradcheck(pool, channels_last, spread):
    """In x and in a learnable beta; values of 60 and more leave the range in which no maximum is subtracted."""
    x = input_of(channels_last, spread=spread)
    beta = torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
    if spread == 1.0:
        assert torch.autograd.gradcheck(pool, (x, beta), fast_mode=True)
        assert torch.autograd.gradcheck(lambda t: pool(t, 0.7), (x,), fast_mode=True)
        return
    # So steep that finite differences need care: a small step, and a relative tolerance of the gradient's size.
    assert torch.autograd.gradcheck(pool, (x, beta), eps=1e-7, atol=1e-3, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pool", list(functions()))
def test_gradgradcheck(pool, channels_last):
    x = input_of(channels_last, shape=(1, 2, 3, 4, 5))
    beta = torch.tensor([0.5, -1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(pool, (x, beta), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: pool(t, 1.0), (x,), fast_mode=True)


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["x only", "beta only"])
def test_gradients_one_at_a_time(needs):
    x, beta = input_of(False), torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
    both = torch.autograd.grad(softpool3d.soft_pool3d(x, 3, 2, 1, beta=beta).square().sum(), (x, beta))
    x, beta = x.detach().requires_grad_(needs[0]), beta.detach().requires_grad_(needs[1])
    softpool3d.soft_pool3d(x, 3, 2, 1, beta=beta).square().sum().backward()
    for tensor, needed, expected in zip((x, beta), needs, both, strict=True):
        assert (tensor.grad is None) != needed
        if needed:
            torch.testing.assert_close(tensor.grad, expected)


def test_third_order():
    """Higher orders come from plain PyTorch, which autograd differentiates without end."""
    x = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64, requires_grad=True)

    def derivatives(pool):
        value, found = pool(x[None, None, None, None]).sum(), []
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, x, create_graph=True)
            found.append(grad)
            value = grad.pow(2).sum()
        return found

    ours = derivatives(lambda t: softpool3d.soft_pool3d(t, (1, 1, 4)))
    plain = derivatives(lambda t: (t.softmax(-1) * t).sum(-1))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_penalty_on_the_gradient_trains_beta():
    """A gradient penalty as users write it, float32: double backward through x and beta against plain PyTorch."""
    x = torch.randn(2, 3, 2, 4, 4)

    def penalty(pool):
        t, beta = x.clone().requires_grad_(), torch.ones(3, requires_grad=True)
        (grad,) = torch.autograd.grad(pool(t, beta).square().sum(), t, create_graph=True)
        grad.square().sum().backward()
        return t.grad, beta.grad

    def plain(t, beta):
        w = t.reshape(2, 3, 1, 2, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(-3)
        return ((w * beta[:, None, None, None, None]).softmax(-1) * w).sum(-1)

    for a, b in zip(penalty(lambda t, b: softpool3d.soft_pool3d(t, beta=b)), penalty(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pool", list(functions()))
def test_half_gradients_are_float64s_rounded(truth, level, pool, dtype, channels_last):
    """Sums are wide inside: the only rounding is that of the result (two roundings: float32 first)."""
    x = input_of(channels_last, dtype, shape=(2, 3, 3, 8, 40))
    y = pool(x, 1.0)
    g = torch.randn(y.shape).to(dtype)
    y.backward(g)
    wide = x.detach().double().requires_grad_()
    z = pool(wide, 1.0)
    z.backward(g.double())
    eps = torch.finfo(dtype).eps
    assert ((y.double() - z).abs() <= 0.51 * eps * z.abs() + 1e-6).all()
    assert ((x.grad.double() - wide.grad).abs() <= 0.51 * eps * wide.grad.abs() + 1e-6).all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_backward_is_bitwise_repeatable(channels_last, spread):
    x = input_of(channels_last, torch.float32, shape=(3, 20, 6, 18, 20), spread=spread)
    beta = torch.rand(20, requires_grad=True)
    y = softpool3d.soft_pool3d(x, 3, 2, 1, beta=beta)
    g = torch.randn_like(y)
    first = torch.autograd.grad(y, (x, beta), g, retain_graph=True)
    for _ in range(20):
        again = torch.autograd.grad(y, (x, beta), g, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_beta_0_is_average_and_large_is_max():
    x = input_of(False)
    torch.testing.assert_close(softpool3d.soft_pool3d(x, beta=0), torch.nn.functional.avg_pool3d(x, 2))
    torch.testing.assert_close(softpool3d.soft_pool3d(x, beta=1e6), torch.nn.functional.max_pool3d(x, 2))
    torch.testing.assert_close(softpool3d.soft_pool3d(x, beta=-1e6), -torch.nn.functional.max_pool3d(-x, 2))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 10.0, -1000.0, 1e4])
def test_beta_gradient_of_values_far_from_0_and_close_together(level, offset, spread, channels_last):
    """Within 1e-4 of float64: E[x^2] - y^2 would leave no digit of it. The first of the channels is not far from 0."""
    for kernel, shape in (
        (2, (2, 9, 4, 16, 16)),
        ((1, 3, 3), (2, 9, 4, 16, 16)),
        (3, (1, 9, 4, 16, 40)),
        ((4, 16, 16), (2, 9, 4, 16, 16)),
        ((2, 7, 7), (2, 9, 2, 7, 7)),
    ):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * spread
        x[:, 1:] += offset
        x = x.contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
        found = []
        for z in (x, x.double()):
            beta = torch.full((9,), 0.01, dtype=z.dtype, requires_grad=True)
            softpool3d.soft_pool3d(z, kernel, beta=beta).sum().backward()
            found.append(beta.grad.double())
        torch.testing.assert_close(*found, rtol=1e-4, atol=0)
