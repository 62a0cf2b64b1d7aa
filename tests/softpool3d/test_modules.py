"""The modules: the functions with their arguments kept, and a learnable beta that behaves like any parameter."""

import copy
import pickle

import pytest
import torch
from torch import nn

import softpool3d

POOLS = {1: softpool3d.SoftPool1d, 2: softpool3d.SoftPool2d, 3: softpool3d.SoftPool3d}
FUNCTIONS = {1: softpool3d.soft_pool1d, 2: softpool3d.soft_pool2d, 3: softpool3d.soft_pool3d}
ADAPTIVE = {
    1: softpool3d.AdaptiveSoftPool1d,
    2: softpool3d.AdaptiveSoftPool2d,
    3: softpool3d.AdaptiveSoftPool3d,
}
ADAPTIVE_FUNCTIONS = {
    1: softpool3d.adaptive_soft_pool1d,
    2: softpool3d.adaptive_soft_pool2d,
    3: softpool3d.adaptive_soft_pool3d,
}


def input_of(dims):
    return torch.randn([2, 5, 6, 7, 9][: dims + 2])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_modules_are_the_functions(dims):
    x = input_of(dims)
    for args in [(), (3, 2, 1), (2, None, 1, 2), (2, 3, 0, 1, True, -0.5)]:
        assert torch.equal(POOLS[dims](*args)(x), FUNCTIONS[dims](x, *args))
    for args in [(1,), (3, 0.5)]:
        assert torch.equal(ADAPTIVE[dims](*args)(x), ADAPTIVE_FUNCTIONS[dims](x, *args))


def test_repr_tells_the_arguments():
    assert "kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False, beta=0.5" in repr(
        softpool3d.SoftPool3d(3, 2, 1, beta=0.5)
    )
    lazy = softpool3d.AdaptiveSoftPool3d(1, beta="learnable")
    assert "output_size=1, beta=learnable)" in repr(lazy)
    lazy(input_of(3))
    assert "output_size=1, beta=learnable, num_channels=5" in repr(lazy)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("num_channels", [None, 5])
@pytest.mark.parametrize("make", ["pool", "adaptive"])
def test_learnable_beta_starts_at_1_and_learns(dims, num_channels, make):
    def new():
        if make == "pool":
            return POOLS[dims](beta="learnable", num_channels=num_channels)
        return ADAPTIVE[dims](2, beta="learnable", num_channels=num_channels)

    x, pool = input_of(dims), new()
    plain = FUNCTIONS[dims](x) if make == "pool" else ADAPTIVE_FUNCTIONS[dims](x, 2)
    assert torch.equal(pool(x), plain)
    assert torch.equal(pool.beta, torch.ones(5)) and pool.beta.requires_grad
    assert [name for name, _ in pool.named_parameters()] == ["beta"]
    assert torch.equal(pool(x[0]), plain[0])  # unbatched: channels come first

    # Larger outputs are wanted, and a larger beta makes them.
    optimizer = torch.optim.SGD(pool.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (-pool(x).sum()).backward()
        optimizer.step()
    assert (pool.beta > 1).all() and (pool(x) >= plain).all()


@pytest.mark.parametrize("num_channels", [None, 5])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(clone, num_channels):
    x = input_of(3)
    pool = softpool3d.SoftPool3d(3, 2, 1, beta="learnable", num_channels=num_channels)
    before = clone(pool)  # a lazy one too
    assert torch.equal(before(x), pool(x))
    nn.init.uniform_(pool.beta)
    after = clone(pool)
    assert torch.equal(after(x), pool(x)) and after.beta is not pool.beta
    fixed = softpool3d.SoftPool3d(2, beta=0.5)
    assert torch.equal(clone(fixed)(x), fixed(x)) and clone(fixed).beta == 0.5


@pytest.mark.parametrize("num_channels", [None, 5])
def test_state_dict(num_channels):
    x = input_of(3)
    net = nn.Sequential(nn.Conv3d(5, 5, 1), softpool3d.SoftPool3d(2, beta="learnable"))
    net(x)
    nn.init.uniform_(net[1].beta)
    state = net.state_dict()
    assert state["1.beta"].shape == (5,)
    fresh = nn.Sequential(nn.Conv3d(5, 5, 1), softpool3d.SoftPool3d(2, beta="learnable", num_channels=num_channels))
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), net(x))
    other = nn.Sequential(nn.Conv3d(5, 5, 1), softpool3d.SoftPool3d(2, beta="learnable", num_channels=4))
    with pytest.raises(RuntimeError, match="size mismatch for 1.beta"):
        other.load_state_dict(state)
    plain = softpool3d.SoftPool3d(2, beta=0.5)
    assert plain.state_dict() == {}


def test_moves_and_casts_like_any_module():
    x = input_of(3)
    for num_channels in (None, 5):
        pool = softpool3d.SoftPool3d(2, beta="learnable", num_channels=num_channels).to(torch.bfloat16)
        y = pool(x.bfloat16())
        y.float().sum().backward()
        assert y.dtype == torch.bfloat16 and pool.beta.dtype == torch.bfloat16 and pool.beta.grad is not None
    assert softpool3d.SoftPool3d(2, beta="learnable", num_channels=5).to("meta").beta.device.type == "meta"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: softpool3d.SoftPool3d(2, beta="learned"), """"learnable", but got 'learned'"""),
        (
            lambda: softpool3d.SoftPool3d(2, beta=float("nan")),
            "SoftPool3d: beta must be a float .* but got nan",
        ),
        (lambda: softpool3d.SoftPool3d(2, beta=torch.ones(3)), "SoftPool3d: beta must be a float"),
        (lambda: softpool3d.AdaptiveSoftPool2d(1, beta=None), "AdaptiveSoftPool2d: beta .* but got None"),
        (
            lambda: softpool3d.SoftPool3d(2, num_channels=3),
            "num_channels is the length of a beta .* but beta is 1.0",
        ),
        (
            lambda: softpool3d.SoftPool3d(2, beta="learnable", num_channels=0),
            "num_channels must be above 0, but got 0",
        ),
    ],
)
def test_bad_arguments_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_wrong_number_of_channels_is_named():
    pool = softpool3d.SoftPool3d(2, beta="learnable", num_channels=4)
    with pytest.raises(ValueError, match=r"shape \(5,\).* but got shape \(4,\)"):
        pool(input_of(3))
