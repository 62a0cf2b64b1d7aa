"""Out of memory: a sentence with what to change instead of an allocator's report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from softpool3d.config import Config
from softpool3d.errors import WorkError


@contextmanager
def out_of_memory_explained(config: Config, testing: bool = False) -> Iterator[None]:
    """
    Args:
        testing: and not training, which has other settings to try.

    Raises:
        WorkError: in place of the error of torch's allocators, or of Python's own.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):
            raise
        train, data = config.train, config.data
        if testing:
            size = config.test.batch_size
            raise WorkError(
                f"out of memory with test.batch_size={size} clips of {data.num_frames} frames at "
                f"{data.test_crop_size or data.crop_size} pixels; try test.batch_size={size // 2 or 1}, a smaller "
                "data.prefetch, or data.num_workers=0; the scores stay the same"
            ) from None
        half = max(train.batch_size // 2, 1)
        update = f"train.batch_size={half}"
        if train.global_batch is None:
            update += f" train.accumulate={2 * train.accumulate}"
        raise WorkError(
            f"out of memory with train.batch_size={train.batch_size} clips of {data.num_frames} frames at "
            f"{data.crop_size} pixels; try {update} (the same update in smaller parts), model.checkpointing=true, or "
            f"a smaller data.crop_size"
        ) from None
