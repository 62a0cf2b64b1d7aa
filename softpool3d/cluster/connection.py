"""A Ray cluster: connects to one or starts one, and compares what its machines have with what this one has."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import softpool3d
from softpool3d.datasets.parallel import cores
from softpool3d.errors import SoftPool3dError, UsageError, WorkError, first_line

_PATIENCE_S = 10.0  # for an address to answer
_LOST_AT_START = 5  # actors in a row that may die before they have the network; then it is no accident


@dataclass(frozen=True)
class Cluster:
    """The cores and GPUs of a cluster, as it is now: it may grow and shrink."""

    cpus: int
    gpus: int


@contextmanager
def connected(address: str | None, folders: Sequence[str] = ()) -> Iterator[Cluster]:
    """Connects to a cluster while the body runs.

    Args:
        address: of its head, as in 10.0.0.1:6379; auto: the one that runs here; None: that of $RAY_ADDRESS, or else a
            cluster of this machine alone is started, and ended with the body.
        folders: which all machines have to see.

    Raises:
        UsageError: if none answers, or its machines have another version of softpool3d or torch, or lack a folder.
    """
    if (address or os.environ.get("RAY_ADDRESS", "")).startswith("ray://"):
        raise UsageError("--address ray://...: run the command on a machine of the cluster, as with ray job submit")
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    own = {"num_cpus": cores(), "include_dashboard": False} if place == "local" else {}
    try:
        if ":" in place:  # Ray itself would try for minutes
            host, _, port = place.rpartition(":")
            socket.create_connection((host, int(port)), _PATIENCE_S).close()
        ray.init(place, **own, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        told = getattr(error, "strerror", None) or first_line(error)
        raise UsageError(f"--engine ray: no cluster answers at {place} ({told})") from None
    try:
        _set_up()
        with our_errors():
            _compare(folders)
        there = ray.cluster_resources()
        yield Cluster(max(1, int(there.get("CPU", 1))), int(there.get("GPU", 0)))
    finally:
        ray.shutdown()


@cache
def identity() -> str:
    """Returns in words what has to be the same on all machines: the versions of softpool3d and torch, and our code."""
    import torch

    code = hashlib.sha256()
    packages = ("", ".configs", ".datasets", ".models", ".tools")  # in the source tree they lie beside each other
    roots = [Path(path) for package in packages for path in _folder_of(f"softpool3d{package}")]
    for path in sorted({path for root in roots for path in root.rglob("*.py")}, key=lambda path: path.parts[-2:]):
        code.update(path.read_bytes())
    return f"softpool3d {softpool3d.__version__} (code {code.hexdigest()[:8]}), torch {torch.__version__}"


def _folder_of(package: str) -> list[str]:
    from importlib.util import find_spec

    return list(find_spec(package).submodule_search_locations)


def _compare(folders: Sequence[str]) -> None:
    """Raises UsageError if a machine has not what this one has."""
    import ray
    from ray.exceptions import NodeDiedError, TaskUnschedulableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def look() -> tuple[str, list[str]]:  # in a function, so that it is sent whole: a machine may lack softpool3d
        try:
            from softpool3d.cluster.connection import identity
        except ImportError as error:
            return f"no softpool3d to run this ({error})", []
        return identity(), [folder for folder in folders if not os.path.isdir(folder)]

    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(look).options(num_cpus=0, scheduling_strategy=strategy)
            asked[task.remote()] = node["NodeManagerAddress"]
    for task, machine in asked.items():
        try:
            has, lacking = ray.get(task)
        except (TaskUnschedulableError, NodeDiedError):  # it has left meanwhile
            continue
        if has != identity():
            raise UsageError(
                f"--engine ray: the machine {machine} has {has}, and this one {identity()}; make them equal"
            )
        if lacking:
            raise UsageError(
                f"--engine ray: the machine {machine} does not see {lacking[0]}; give all machines the same path to it"
            )


def check_identity(wanted: str) -> None:
    """Raises UsageError on a machine that joined later and has not what the command's machine has."""
    if identity() != wanted:
        raise UsageError(f"a machine that joined the cluster has {identity()}, and the command's {wanted}")


@contextmanager
def our_errors() -> Iterator[None]:
    """Raises what our own code raised on another machine as it is, and what Ray says of its own in a sentence."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, SoftPool3dError) and not isinstance(cause, RayError):
                raise cause from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise WorkError(f"Ray: {_told(error)}") from error


def _set_up() -> None:
    """Leaves what is shown to our own bar and sentences, and lets machines be lost while they load the network."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.max_consecutive_actor_init_deaths = _LOST_AT_START
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised as well


def _told(error: BaseException) -> str:
    """Returns the last line of what Ray says, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
