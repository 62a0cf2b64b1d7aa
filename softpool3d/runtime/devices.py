"""The device that a run works on: its seeds, its memory, and what to do when that is not enough."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from softpool3d.config import Config
from softpool3d.datasets.loader import worker_died
from softpool3d.errors import UsageError, WorkError, first_line
from softpool3d.runtime.processes import join

try:
    import resource
except ImportError:  # Windows
    resource = None

MEMORY_FORMATS = {"channels_last_3d": torch.channels_last_3d, "contiguous": torch.contiguous_format}  # of clips


def make_accelerator(config: Config) -> Accelerator:
    """Returns accelerate's handle on the device, the precision and the processes (torchrun's, if it started this one).

    Raises:
        UsageError: for a device that is not there, or a precision that it does not have.
        WorkError: if the other processes of the run do not come within train.timeout_minutes.
    """
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        raise UsageError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} of these, and each would train by itself; let it start "
            "torchrun, once on each node (docs/scaling.md)"
        )
    device = pick_device(config.device)
    if device.type == "cpu" and config.train.precision != "fp32":
        # bfloat16 gradients of 3x3x3 convolutions over two frames come from memory that oneDNN 3.12 (torch 2.14.1)
        # never wrote: NaN in one run, wrong in the next.
        raise UsageError(
            f"train.precision={config.train.precision} needs a GPU: a CPU has no tf32, accelerate no fp16 on one, and "
            "PyTorch's bf16 gradients of 3-D convolutions can be wrong there; set train.precision=fp32"
        )
    # by their old names: torch.export reads these, and refuses a process that has set the new ones alone
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        backend.allow_tf32 = config.train.precision == "tf32"
    if device.type == "cuda" and int(os.environ.get("LOCAL_RANK") or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"process {os.environ['LOCAL_RANK']} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}; set --nproc-per-node to that"
        )
    if device.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    else:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    # accelerate keeps the first configuration for the life of the process; a second run here may have another
    AcceleratorState._reset_state(reset_partial_state="RANK" not in os.environ)
    timeout = timedelta(minutes=config.train.timeout_minutes)
    try:
        join(device, timeout)
        return Accelerator(
            cpu=device.type == "cpu",
            project_dir=config.output,  # aim keeps its repository there
            log_with=config.train.trackers or None,
            mixed_precision={"fp32": "no", "tf32": "no"}.get(config.train.precision, config.train.precision),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
        )
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        raise WorkError(
            f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} waited for the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} and they did not all come "
            f"({first_line(error)}); start them all, within train.timeout_minutes"
        ) from None


def placed(network: nn.Module, device: torch.device, memory_format: str) -> nn.Module:
    """Moves a network to a device, with its weights in the memory format `train.memory_format`; returns it.

    The weights of a network for pictures have a dimension less, and so has their format.
    """
    of_weights = MEMORY_FORMATS[memory_format]
    if of_weights is torch.channels_last_3d and any(weight.ndim == 4 for weight in network.parameters()):
        of_weights = torch.channels_last
    return network.to(device, memory_format=of_weights)


def pick_device(name: str) -> torch.device:
    """Returns the device of a name; `auto` is the GPU if there is one, else the CPU.

    Raises:
        UsageError: for a device that does not work here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UsageError(f"device: {name!r} does not work here ({reason}); use auto, cpu, cuda or cuda:1") from None
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the autocast of `train.precision` for a network without an Accelerator; on a CPU, bf16 replaces fp16."""
    dtype = torch.float16 if precision == "fp16" and device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision not in ("fp32", "tf32"))


def seed_everything(seed: int) -> None:
    """Seeds the generators of initial weights and dropout; clips draw from (seed, epoch, index) instead."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Returns the states of this process's random generators, the one of its device (dropout's) included."""
    state = {"cpu": torch.get_rng_state(), "python": random.getstate(), "numpy": list(np.random.get_state())}
    state["numpy"][1] = torch.from_numpy(state["numpy"][1].astype(np.int64))  # a checkpoint holds tensors, no arrays
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    kind, internal, gauss = state["python"]
    random.setstate((kind, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the peak so far: of torch's GPU memory, or on a CPU of this process's memory; 0 where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def out_of_memory_explained(config: Config, testing: bool = False) -> Iterator[None]:
    """Turns an error for want of memory into a WorkError that says what to try; other errors pass.

    Args:
        testing: name the settings of a test, not those of a training.

    Raises:
        WorkError: for an out-of-memory error of torch or Python, which is its cause, or for a decoding process that
            died: the system kills those first.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and worker_died(error):
            raise WorkError(
                "a process that decodes was killed or crashed, most often for want of memory; try a smaller "
                "data.num_workers or data.prefetch. What was saved last is kept, to go on from there"
            ) from error
        if not _is_out_of_memory(error):
            raise
        train, data = config.train, config.data
        if testing:
            size = config.test.batch_size
            raise WorkError(
                f"out of memory with test.batch_size={size} clips of {data.num_frames} frames at "
                f"{data.tested_crop} pixels; try test.batch_size={size // 2 or 1}, a smaller "
                "data.prefetch, or data.num_workers=0; the scores stay the same"
            ) from error
        half = max(train.batch_size // 2, 1)
        update = f"train.batch_size={half}"
        if train.global_batch is None:
            update += f" train.accumulate={2 * train.accumulate}"
        raise WorkError(
            f"out of memory with train.batch_size={train.batch_size} clips of {data.num_frames} frames at "
            f"{data.crop_size} pixels; try {update} (the same update in smaller parts), model.checkpointing=true, or "
            f"a smaller data.crop_size"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error is for want of memory. RuntimeErrors may also be a failed assertion or a lost process."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return all(isinstance(text, str) for text in error.args) and should_reduce_batch_size(error)
