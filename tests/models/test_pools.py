"""Each kind of pooling against its formula, written as a loop over windows in plain PyTorch."""

import itertools
import math
from typing import get_args

import pytest
import torch
from torch import nn

from softpool3d.config import PoolConfig, PoolKind
from softpool3d.errors import UsageError
from softpool3d.models.pools import KINDS, Bins, Window, geometry_of, make_pool, strided

WINDOWS = {
    "2/2": (2, 2, 0, False),
    "2/2 ceil": (2, 2, 0, True),
    "3/2 pad 1": (3, 2, 1, False),
    "3/1 pad 1": (3, 1, 1, False),
    "3/2 pad 1 ceil": (3, 2, 1, True),
}
SIZES = {1: (7,), 2: (5, 6), 3: (3, 5, 4)}
WINDOW_KINDS = [kind for kind in KINDS if kind not in ("blur", "stochastic")]


def window(dims, name, after_max=False):
    k, s, p, ceil = WINDOWS[name]
    return Window((k,) * dims, (s,) * dims, (p,) * dims, (1,) * dims, ceil, after_max=after_max)


def positions(n, k, s, p, out):
    return [[i for i in range(o * s - p, o * s - p + k) if 0 <= i < n] for o in range(out)]


def by_windows(x, geometry, formula):
    """`formula` of the values inside of each window: (values (count,), channel) -> a number."""
    if isinstance(geometry, Bins):
        axes = [[list(range(n))] for n in x.shape[2:]]
    else:
        g = zip(x.shape[2:], geometry.kernel, geometry.stride, geometry.padding, geometry.output_size(x), strict=True)
        axes = [positions(*sizes) for sizes in g]
    y = x.new_zeros(*x.shape[:2], *map(len, axes))
    for n, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
        for out in itertools.product(*(range(len(axis)) for axis in axes)):
            inside = torch.meshgrid(*(torch.tensor(a[o]) for a, o in zip(axes, out, strict=True)), indexing="ij")
            y[(n, c, *out)] = formula((n, c), tuple(index.flatten() for index in inside))
    return y


def statement(kind, layer, x):
    """The formula of a kind for the window at `inside` of sample and channel `at`."""

    def values(at, inside):
        return x[at][inside]

    def edscw(v):
        m = v.mean()
        w = torch.exp(2 * (v * m).abs() / (v**2 + m**2 + 1e-300))
        return (w * v).sum() / w.sum()

    def soft(v, beta=1.0):
        return (v * (beta * v).softmax(0)).sum()

    def importance(at, inside):
        conv = nn.functional.conv1d(x.flatten(2), layer.logit.weight.flatten(2)).view_as(x)
        flat = conv.flatten(2)
        normal = (flat - flat.mean(2, keepdim=True)) / (flat.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
        shape = (1, -1, 1)
        normal = normal * layer.norm.weight.view(shape) + layer.norm.bias.view(shape)
        w = torch.exp(12 * normal.sigmoid()).view_as(x)[at][inside]
        return (w * values(at, inside)).sum() / w.sum()

    formulas = {
        "soft": lambda at, i: soft(values(at, i), layer.beta[at[1]] if isinstance(layer.beta, torch.Tensor) else 1.0),
        "avg": lambda at, i: values(at, i).mean(),
        "max": lambda at, i: values(at, i).max(),
        "lp": lambda at, i: (values(at, i).abs() ** 3).mean() ** (1 / 3),
        "mixed": lambda at, i: (
            1 / (1 + math.exp(-layer.mix.item())) * values(at, i).max()
            + 1 / (1 + math.exp(layer.mix.item())) * values(at, i).mean()
        ),
        "lip": importance,
        "edscw": lambda at, i: edscw(values(at, i)),
        "ada": lambda at, i: layer.mix[at[1]] * edscw(values(at, i)) + (1 - layer.mix[at[1]]) * soft(values(at, i)),
    }
    return formulas[kind]


def randomized(layer):
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data.uniform_(0.1, 0.9, generator=generator)
    return layer.double()


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("kind", [k for k in WINDOW_KINDS if k != "conv"])
def test_windows(kind, name, dims):
    torch.manual_seed(0)
    x = torch.randn(1, 2, *SIZES[dims], dtype=torch.float64)
    geometry = window(dims, name)
    layer = randomized(make_pool(PoolConfig(kind=kind, p=3, beta="learnable"), geometry, 2))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), by_windows(x, geometry, statement(kind, layer, x)))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", [k for k in WINDOW_KINDS if not KINDS[k].windows_only])
def test_global(kind, dims):
    torch.manual_seed(0)
    x = torch.randn(2, 2, *SIZES[dims], dtype=torch.float64)
    layer = randomized(make_pool(PoolConfig(kind=kind, p=3), Bins((1,) * dims), 2))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), by_windows(x, Bins((1,) * dims), statement(kind, layer, x)))


def test_all_kinds_are_registered_and_described():
    assert tuple(KINDS) == get_args(PoolKind)
    assert all(kind.line and kind.paper for kind in KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WINDOWS)
