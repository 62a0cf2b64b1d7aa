"""Label videos: files, folders, lists, addresses.

python tools/classify.py clip.mp4                                  # with the network that ships with the package
python tools/classify.py holiday/ --weights best.safetensors --topk 3 --out results.csv
find . -name '*.mp4' | python tools/classify.py - --json --jobs 2
torchrun --nproc-per-node 4 tools/classify.py --manifest huge.csv --resume results.csv
python tools/classify.py match.mp4 --timeline --window 2s --hop 1s --plot timeline.png --min-score 0.5
python tools/classify.py --camera 0
"""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from softpool3d.errors import UsageError

if TYPE_CHECKING:
    from softpool3d.datasets.manifest import Clip


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
        help="A weights file, ours or one that others published (or x3d_m:FILE), or r3d_18:kinetics400 (torchvision's, "
        "fetched); if not given, the network that ships with softpool3d, which knows the classes of `motion`.",
    ),
    max_missing: float | None = typer.Option(
        None, min=0, max=1, help="Share of a video that may be missing or undecodable: 0.1, if training said no other."
    ),
    trust: bool = typer.Option(False, "--trust", help="Load a .pt2 file, which can run code."),
    manifest: Path | None = typer.Option(None, help="A CSV file with a column path (and start, end), or a list."),
    topk: int | None = typer.Option(
        None, min=1, help="Labels of each video: 5 for one video and with --json, 1 for several."
    ),
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
    timeline: bool = typer.Option(
        False,
        "--timeline",
        help="Slide a window over each video; --out .csv, .json, .vtt or .srt ({name} in it is the video's).",
        rich_help_panel="Timeline",
    ),
    window: str | None = typer.Option(
        None, help="Its length, as in 2s; by default what a clip spans.", rich_help_panel="Timeline"
    ),
    hop: str | None = typer.Option(
        None, help="From window to window; by default half of one.", rich_help_panel="Timeline"
    ),
    smooth: int | None = typer.Option(
        None, min=1, help="Windows averaged, an odd number; 3.", rich_help_panel="Timeline"
    ),
    min_score: float | None = typer.Option(
        None, min=0, max=1, help="Probability from which on a segment counts; 0.5.", rich_help_panel="Timeline"
    ),
    plot: Path | None = typer.Option(None, help="Draw it, with thumbnails: .png, .svg.", rich_help_panel="Timeline"),
    annotate: Path | None = typer.Option(
        None, help="Write the video with its labels drawn in.", rich_help_panel="Timeline"
    ),
    camera: int | None = typer.Option(None, min=0, help="Watch this camera.", rich_help_panel="Live"),
    stream: str | None = typer.Option(None, help="Watch this address: rtsp://..., http://...", rich_help_panel="Live"),
    live: bool = typer.Option(
        False, "--live", help="Keep up with the stream: leave out what comes too fast.", rich_help_panel="Live"
    ),
) -> None:
    """Label videos: the likeliest classes of each, with probabilities."""
    from softpool3d.datasets.inputs import Inputs

    watching = camera is not None or stream is not None
    _belongs("--timeline", timeline, smooth=smooth, min_score=min_score, plot=plot, annotate=annotate)
    _belongs("--timeline, --camera or --stream", timeline or watching, window=window, hop=hop)
    _belongs("--camera or --stream", watching, live=live or None)
    if watching:
        alone = {"videos": videos or None, "manifest": manifest, "timeline": timeline or None, "out": out}
        alone |= {"resume": resume, "views": views, "crops": crops, "jobs": jobs}
        if camera is not None and stream is not None:
            raise UsageError("--camera and --stream are two sources; give one")
        for name, value in alone.items():
            if value is not None:
                raise UsageError(f"--camera and --stream do not go together with {_option(name)}")
    if timeline and (resume is not None or jobs is not None or topk is not None):
        raise UsageError("--timeline does not go together with --resume, --jobs and --topk")
    if smooth is not None and smooth % 2 == 0:
        raise UsageError(f"--smooth {smooth}: give an odd number, a window and as many on both sides of it")
    if trust and not (weights or "").lower().endswith(".pt2"):
        raise UsageError("--trust is for --weights FILE.pt2; nothing else runs code when it is loaded")
    if crops not in (None, 1, 3):
        raise UsageError(f"--crops {crops}: there is the centre (1), or three along the longer side (3)")
    if resume is not None and out not in (None, resume):
        raise UsageError("--out and --resume name two files; --resume FILE alone writes to FILE and goes on with it")
    inputs = Inputs(tuple(videos or ()), manifest)
    if not watching:
        inputs.check()

    def classifier():
        from softpool3d.inference.classifier import Classifier

        made = Classifier(
            weights,
            device,
            num_clips=views,
            num_crops=crops,
            precision=precision and precision.value,
            compile=compile,
            trust=trust,
            max_missing=max_missing,
        )
        if made.note and os.environ.get("LOCAL_RANK", "0") == "0":
            print(made.note, file=sys.stderr)
        if views and made.config.data.sampling == "uniform":
            raise UsageError(
                "--views: this network samples frames from the whole video (sampling: uniform), in one view"
            )
        return made

    if timeline or watching:
        from softpool3d.inference.classify_timeline import Options, seconds, timelines

        length, distance = seconds("--window", window), seconds("--hop", hop)
        if watching:
            from softpool3d.inference.classify_live import live as watch

            source = stream if camera is None else camera
            return watch(classifier, source, length, distance, live or camera is not None, topk or 3, as_json)
        score = 0.5 if min_score is None else min_score
        options = Options(length, distance, smooth or 3, score, out, plot, annotate, overwrite, as_json)
        return timelines(classifier, [_whole(clip) for clip in inputs], options)

    from softpool3d.inference.classify_files import classify

    classify(classifier, inputs, topk, jobs, as_json, out or resume, resume is not None, overwrite)


def _whole(clip: Clip) -> str:
    """The clip's file, of which a timeline shows all."""
    from softpool3d.datasets.inputs import clip_name

    if clip.start is not None or clip.end is not None:
        raise UsageError(f"--timeline is of whole files, and the list names a part: {clip_name(clip)}")
    return clip.path


def _belongs(to: str, given: bool, **options: object) -> None:
    """Options that would do nothing are refused."""
    for name, value in options.items():
        if value is not None and not given:
            raise UsageError(f"{_option(name)} needs {to}")


def _option(name: str) -> str:
    return "files" if name == "videos" else f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
