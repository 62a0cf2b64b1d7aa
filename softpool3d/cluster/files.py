"""The engine of many machines: the two stages of `Work` as a pipeline of Ray Data.

    clips of the list  ->  tasks that decode, on cores  ->  actors with the network, on GPUs  ->  results, here
                           uint8 views, once through                                              in the order in
                           Ray's object store                                                     which they are known

Ray runs a task again whose machine was lost, holds decoding back where the network is slower, and moves views between
machines. A file that kills its decoder kills a process of the task, not the task (`decode`).
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from softpool3d.cluster.connection import Cluster, check_identity, connected, identity, our_errors
from softpool3d.cluster.jobs import jobs_in, results_of, shared_out
from softpool3d.datasets.inputs import clip_name
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.video.remote import is_address
from softpool3d.errors import UsageError, WorkError
from softpool3d.inference.bulk import Started, decode
from softpool3d.inference.exported import ExportedNetwork
from softpool3d.inference.provenance import digest
from softpool3d.inference.trained import Trained
from softpool3d.inference.work import Decoded, Job, Reader, Result, Work
from softpool3d.models import build_model

if TYPE_CHECKING:
    import pyarrow as pa

_TASK = 48  # clips that one task decodes: with fewer, starting it shows; all are lost with its machine
_WAVE = 2**16  # clips that Ray knows of at a time: the list itself may be longer than memory


@contextmanager
def on_ray(address: str | None, trained: Trained, job: Job) -> Iterator[Started]:
    """Starts a job on a Ray cluster.

    Args:
        address: as for `connected`.

    Raises:
        UsageError: for an exported network, and as `connected` does; and where a machine cannot start the job.
    """
    if isinstance(trained.network, ExportedNetwork):
        raise UsageError(f"{trained.network.path}: --engine ray runs no exported networks; give the weights it is from")
    with connected(address) as cluster:
        sent = _Sent(trained)
        gpus = cluster.gpus if job.options["device"] != "cpu" else 0
        reader, about = _started(sent, job, gpus)

        def run(clips: Iterator[Clip], _: int) -> Iterator[Result]:
            while wave := list(islice(clips, _WAVE)):
                yield from _results(wave, sent, job, reader, Cluster(cluster.cpus, gpus))

        yield Started(run, lambda: about)


class _Sent:
    """A network on its way to other machines: its weights in Ray's object store."""

    def __init__(self, trained: Trained) -> None:
        import ray

        self._weights = ray.put((replace(trained, network=None), trained.network.state_dict()))
        self._sha256, self._identity = digest(trained.network), identity()

    def work(self, job: Job) -> Work:
        """Returns the work, with the network, on the machine that calls it.

        Raises:
            UsageError: if that has another version of softpool3d or torch, or builds another network.
        """
        import ray

        check_identity(self._identity)
        trained, state = ray.get(self._weights)
        network = build_model(trained.config, len(trained.classes))
        network.load_state_dict(state)
        if digest(network) != self._sha256:
            raise UsageError("a machine of the cluster builds another network from the same weights")
        return job.work(replace(trained, network=network))


def _started(sent: _Sent, job: Job, gpus: int) -> tuple[Reader, dict[str, Any]]:
    """Starts the job once on a machine of the kind that does it: what is wrong with it is said before the work."""
    import ray

    def start() -> tuple[Reader, dict[str, Any]]:
        work = sent.work(job)
        return work.reader, work.about()

    with our_errors():
        return ray.get(ray.remote(start).options(**_for_network(gpus)).remote())


def _for_network(gpus: int) -> dict[str, float]:
    """Returns what a process with the network asks of a machine; on CPUs, the tasks that decode get the rest."""
    return {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 0.25}


def _results(clips: list[Clip], sent: _Sent, job: Job, reader: Reader, cluster: Cluster) -> Iterator[Result]:
    """Yields a result for each clip, in the order in which they are known."""
    data = shared_out([_absolute(clip) for clip in clips], _TASK, cluster.cpus)
    data = data.map_batches(
        _decode,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"reader": reader, "wanted": identity()},
        num_cpus=1 if cluster.gpus else 0.5,  # not as below: Ray would make one stage of two that ask for the same
    )
    data = data.map_batches(
        _Answer,
        batch_size=None,
        fn_constructor_kwargs={"sent": sent, "job": job},
        concurrency=(1, cluster.gpus or cluster.cpus),
        **_for_network(cluster.gpus),
    )
    with our_errors():
        for number, result, seen in results_of(data, "seen"):
            clip = clips[number]
            if not seen and os.path.exists(clip.path):
                raise WorkError(
                    f"the machines of the cluster do not see {clip.path}, which is there on this one; put the videos "
                    "where all of them have the same path to them, or in a bucket"
                )
            yield replace(result, file=clip_name(clip))


def _absolute(clip: Clip) -> Clip:
    """Returns the clip as a task reads it, which runs in a folder of its own."""
    return clip if is_address(clip.path) else replace(clip, path=os.path.abspath(clip.path))


def _decode(table: pa.Table, reader: Reader, wanted: str) -> Iterator[dict[str, Any]]:
    """Yields the views of each clip of a table; of a file that is not to be read, none, and the reason."""
    check_identity(wanted)
    numbers, clips = jobs_in(table)
    for number, clip, decoded in zip(numbers, clips, decode(reader, iter(clips), 1), strict=True):
        views = decoded.views
        frames = np.empty((0,) * 5, np.uint8) if views is None else views.clips.numpy()
        about = None if views is None else replace(views, clips=None)
        seen = views is not None or is_address(clip.path) or os.path.exists(clip.path)
        yield {
            "number": [number],
            "views": frames[None],
            "rest": [pickle.dumps(replace(decoded, views=about))],
            "seen": [seen],
        }


class _Answer:
    """The network, in an actor: returns the results of the clips of a batch."""

    def __init__(self, sent: _Sent, job: Job) -> None:
        self._work = sent.work(job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        files = [_whole(rest, views) for rest, views in zip(batch["rest"], batch["views"], strict=True)]
        clips = [file.views.clips for file in files if file.views is not None]
        began = time.perf_counter()
        rows = iter(self._work.predictor(torch.cat(clips)) if clips else ())
        seconds = (time.perf_counter() - began) / max(1, sum(map(len, clips)))
        results = []
        for file in files:
            count = 0 if file.views is None else file.views.count
            results.append(pickle.dumps(self._work.result(file, list(islice(rows, count)), count * seconds)))
        return {"number": batch["number"], "result": results, "seen": batch["seen"]}


def _whole(rest: bytes, views: np.ndarray) -> Decoded:
    """Returns what a task decoded, whose views came beside the rest of it."""
    decoded: Decoded = pickle.loads(rest)
    if decoded.views is not None:
        decoded.views.clips = torch.from_numpy(views)
    return decoded
