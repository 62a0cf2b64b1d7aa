"""Prints how fast the instructions of the CUDA kernels let them be, read from the machine code of the built library.

It needs no GPU, but CUDA's cuobjdump; PyTorch's Triton brings one.

python benchmarks/issue_slots.py --save
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from shared import begin, run

from softpool3d.analysis.measuring import DOCUMENT, markdown_table, save_section
from softpool3d.errors import UsageError
from softpool3d.ops.library import build_info

SLOTS = 132 * 4 * 1.755e9  # warp instructions that an H100 or H200 issues in a second
WARP, THREADS = 32, 256  # threads of a warp, of a block
REGISTERS, BLOCKS = 65536, 8  # of a multiprocessor; the most blocks at once
SIZES = {"float": 4, "BFloat16": 2}
LEGEND = (
    "slots: the instructions of a thread on its usual way through the kernel or, with large windows, on one turn of "
    "its main loop; of all ways with an exponential, that which moves the most bytes for an instruction. bytes: what "
    "the thread has to move on that way. TB/s: the bytes of 32 threads for each slot, at 132 multiprocessors, 4 slots "
    "a cycle and 1.755 GHz, without any stall; a copy reaches about 3.0 TB/s on an H100 and 4.3 on an H200. blocks: of "
    "256 threads, as many as a multiprocessor's registers hold. The backward of overlapping windows is not here: its "
    "threads work in turns whose number depends on the tile."
)


@dataclass(frozen=True)
class Kind:
    """Kernels of one name: `pattern` of the name with T for the type, and `title` with the pattern's groups.

    Attributes:
        moved: bytes that have to move for each byte that is stored, from the pattern's numbers; None: what moves in
            the main loop.
        turns: of the loop that the way through the kernel passes once, if there is one.
    """

    pattern: str
    title: str
    moved: Callable[..., float] | None = None
    turns: Callable[..., int] = lambda *_: 1


def forward(*stride: int) -> int:
    return 1 + math.prod(stride)  # a window's own inputs are as many as its strides say


def backward(*window: int) -> float:
    return 2 + 1 / math.prod(window)


KINDS = [
    Kind(r"forward_windows<T, int, [24], Rows<(\d), 2, 2>>", "rows {0}x2x2", lambda t: forward(t, 2, 2)),
    Kind(r"forward_windows<T, int, [48], Fixed<(\d), ([12]), ([12])>>", "columns {0}x{1}x{2}", forward),
    Kind(
        r"forward_overlap<T, Overlap<(\d)/(\d)/\d, (\d)/(\d)/\d, \d/\d/\d, (\w+(?:<\d>)?)>>",
        "{0}x{2}x{2} / {1}x{3}x{3}, {4}",
        lambda kernel_t, t, kernel, s: forward(t, s, s),
        turns=lambda kernel_t, *_: kernel_t,
    ),
    Kind(r"backward_windows<T, int, [24], Rows<(\d), 2, 2>>", "rows {0}x2x2, backward", lambda t: backward(t, 2, 2)),
    Kind(r"backward_windows<T, int, [48], Fixed<(\d), (\d), (\d)>>", "columns {0}x{1}x{2}, backward", backward),
    Kind(r"reduce_windows<T, int, [48], false, true, false>", "large windows, channels"),
    Kind(r"reduce_windows<T, int, [48], true, true, false>", "large windows, a run"),
    Kind(r"spread_gradient<T, int, [48], false, true>", "large windows, channels, backward"),
    Kind(r"spread_gradient<T, int, [48], true, true>", "large windows, a run, backward"),
]
COLUMNS = ["slots", "bytes", "TB/s", "registers", "blocks"]


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str  # as "LDG.E.128"
    conditional: bool
    target: int | None  # of a branch

    @property
    def moves(self) -> int:
        """The bytes that it moves to or from global memory."""
        if not self.name.startswith(("LDG", "STG")):
            return 0
        width = re.search(r"\.[US]?(8|16|64|128)\b", self.name)
        return int(width[1]) // 8 if width else 4


@dataclass(frozen=True)
class Way:
    """A way through some code: its instructions, the exponentials among them, and the bytes that are moved."""

    slots: int = 0
    powers: int = 0
    loaded: int = 0
    stored: int = 0

    @property
    def moved(self) -> int:
        return self.loaded + self.stored

    def after(self, instruction: Instruction) -> Way:
        """Returns this way with an instruction before it."""
        stored = instruction.moves if instruction.name.startswith("STG") else 0
        powers = self.powers + (instruction.name == "MUFU.EX2")
        return Way(self.slots + 1, powers, self.loaded + instruction.moves - stored, self.stored + stored)


def tool(name: str) -> str:
    """Returns the path of one of CUDA's tools.

    Raises:
        UsageError: if it is nowhere.
    """
    triton = importlib.util.find_spec("triton")
    places = [Path(triton.origin).parent / "backends/nvidia/bin"] if triton else []
    found = shutil.which(name) or shutil.which(name, path=":".join(map(str, [*places, "/usr/local/cuda/bin"])))
    if found is None:
        raise UsageError(f"{name} is not on PATH, and there is no Triton that brings it; it comes with CUDA's toolkit")
    return found


def disassembled(lines: Iterator[str]) -> Iterator[tuple[str, list[Instruction]]]:
    """Yields the mangled name of each function in cuobjdump's output, and its instructions."""
    name, code = None, []
    for line in lines:
        if "Function : " in line:
            if name:
                yield name, code
            name, code = line.split("Function : ")[1].strip(), []
        elif found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);", line):
            target = re.search(r"0x([0-9a-f]+)\s*$", found[4]) if found[3].startswith("BRA") else None
            code.append(Instruction(int(found[1], 16), found[3], found[2] is not None, target and int(target[1], 16)))
    if name:
        yield name, code


