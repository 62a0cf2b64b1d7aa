"""Groups of clips, such as the persons or the places that they show: what has to stay together in a split."""

from __future__ import annotations

import os
from pathlib import Path

from softpool3d.datasets.lists import read_table

GROUPS = "groups.csv"  # beside a data set's lists: path and group of each clip


def read_groups(path: Path) -> dict[str, str]:
    """Returns the group of each clip that a CSV file with columns `path` and `group` names; {} if there is none.

    The keys are paths, normalised, from the file's folder on.

    Raises:
        UsageError: if the file cannot be read.
    """
    if not path.is_file() or path.suffix.lower() != ".csv":
        return {}
    columns, records = read_table(path)
    if not {"path", "group"} <= set(columns):
        return {}
    path_at, group_at = columns.index("path"), columns.index("group")
    rows = (record for _, record in records if len(record) == len(columns))
    return {os.path.normpath(path.parent / row[path_at]): row[group_at].strip() for row in rows}
