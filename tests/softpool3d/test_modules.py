"""The modules: the functions with their arguments kept, and a learnable beta that behaves like any parameter."""

import copy
import math
import pickle

import numpy as np
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
    learned = softpool3d.AdaptiveSoftPool3d(1, beta="learnable", num_channels=5)
    assert "output_size=1, beta=learnable, num_channels=5" in repr(learned)
    assert "kernel_size=(1, 2, 2), stride=(1, 2, 2)" in repr(softpool3d.SoftPool3d((1, np.int64(2), np.int32(2))))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("make", ["pool", "adaptive"])
def test_learnable_beta_starts_at_1_and_learns(dims, make):
    def new():
        if make == "pool":
            return POOLS[dims](beta="learnable", num_channels=5)
        return ADAPTIVE[dims](2, beta="learnable", num_channels=5)

    x, pool = input_of(dims), new()
    plain = FUNCTIONS[dims](x) if make == "pool" else ADAPTIVE_FUNCTIONS[dims](x, 2)
    assert torch.equal(pool(x), plain)
    assert torch.equal(pool.beta, torch.ones(5)) and pool.beta.requires_grad
    assert [name for name, _ in pool.named_parameters()] == ["raw_beta"]
    assert torch.equal(pool(x[0]), plain[0])  # unbatched: channels come first

    # Larger outputs are wanted, and a larger beta makes them.
    optimizer = torch.optim.SGD(pool.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (-pool(x).mean()).backward()
        optimizer.step()
    assert (pool.beta > 1).all() and (pool(x) >= plain).all()


def test_a_learned_beta_moves_at_the_learning_rate_of_weights():
    """A step of SGD moves log(beta) a hundred times as far as it would move log(beta) itself; by hand."""
    pool, rate = softpool3d.SoftPool3d(2, beta="learnable", num_channels=5, beta_start=4), 1e-3
    torch.testing.assert_close(pool.beta, torch.full((5,), 4.0))
    x, beta = input_of(3), torch.full((5,), 4.0, requires_grad=True)
    (slope,) = torch.autograd.grad(softpool3d.soft_pool3d(x, 2, beta=beta).sum(), beta)
    pool(x).sum().backward()
    torch.optim.SGD(pool.parameters(), lr=rate).step()
    torch.testing.assert_close(pool.beta.log(), math.log(4) - rate * 100 * 4 * slope, rtol=1e-5, atol=1e-6)


def test_beta_can_be_fixed_afterwards():
    x, pool = input_of(3), softpool3d.SoftPool3d(2, beta="learnable", num_channels=5)
    pool.beta = 2
    assert torch.equal(pool(x), softpool3d.soft_pool3d(x, 2, beta=2.0)) and not list(pool.parameters())


def test_a_learned_beta_stays_a_number_however_far_it_goes():
    pool, x = softpool3d.SoftPool3d(2, beta="learnable", num_channels=2), torch.randn(1, 2, 4, 4, 4)
    with torch.no_grad():
        pool.raw_beta.copy_(torch.tensor([1e6, -1e6]))
    y = pool(x)
    torch.testing.assert_close(y[:, 0], nn.functional.max_pool3d(x, 2)[:, 0])
    torch.testing.assert_close(y[:, 1], nn.functional.avg_pool3d(x, 2)[:, 1], rtol=1e-3, atol=1e-3)
    y.sum().backward()
    assert pool.raw_beta.grad.isfinite().all()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(clone):
    x = input_of(3)
    pool = softpool3d.SoftPool3d(3, 2, 1, beta="learnable", num_channels=5)
    nn.init.uniform_(pool.raw_beta)
    after = clone(pool)
    assert torch.equal(after(x), pool(x)) and after.raw_beta is not pool.raw_beta
    fixed = softpool3d.SoftPool3d(2, beta=0.5)
    assert torch.equal(clone(fixed)(x), fixed(x)) and clone(fixed).beta == 0.5


def test_state_dict():
    x = input_of(3)
    net, fresh = (
        nn.Sequential(nn.Conv3d(5, 5, 1), softpool3d.SoftPool3d(2, beta="learnable", num_channels=5)) for _ in range(2)
    )
    nn.init.uniform_(net[1].raw_beta)
    state = net.state_dict()
    assert state["1.raw_beta"].shape == (5,)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), net(x))
    other = nn.Sequential(nn.Conv3d(5, 5, 1), softpool3d.SoftPool3d(2, beta="learnable", num_channels=4))
    with pytest.raises(RuntimeError, match="size mismatch for 1.raw_beta"):
        other.load_state_dict(state)
    plain = softpool3d.SoftPool3d(2, beta=0.5)
    assert plain.state_dict() == {}


