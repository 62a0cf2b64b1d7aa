"""Measures contenders side by side: interleaved rounds, medians with spread, peak memory, and the page of the numbers.

Contenders take turns within one process, so that a machine that slows down slows all of them. Ratios of medians are
then worth more than the times themselves.
"""

import ctypes
import json
import mmap
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from softpool3d.errors import UsageError
from softpool3d.files import write_atomically

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Medians of interleaved rounds in one process, written by `benchmarks/*.py --save`; each section names its
machine and the command that made it.
"""


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender: the median of its rounds, and the quartiles around it."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float = 2.0,
    rounds: tuple[int, int] = (5, 101),
) -> dict[str, Timing]:
    """Times each contender once a round until `seconds` are spent, within `rounds` (least, most).

    A contender that PyTorch has not implemented for the device and dtype is missing from the result; one that takes
    longer than `seconds` by itself keeps out of the rounds and is timed once. What a contender returns is freed
    outside its time.
    """
    clock = _cuda_clock(device) if device.type == "cuda" else _cpu_clock
    able, result = {}, {}
    for name, call in contenders.items():
        try:
            call()
            once = clock(call)
        except (RuntimeError, NotImplementedError) as error:
            if "not implemented" not in str(error):
                raise
            continue
        if once > seconds > 0:
            result[name] = Timing(once, once, once, 1)
        else:
            able[name] = call
    samples: dict[str, list[float]] = {name: [] for name in able}
    names = list(able)
    began = time.perf_counter()
    for turn in range(rounds[1]):
        if not names or (turn >= rounds[0] and time.perf_counter() - began > seconds):
            break
        # Rotated, so that no contender always finds the cache of the same neighbour.
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(clock(able[name]))
    for name, times in samples.items():
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        result[name] = Timing(median, low, high, len(times))
    return result


def recycle_memory() -> None:
    """Keeps freed memory for the next allocation, where the C library is glibc.

    By default glibc returns large blocks to the system, and their next owner pays for fresh pages, which costs more
    than most kernels. Whether it does depends on what ran before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def first_touch(size: int = 64 << 20) -> float:
    """Returns the seconds to write `size` bytes of fresh pages, the median of 5."""
    times = []
    for _ in range(5):
        with mmap.mmap(-1, size) as pages:
            fresh = torch.frombuffer(pages, dtype=torch.uint8)
            began = time.perf_counter()
            fresh.fill_(1)
            times.append(time.perf_counter() - began)
            del fresh  # it holds the mapping open
    return statistics.median(times)


def _cpu_clock(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    result = call()
    ended = time.perf_counter()
    del result
    return ended - began


def _cuda_clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """Returns a clock: the time on the device between two events, in seconds, from a cold L2 cache.

    Overwriting a buffer larger than any L2 evicts what the last contender left there. It is repeated until the device
    stays busy while the host issues every launch, so that no host time lies between the events.
    """
    evict = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    fills = 4  # some 0.1 ms each on an H100

    def clock(call: Callable[[], object]) -> float:
        nonlocal fills
        while True:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            for _ in range(fills):
                evict.zero_()
            start.record()
            result = call()
            end.record()
            waited = start.query()  # the device got there before the host was done
            end.synchronize()
            del result
            if not waited or fills >= 256:
                return start.elapsed_time(end) / 1e3
            fills *= 2

    return clock


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Returns the most bytes that PyTorch's allocator held during `call()` beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    # The CPU allocator keeps no peak, but the profiler sees each allocation and release.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def machine(device: torch.device) -> str:
    """Returns what a reader has to know of the machine: processor or GPU, threads, versions."""
    from softpool3d import __version__

    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        try:
            models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        except OSError:
            models = []
        name = models[0] if models else platform.processor() or platform.machine()
        threads = torch.get_num_threads()
        name += f", {threads} thread{'s' if threads > 1 else ''}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}; torch {torch.__version__}, softpool3d {__version__}, Python {platform.python_version()}"


def save_section(heading: str, body: str, document: Path | None = None) -> Path:
    """Writes `body` under `## heading` of the document, in place of what stood there; other sections stay."""
    document = document or DOCUMENT
    if not document.parent.is_dir():
        raise UsageError(f"no folder {document.parent} to save to: --save works in a source tree")
    text = document.read_text(encoding="utf-8") if document.exists() else HEAD
    head, *sections = re.split(r"^(?=## )", text, flags=re.M)
    new = f"## {heading}\n\nMeasured on {date.today().isoformat()}.\n\n{body.strip()}\n"
    for i, section in enumerate(sections):
        if section.split("\n", 1)[0] == f"## {heading}":
            sections[i] = new
            break
    else:
        sections.append(new)
    parts = [part.strip() + "\n" for part in [head, *sections]]
    write_atomically(document, "\n".join(parts).encode())
    return document


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
