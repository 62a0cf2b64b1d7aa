"""Running loss, accuracy and rate of an epoch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Meter:
    """Sums stay on the device until they are read, so that counting does not make the host wait for it.

    Args:
        sums: those of an interrupted epoch, to be taken up: float32 (loss, correct, clips).
    """

    def __init__(self, sums: Tensor | None, device: torch.device) -> None:
        self.sums = torch.zeros(3, device=device) if sums is None else sums.to(device)
        self._before = float(self.sums[2])
        self._begin = self._read = time.perf_counter()
        self._waited = 0.0

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with the time that each took to arrive counted as waiting."""
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
        """loss: mean over the clips; logits (N, classes); label (N,)."""
        count = loss.new_tensor(len(label))
        correct = (logits.argmax(-1) == label).sum()
        self.sums = self.sums + torch.stack([loss * count, correct, count]).to(self.sums)

    def due(self) -> bool:
        """Twice a second: reading waits for the device."""
        return time.perf_counter() - self._read > 0.5

    def read(self) -> dict[str, float]:
        """loss, top1, clips a second, share of the time spent waiting for data."""
        loss, correct, clips = self.sums.tolist()
        self._read = time.perf_counter()
        elapsed = max(self._read - self._begin, 1e-9)
        return {
            "loss": loss / max(clips, 1),
            "top1": correct / max(clips, 1),
            "rate": (clips - self._before) / elapsed,
            "waiting": self._waited / elapsed,
        }
