"""Runs many files through a network: workers decode while it runs, and a batch may hold clips of several files."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from softpool3d.datasets.inputs import clip_name, explain
from softpool3d.datasets.loader import Loader, start_worker, worker_died
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.parallel import Crashed
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.datasets.views import Views
from softpool3d.inference.classifier import Classifier, Prediction
from softpool3d.inference.embedder import Embedder, Features
from softpool3d.inference.predictor import NoAnswer, Predictor

Result = TypeVar("Result")

_PREFETCH = 2  # videos that each worker has ready


@dataclass(frozen=True)
class Failure:
    """A file without a result.

    reason: why.
    failed: what could not be done with it: it was not to be read, or, once read, the network's output was not finite.
    """

    file: str
    reason: str
    failed: str = "read"

    def __str__(self) -> str:
        return f"cannot {self.failed} {self.file}: {self.reason}"


@dataclass
class _Decoded:
    file: str
    views: Views | None
    reason: str = ""
    seconds: float = 0.0


def classify_files(
    classifier: Classifier, clips: Iterable[Clip], jobs: int, top_k: int = 5
) -> Iterator[Prediction | Failure]:
    """Yields the labels of each clip, as `run_files` does.

    Args:
        top_k: number of labels of each video.
    """

    def predict(logits: Tensor, file: str, views: Views, seconds: float) -> Prediction:
        return classifier.prediction(logits, file, views, seconds, top_k)

    return run_files(classifier.predictor, classifier.read, predict, clips, jobs, "classify")


def embed_files(embedder: Embedder, clips: Iterable[Clip], jobs: int) -> Iterator[Features | Failure]:
    """Yields the features of each clip, as `run_files` does."""
    return run_files(embedder.predictor, embedder.read, embedder.features, clips, jobs, "embed")


def run_files(
    predictor: Predictor,
    read: Callable[[Clip], Views],
    answer: Callable[[Tensor, str, Views, float], Result],
    clips: Iterable[Clip],
    jobs: int,
    verb: str,
) -> Iterator[Result | Failure]:
    """Yields a result for each clip, in the order of the clips, as soon as it is known.

    Args:
        read: reads the views of a clip. It is sent to workers, so it holds no network.
        answer: makes the result from the network's output for the views, (V, ...), the clip's name, its views, and the
            seconds that they took; raises `NoAnswer` if the output is not finite.
        clips: read lazily, a few ahead of the results.
        jobs: number of processes that decode; with 0 this process decodes, between the network's batches.
        verb: what is done with a file, for the sentence about one that has no answer.
    """
    clips_left: deque[Tensor] = deque()  # views that the network has not seen yet
    known: deque[tuple[Tensor, float]] = deque()  # outputs for the views that it has seen, and seconds of each
    files: deque[_Decoded] = deque()  # decoded, but not yet yielded as results

    def run(rest: bool) -> None:
        """Runs the views that wait, in full batches; with `rest` also the last, smaller batch."""
        while (count := sum(map(len, clips_left))) and (rest or count >= predictor.batch.next):
            size = min(predictor.batch.next, count)
            batch = _take(clips_left, size)
            began = time.perf_counter()
            rows = predictor(batch)
            seconds = (time.perf_counter() - began) / size
            known.extend((row, seconds) for row in rows)

    def results() -> Iterator[Result | Failure]:
        while files:
            file = files[0]
            if file.views is None:
                yield Failure(file.file, file.reason)
            elif len(known) >= file.views.count:
                rows = [known.popleft() for _ in range(file.views.count)]
                output = torch.stack([row for row, _ in rows])
                seconds = file.seconds + sum(seconds for _, seconds in rows)
                try:
                    yield answer(output, file.file, file.views, seconds)
                except NoAnswer as error:
                    yield Failure(file.file, str(error), verb)
            else:
                return
            files.popleft()

    for decoded in _decode(_Reader(read), iter(clips), jobs):
        files.append(decoded)
        if decoded.views is not None:
            clips_left.append(decoded.views.clips)
            run(rest=False)
        yield from results()
    run(rest=True)
    yield from results()


def _take(waiting: deque[Tensor], count: int) -> Tensor:
    """Removes the first `count` clips from the queue and returns them."""
    parts = []
    while count:
        first = waiting.popleft()
        parts.append(first[:count])
        if len(first) > count:
            waiting.appendleft(first[count:])
        count -= len(parts[-1])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Reader(Dataset):
    """Reads a clip's views, or says what is wrong with it."""

    def __init__(self, read: Callable[[Clip], Views]) -> None:
        self._read = read

    def __getitem__(self, clip: Clip) -> _Decoded:
        began = time.perf_counter()
        try:
            views, reason = self._read(clip), ""
        except DecodeError as error:
            views, reason = None, explain(error)
        return _Decoded(clip_name(clip), views, reason, time.perf_counter() - began)


def _decode(reader: _Reader, clips: Iterator[Clip], jobs: int) -> Iterator[_Decoded]:
    if not jobs:
        yield from map(reader.__getitem__, clips)
        return
    while True:
        sent: deque[Clip] = deque()

        def keys(sent: deque[Clip] = sent) -> Iterator[Clip]:
            for clip in clips:
                sent.append(clip)
                yield clip

        try:
            for decoded in _loader(reader, keys(), jobs):
                sent.popleft()
                yield decoded
            return
        except RuntimeError as error:
            if not worker_died(error):
                raise
        for clip in sent:  # each in a process of its own, to find the one that kills it
            try:
                yield from _loader(reader, [clip], 1)
            except RuntimeError as error:
                if not worker_died(error):
                    raise
                yield _Decoded(clip_name(clip), None, str(Crashed()))


def _loader(reader: _Reader, clips: Iterable[Clip], jobs: int) -> Loader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about more workers than cores: --jobs decides
        return Loader(
            reader,
            sampler=clips,
            batch_size=None,
            num_workers=jobs,
            prefetch_factor=_PREFETCH,
            collate_fn=_as_it_is,
            worker_init_fn=start_worker,
            generator=torch.Generator(),
        )


def _as_it_is(decoded: _Decoded) -> _Decoded:
    return decoded
