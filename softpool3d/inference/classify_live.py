"""`classify --camera 0` and `classify --stream ADDRESS`: shows the likeliest labels as they change."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.errors import WorkError
from softpool3d.inference.classifier import Classifier, Label
from softpool3d.inference.timeline import follow
from softpool3d.runtime.interrupt import Interrupted
from softpool3d.signals import number_of
from softpool3d.text import shown


def live(
    make_classifier: Callable[[], Classifier],
    source: str | int,
    window: float | None,
    hop: float | None,
    keep_up: bool,
    topk: int,
    as_json: bool,
) -> None:
    """Prints each window's likeliest labels until Ctrl-C. A terminal draws them in place if `keep_up` is set.

    Raises:
        WorkError: if the source cannot be opened, and when it ends.
    """
    name = f"camera {source}" if isinstance(source, int) else str(source)
    console, classifier = Console(), make_classifier()
    drawn = keep_up and console.is_terminal and not as_json
    seen, seconds = 0, 0.0

    def show(seconds: float, labels: tuple[Label, ...], screen: Live | None) -> None:
        if as_json:
            shown = [{"label": x.name, "probability": round(x.probability, 4)} for x in labels]
            print(json.dumps({"time": round(seconds, 3), "labels": shown}, ensure_ascii=False), flush=True)
        elif drawn:
            screen.update(_picture(name, seconds, labels), refresh=True)
        else:
            line = "  ".join(f"{x.probability:6.1%} {x.name}" for x in labels)
            print(f"{seconds:8.1f} s  {line}", flush=True)

    with Live(console=console, auto_refresh=False) if drawn else nullcontext() as screen:
        try:
            with closing(follow(classifier, source, window, hop, keep_up)) as windows:
                for seconds, probabilities in windows:
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
            raise WorkError(f"{name} broke off after {seconds:.1f} s ({error.reason}); {seen} windows done") from None
    raise WorkError(f"{name} ended after {seconds:.1f} s; {seen} windows classified")


def _picture(name: str, seconds: float, labels: tuple[Label, ...]) -> Group:
    table = Table(box=None, show_header=False, padding=(0, 1))
    for label in labels:
        length = round(label.probability * 30)
        table.add_row(f"{label.probability:6.1%}", Text(shown("█" * length, "#" * length)), Text(label.name))
    return Group(Text(f"{name}  {seconds:.1f} s  (Ctrl-C stops)", style="bold"), table)
