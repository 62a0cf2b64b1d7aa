"""Out of memory: a sentence with what to change instead of an allocator's report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.memory import should_reduce_batch_size

from softpool3d.config import Config
from softpool3d.datasets.loader import worker_died
from softpool3d.errors import WorkError


@contextmanager
def out_of_memory_explained(config: Config, testing: bool = False) -> Iterator[None]:
    """Explains a lack of memory, and leaves every other error as it is.

    Args:
        testing: and not training, which has other settings to try.

    Raises:
        WorkError: in place of the error of torch's allocators, or of Python's own, which is its cause. The same for a
            process that decodes: the system kills those first.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and worker_died(error):
            raise WorkError(
                "a process that decodes was killed or crashed, most often for want of memory; try a smaller "
                "data.num_workers or data.prefetch. What was saved last is kept, and gone on from"
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
    """Not every RuntimeError: a kernel's assertion, a missing kernel and a lost process are some too."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return all(isinstance(text, str) for text in error.args) and should_reduce_batch_size(error)
