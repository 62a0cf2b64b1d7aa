"""What the processes of a run do together. Every method is called by all of them at the same place of the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from softpool3d.errors import SoftPool3dError, WorkError

T = TypeVar("T")


class Processes:
    """Alone, a process is told at once what it said itself.

    What is agreed goes through gloo, beside the device's own backend: it waits for no kernel, and notices at once when
    another process has ended.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        self.is_first = self.rank == 0
        self._group = dist.new_group(backend="gloo") if self.count > 1 else None

    def most(self, *values: int) -> list[int]:
        """Of each value the largest that any process gave."""
        if self.count == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, self._group)
        return largest.tolist()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in a tensor of its own."""
        if self.count == 1:
            return tensor
        total = tensor.cpu()
        total = total.clone() if total is tensor else total
        dist.all_reduce(total, group=self._group)
        return total.to(tensor.device)

    def gather(self, value: T) -> list[T]:
        """What each process gave, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, self._group)
        return values

    def first(self, work: Callable[[], T]) -> T:
        """The first process does it; all get the result, or raise the error."""
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except SoftPool3dError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, 0, self._group)
        if outcome[1] is not None:
            outcome[1].told_elsewhere = not self.is_first
            raise outcome[1]
        return outcome[0]

    def share_buffers(self, model: nn.Module) -> None:
        """All take the first one's: running statistics, which each has of its own clips."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    @contextmanager
    def losing_none(self, advice: str) -> Iterator[None]:
        """What torch raises when another process has ended becomes a WorkError that ends with `advice`."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
                raise
            raise WorkError(
                f"process {self.rank} of {self.count} lost another one, which was killed, failed (its own message says "
                f"why) or did not answer for train.timeout_minutes; {advice}"
            ) from None