def test_sizes_and_gradients(kind, name):
    """The size is max pooling's; so is the type; gradients are finite where a window holds zeros only."""
    k, s, p, ceil = WINDOWS[name]
    for dims in (1, 2, 3):
        x = torch.randn(2, 3, *SIZES[dims])
        x[0] = 0
        layer = make_pool(PoolConfig(kind=kind), window(dims, name, after_max=dims == 2), 3)
        wanted = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](k, s, p, ceil_mode=ceil)(x)
        y = layer(x.requires_grad_())
        assert y.shape == wanted.shape and y.dtype == x.dtype
        y.square().sum().backward()
        assert x.grad.isfinite().all()
        assert all(q.grad is not None and q.grad.isfinite().all() for q in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_shortcut_s_window_reaches_as_far_as_the_convolution_s_stride(kind):
    for size in ((1, 1, 1), (3, 5, 7), (4, 4, 4)):
        x = torch.rand(1, 4, *size)
        y = make_pool(PoolConfig(kind=kind), strided((2, 2, 2)), 4).eval()(x)
        assert y.shape[2:] == nn.Conv3d(4, 1, 1, stride=2)(x).shape[2:]


def test_conv_is_a_depthwise_convolution_that_starts_as_the_mean():
    x = torch.randn(2, 3, 4, 6, 6)
    layer = make_pool(PoolConfig(kind="conv"), strided((2, 2, 2)), 3)
    torch.testing.assert_close(layer(x), nn.functional.avg_pool3d(x, 2))
    nn.init.normal_(layer.weight)
    wanted = nn.Conv3d(3, 3, 2, stride=2, groups=3, bias=False)
    wanted.weight = layer.weight
    torch.testing.assert_close(layer(x), wanted(x))


def test_blur_is_a_triangle_filter_at_each_second_position():
    x = torch.randn(1, 2, 9, dtype=torch.float64)
    layer = make_pool(PoolConfig(kind="blur"), strided((2,)))
    padded = torch.cat([x[..., :1], x, x[..., -1:]], -1)
    wanted = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    torch.testing.assert_close(layer(x), wanted[..., ::2])
    # behind a max pooling: its values at stride 1 are what is filtered
    layer = make_pool(PoolConfig(kind="blur"), window(1, "3/2 pad 1", after_max=True))
    dense = nn.functional.max_pool1d(x, 3, 1, 1)
    padded = torch.cat([dense[..., :1], dense, dense[..., -1:]], -1)
    wanted = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    torch.testing.assert_close(layer(x), wanted[..., ::2])
    # separable: a picture that is a product blurs to the product
    a, b = torch.rand(8), torch.rand(6)
    picture = make_pool(PoolConfig(kind="blur"), strided((2, 2)))(a[:, None].mul(b)[None, None])
    lines = [make_pool(PoolConfig(kind="blur"), strided((2,)))(line[None, None])[0, 0] for line in (a, b)]
    torch.testing.assert_close(picture[0, 0], lines[0][:, None] * lines[1])


def test_stochastic_draws_by_activation_and_expects_in_evaluation():
    torch.manual_seed(0)
    x = torch.tensor([1.0, 3.0, -2.0, 0.0]).view(1, 1, 4).repeat(1, 20000, 1)
    layer = make_pool(PoolConfig(kind="stochastic"), strided((4,)))
    drawn = layer.train()(x).flatten()
    assert set(drawn.tolist()) == {1.0, 3.0}
    assert (drawn == 3).float().mean() == pytest.approx(3 / 4, abs=0.02)
    torch.testing.assert_close(layer.eval()(x[:, :1]), torch.tensor([[[(1 + 9) / 4]]]))
    # nothing positive: all positions are equally likely
    y = layer.train()(torch.tensor([-1.0, -2.0, -3.0, -4.0]).view(1, 1, 4).repeat(1, 20000, 1))
    assert y.mean().item() == pytest.approx(-2.5, abs=0.05)


def test_half_precision():
    x = torch.rand(1, 2, 4, 6, 6).to(torch.bfloat16) * 300
    for kind in KINDS:
        layer = make_pool(PoolConfig(kind=kind), strided((2, 2, 2)), 2).to(torch.bfloat16)
        y = layer.eval()(x)
        assert y.dtype == torch.bfloat16 and y.isfinite().all()


def test_geometry_is_read_off_layers():
    assert geometry_of(nn.Linear(1, 1)) is None
    assert geometry_of(nn.MaxPool2d(2, return_indices=True)) is None
    w = geometry_of(nn.MaxPool2d((3, 2), padding=(1, 0), dilation=2, ceil_mode=True))
    assert w == Window((3, 2), (3, 2), (1, 0), (2, 2), True, after_max=True)
    assert geometry_of(nn.AdaptiveAvgPool3d((None, 1, 2))) == Bins((None, 1, 2))
    assert geometry_of(nn.LPPool1d(2, 3, stride=2)) == Window((3,), (2,), (0,), (1,))
    for kind in KINDS:  # what was put somewhere can be taken out again
        layer = make_pool(PoolConfig(kind=kind), strided((2, 2)), 4)
        assert geometry_of(layer).kernel == (2, 2)


def test_what_a_kind_cannot_do():
    for kind in ("blur", "conv"):
        with pytest.raises(UsageError, match=f"{kind} slides over windows and has no global form"):
            make_pool(PoolConfig(kind=kind), Bins((1, 1)), 3)
    with pytest.raises(UsageError, match="lip has parameters for each channel"):
        make_pool(PoolConfig(kind="lip"), strided((2, 2)))
    with pytest.raises(UsageError, match="AvgPool has no dilation, and 2 was asked for"):
        make_pool(PoolConfig(kind="avg"), geometry_of(nn.MaxPool1d(2, dilation=2)))
