"""softpool3d benchmark: our parts and their peers, measured interleaved in one process.

python tools/benchmark.py op                  the operator on this machine's CPU
python tools/benchmark.py op --device cuda --save
python tools/benchmark.py overhead            what a call costs beside its kernel
python tools/benchmark.py model r3d_50 slow_r50   networks with SoftPool at every place, against their own pooling
python tools/benchmark.py loader --clips videos
python tools/benchmark.py train               training and evaluation against a bare loop; the start; waiting for data
python tools/benchmark.py classify clip.mp4
"""

import functools
import itertools
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from softpool3d.errors import SoftPool3dError, UsageError
from softpool3d.functional import adaptive_soft_pool3d, backend, soft_pool3d
from softpool3d.reference import adaptive_soft_pool3d_reference, soft_pool3d_reference
from softpool3d.tools._measure import (
    DOCUMENT,
    Timing,
    first_touch,
    interleaved,
    machine,
    markdown_table,
    peak_bytes,
    recycle_memory,
    save_section,
)

app = typer.Typer(help="Measure our parts against their peers, interleaved.", no_args_is_help=True)


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


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Peer(str, Enum):
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
    """Ours and its peers on the case's window."""
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
    """Calls without arguments: the poolings of `x`, forward or forward with backward, and the two floors."""
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
            except (RuntimeError, NotImplementedError) as error:
                if "not implemented" not in str(error):
                    raise
    calls["copy"] = lambda: target.copy_(source)
    calls["fill"] = lambda: [torch.empty(n, dtype=case.dtype, device=device).fill_(1) for n in fresh]
    return calls


def measure(case: Case, device: torch.device, seconds: float, without: set[str]) -> list[str]:
    """The case's cells, from the window's name on."""
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


