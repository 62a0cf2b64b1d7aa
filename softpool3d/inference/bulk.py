"""Classifies many files: workers decode while the network runs, and a batch may hold clips of several files."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from softpool3d.datasets.inputs import clip_name, explain
from softpool3d.datasets.loader import Loader, start_worker, worker_died
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.parallel import Crashed
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.datasets.views import Views
from softpool3d.inference.classifier import Classifier, NoAnswer, Prediction

_PREFETCH = 2  # videos that each worker has ready


@dataclass(frozen=True)
class Failure:
    """A file that could not be classified.

    reason: why not.
    read: whether the file was read; it then failed in the network, whose output was not finite (`NoAnswer`).
    """

    file: str
    reason: str
    read: bool = False

    def __str__(self) -> str:
        return f"cannot {'classify' if self.read else 'read'} {self.file}: {self.reason}"


@dataclass
class _Decoded:
    file: str
    views: Views | None
    reason: str = ""
    seconds: float = 0.0


def classify_files(
    classifier: Classifier, clips: Iterable[Clip], jobs: int, top_k: int = 5
) -> Iterator[Prediction | Failure]:
    """Yields a result for each clip, in the order of the clips, as soon as it is known.

    Args:
        clips: read lazily, a few ahead of the results.
        jobs: number of processes that decode; with 0 this process decodes, between the network's batches.
        top_k: number of labels of each video.
    """
    clips_left: deque[Tensor] = deque()  # views that the network has not seen yet
    known: deque[tuple[Tensor, float]] = deque()  # logits of the views that it has seen, and seconds of each
    files: deque[_Decoded] = deque()  # decoded, but not yet yielded as results

    def run(rest: bool) -> None:
        """Classifies the views that wait, in full batches; with `rest` also the last, smaller batch."""
        while (count := sum(map(len, clips_left))) and (rest or count >= classifier.predictor.batch.next):
            size = min(classifier.predictor.batch.next, count)
            batch = _take(clips_left, size)
            began = time.perf_counter()
            logits = classifier.predictor(batch)
            seconds = (time.perf_counter() - began) / size
            known.extend((row, seconds) for row in logits)

    def results() -> Iterator[Prediction | Failure]:
        while files:
            file = files[0]
            if file.views is None:
                yield Failure(file.file, file.reason)
            elif len(known) >= file.views.count:
                rows = [known.popleft() for _ in range(file.views.count)]
                logits = torch.stack([row for row, _ in rows])
                seconds = file.seconds + sum(seconds for _, seconds in rows)
                try:
                    yield classifier.prediction(logits, file.file, file.views, seconds, top_k)
                except NoAnswer as error:
                    yield Failure(file.file, str(error), read=True)
            else:
                return
            files.popleft()

    for decoded in _decode(_Reader(classifier), iter(clips), jobs):
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
    """Reads a clip's views, or says what is wrong with it. It holds no network, so it is cheap to send to workers."""

    def __init__(self, classifier: Classifier) -> None:
        self._read = classifier.read

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
