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

from softpool3d.analysis.measuring import interleaved, markdown_table, save_section

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
    say(table)
    if save:
        body = "\n".join([about, "", OVERHEAD_LEGEND, "", table])
        say(f"Written to {save_section(f'Price of a call on {device.value}', body)}")


def _often(call: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


if __name__ == "__main__":
    run(measure)
