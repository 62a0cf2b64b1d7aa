"""Output sizes and errors: those of torch's max pooling, and a clear sentence for everything that it does not know."""

import random

import pytest
import torch
import torch.nn.functional as F

import softpool3d
from softpool3d.ops import reference

SOFT = {1: softpool3d.soft_pool1d, 2: softpool3d.soft_pool2d, 3: softpool3d.soft_pool3d}
MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def outcome(function, *args):
    """The output's shape, or the error's type and text."""
    try:
        return tuple(function(*args).shape)
    except (RuntimeError, TypeError) as error:
        return type(error).__name__, str(error).split("\n")[0]


def random_arguments(draw: random.Random, dims):
    """Mostly sensible, often at or over an edge."""

    def number(low, high):
        return draw.randint(low, high) if draw.random() < 0.95 else draw.choice([-1, 0, 9, 2**31, 2**40])

    def argument(low, high):
        if draw.random() < 0.4:
            return number(low, high)
        return tuple(number(low, high) for _ in range(dims if draw.random() < 0.95 else draw.randint(0, 4)))

    rank = dims + 2 if draw.random() < 0.6 else dims + 1
    shape = [draw.randint(1, 2 if axis < rank - dims else 8) for axis in range(rank)]
    if draw.random() < 0.06:
        shape[draw.randrange(rank)] = 0
    if draw.random() < 0.05:
        shape = shape[: draw.randint(1, rank)] if draw.random() < 0.5 else [1, *shape]
    kernel = argument(1, 4)
    return (
        shape,
        kernel,
        argument(1, 4) if draw.random() < 0.7 else None,
        argument(0, 2) if draw.random() < 0.6 else 0,
        argument(1, 3) if draw.random() < 0.5 else 1,
        draw.random() < 0.5,
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_sizes_and_errors_are_those_of_max_pooling(dims):
    draw = random.Random(dims)
    accepted = refused = 0
    for _ in range(4000):
        shape, *arguments = random_arguments(draw, dims)
        # grad mode decides which of two functions max_pool1d is, and their errors differ
        x = torch.zeros(shape, requires_grad=True)
        theirs = outcome(MAX[dims], x, *arguments)
        if dims == 1 and len(shape) == 3 and shape[0] == 0:
            continue  # max_pool1d has no batch of zero in every torch
        ours = outcome(SOFT[dims], x, *arguments)
        assert ours == theirs, (shape, *arguments)
        accepted += isinstance(theirs[0], int)
        refused += isinstance(theirs[0], str)
    assert accepted > 500 and refused > 500


def test_the_operator_itself_checks_like_max_pool3d():
    """The compiled operator does not rely on Python's checks: same sizes, same errors when it is called directly."""
    draw = random.Random(0)
    accepted = refused = 0
    for _ in range(4000):
        shape, *arguments, ceil_mode = random_arguments(draw, 3)
        if len(shape) != 5 or 0 in shape[1:]:
            continue
        triples = []
        for value in arguments[:1] + [arguments[0] if arguments[1] is None else arguments[1]] + arguments[2:]:
            value = (value,) * 3 if isinstance(value, int) else value
            if len(value) != 3:
                break
            triples.append(value)
        else:
            x = torch.zeros(shape)
            theirs = outcome(F.max_pool3d, x, *triples, ceil_mode)
            ours = outcome(torch.ops.softpool3d.soft_pool3d, x, None, 1.0, *triples, ceil_mode)
            if theirs == ("RuntimeError", "integer out of range"):  # as torch 2.11 to 2.13 put it
                theirs = ("RuntimeError", "value cannot be converted to type int without overflow")
            assert ours == theirs, (shape, *triples, ceil_mode)
            accepted += isinstance(theirs[0], int)
            refused += isinstance(theirs[0], str)
    assert accepted > 500 and refused > 500


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_adaptive_sizes_are_those_of_torch(dims):
    adaptive_avg = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[dims - 1]
    ours = (
        softpool3d.adaptive_soft_pool1d,
        softpool3d.adaptive_soft_pool2d,
        softpool3d.adaptive_soft_pool3d,
    )[dims - 1]
    draw = random.Random(dims)
    for _ in range(200):
        x = torch.randn([2, 3, *(draw.randint(1, 9) for _ in range(dims))])
        out = [draw.randint(1, 9) for _ in range(dims)]
        # beta 0 is average pooling: the same bins, not only the same sizes
        torch.testing.assert_close(ours(x, out, beta=0.0), adaptive_avg(x, out))
    if dims > 1:
        assert ours(x, [None, *out[1:]]).shape == adaptive_avg(x, [None, *out[1:]]).shape


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pooled_size_is_max_poolings(ceil_mode):
    for size in range(1, 12):
        for kernel in range(1, 5):
            for stride in range(1, 5):
                for dilation in (1, 2, 3):
                    for padding in range(kernel // 2 + 1):
                        ours = reference.pooled_size(size, kernel, stride, padding, dilation, ceil_mode)
                        theirs = outcome(
                            F.max_pool3d,
                            torch.zeros(1, 1, 1, 1, size),
                            (1, 1, kernel),
                            (1, 1, stride),
                            (0, 0, padding),
                            (1, 1, dilation),
                            ceil_mode,
                        )
                        assert theirs == (1, 1, 1, 1, ours) if ours > 0 else theirs[0] == "RuntimeError"


X = torch.randn(2, 3, 4, 6, 8)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: softpool3d.soft_pool3d(X.int()),
            TypeError,
            "soft_pool3d: input must be float64.*torch.int32",
        ),
        (
            lambda: softpool3d.soft_pool2d(X[0].bool()),
            TypeError,
            "soft_pool2d: input must be float64.*torch.bool",
        ),
        (lambda: softpool3d.soft_pool3d(X + 1j), TypeError, "input must be float64.*torch.complex64"),
        (
            lambda: softpool3d.soft_pool3d(X, beta=float("nan")),
            ValueError,
            "beta is NaN",
        ),
        (
            lambda: softpool3d.soft_pool3d(X, beta="1"),
            TypeError,
            "beta must be a float or a tensor, but got '1'",
        ),
        (
            lambda: softpool3d.soft_pool3d(X, beta=None),
            TypeError,
            "beta must be a float or a tensor, but got None",
        ),
        (
            lambda: softpool3d.soft_pool3d(X, beta=torch.ones(2)),
            ValueError,
            r"shape \(3,\).* but got shape \(2,\)",
        ),
        (lambda: softpool3d.soft_pool3d(X, beta=torch.ones(1, 3)), ValueError, r"but got shape \(1, 3\)"),
        (
            lambda: softpool3d.soft_pool3d(X, beta=torch.ones(3).int()),
            TypeError,
            "floating-point type.*torch.int32",
        ),
        (
            lambda: softpool3d.soft_pool3d(X, beta=torch.ones(3, device="meta")),
            ValueError,
            "beta must be on input's device cpu, but got meta",
        ),
        (lambda: softpool3d.adaptive_soft_pool3d(X, 0), ValueError, "output_size must be above 0, but got 0"),
        (lambda: softpool3d.adaptive_soft_pool3d(X, (1, 2)), ValueError, r"3 of them, but got \(1, 2\)"),
        (
            lambda: softpool3d.adaptive_soft_pool3d(X, 1.5),
            ValueError,
            "output_size must be an int or 3 of them, but got 1.5",
        ),
        (lambda: softpool3d.adaptive_soft_pool3d(X, (1, "a", 2)), ValueError, "but got"),
        (lambda: softpool3d.adaptive_soft_pool3d(X[0, 0], 1), RuntimeError, r"N, C, T, H, W.*\(4, 6, 8\)"),
        (lambda: softpool3d.adaptive_soft_pool2d(X[:, :0, 0], 1), RuntimeError, r"\(2, 0, 6, 8\)"),
    ],
)
def test_bad_arguments_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


