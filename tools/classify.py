"""Label video files with trained weights.

python tools/classify.py clip.mp4 --weights runs/r3d_softpool/best.safetensors
python tools/classify.py videos/*.mp4 --weights best.safetensors --topk 3 --json
"""

import json
import sys
import time
from pathlib import Path

import typer

from softpool3d.errors import UsageError, WorkError


def main(
    videos: list[Path] = typer.Argument(help="Video files."),
    weights: Path = typer.Option(help="A weights file from training (best.safetensors)."),
    topk: int = typer.Option(5, min=1, help="How many labels of each file to print."),
    views: int | None = typer.Option(None, min=1, help="Clips along the video to average over."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1."),
    as_json: bool = typer.Option(False, "--json", help="JSON lines, for programs."),
) -> None:
    """Label video files: the likeliest classes of each, with probabilities."""
    from softpool3d.engine.classifier import Classifier

    if not weights.is_file():
        raise UsageError(f"no weights file {weights}")
    classifier = Classifier(weights, device, num_clips=views)
    if views and classifier.config.data.sampling == "uniform":
        raise UsageError("--views: this network samples frames from the whole video (sampling: uniform), in one view")
    failed = 0
    for path in videos:
        started = time.perf_counter()
        try:
            labels = classifier(path, topk)
        except WorkError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            if as_json:
                print(json.dumps({"file": str(path), "error": str(error)}, ensure_ascii=False), flush=True)
            continue
        if as_json:
            record = {
                "file": str(path),
                "labels": [{"label": x.name, "probability": round(x.probability, 6)} for x in labels],
                "seconds": round(time.perf_counter() - started, 3),
            }
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            _print_table(path, labels)
    if failed:
        raise WorkError(f"{failed} of {len(videos)} files could not be classified")


def _print_table(path: Path, labels: list) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label in labels:
        bar = "█" * max(1, round(label.probability * 20)) if label.probability >= 0.025 else "▏"
        table.add_row(f"{label.probability:6.1%}", Text(bar), Text(label.name))
    console = Console()
    console.print(Text(str(path), style="bold"), soft_wrap=True)
    console.print(table)


if __name__ == "__main__":
    from softpool3d.cli import run_tool

    run_tool(main)
