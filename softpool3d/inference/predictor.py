"""Runs clips through a network, with its memory layout and precision, at a batch size that is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from softpool3d.config import Config
from softpool3d.datasets.transforms import normalize
from softpool3d.errors import UsageError, WorkError
from softpool3d.inference.trained import Trained
from softpool3d.runtime.devices import MEMORY_FORMATS, autocast, placed

# Batch sizes, tried in this order. On a CPU the best is small, because what a few clips need stays in its caches: 30
# clips of X3D-S take half as long again in batches of ten as in batches of one to three (docs/classify.md).
CPU_BATCHES = (1, 2, 4, 8, 16)
CUDA_BATCHES = (4, 8, 16, 32, 64, 128)

How = tuple[torch.device, str | None, bool, int | None]  # device, precision, compile, batch: as for `Predictor`


class NoAnswer(WorkError):
    """The network's output holds NaN or infinity, so there is no answer."""


def finite(output: Tensor) -> Tensor:
    """Returns the output as it is.

    Raises:
        NoAnswer: if it is not finite.
    """
    if not output.isfinite().all():
        raise NoAnswer("the network's answer is not finite: its weights hold NaN or inf, or its precision is too low")
    return output


class BatchSize:
    """Finds the batch size with the least time per clip, while working.

    Each of `sizes` is tried in turn on clips that have to be classified anyway, until one takes over a tenth more than
    the best so far. The very first batch is not counted: it pays for memory and the choice of kernels.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._left = list(sizes)
        self._warm = False
        self._best = float("inf")
        self.current = sizes[0]

    @property
    def next(self) -> int:
        """The number of clips to take now."""
        return self._left[0] if self._left else self.current

    def add(self, clips: int, seconds: float) -> None:
        """Records the seconds that a batch took. A smaller one than asked for, the last of a video, is not counted."""
        if not self._left or clips != self._left[0]:
            return
        if not self._warm:
            self._warm = True
            return
        size = self._left.pop(0)
        if seconds / size < self._best:
            self.current, self._best = size, seconds / size
        elif seconds / size > 1.1 * self._best:
            self._left.clear()

    def refuse(self) -> None:
        """Ends the search: the size did not fit into memory, and larger ones would not either."""
        self._left.clear()


class Predictor:
    """Computes a network's output for clips (logits, or a layer's features), in batches of the measured size.

    Args:
        trained: the network. A module is moved to the device, in the memory format that it was trained in.
        device: where it runs.
        precision: fp32, bf16 or fp16, by autocast; by default as in training.
        compile: runs the network through torch.compile, in batches of one size.
        batch: clips in a batch; None: measured.

    Raises:
        UsageError: for fp16 on a CPU.
    """

    def __init__(
        self,
        trained: Trained,
        device: torch.device,
        precision: str | None = None,
        compile: bool = False,
        batch: int | None = None,
    ) -> None:
        self.device, self.config = device, trained.config
        if precision == "fp16" and device.type == "cpu":
            raise UsageError("--precision fp16 needs a GPU; on a CPU there is bf16")
        self._autocast = autocast(device, precision or self.config.train.precision)
        self._layout = MEMORY_FORMATS[self.config.train.memory_format]
        self.network = trained.network
        if isinstance(self.network, nn.Module):
            self.network = placed(self.network, device, self.config.train.memory_format).eval()
        sizes = CPU_BATCHES if device.type == "cpu" else CUDA_BATCHES
        self._padded = compile
        if compile:  # every other size would be compiled anew
            self.network = torch.compile(self.network, dynamic=False)
            sizes = (4,) if device.type == "cpu" else (32,)
        self.batch = BatchSize(sizes if batch is None else (batch,))

    @torch.inference_mode()
    def __call__(self, clips: Tensor) -> Tensor:
        """Returns the network's output, float32 (N, classes) or (N, features) on the CPU.

        Args:
            clips: uint8 (N, C, T, H, W).
        """
        return torch.cat(list(self._batches(clips)))

    def _batches(self, clips: Tensor) -> Iterator[Tensor]:
        while len(clips):
            part = clips[: self.batch.next]
            began = time.perf_counter()
            try:
                output = self._forward(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                torch.cuda.empty_cache()
                self.batch.current = max(1, min(self.batch.current, len(part) // 2))
                self.batch.refuse()
                continue
            self.batch.add(len(part), time.perf_counter() - began)
            yield output
            clips = clips[len(part) :]

    def _forward(self, part: Tensor) -> Tensor:
        count = len(part)
        if self._padded and count < self.batch.current:
            part = torch.cat([part, part[-1:].expand(self.batch.current - count, *part.shape[1:])])
        data = self.config.data
        part = part.to(self.device, non_blocking=True)
        video = normalize(part, data.mean, data.std).contiguous(memory_format=self._layout)
        with self._autocast:
            return self.network(video).float().cpu()[:count]


class Engine(Protocol):
    """A network with its preprocessing, as a timeline asks it: a classifier, or an embedder.

    clips_are_set: whether num_clips was given, and is not testing's own.
    """

    config: Config
    predictor: Predictor
    num_clips: int
    num_crops: int
    clips_are_set: bool

    def average(self, rows: Tensor) -> Tensor:
        """Returns the answer for a clip from the network's output for its views, (V, ...)."""
