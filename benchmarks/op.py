"""Compares the operator with PyTorch's pools, its own plain composition and compiled reference, and a copy.

python benchmarks/op.py                   on this machine's CPU; or make bench-op
python benchmarks/op.py --device cuda --save
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.progress import Progress
from rich.table import Table
from shared import Device, begin, console, run
from torch import Tensor

from softpool3d.analysis.measuring import (
    Timing,
    first_touch,
    interleaved,
    markdown_table,
    peak_bytes,
    recycle_memory,
    save_section,
)
from softpool3d.ops.functional import adaptive_soft_pool3d, backend, soft_pool3d
from softpool3d.ops.reference import adaptive_soft_pool3d_reference, soft_pool3d_reference


@dataclass(frozen=True)
class Window:
    """One pooling of the benchmark; without a kernel it pools the whole clip."""

    name: str
    kernel: tuple[int, int, int] | None = None
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (0, 0, 0)


SHAPES = [(4, 64, 16, 56, 56), (2, 64, 8, 112, 112), (8, 24, 16, 112, 112), (8, 192, 8, 14, 14)]
WINDOWS = [
    Window("2 / 2", (2, 2, 2), (2, 2, 2)),
    Window("(1,3,3) / (1,2,2) / (0,1,1)", (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    Window("3 / 2 / 1", (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    Window("(2,1,1) / (2,1,1)", (2, 1, 1), (2, 1, 1)),
    Window("global"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
PASSES = ["forward", "forward with backward"]
PEERS = ["avg", "max", "plain", "compiled"]
LEGEND = (
    "Milliseconds: ours with half the distance between the quartiles; each peer with our time as a "
    "multiple of its own (below 1x we are faster). avg, max: `F.avg_pool3d`, `F.max_pool3d`; plain: "
    "`avg(exp(x) x) / avg(exp(x))`, unstable; compiled: `torch.compile` of the reference. copy: copying "
    "as many bytes as a kernel at the limit would move (input and output; with backward also the input "
    "again, and both gradients), with our share of its bandwidth. fill: allocating and filling tensors "
    "of the results' sizes. On a CPU all memory has been used before. extra: the peak of our allocations "
    "beyond output and gradient. A dash: not implemented in PyTorch for that dtype."
)


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Peer(StrEnum):
    avg = "avg"
    max = "max"
    plain = "plain"
    compiled = "compiled"


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    shape: tuple[int, ...]
    window: Window
    dtype: torch.dtype
    layout: str
    backward: bool

    def input(self, device: torch.device) -> Tensor:
        x = torch.randn(self.shape, device=device).to(self.dtype)
        x = x.to(memory_format=LAYOUTS[self.layout])
        return x.requires_grad_(self.backward)

    def output_size(self) -> tuple[int, ...]:
        w = self.window
        if w.kernel is None:
            return (1, 1, 1)
        meta = torch.empty(self.shape, device="meta")
        return tuple(F.max_pool3d(meta, w.kernel, w.stride, w.padding).shape[2:])


def poolings(case: Case) -> dict[str, Callable[[Tensor], Tensor]]:
    """Returns our pooling and its peers, by name, for the case's window."""
    w = case.window
    if w.kernel is None:
        avg = lambda x: F.adaptive_avg_pool3d(x, 1)  # noqa: E731
        pools = {
            "ours": lambda x: adaptive_soft_pool3d(x, 1),
            "avg": avg,
            "max": lambda x: F.adaptive_max_pool3d(x, 1),
        }

        def reference(x: Tensor) -> Tensor:
            return adaptive_soft_pool3d_reference(x, (1, 1, 1))
    else:
        # As in ours, what lies in the padding is not counted.
        avg = lambda x: F.avg_pool3d(x, w.kernel, w.stride, w.padding, count_include_pad=False)  # noqa: E731
        pools = {
            "ours": lambda x: soft_pool3d(x, w.kernel, w.stride, w.padding),
            "avg": avg,
            "max": lambda x: F.max_pool3d(x, w.kernel, w.stride, w.padding),
        }

        def reference(x: Tensor) -> Tensor:
            return soft_pool3d_reference(x, w.kernel, w.stride, w.padding, (1, 1, 1))

    def plain(x: Tensor) -> Tensor:
        e = torch.exp(x)
        return avg(e * x) / avg(e)

    return {**pools, "plain": plain, "compiled": torch.compile(reference, dynamic=False)}


