"""Processes that torchrun starts again in the same store, some earlier than others."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from softpool3d.runtime.processes import name_of_start

SOON, LATER = timedelta(seconds=0.2), timedelta(seconds=30)


def test_each_start_has_a_name_of_its_own():
    """Whoever comes first; also after a start in which one was missing, and one in which the first was."""
    store, names = dist.HashStore(), []
    with ThreadPoolExecutor(3) as pool:
        for order, timeout in (
            ((0, 1, 2), LATER),
            ((0, 1), SOON),
            ((2, 1, 0), LATER),
            ((1, 2), SOON),
            ((1, 0, 2), LATER),
        ):
            starts = {rank: pool.submit(name_of_start, store, rank, 3, timeout) for rank in order}
            if len(order) == 3:
                (name,) = {start.result() for start in starts.values()}
                names.append(name)
            else:
                with pytest.raises(dist.DistError):
                    starts[order[0]].result()
                _ = [start.exception() for start in starts.values()]
    assert len(set(names)) == 3