def test_moves_and_casts_like_any_module():
    x = input_of(3)
    pool = softpool3d.SoftPool3d(2, beta="learnable", num_channels=5).bfloat16()  # before the first batch
    assert sum(p.numel() for p in pool.parameters()) == 5
    y = pool(x.bfloat16())
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and pool.beta.dtype == torch.bfloat16 and pool.raw_beta.grad is not None
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
            lambda: softpool3d.SoftPool3d(2, beta_start=4),
            "SoftPool3d: beta_start is the start of a beta .* but beta is 1.0",
        ),
        (
            lambda: softpool3d.SoftPool3d(2, beta="learnable", num_channels=3, beta_start=0),
            "SoftPool3d: beta_start must lie between .* but got 0",
        ),
        (
            lambda: softpool3d.SoftPool3d(2, beta="learnable", num_channels=0),
            "num_channels must be above 0, but got 0",
        ),
        (
            lambda: softpool3d.AdaptiveSoftPool2d(1, beta="learnable"),
            "AdaptiveSoftPool2d: a learnable beta has one value per channel; give their number, .* num_channels=64",
        ),
        (lambda: softpool3d.SoftPool3d(2, beta=np.bool_(True)), "SoftPool3d: beta must be a float"),
    ],
)
def test_bad_arguments_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_wrong_number_of_channels_is_named():
    pool = softpool3d.SoftPool3d(2, beta="learnable", num_channels=4)
    with pytest.raises(ValueError, match=r"shape \(5,\).* but got shape \(4,\)"):
        pool(input_of(3))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("number", [np.int64, np.int32, np.uint8])
def test_numpy_s_numbers(dims, number):
    """As sizes, alone or in a tuple, and as beta, in functions and modules."""
    x = input_of(dims)
    wanted = FUNCTIONS[dims](x, 3, 2, 1, 1, beta=1.5)
    for size in (number, lambda n: (number(n),) * dims, lambda n: [number(n)] * dims):
        arguments = size(3), size(2), size(1), size(1)
        for beta in (1.5, np.float32(1.5), np.float64(1.5), np.array(1.5), np.array(1.5, dtype=np.float16)):
            assert torch.equal(FUNCTIONS[dims](x, *arguments, beta=beta), wanted)
            pool = POOLS[dims](*arguments, beta=beta)
            assert torch.equal(pool(x), wanted) and type(pool.beta) is float
        adaptive = ADAPTIVE_FUNCTIONS[dims](x, 2, 3.0)
        assert torch.equal(ADAPTIVE_FUNCTIONS[dims](x, size(2), number(3)), adaptive)
        assert torch.equal(ADAPTIVE[dims](size(2), number(3))(x), adaptive)


@pytest.mark.parametrize("bool_", [bool, np.bool_])
def test_truth_values_are_no_numbers(bool_):
    """Also after the same call with numbers, which equal them: geometries are remembered."""
    x, one = input_of(3), bool_(True)
    torch_says = "must be tuple of ints,"
    if torch.__version__.startswith("2.11."):  # of numpy's
        torch_says += "|expected tuple or list"
    softpool3d.soft_pool3d(x, (1, 2, 2)), softpool3d.adaptive_soft_pool3d(x, (1, 2, 2))
    for size in (one, (one, 2, 2), (2, 2, one)):
        with pytest.raises((TypeError, RuntimeError), match=f"{torch_says}|cannot pool an input"):
            softpool3d.soft_pool3d(x, size)
        with pytest.raises(ValueError, match="output_size must be an int or 3 of them"):
            softpool3d.adaptive_soft_pool3d(x, size)
    with pytest.raises(TypeError, match="beta must be a float or a tensor, but got True"):
        softpool3d.soft_pool3d(x, 2, beta=one)
    softpool3d.soft_pool3d(x, (2, 2, 1))
