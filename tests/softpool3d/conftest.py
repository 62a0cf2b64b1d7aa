"""The truth that the operator is held against: loops over windows, in float64 or better, sharing no code with it."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

LEVELS = {0: "portable", 1: "AVX2", 2: "AVX-512"}


def pooled_windows(size, kernel, stride, padding, dilation, out):
    """For T, H and W: of each output the input positions, inside only."""
    return [
        [[i for i in range(o * s - p, o * s - p + k * d, d) if 0 <= i < n] for o in range(m)]
        for n, k, s, p, d, m in zip(size, kernel, stride, padding, dilation, out, strict=True)
    ]


def adaptive_windows(size, out):
    return [
        [[i for i in range(n) if o * n // m <= i < -(-(o + 1) * n // m)] for o in range(m)]
        for n, m in zip(size, out, strict=True)
    ]


def brute_force(x, windows, beta, g=None):
    """y, and with g = dL/dy also dL/dx and dL/dbeta, of x (N, C, T, H, W); beta one number or one per channel.

    y is the mean of a window's values weighted by softmax(beta * x) (arXiv 2101.00440), window by window. Values that
    are not finite have no weight; a window with a NaN gives NaN, one with +inf gives +inf, and one of -inf alone -inf.
    """
    # Long doubles where the machine has them, so that float64 can be held against it too.
    x = x.detach().double().numpy().astype(np.longdouble)
    n, c = x.shape[:2]
    beta = np.broadcast_to(np.asarray(beta, dtype=np.longdouble), (c,))[None, :, None]
    g = None if g is None else g.detach().double().numpy().astype(np.longdouble)
    y = np.zeros((n, c, *(len(w) for w in windows)), dtype=np.longdouble)
    dx, dbeta = np.zeros_like(x), np.zeros(c, dtype=np.longdouble)
    positions = itertools.product(*(range(len(w)) for w in windows)) if n else ()
    for at in positions:
        grid = np.ix_(range(n), range(c), *(w[o] for w, o in zip(windows, at, strict=True)))
        values = x[grid].reshape(n, c, -1)
        if values.shape[-1] == 0:
            continue
        finite = np.isfinite(values)
        with np.errstate(all="ignore"):
            logits = np.where(finite, beta * np.where(finite, values, 0), -np.inf)
            top = logits.max(-1, keepdims=True)
            w = np.where(finite, np.exp(logits - np.where(np.isfinite(top), top, 0)), 0)
            w = w / np.where(w.sum(-1, keepdims=True) == 0, 1, w.sum(-1, keepdims=True))
            seen = np.where(finite, values, 0)
            mean = (w * seen).sum(-1)
            special = np.where((values == np.inf).any(-1), np.inf, -np.inf)
            result = np.where(finite.any(-1) & ~(values == np.inf).any(-1), mean, special)
            result = np.where(np.isnan(values).any(-1), np.nan, result)
        y[(..., *at)] = result
        if g is not None:
            go = np.where(np.isfinite(result), g[(..., *at)], 0)[..., None]
            go = np.where(np.isnan(result)[..., None], np.nan, go)
            part = go * w * (1 + beta * (seen - mean[..., None]))
            dx[grid] += part.reshape(dx[grid].shape)
            dbeta += (go[..., 0] * ((w * seen**2).sum(-1) - mean**2)).sum(0)
    return tuple(torch.from_numpy(a.astype(np.float64)) for a in (y, dx, dbeta))


def close(got, truth, dtype, scale, ulps=8):
    """Asserts that `got` is `truth` up to `ulps` roundings of `dtype` at magnitude `scale`; NaN and inf are equal."""
    got, truth = got.detach().double().cpu(), truth.double()
    assert got.shape == truth.shape
    truth = truth.to(dtype).double()  # what leaves the type's range is infinite in it
    odd = ~torch.isfinite(truth)
    assert torch.equal(got[odd].nan_to_num(nan=1.5), truth[odd].nan_to_num(nan=1.5))
    error = (got[~odd] - truth[~odd]).abs()
    allowed = ulps * torch.finfo(dtype).eps * scale + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * 2
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= allowed, f"error {worst:.3g}, allowed {allowed:.3g}"


@pytest.fixture(scope="session")
def truth():
    return SimpleNamespace(
        pooled_windows=pooled_windows,
        adaptive_windows=adaptive_windows,
        brute_force=brute_force,
        close=close,
    )


@pytest.fixture(params=LEVELS, ids=LEVELS.values())
def level(request):
    """Runs the test with the CPU kernels of each instruction set that this machine has."""
    from softpool3d.ops.library import build_info

    if not build_info()["cpu"]["loaded"]:
        pytest.fail("the compiled CPU library is not loaded: " + build_info()["cpu"]["why"])
    ops = torch.ops.softpool3d
    ops.limit_cpu_level(request.param)
    try:
        if ops.cpu_level() != request.param:
            pytest.skip(f"this processor has no {LEVELS[request.param]}")
        yield request.param
    finally:
        ops.limit_cpu_level(max(LEVELS))