OP = torch.ops.softpool3d


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: OP.soft_pool3d(X[0], None, 1.0, *[[1] * 3] * 4, False), r"input must be \(N, C, T, H, W\)"),
        (lambda: OP.soft_pool3d(X.int(), None, 1.0, *[[1] * 3] * 4, False), "input must be float64"),
        (lambda: OP.adaptive_soft_pool3d(X[:, :0], None, 1.0, [1, 1, 1]), "must be non-empty"),
        (lambda: OP.adaptive_soft_pool3d(X, None, 1.0, [1, 0, 1]), "greater than zero, but got 0"),
        (lambda: OP.adaptive_soft_pool3d(X, None, float("nan"), [1, 1, 1]), "beta is NaN"),
        (
            lambda: OP.adaptive_soft_pool3d(X, torch.ones(2), 1.0, [1, 1, 1]),
            r"shape \(3\).*but got shape \(2\)",
        ),
        (lambda: OP.adaptive_soft_pool3d(X, torch.ones(3).double(), 1.0, [1, 1, 1]), "type of accumulation"),
        (
            lambda: OP.adaptive_soft_pool3d_backward(X, X, None, 1.0, [1, 1, 1], True, False),
            "grad_output must have the output's shape",
        ),
        (
            lambda: OP.adaptive_soft_pool3d_backward(X.double(), X, None, 1.0, [4, 6, 8], True, False),
            "grad_output must have the type and device",
        ),
        (lambda: OP.limit_cpu_level(3), "but got 3"),
    ],
)
def test_the_operator_itself_refuses(call, text):
    with pytest.raises(RuntimeError, match=text):
        call()