@app.command()
def op(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    save: Annotated[bool, typer.Option("--save", help="Write the table to docs/benchmarks.md.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="The smallest shape, two kernels, float32, fewer rounds.")
    ] = False,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Only these dtypes (may be repeated).")] = None,
    without: Annotated[list[Peer] | None, typer.Option(help="Leave a peer out (may be repeated).")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each line's rounds.")] = 2.0,
) -> None:
    """The operator against PyTorch's pools, its own plain composition and compiled reference, and a copy."""
    if device is Device.cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA device here")
    place = torch.device(device.value)
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

    # Into a file or a pipe, the table's lines are not folded to a terminal's 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    ran = backend(torch.empty(0, device=place))
    about = f"{machine(place)}; ours is `{ran}`. Command: `{_command()}`.{touched}"
    console.print(about, markup=False)
    header = ["kernel / stride / pad", "layout", "dtype", "pass", "ours"]
    header += [*(peer for peer in PEERS if peer not in skipped), "copy", "fill", "extra"]
    sections = []
    with Progress(console=console, transient=True) as progress:
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
    console.print(LEGEND, markup=False)
    if save:
        types = ", ".join(str(t).removeprefix("torch.") for t in dtypes)
        saved = save_section(f"Operator on {device.value}: {types}", "\n".join([about, "", LEGEND, "", *sections]))
        console.print(f"Written to {saved}", markup=False)


CALLS = 200  # in a round, so that the clock's own time is nothing
OVERHEAD_LEGEND = (
    "Microseconds that a call takes of one thread on a tensor of 4x2x2x2x2, for which no kernel takes long; on a GPU "
    "until it is launched, or run where that takes longer. With backward: `torch.autograd.grad` of it too."
)


@app.command()
def overhead(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each line's rounds.")] = 2.0,
    save: Annotated[bool, typer.Option("--save", help="Write the table to docs/benchmarks.md.")] = False,
) -> None:
    """What a call costs beside its kernel: ours and torch's pools on a tiny tensor."""
    if device is Device.cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA device here")
    torch.set_num_threads(1)
    place = torch.device(device.value)
    about, say = _begin(place)
    case = Case((4, 2, 2, 2, 2), WINDOWS[0], torch.float32, "contiguous", backward=True)
    x = case.input(place)
    pools = {name: pool for name, pool in poolings(case).items() if name in ("ours", "avg", "max")}
    gradient = torch.ones_like(pools["ours"](x).detach())
    modes: dict[str, Callable] = {
        "without gradients": lambda pool: functools.partial(pool, x.detach()),
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


@app.command()
def model(
    names: Annotated[list[str] | None, typer.Argument(help="Networks; all video networks if none is named.")] = None,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    kind: Annotated[str, typer.Option(help="The kind of pooling that goes to each place.")] = "soft",
    batch: Annotated[int, typer.Option(min=1, help="Clips in a batch.")] = 2,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip, or the least that the network takes.")] = 8,
    crop: Annotated[int, typer.Option(min=1, help="Pixels of a clip, or the least.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for the forwards; steps get twice that.")] = 10.0,
    save: Annotated[bool, typer.Option("--save", help="Write the table to docs/benchmarks-models.md.")] = False,
) -> None:
    """Each network with its own pooling, as its library has it, and with a kind of pooling at every place."""
    from softpool3d.config import pool_config
    from softpool3d.models.registry import SPECS, spec
    from softpool3d.tools import _bench_model

    if device is Device.cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA device here")
    pool_config(kind=kind)
    names = names or [name for name, entry in SPECS.items() if not entry.is_image]
    for name in names:
        spec(name)
    place = torch.device(device.value)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    about = f"{machine(place)}. Command: `{_command()}`."
    console.print(about, markup=False)
    rows = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(names))
        for name in names:
            progress.update(task, description=name)
            found = _bench_model.measure_network(name, kind, batch, frames, crop, place, seconds)
            for row in found:
                progress.console.print("  ".join(f"{cell:24}" for cell in row).rstrip(), markup=False, highlight=False)
            rows += found
            progress.advance(task)
    console.print(_bench_model.LEGEND, markup=False)
    if save:
        table = markdown_table(_bench_model.HEADER, rows)
        document = DOCUMENT.with_name("benchmarks-models.md")
        body = "\n".join([about, "", _bench_model.LEGEND, "", table])
        saved = save_section(f"Networks on {device.value}: {', '.join(names)}", body, document)
        console.print(f"Written to {saved}", markup=False)


@app.command()
def loader(
    clips: Annotated[
        Path | None, typer.Option(help="A folder of videos to measure on, beside `motion`; or $SOFTPOOL3D_CLIPS.")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Write the tables to docs/benchmarks.md.")] = False,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each file's rounds.")] = 2.0,
) -> None:
    """Reading clips: ours, decord and PyAV alone, pytorchvideo; and the whole loader by number of workers."""
    from softpool3d.tools import _bench_loader

    folder = _bench_loader.clips_folder(clips)
    about, say = _begin()
    tables = _bench_loader.report(folder, seconds, say)
    say(tables)
    if save:
        saved = save_section("Loading clips", f"{about}\n\n{tables}")
        say(f"Written to {saved}")


@app.command()
def train(
    rounds: Annotated[
        int, typer.Option(min=3, help="Training steps of each network; evaluations are twice as many.")
    ] = 15,
    save: Annotated[bool, typer.Option("--save", help="Write the tables to docs/benchmarks-train.md.")] = False,
) -> None:
    """Training and evaluation against a bare loop around the same network; the start; the wait for data."""
    from softpool3d.tools import _bench_train

    about, say = _begin()
    tables = _bench_train.report(rounds, say)
    say(tables)
    if save:
        saved = save_section("Training on a CPU", f"{about}\n\n{tables}", DOCUMENT.with_name("benchmarks-train.md"))
        say(f"Written to {saved}")


@app.command()
def classify(
    clip: Annotated[Path, typer.Argument(help="A video of ten seconds or so.", exists=True, dir_okay=False)],
    save: Annotated[bool, typer.Option("--save", help="Write the table to docs/benchmarks-classify.md.")] = False,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each line's rounds.")] = 10.0,
) -> None:
    """What `softpool3d classify` takes beyond decoding and the network's bare forwards."""
    from softpool3d.tools import _bench_classify

    about, say = _begin()
    rows = _bench_classify.report(clip, seconds, say)
    if save:
        document = DOCUMENT.with_name("benchmarks-classify.md")
        body = "\n".join([about, "", _bench_classify.LEGEND, "", markdown_table(_bench_classify.HEADER, rows)])
        say(f"Written to {save_section('Classifying', body, document)}")


def _begin(device: torch.device = torch.device("cpu")) -> tuple[str, Callable[[str], None]]:
    """Machine and command, printed already, and what prints the rest: unfolded, into a file or a pipe too."""
    console = Console() if sys.stdout.isatty() else Console(width=200)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    about = f"{machine(device)}. Command: `{_command()}`."
    say(about)
    return about, say


def _command() -> str:
    """The command line; of files that lie elsewhere their names, because a page is read on other machines."""
    words = [Path(word).name if word.startswith(("/", "~", "..")) else word for word in sys.argv[1:]]
    return shlex.join(["python", "tools/benchmark.py", *words])


def main() -> None:
    try:
        app()
    except SoftPool3dError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
