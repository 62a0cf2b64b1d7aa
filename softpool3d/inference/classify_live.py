"""`classify --camera 0` and `classify --stream ADDRESS`: shows the likeliest labels as they change."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch import Tensor

from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.errors import WorkError
from softpool3d.inference.classifier import Classifier, Label
from softpool3d.inference.timeline import follow
from softpool3d.runtime.interrupt import Interrupted
from softpool3d.signals import number_of
from softpool3d.text import shown

_PAUSE_S = 1.0  # between two tries to open a source that is gone


@dataclass(frozen=True)
class Source:
    """What is watched.

    place: an address, or the number of a camera.
    window, hop: in seconds, as for `follow`.
    keep_up: whether windows are left out that come while the network is busy.
    patience: for so many seconds a source that is gone is tried again.
    """

    place: str | int
    window: float | None = None
    hop: float | None = None
    keep_up: bool = False
    patience: float = 0.0

    @property
    def name(self) -> str:
        return f"camera {self.place}" if isinstance(self.place, int) else self.place


def live(make_classifier: Callable[[], Classifier], source: Source, topk: int, as_json: bool) -> None:
    """Prints each window's likeliest labels until Ctrl-C. A terminal draws them in place if the source is kept up with.

    Raises:
        WorkError: if the source cannot be opened, and when it ends.
    """
    console, classifier = Console(), make_classifier()
    drawn = source.keep_up and console.is_terminal and not as_json
    seen, seconds = 0, 0.0

    def show(seconds: float, labels: tuple[Label, ...], screen: Live | None) -> None:
        if as_json:
            shown = [{"label": x.name, "probability": round(x.probability, 4)} for x in labels]
            print(json.dumps({"time": round(seconds, 3), "labels": shown}, ensure_ascii=False), flush=True)
        elif drawn:
            screen.update(_picture(source.name, seconds, labels), refresh=True)
        else:
            line = "  ".join(f"{x.probability:6.1%} {x.name}" for x in labels)
            print(f"{seconds:8.1f} s  {line}", flush=True)

    with Live(console=console, auto_refresh=False) if drawn else nullcontext() as screen:
        try:
            for seconds, probabilities in _windows(classifier, source):
                seen += 1
                show(seconds, classifier.labels(probabilities, topk), screen)
        except KeyboardInterrupt as stop:
            text = f"stopped after {seconds:.1f} s, {seen} windows classified"
            if number_of(stop) != signal.SIGINT:
                raise Interrupted(text, number_of(stop)) from None
            print(text, file=sys.stderr)  # Ctrl-C is how watching ends
            return
        except DecodeError as error:
            if not seen:
                raise
            raise WorkError(f"{_broke_off(source, seconds, error)}; {seen} windows done") from None
    raise WorkError(f"{_broke_off(source, seconds, None)}; {seen} windows classified")


def _windows(classifier: Classifier, source: Source) -> Iterator[tuple[float, Tensor]]:
    """Yields what `follow` does, and opens the source again where it is gone. Seconds count on meanwhile."""
    began, last, gone = time.monotonic(), 0.0, None
    while True:
        offset = max(time.monotonic() - began, last) if last else 0.0
        failure = None
        try:
            with closing(follow(classifier, source.place, source.window, source.hop, source.keep_up)) as windows:
                for seconds, probabilities in windows:
                    if gone is not None:
                        _say(f"{source.name} is back after {time.monotonic() - gone:.0f} s")
                        gone = None
                    last = offset + seconds
                    yield last, probabilities
        except DecodeError as error:
            failure = error
        if gone is None:
            gone = time.monotonic()
            if source.patience:
                _say(f"{_broke_off(source, last, failure)}; trying again for {source.patience:g} s")
        if time.monotonic() + _PAUSE_S > gone + source.patience:
            if failure is not None:
                raise failure
            return
        time.sleep(_PAUSE_S)


def _broke_off(source: Source, seconds: float, failure: DecodeError | None) -> str:
    if failure is None:
        return f"{source.name} ended after {seconds:.1f} s"
    return f"{source.name} broke off after {seconds:.1f} s ({failure.reason})" if seconds else str(failure)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _picture(name: str, seconds: float, labels: tuple[Label, ...]) -> Group:
    table = Table(box=None, show_header=False, padding=(0, 1))
    for label in labels:
        length = round(label.probability * 30)
        table.add_row(f"{label.probability:6.1%}", Text(shown("█" * length, "#" * length)), Text(label.name))
    return Group(Text(f"{name}  {seconds:.1f} s  (Ctrl-C stops)", style="bold"), table)
