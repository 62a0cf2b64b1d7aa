"""Measures what a call costs apart from its kernel: ours and torch's pools on a tiny tensor.

python benchmarks/overhead.py --device cuda --save
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from op import WINDOWS, Case, poolings
from shared import Device, begin, run
from torch import Tensor

from softpool3d.analysis.measuring import interleaved, markdown_table, save_section

PARTS_LEGEND = (
    "What our call is made of, besides its checks in Python. A call by torch.ops costs each operator the same; torch's "
    "own pools are called by bindings in C++ that are made for one version of torch."
)
CALLS = 200  # in a round, so that reading the clock does not count
OVERHEAD_LEGEND = (
    "Microseconds that a call takes of one thread on a tensor of 4x2x2x2x2, for which no kernel takes long; on a GPU "
    "until it is launched, or run where that takes longer. With backward: `torch.autograd.grad` of it too."
)


def measure(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each line's rounds.")] = 2.0,
    save: Annotated[bool, typer.Option("--save", help="Write the table to docs/benchmarks.md.")] = False,
) -> None:
    """Measure what a call costs apart from its kernel: ours and torch's pools on a tiny tensor."""
    torch.set_num_threads(1)
    place = device.there()
    about, say = begin(place)
    case = Case((4, 2, 2, 2, 2), WINDOWS[0], torch.float32, "contiguous", backward=True)
    x = case.input(place)
    pools = {name: pool for name, pool in poolings(case).items() if name in ("ours", "avg", "max")}
    gradient = torch.ones_like(pools["ours"](x).detach())
    modes: dict[str, Callable] = {
        "without gradients": lambda pool: partial(pool, x.detach()),
        "forward": lambda pool: lambda: pool(x),
        "with backward": lambda pool: lambda: torch.autograd.grad(pool(x), x, gradient),
    }
    rows = []
    for name, mode in modes.items():
        calls = {of: _often(mode(pool), place) for of, pool in pools.items()}
        times = interleaved(calls, torch.device("cpu"), seconds)
        ours = times["ours"].median
        micro = {of: timing.median / CALLS * 1e6 for of, timing in times.items()}
        row = [name, f"{micro['ours']:.1f} ±{times['ours'].spread:.0%}"]
        rows.append(row + [f"{micro[of]:.1f} ({ours / times[of].median:.1f}x)" for of in ("avg", "max")])
    table = markdown_table(["a call", "ours", "avg", "max"], rows)
    parts = markdown_table(["of which", "microseconds"], _parts(x.detach(), gradient, place, seconds))
    say(f"{table}\n\n{parts}")
    if save:
        body = "\n".join([about, "", OVERHEAD_LEGEND, "", table, "", PARTS_LEGEND, "", parts])
        say(f"Written to {save_section(f'Price of a call on {device.value}', body)}")


def _parts(x: Tensor, gradient: Tensor, place: torch.device, seconds: float) -> list[list[str]]:
    """Returns what the parts of a call take: lines of a table."""
    ours, aten = torch.ops.softpool3d, torch.ops.aten.max_pool3d_with_indices.default
    pooled, window = x.clone().requires_grad_(), ((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1), False)

    def below(operator: Callable, *arguments: object) -> Callable[[], object]:
        def call() -> object:
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*arguments)

        return call

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    calls = {
        "our operator by torch.ops": below(ours.soft_pool3d.default, x, None, 1.0, *window),
        "its backward": below(ours.soft_pool3d_backward.default, gradient, x, None, 1.0, *window, True, False),
        "max pooling by torch.ops, with the same window": below(aten, x, *window),
        "an autograd.Function that does nothing, with backward": lambda: torch.autograd.grad(
            Same.apply(pooled), pooled, x
        ),
    }
    times = interleaved({name: _often(call, place) for name, call in calls.items()}, torch.device("cpu"), seconds)
    return [[name, f"{timing.median / CALLS * 1e6:.1f} ±{timing.spread:.0%}"] for name, timing in times.items()]


def _often(call: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


if __name__ == "__main__":
    run(measure)
