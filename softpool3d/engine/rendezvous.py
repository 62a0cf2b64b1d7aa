"""How the processes that torchrun started find each other, also when it starts them again."""

from __future__ import annotations

import os
import secrets
import time
from datetime import timedelta

import torch
import torch.distributed as dist


def join(device: torch.device, timeout: timedelta) -> None:
    """Makes the process group, where torchrun started us; nothing else.

    Raises:
        torch.distributed.DistError: if the others do not come.
    """
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ or os.environ["WORLD_SIZE"] == "1" or dist.is_initialized():
        return
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(name_of_start(store, rank, world_size, timeout), store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def name_of_start(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that all processes of this start have, and no other start had.

    torchrun's store stays when it starts its processes again: one that is early would find there the address of one
    that has ended. TORCHELASTIC_RESTART_COUNT is no such name: each node counts the failures of its own processes.
    So the first process proposes a name, each other one answers with a word of its own, and takes the name when the
    first has repeated that word: it lives, then.

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
