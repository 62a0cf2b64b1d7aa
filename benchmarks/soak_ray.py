"""The soak's Ray cluster: machines and the command itself are killed while many files are labelled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# Ray gives its workers the lowest priority; here they would starve beside other work
QUICK = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
STORE = {"object_store_memory": 100 * 2**20}
_PATIENCE_S = 300.0
_PARTS = "[0-9]*.parquet"  # a part that is being written has a name that begins with a dot
_COMMAND = "import sys, softpool3d.inference.parts as parts; parts.BLOCK = int(sys.argv.pop(1)); "
_COMMAND += "from softpool3d.cli import run; run()"


def two_raylets():
    """Starts a cluster of two raylets with a core each, on this machine."""
    os.environ |= QUICK
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **STORE})
    cluster.add_node(num_cpus=1, **STORE)
    return cluster


def rows(folder: Path) -> list[dict]:
    """Returns the rows of all parts, without what they took."""
    import pyarrow.parquet as pq

    found = [row for path in sorted(folder.glob(_PARTS)) for row in pq.read_table(path).to_pylist()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def soak_ray(count: int, say: Callable[[str], None]) -> tuple[dict[str, int], list[str]]:
    """Labels so many small files on a cluster of two raylets, which loses and gains one; the command is killed twice.

    Returns:
        How often what was killed, and what went wrong, as sentences.
    """
    from soak_files import whole_files

    cluster = two_raylets()
    try:
        with tempfile.TemporaryDirectory() as name:
            content = (whole_files(Path(name))[0]).read_bytes()
            files = [Path(name) / f"{number}.mp4" for number in range(count)]
            for file in files:
                file.write_bytes(content)
            done, faults = label_in_spite_of_all(cluster, files, Path(name), 32, 2)
    finally:
        cluster.shutdown()
    for fault in faults:
        say(fault)
    return done, faults


def label_in_spite_of_all(
    cluster, files: list[Path], folder: Path, block: int, times: int
) -> tuple[dict[str, int], list[str]]:
    """Labels files while a raylet is killed by SIGKILL, another comes, and the command is killed and given again.

    Args:
        block: lines of a part.
        times: how often all that happens.

    Returns:
        As `soak_ray`.
    """
    (folder / "list.txt").write_text("\n".join(map(str, files)))
    command = [sys.executable, "-c", _COMMAND, str(block), "classify", "--manifest", str(folder / "list.txt")]
    command += ["--weights", "motion", "--engine", "ray", "--address", cluster.address, "--resume", f"{folder}/labels/"]
    parts, faults, kept = -(-len(files) // block), [], {}
    for _ in range(times):
        driver = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        _wait(folder / "labels", len(kept) + max(1, parts // (4 * times)), driver)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(num_cpus=1, **STORE)
        _wait(folder / "labels", len(kept) + max(2, parts // (2 * times)), driver)
        driver.kill()
        driver.communicate()
        faults += [f"{path.name} was written again" for path, written in kept.items() if _written(path) != written]
        kept = {path: _written(path) for path in (folder / "labels").glob(_PARTS)}
    last = subprocess.run(command, capture_output=True, text=True, timeout=10 * _PATIENCE_S)
    if last.returncode or f"{block * len(kept)} were done before" not in last.stderr or "Traceback" in last.stderr:
        faults.append(f"exit code {last.returncode}: {last.stderr}")
    faults += [f"{path.name} was written again" for path, written in kept.items() if _written(path) != written]
    found, expected = [row["file"] for row in rows(folder / "labels")], list(map(str, files))
    if found != expected:
        lost, more = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
        faults.append(f"lost {sorted(lost)}, twice or strange {sorted(more)}, or in another order")
    more = {path.name[:8] for path in (folder / "labels").glob("*")} - {f"{number:08d}" for number in range(parts)}
    faults += [f"left over: {name}" for name in more - {"_about.j"}]
    return {"a raylet": times, "the command": times}, faults


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _wait(folder: Path, count: int, driver: subprocess.Popen) -> None:
    """Waits until so many parts are there."""
    end = time.monotonic() + _PATIENCE_S
    while len(list(folder.glob(_PARTS))) < count:
        if driver.poll() is not None or time.monotonic() > end:
            driver.send_signal(signal.SIGKILL)
            raise AssertionError(driver.communicate()[1])
        time.sleep(0.05)
