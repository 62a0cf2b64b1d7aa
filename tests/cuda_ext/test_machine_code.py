"""What benchmarks/issue_slots.py finds in the machine code of the CUDA library that is built here."""

import issue_slots
import pytest

from softpool3d.ops.library import build_info


@pytest.mark.skipif(build_info()["cuda"]["path"] is None, reason="this machine has no CUDA library")
def test_every_kernel_of_the_table_is_in_the_library():
    library = build_info()["cuda"]["path"]
    found = {row[0]: row[1:] for row in issue_slots.rows(library)}
    assert len(found) == 26
    for title, cells in found.items():
        assert all(float(cell) > 0 for cell in cells), title
        assert all(int(cells[at]) >= 2 for at in (4, 9)), f"{title}: one block a multiprocessor"
