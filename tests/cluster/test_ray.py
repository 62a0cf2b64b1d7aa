"""Labels, features and checks of many files on a Ray cluster of two raylets, which lose and gain one meanwhile."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from videos import damaged_files, write_numbered

ray = pytest.importorskip("ray", reason="no ray: pip install 'softpool3d[ray]'")

from softpool3d.cluster import connection, files  # noqa: E402 (they need ray)
from softpool3d.inference import parts  # noqa: E402

# Ray gives its workers the lowest priority; here they would starve beside other tests
os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **STORE})
    made.add_node(num_cpus=1, **STORE)
    yield made
    made.shutdown()


STORE = {"object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Twelve short videos, and two that are none."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(12):
        write_numbered(folder / f"{number}.mp4", 20 + number)
    (folder / "text.mp4").write_text("no video at all")
    return folder


def rows(folder: Path) -> list[dict]:
    """The rows of all parts, without what they took."""
    import pyarrow.parquet as pq

    found = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_labels_are_those_of_one_machine_to_the_bit(cluster, videos, run, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK", 5)
    with (tmp_path / "list.csv").open("w") as file:
        names = [*range(12), 3, 3, "text", 7, "gone"]  # some come again
        csv.writer(file).writerows([["path"], *([os.path.relpath(videos / f"{name}.mp4", tmp_path)] for name in names)])
    command = ["classify", "--manifest", tmp_path / "list.csv", "--weights", "motion", "--batch", 1, "--topk", 3]
    monkeypatch.chdir(tmp_path)
    done = run(*command, "--engine", "ray", "--address", cluster.address, "--out", "there/")
    assert done.returncode == 1 and "15 of 17 labelled; 2 could not be read (listed above), in there" in done.stderr
    assert run(*command, "--out", "here/", "--device", "cpu").returncode == 1
    assert rows(Path("there")) == rows(Path("here")) and len(rows(Path("here"))) == 17
    assert len(list(Path("there").glob("*.parquet"))) == 4
    again = run(*command, "--engine", "ray", "--address", cluster.address, "--resume", "there/")
    assert again.returncode == 0 and "0 of 0 labelled, 17 were done before, in there" in again.stderr