def best_way(code: list[Instruction], ends: set[int]) -> Way | None:
    """Returns the way from the first instruction to one of `ends` that moves the most bytes for an instruction.

    That is the usual way: others read more often, or compute more for the same. A way turns back nowhere, and has an
    exponential; None is returned if there is no such way.
    """
    index, rate, best = {step.address: i for i, step in enumerate(code)}, 0.0, None
    while True:  # Dinkelbach's algorithm for the largest ratio: the best by bytes - rate * slots, again and again
        ways: list[list[Way]] = [[] for _ in range(len(code) + 1)]  # at most two: with exponentials, and without
        for i in reversed(range(len(code))):
            step, follow = code[i], [Way()] if i in ends else []
            if i not in ends or step.conditional:
                if step.target is not None and index.get(step.target, 0) > i:
                    follow += ways[index[step.target]]
                if step.conditional or not (step.name in ("EXIT", "BRA") or step.name.startswith("RET")):
                    follow += ways[i + 1]
            found = [way.after(step) for way in follow]
            for some in ([way for way in found if way.powers], [way for way in found if not way.powers]):
                ways[i] += [max(some, key=lambda way: way.moved - rate * way.slots)] if some else []
        found = [way for way in ways[0] if way.powers and way.moved]
        if not found or (best and found[0].moved / found[0].slots <= rate):
            return best
        best, rate = found[0], found[0].moved / found[0].slots


def through(code: list[Instruction]) -> Way | None:
    """Returns the best way from the kernel's beginning to its end."""
    return best_way(code, {i for i, step in enumerate(code) if step.name == "EXIT"})


def main_loop(code: list[Instruction]) -> Way | None:
    """Returns the best way through one turn of the loop that moves the most bytes for an instruction."""
    index = {step.address: i for i, step in enumerate(code)}
    turns = [(index[step.target], i) for i, step in enumerate(code) if step.target is not None and step.target in index]
    ways = [best_way(code[first : last + 1], {last - first}) for first, last in turns if first < last]
    return max((way for way in ways if way), key=lambda way: way.moved / way.slots, default=None)


def simple(name: str) -> str:
    """Returns a function's name without namespaces and arguments, windows as kernel/stride/padding."""
    name = re.sub(r"\(.*", "", name.removeprefix("void "))
    name = re.sub(r"\b(softpool3d|cuda|c10|torch|headeronly)::", "", name).replace(" >", ">")
    return re.sub(r"Along<(\d), (\d), (\d)>", r"\1/\2/\3", name)


def rows(library: Path) -> list[list[str]]:
    """Returns the table's rows: a kernel, then for each type its slots, bytes, ceiling, registers and blocks."""
    cuobjdump = tool("cuobjdump")
    listing = subprocess.run([cuobjdump, "-res-usage", library], capture_output=True, text=True, check=True)
    usage = listing.stdout + listing.stderr
    registers = {name: int(n) for name, n in re.findall(r"Function (\w+):\s+REG:(\d+)", usage)}
    with subprocess.Popen([cuobjdump, "-sass", library], stdout=subprocess.PIPE, text=True) as process:
        codes = dict(disassembled(process.stdout))
    names = subprocess.run(["c++filt"], input="\n".join(codes), capture_output=True, text=True, check=True).stdout
    mangled = {simple(plain): name for plain, name in zip(names.splitlines(), codes, strict=True)}
    table = {}
    for kind in KINDS:
        for plain, name in mangled.items():
            for of in SIZES:
                if found := re.fullmatch(kind.pattern.replace("<T,", f"<{of},"), plain):
                    cells = table.setdefault(kind.title.format(*found.groups()), {})
                    cells[of] = _cells(kind, found.groups(), codes[name], registers[name])
    return [
        [title, *(cell for of in SIZES for cell in cells.get(of, ["-"] * len(COLUMNS)))]
        for title, cells in table.items()
    ]


def _cells(kind: Kind, groups: tuple[str, ...], code: list[Instruction], registers: int) -> list[str]:
    loop = main_loop(code)
    if kind.moved is None:
        slots, moved = loop.slots, loop.moved
    else:
        way, numbers = through(code), [int(group) for group in groups if group.isdigit()]
        slots = way.slots + ((kind.turns(*numbers) - 1) * loop.slots if loop else 0)
        moved = way.stored * kind.moved(*numbers)
    blocks = min(BLOCKS, REGISTERS // (-(-registers // 8) * 8 * THREADS))
    ceiling = moved * WARP / slots * SLOTS / 1e12
    return [str(slots), f"{moved:.0f}", f"{ceiling:.1f}", str(registers), str(blocks)]


def measure(
    save: Annotated[bool, typer.Option("--save", help="Write the table to docs/kernels.md.")] = False,
) -> None:
    """Print the instructions of the CUDA kernels, and how fast they let them be."""
    library = build_info()["cuda"]
    if library["path"] is None:
        raise UsageError(f"there is no CUDA library: {library['why']}; {library['remedy']}")
    about, say = begin()
    columns = [f"{of}: {what}" if what == "slots" else what for of in ("float32", "bfloat16") for what in COLUMNS]
    table = markdown_table(["kernel", *columns], rows(Path(library["path"])))
    say(table)
    if save:
        body = "\n\n".join([about, LEGEND, table])
        say(f"Written to {save_section('Instructions', body, DOCUMENT.with_name('kernels.md'))}")


if __name__ == "__main__":
    run(measure)