def contenders(case: Case, x: Tensor, without: set[str]) -> dict[str, Callable[[], object]]:
    """Returns calls without arguments: the poolings of `x`, with backward if the case says so, and copy and fill."""
    device, count, out = x.device, x.numel(), case.shape[0] * case.shape[1]
    for size in case.output_size():
        out *= size
    fresh = [out, count] if case.backward else [out]

    def run(pool: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        if not case.backward:
            return lambda: pool(x)
        # The gradient that arrives has the output's layout, as it has inside a network.
        gradient = torch.randn_like(pool(x).detach())

        def step() -> object:
            y = pool(x)
            return y, torch.autograd.grad(y, x, gradient)

        return step

    # Half of the bytes moved are read and half written.
    moved = (3 * count + 2 * out if case.backward else count + out) // 2
    source = torch.zeros(moved, dtype=case.dtype, device=device)
    target = torch.zeros_like(source)
    calls: dict[str, Callable[[], object]] = {}
    for name, pool in poolings(case).items():
        if name not in without:
            try:
                calls[name] = run(pool)
            except RuntimeError as error:
                if "not implemented" not in str(error):  # torch has no such pool for the dtype: a dash in the table
                    raise
    calls["copy"] = lambda: target.copy_(source)
    calls["fill"] = lambda: [torch.empty(n, dtype=case.dtype, device=device).fill_(1) for n in fresh]
    return calls


def measure(case: Case, device: torch.device, seconds: float, without: set[str]) -> list[str]:
    """Measures a case; returns its cells of the table, from the window's name on."""
    # Every case compiles a function of its own; kept ones would run into the limit of recompilations.
    torch.compiler.reset()
    x = case.input(device)
    with torch.set_grad_enabled(case.backward):
        calls = contenders(case, x, without)
        times = interleaved(calls, device, seconds)
        peak = peak_bytes(calls["ours"], device)
    ours = times["ours"]
    results = calls["ours"]()
    y, gradients = results if case.backward else (results, ())
    promised = sum(t.numel() * t.element_size() for t in (y, *gradients))

    def against(name: str) -> str:
        peer = times.get(name)
        return "-" if peer is None else f"{_ms(peer)} ({ours.median / peer.median:.2f}x)"

    return [
        case.window.name,
        case.layout,
        str(case.dtype).removeprefix("torch."),
        "f+b" if case.backward else "f",
        f"{_ms(ours)} ±{ours.spread:.0%}",
        *(against(peer) for peer in PEERS if peer not in without),
        f"{_ms(times['copy'])} ({times['copy'].median / ours.median:.0%})",
        _ms(times["fill"]),
        f"{max(0, peak - promised) / 1e6:.1f} MB",
    ]


def _ms(timing: Timing) -> str:
    return f"{timing.median * 1e3:.3g}"


def cases(shapes, windows, dtypes, layouts) -> Iterator[Case]:
    for shape, window, dtype, layout, backward in itertools.product(shapes, windows, dtypes, layouts, (False, True)):
        yield Case(shape, window, dtype, layout, backward)


def measure_all(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    save: Annotated[bool, typer.Option("--save", help="Write the table to docs/benchmarks.md.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="The smallest shape, two kernels, float32, fewer rounds.")
    ] = False,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Only these dtypes (may be repeated).")] = None,
    without: Annotated[list[Peer] | None, typer.Option(help="Leave a peer out (may be repeated).")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each line's rounds.")] = 2.0,
) -> None:
    """Compare the operator with PyTorch's pools, its own plain composition and compiled reference, and a copy."""
    place = device.there()
    touched = ""
    if place.type == "cpu":
        recycle_memory()
        touched = (
            f" The first touch of fresh pages costs {first_touch() * 1e3 / 64:.2f} ms per MiB here, beyond these times."
        )
    skipped = {peer.value for peer in without or []}
    shapes, windows, dtypes = SHAPES, WINDOWS, DTYPES
    if quick:
        shapes, windows, dtypes = SHAPES[-1:], [WINDOWS[0], WINDOWS[2]], DTYPES[:1]
        seconds = min(seconds, 0.2)
    if dtype:
        dtypes = [getattr(torch, d.value) for d in dtype]

    about, say = begin(place, f"; ours is `{backend(torch.empty(0, device=place))}`", touched)
    header = ["kernel / stride / pad", "layout", "dtype", "pass", "ours"]
    header += [*(peer for peer in PEERS if peer not in skipped), "copy", "fill", "extra"]
    sections = []
    with Progress(console=console(), transient=True) as progress:
        total = len(list(cases(shapes, windows, dtypes, LAYOUTS)))
        task = progress.add_task("measuring", total=total)
        for shape in shapes:
            rows = []
            for case in cases([shape], windows, dtypes, LAYOUTS):
                progress.update(task, description=f"{shape} {case.window.name} {case.layout}")
                rows.append(measure(case, place, seconds, skipped))
                progress.advance(task)
            table = Table(*header, title=str(shape), title_justify="left")
            for row in rows:
                table.add_row(*row)
            progress.console.print(table)
            sections.append(f"### {shape}\n\n{markdown_table(header, rows)}\n")
    say(LEGEND)
    if save:
        types = ", ".join(str(t).removeprefix("torch.") for t in dtypes)
        saved = save_section(f"Operator on {device.value}: {types}", "\n".join([about, "", LEGEND, "", *sections]))
        say(f"Written to {saved}")


if __name__ == "__main__":
    run(measure_all)
