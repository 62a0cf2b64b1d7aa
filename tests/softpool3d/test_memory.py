"""Which errors are out of memory, and which keep their own words."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.exc import InternalTorchDynamoError

from softpool3d.config_file import load_config
from softpool3d.datasets.loader import Loader
from softpool3d.errors import WorkError
from softpool3d.runtime.devices import out_of_memory_explained
from softpool3d.runtime.processes import Processes


def explained(error: BaseException) -> None:
    with out_of_memory_explained(load_config("r3d_softpool")):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        MemoryError(),
    ],
)
def test_what_the_allocators_raise_is_explained_and_keeps_its_cause(error):
    with pytest.raises(WorkError, match="out of memory with train.batch_size=.* try train.batch_size=") as found:
        explained(error)
    assert found.value.__cause__ is error


def test_a_worker_that_was_killed_is_said_in_a_sentence():
    class Killed(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, key):
            os.kill(os.getpid(), signal.SIGKILL)

    with (
        pytest.raises(WorkError, match="a process that decodes was killed or crashed"),
        out_of_memory_explained(load_config("r3d_softpool")),
    ):
        next(iter(Loader(Killed(), num_workers=1)))


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("Could not run 'softpool3d::pool' with arguments from the 'Meta' backend."),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        InternalTorchDynamoError("torch.compile could not trace it"),
        RecursionError("maximum recursion depth exceeded"),
        dist.DistNetworkError("Connection reset by peer"),
        dist.DistBackendError("NCCL error"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("two", "arguments"),
        RuntimeError(7),
        RuntimeError(),
    ],
)
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as found:
        explained(error)
    assert found.value is error


def test_a_process_that_was_lost_is_not_taken_for_a_lack_of_memory():
    """Nested as in training."""
    two = Processes(SimpleNamespace(process_index=0, num_processes=1))
    two.count = 2
    with pytest.raises(WorkError, match="process 0 of 2 lost another one.*; go on"), two.losing_none("go on"):
        explained(dist.DistNetworkError("Connection reset by peer"))
