"""The processes of a run: how they find each other, and what they do together."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from softpool3d.errors import SoftPool3dError, WorkError
from softpool3d.signals import torchrun_is_gone

T = TypeVar("T")


class Processes:
    """The processes of a run, and what they tell each other. With one process, every method returns its own input.

    Messages go through gloo, beside the device's own backend: gloo waits for no kernel, and notices at once when
    another process has ended.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        self.is_first = self.rank == 0
        self._group = dist.new_group(backend="gloo") if self.count > 1 else None

    def most(self, *values: int) -> list[int]:
        """Returns for each value the largest that any process gave."""
        if self.count == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, self._group)
        return largest.tolist()

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over the processes, on its device."""
        if self.count == 1:
            return tensor
        total = tensor.cpu()
        total = total.clone() if total is tensor else total
        dist.all_reduce(total, group=self._group)
        return total.to(tensor.device)

    def gather(self, value: T) -> list[T]:
        """Returns what each process gave, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, self._group)
        return values

    def first(self, work: Callable[[], T]) -> T:
        """Does some work on the first process; all processes return its result, or raise its error."""
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
        """Copies buffers of the first process to all: running statistics, which each has of its own clips."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    @contextmanager
    def losing_none(self, advice: str) -> Iterator[None]:
        """Turns torch's error about a process that has ended into a WorkError that ends with `advice`."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
                raise
            raise WorkError(
                f"process {self.rank} of {self.count} lost another one, which was killed, failed (its own message says "
                f"why) or did not answer for train.timeout_minutes; {advice}"
            ) from None


def join(device: torch.device, timeout: timedelta) -> None:
    """Makes the process group if torchrun started this process; otherwise does nothing.

    Raises:
        torch.distributed.DistError: if the others do not come.
    """
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ or os.environ["WORLD_SIZE"] == "1" or dist.is_initialized():
        return
    with _ended_with_torchrun():
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        store = dist.PrefixStore(name_of_start(store, rank, world_size, timeout), store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


@contextmanager
def _ended_with_torchrun() -> Iterator[None]:
    """Ends this process if torchrun is killed while the body runs: torch would ask for its store until the timeout."""
    joined = threading.Event()

    def watch() -> None:
        while not joined.wait(0.5):
            if torchrun_is_gone():
                print("error: torchrun ended before its processes had met; start it again", file=sys.stderr, flush=True)
                os._exit(1)  # the process waits in torch, which hears no signal, and has done nothing yet

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        joined.set()
        watcher.join()


def name_of_start(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Returns a name that all processes of this start share, and that no other start had.

    torchrun's store stays when it starts its processes again. An early process would find in it the address of one
    that has ended. TORCHELASTIC_RESTART_COUNT is no such name: each node counts the failures of its own processes.
    So the first process proposes a name, and each other one answers with a word of its own. It takes the name once
    the first process has repeated that word, which proves that the first process is alive.

    Raises:
        torch.distributed.DistError: if the others do not come.
    """
    word, end = secrets.token_hex(8), time.monotonic() + timeout.total_seconds()
    if rank == 0:
        store.set("start", word)
        for other in range(1, world_size):
            store.wait([f"{word}/{other}"], timeout)
            store.set(f"{word}/{other}/heard", store.get(f"{word}/{other}"))
        return word
    while time.monotonic() < end:
        if store.check(["start"]):
            name = store.get("start").decode()
            store.set(f"{name}/{rank}", word)
            heard = f"{name}/{rank}/heard"
            if store.check([heard]) and store.get(heard).decode() == word:
                return name
        time.sleep(0.02)
    raise dist.DistStoreError(f"the first process did not answer for {timeout}")
