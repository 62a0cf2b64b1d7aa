"""Measures loss, accuracy and rate of an epoch as it goes on, and where its time goes."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

PARTS = ("data", "forward", "backward", "optimizer")


class Meter:
    """The counts of one epoch. Sums stay on the device until they are read, so that the host does not wait for it.

    Args:
        sums: of the part of the epoch before an interruption: float32 (loss, correct, clips).
    """

    def __init__(self, sums: Tensor | None, device: torch.device) -> None:
        self.sums = torch.zeros(3, device=device) if sums is None else sums.to(device)
        self._before = float(self.sums[2])
        self._begin = self._read = time.perf_counter()
        self._waited = 0.0
        self._device, self._steps = device, 0
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._marks: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def mark(self, part: str) -> None:
        """Counts the time since the last mark for `part`, one of PARTS; on a GPU, the GPU's time."""
        self._marks.append((part, self._now()))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the epoch's time."""
        begin = time.perf_counter()
        self._settle()
        yield
        self._begin += time.perf_counter() - begin
        self._marks = [("", self._now())]

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for (_, begin), (part, end) in itertools.pairwise(self._marks):
            self._spent[part] += end - begin if isinstance(end, float) else begin.elapsed_time(end) / 1000
        del self._marks[:-1]

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches, and counts the time that each took to arrive as waiting."""
        iterator = iter(batches)
        while True:
            begin = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - begin
            yield batch

    def add(self, loss: Tensor, logits: Tensor, label: Tensor) -> None:
        """Adds a batch. loss: the mean over its clips; logits: (N, classes); label: (N,), or 0 and 1, (N, classes)."""
        count = torch.full_like(loss, len(label))  # filled on the device: to copy a number there would wait for it
        guess = logits.argmax(-1)
        correct = (guess == label).sum() if label.ndim == 1 else label.gather(1, guess.unsqueeze(1)).sum()
        self._steps += 1
        sums = torch.stack([loss * count, correct, count]).to(self.sums)
        self.sums = self.sums + torch.where(torch.isfinite(loss), sums, 0)

    def due(self) -> bool:
        """Whether the last reading was half a second ago: not more often, as reading waits for the device."""
        return time.perf_counter() - self._read > 0.5

    def read(self, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Returns the loss and top-1 (NaN without clips), clips a second, share of time waiting, and ms a step by part.

        Args:
            total: adds up the sums of several processes.
        """
        loss, correct, clips = total(self.sums).tolist()
        self._settle()
        self._read = time.perf_counter()
        elapsed = max(self._read - self._begin, 1e-9)
        return {
            "loss": loss / clips if clips else math.nan,
            "top1": correct / clips if clips else math.nan,
            "rate": (clips - self._before) / elapsed,
            "waiting": self._waited / elapsed,
        } | {f"{part}_ms": 1000 * spent / max(self._steps, 1) for part, spent in self._spent.items()}
