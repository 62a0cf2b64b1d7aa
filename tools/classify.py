"""Label videos: files, folders, lists, addresses.

python tools/classify.py clip.mp4                                  # with the network that ships with the package
python tools/classify.py holiday/ --weights best.safetensors --topk 3 --out results.csv
find . -name '*.mp4' | python tools/classify.py - --json --jobs 2
torchrun --nproc-per-node 4 tools/classify.py --manifest huge.csv --resume results.csv
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import typer

from softpool3d.errors import UsageError


class Precision(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def main(
    videos: list[str] | None = typer.Argument(
        None, help="Files, folders, globs in quotes, @list.txt, - for names on standard input, http(s) addresses."
    ),
    weights: str | None = typer.Option(
        None,
        help="A weights file, or r3d_18:kinetics400 (torchvision's, fetched); if not given, the network that ships "
        "with softpool3d, which knows the classes of `motion`.",
    ),
    manifest: Path | None = typer.Option(None, help="A CSV file with a column path (and start, end), or a list."),
    topk: int | None = typer.Option(None, min=1, help="Labels of each video: 5 for one video, 1 for several."),
    views: int | None = typer.Option(None, min=1, help="Clips along the video to average over; as in training's test."),
    crops: int | None = typer.Option(None, help="1 or 3 crops of each clip; as in training's test."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1."),
    precision: Precision | None = typer.Option(None, help="As in training if not given."),
    compile: bool = typer.Option(False, "--compile", help="Compile the network first: for many videos."),
    jobs: int | None = typer.Option(None, min=0, help="Processes that decode; one for each core, none for one video."),
    as_json: bool = typer.Option(False, "--json", help="JSON lines, for programs."),
    out: Path | None = typer.Option(None, help="Write results to this .csv, .jsonl or .parquet, line by line."),
    resume: Path | None = typer.Option(None, help="As --out, and go on with what it holds already."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a file that exists."),
) -> None:
    """Label videos: the likeliest classes of each, with probabilities."""
    from softpool3d.datasets.inputs import Inputs

    if crops not in (None, 1, 3):
        raise UsageError(f"--crops {crops}: there is the centre (1), or three along the longer side (3)")
    if resume is not None and out not in (None, resume):
        raise UsageError("--out and --resume name two files; --resume FILE alone writes to FILE and goes on with it")
    inputs = Inputs(tuple(videos or ()), manifest)
    inputs.check()

    def classifier():
        from softpool3d.engine.classifier import Classifier

        made = Classifier(
            weights, device, num_clips=views, num_crops=crops, precision=precision and precision.value, compile=compile
        )
        if views and made.config.data.sampling == "uniform":
            raise UsageError(
                "--views: this network samples frames from the whole video (sampling: uniform), in one view"
            )
        return made

    from softpool3d.tools._classify_files import classify

    classify(classifier, inputs, topk, jobs, as_json, out or resume, resume is not None, overwrite)


if __name__ == "__main__":
    from softpool3d.cli import run_tool

    run_tool(main)
