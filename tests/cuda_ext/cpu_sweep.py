"""Runs the CPU operators of a library built with sanitizers, and compares them with the plain PyTorch definition.

`python cpu_sweep.py LIBRARY SEED CASES`, in a process of its own with libasan loaded first: that puts redzones around
all memory, tensors included, and every tensor here ends where its memory ends.
"""

import itertools
import random
import sys

import torch

from softpool3d.ops.reference import adaptive_soft_pool3d_reference, pooled_size, soft_pool3d_reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last", "gaps", "channel slice", "transposed", "expanded"]

# Each way through the kernels, as (T, H, W): sizes, kernel, stride, padding, dilation.
WAYS = {
    "pairs": ((2, 6, 37), (2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
    "overlapping pairs": ((3, 7, 41), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    "unit": ((1, 6, 35), (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1)),
    "dilated": ((4, 6, 39), (2, 2, 3), (1, 2, 1), (1, 0, 1), (2, 3, 2)),
    "dilated pairs": ((3, 5, 34), (2, 1, 3), (1, 1, 2), (0, 0, 1), (1, 1, 3)),
    "strided": ((3, 5, 40), (1, 2, 2), (1, 3, 4), (0, 1, 1), (1, 1, 1)),
    "identity along W": ((4, 5, 33), (2, 3, 1), (2, 1, 1), (0, 1, 0), (1, 1, 1)),
    "in time alone": ((6, 3, 5), (2, 1, 1), (2, 1, 1), (0, 0, 0), (1, 1, 1)),
    "wide": ((2, 3, 150), (1, 2, 40), (1, 1, 30), (0, 0, 7), (1, 1, 1)),
    "whole rows": ((3, 4, 50), (1, 1, 50), (1, 1, 50), (0, 0, 0), (1, 1, 1)),
    "whole": ((3, 4, 19), (3, 4, 19), (1, 1, 1), (0, 0, 0), (1, 1, 1)),
    "small planes": ((4, 5, 6), (2, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1)),
    "many tiles": ((3, 48, 70), (2, 3, 3), (1, 2, 1), (0, 1, 1), (1, 1, 1)),
}


def laid_out(values, layout):
    """A tensor of these values whose memory ends with its last element; expanded, the first ones again and again."""
    if layout == "expanded":
        return values[:1, :, :1].clone().expand(values.shape)
    n, c, t, h, w = values.shape
    strides = {
        "contiguous": (c * t * h * w, t * h * w, h * w, w, 1),
        "channels_last": (t * h * w * c, 1, h * w * c, w * c, c),
        "gaps": (c * t * h * (w + 3) + 5, t * h * (w + 3), h * (w + 3), w + 3, 1),
        "channel slice": (t * h * w * (c + 3), 1, h * w * (c + 3), w * (c + 3), c + 3),
        "transposed": (1, n, n * c, n * c * t, n * c * t * h),
    }
    return torch.empty_strided(values.shape, strides[layout], dtype=values.dtype).copy_(values)


def random_geometry(draw):
    """Sizes and a pool over them, its last axis the longest."""
    axes = []
    for longest in (6, 7, 70):
        size = draw.randint(1, longest)
        kernel = draw.randint(1, min(size, draw.choice([4, longest])))
        dilation = draw.choice([1, 1, 1, 2, 3])
        axes.append((size, kernel, draw.randint(1, kernel + 2), draw.randint(0, kernel // 2), dilation))
    return tuple(zip(*axes, strict=True))


def problems(seed, cases):
    """(name, operator, reference, sizes, geometry) of each way, then of random pools, every fourth of them adaptive."""
    draw = random.Random(seed)
    pool = ("soft_pool3d", soft_pool3d_reference)
    adaptive = ("adaptive_soft_pool3d", adaptive_soft_pool3d_reference)
    for name, (sizes, *geometry) in WAYS.items():
        yield name, *pool, sizes, (*geometry, False)
    for number in range(cases):
        sizes, *geometry = random_geometry(draw)
        if number % 4 == 3:
            yield "adaptive", *adaptive, sizes, ([draw.randint(1, size + 1) for size in sizes],)
            continue
        ceil = draw.random() < 0.5
        if all(pooled_size(*values, ceil) >= 1 for values in zip(sizes, *geometry, strict=True)):
            yield "random", *pool, sizes, (*geometry, ceil)


def compare(what, got, truth, dtype, scale, ulps):
    """NaN and infinities are equal, the rest is within `ulps` roundings of `dtype` at magnitude `scale`."""
    allowed = ulps * torch.finfo(dtype).eps * scale + 2 * torch.finfo(dtype).smallest_normal
    got, truth = got.double(), truth.to(dtype).double()  # what leaves the type's range is infinite in it
    difference = torch.where(got == truth, 0, (got - truth).abs())
    worst = difference[~(got.isnan() & truth.isnan())]
    if worst.numel() and not worst.max() <= allowed:
        sys.exit(f"{what}: off by {worst.max():.3g}, allowed are {allowed:.3g}")


def check(what, name, reference, x, betas, beta, geometry, g, odd, levels):
    """y, dL/dx and dL/dbeta, both gradients together and each alone, by the kernels of each level.

    Args:
        g: y -> dL/dy.
        odd: some values are not finite; gradients are computed and not compared, test_extremes.py says what they are.
    """
    forward = getattr(torch.ops.softpool3d, name)
    backward = getattr(torch.ops.softpool3d, f"{name}_backward")
    wide = x.double().requires_grad_()
    sources = [wide] if betas is None else [wide, betas.double().requires_grad_()]
    y = reference(wide, *geometry, beta if betas is None else sources[1])
    g = g(y)
    dx, *dbeta = torch.autograd.grad(y, sources, g.double())
    largest = wide.detach().nan_to_num(0, 0, 0).abs().max().item()
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    wanted = [(True, False)] if betas is None else [(True, False), (False, True), (True, True)]
    for level in levels:
        torch.ops.softpool3d.limit_cpu_level(level)
        where = f"{what}, level {level}"
        compare(f"y of {where}", forward(x, betas, beta, *geometry), y.detach(), x.dtype, largest, 8)
        for input_grad, beta_grad in wanted:
            got = backward(g, x, betas, beta, *geometry, input_grad, beta_grad)
            if odd:
                continue
            if input_grad:
                compare(f"dL/dx of {where}", got[0], dx, x.dtype, max(dx.abs().max().item(), 1.0), 256)
            if beta_grad:
                terms = largest**2 * g.double().abs().sum().item()
                compare(f"dL/dbeta of {where}", got[1], dbeta[0], acc, terms, 8)


def random_tensor(generator, shape, spread, odd, dtype, layout, draw):
    values = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    for value in (torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).max) if odd else ():
        values.view(-1)[draw.randrange(values.numel())] = value
    return laid_out(values.to(dtype), layout)


def sweep(levels, seed, cases):
    """The number of problems."""
    generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
    turns = draw.sample([*itertools.product(LAYOUTS, DTYPES)], len(LAYOUTS) * len(DTYPES))
    turns, count = itertools.cycle(turns), 0
    for name, operator, reference, sizes, geometry in problems(seed, cases):
        for layout, dtype in itertools.islice(turns, 6 if name in WAYS else 1):
            count += 1
            channels = draw.choice([1, 2, 3, 5, 19, 37])
            if name == "small planes" and layout in ("channels_last", "channel slice"):
                channels = 530  # more than a tile takes
            if name == "many tiles":
                channels = draw.choice([1, 3])
            # beyond some 40, and where values are not finite, kernels go another way
            spread, odd = draw.choice([0.5, 1.0, 1.0, 30.0, 500.0]), draw.random() < 0.15
            x = random_tensor(generator, (draw.randint(1, 2), channels, *sizes), spread, odd, dtype, layout, draw)
            acc = torch.float64 if dtype == torch.float64 else torch.float32
            betas = torch.linspace(-1, 2, channels, dtype=acc) if draw.random() < 0.5 else None
            beta = draw.choice([1.0, 0.0, -1.0, 0.3, 4.0])

            def gradient(y, dtype=dtype):
                return random_tensor(generator, y.shape, 1.0, False, dtype, draw.choice(LAYOUTS), draw)

            what = f"{name} {sizes} {geometry}, {layout} {dtype} {tuple(x.shape)}, "
            what += f"beta {beta if betas is None else 'by channel'}"
            check(what, operator, reference, x, betas, beta, geometry, gradient, odd, levels)
    return count


def main():
    library, seed, cases = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.ops.load_library(library)
    torch.set_num_threads(2)
    levels = range(torch.ops.softpool3d.cpu_level() + 1)
    print(f"levels {[*levels]}: {sweep(levels, seed, cases)} problems")


if __name__ == "__main__":
    main()
