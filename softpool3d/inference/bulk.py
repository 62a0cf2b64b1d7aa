"""Many files through one classifier: workers decode while the network runs, batches go across files."""

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
    """A file that could not be classified, and why: it cannot be read, unless the network has no answer."""

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
    """A result for each clip, in their order, as soon as it is known.

    Args:
        clips: taken one at a time, a few ahead of the results.
        jobs: processes that decode; 0 decodes in this one, between the network's batches.
    """
    clips_left: deque[Tensor] = deque()  # views that the network has not seen, of the last few files
    known: deque[tuple[Tensor, float]] = deque()  # logits of those that it has, and the seconds each took
    files: deque[_Decoded] = deque()  # whose results are not out yet

    def run(rest: bool) -> None:
        """The network on whole batches of what is there; at the end, on the rest too."""
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
    """The first `count` clips; they leave the queue."""
    parts = []
    while count:
        first = waiting.popleft()
        parts.append(first[:count])
        if len(first) > count:
            waiting.appendleft(first[count:])
        count -= len(parts[-1])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Reader(Dataset):
    """Clip -> its views, or what is wrong with it. What goes to the workers knows nothing of the network."""

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
        for clip in sent:  # each by itself, to find the one that it was
            try:
                yield from _loader(reader, [clip], 1)
            except RuntimeError as error:
                if not worker_died(error):
                    raise
                yield _Decoded(clip_name(clip), None, str(Crashed()))


def _loader(reader: _Reader, clips: Iterable[Clip], jobs: int) -> Loader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more workers than cores: that is for whoever gave --jobs to decide
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
