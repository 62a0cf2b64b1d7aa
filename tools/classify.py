"""Label videos and pictures: files, folders, lists, addresses.

python tools/classify.py clip.mp4                                  # Kinetics-400, where its weights can be had
python tools/classify.py clip.mp4 --weights motion                 # with the network that ships with the package
python tools/classify.py holiday/ --weights best.safetensors --topk 3 --out results.csv
find . -name '*.mp4' | python tools/classify.py - --json --jobs 2
torchrun --nproc-per-node 4 tools/classify.py --manifest huge.csv --resume results.csv
python tools/classify.py --manifest huge.csv --engine ray --out s3://bucket/labels/
python tools/classify.py match.mp4 --timeline --window 2s --hop 1s --plot timeline.png --min-score 0.5
python tools/classify.py --camera 0
python tools/classify.py photo.jpg photos/ --weights resnet50:imagenet1k
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from softpool3d.command import Asked
from softpool3d.errors import UsageError
from softpool3d.naming import check_weights

if TYPE_CHECKING:
    from softpool3d.inference.bulk import Engine
    from softpool3d.inference.classifier import Classifier
    from softpool3d.inference.trained import Trained


class EngineName(StrEnum):
    local = "local"
    ray = "ray"


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


# options of `embed` too
VIEWS = typer.Option(None, min=1, help="Clips along the video to average over; as in training's test.")
CROPS = typer.Option(None, help="1 or 3 crops of each clip; as in training's test.")
DEVICE = typer.Option("auto", help="auto, cpu, cuda, cuda:1.")
PRECISION = typer.Option(None, help="As in training if not given.")
BATCH = typer.Option(
    None, min=1, help="Clips in a batch; measured if not given. With 1, results are the same to the bit in every run."
)
ENGINE = typer.Option("local", help="local: this machine; ray: a Ray cluster, or one that is started here.")
ADDRESS = typer.Option(None, help="Of the Ray cluster, as in auto or 10.0.0.1:6379; by default $RAY_ADDRESS.")
OVERWRITE = typer.Option(False, "--overwrite", help="Replace what exists.")
COMPILE = typer.Option(False, "--compile", help="Compile the network first: for many videos.")
JOBS = typer.Option(None, min=0, help="Processes that decode; one for each core, none for one video.")
MAX_MISSING = typer.Option(
    None, min=0, max=1, help="Share of a video that may be missing or undecodable; as in training, 0.1 by default."
)

_OUT = typer.Option(
    None,
    "--out",
    "-o",
    help="Write results to this .csv, .jsonl or .parquet, line by line; or to a folder, as in labels/ or "
    "s3://bucket/labels, in parts.",
)
_of_timeline = partial(typer.Option, rich_help_panel="Timeline")
_of_live = partial(typer.Option, rich_help_panel="Live")


def main(
    videos: list[str] | None = typer.Argument(
        None,
        help="Files, folders, globs in quotes, @list.txt, - for names on standard input, addresses (http, s3, gs).",
    ),
    weights: str | None = typer.Option(
        None,
        help="A weights file, ours or one that others published (or x3d_m:FILE), or r3d_18:kinetics400, "
        "resnet50:imagenet1k (torchvision's, fetched). kinetics400: torchvision's best for 400 actions, fetched once; "
        "motion: the network that ships with softpool3d. If not given, the first of these two that can be had.",
    ),
    max_missing: float | None = MAX_MISSING,
    trust: bool = typer.Option(False, "--trust", help="Load a .pt2 file, which can run code."),
    manifest: Path | None = typer.Option(None, help="A CSV file with a column path (and start, end), or a list."),
    topk: int | None = typer.Option(
        None, min=1, help="Labels of each video: 5 for one video and with --json, 1 for several."
    ),
    views: int | None = VIEWS,
    crops: int | None = CROPS,
    device: str = DEVICE,
    precision: Precision | None = PRECISION,
    compile: bool = COMPILE,
    batch: int | None = BATCH,
    jobs: int | None = JOBS,
    engine: EngineName = ENGINE,
    address: str | None = ADDRESS,
    as_json: bool = typer.Option(False, "--json", help="JSON lines, for programs."),
    out: str | None = _OUT,
    resume: str | None = typer.Option(None, help="As --out, and go on with what it holds already."),
    overwrite: bool = OVERWRITE,
    timeline: bool = _of_timeline(
        False,
        "--timeline",
        help="Slide a window over each video; --out .csv, .json, .vtt, .srt ({name}: the video's).",
    ),
    window: str | None = _of_timeline(None, help="Length of a window, as in 2s; by default what a clip spans."),
    hop: str | None = _of_timeline(None, help="Time from one window's start to the next; by default half a window."),
    smooth: int | None = _of_timeline(None, min=1, help="Windows averaged, an odd number; 3."),
    min_score: float | None = _of_timeline(None, min=0, max=1, help="Least probability in a segment; 0.5."),
    plot: Path | None = _of_timeline(None, help="Draw the timeline, with thumbnails: .png, .svg."),
    annotate: Path | None = _of_timeline(None, help="Write the video with its labels drawn in."),
    camera: int | None = _of_live(None, min=0, help="Watch this camera."),
    stream: str | None = _of_live(None, help="Watch this address: rtsp://..., http://..."),
    live: bool = _of_live(False, "--live", help="Keep up with the stream: leave out what comes too fast."),
    reconnect: str | None = _of_live(None, help="Try a source that is gone again for so long, as in 60s."),
) -> None:
    """Label videos and pictures: the likeliest classes of each, with probabilities."""
    asked = Asked(main, locals())
    from softpool3d.datasets.inputs import Inputs

    watching = camera is not None or stream is not None
    _check(asked, watching)
    inputs = Inputs(tuple(videos or ()), manifest)
    if not watching:
        inputs.check()
    check_weights(weights)
    classifier = partial(classifier_of, asked)
    if not (timeline or watching):
        from softpool3d.inference import classify_files

        where = (out or resume, resume is not None, overwrite)
        files = classify_files.Options(options_of(asked), topk, jobs, as_json, *where)
        return classify_files.classify(partial(trained_of, asked), inputs, files, engine_of(asked))

    from softpool3d.inference import classify_live, classify_timeline
    from softpool3d.inference.one_each import whole_videos

    spans = ("--window", "--hop", "--reconnect"), (window, hop, reconnect)
    length, distance, patience = map(classify_timeline.seconds, *spans)
    if watching:
        keep_up, place = live or camera is not None, stream if camera is None else camera
        source = classify_live.Source(place, length, distance, keep_up, patience or 0.0)
        return classify_live.live(classifier, source, topk or 3, as_json)
    slide = (length, distance, smooth or 3, 0.5 if min_score is None else min_score)
    options = classify_timeline.Options(*slide, out and Path(out), plot, annotate, overwrite, as_json)
    classify_timeline.timelines(classifier, whole_videos("--timeline", inputs), options)


def _check(asked: Asked, watching: bool) -> None:
    """Checks that the options go together.

    Raises:
        UsageError: for options that would do nothing, or exclude each other.
    """
    asked.needs("--timeline", asked.timeline, "smooth", "min_score", "plot", "annotate")
    asked.needs("--timeline, --camera or --stream", asked.timeline or watching, "window", "hop")
    asked.needs("--camera or --stream", watching, "live", "reconnect")
    asked.needs("--out, --plot or --annotate", any(map(asked.given, ("out", "plot", "annotate"))), "overwrite")
    if watching:
        if asked.camera is not None and asked.stream is not None:
            raise UsageError("--camera and --stream are two sources; give one")
        refused = ("videos", "manifest", "timeline", "out", "resume", "views", "crops", "jobs", "max_missing", "engine")
        for name in refused:
            if asked.given(name) and getattr(asked, name) != []:
                option = "files" if name == "videos" else asked.spelled(name)
                raise UsageError(f"--camera and --stream do not go together with {option}")
    if asked.timeline and any(map(asked.given, ("resume", "jobs", "topk", "engine"))):
        raise UsageError("--timeline does not go together with --resume, --jobs, --topk and --engine")
    if asked.smooth is not None and asked.smooth % 2 == 0:
        raise UsageError(f"--smooth {asked.smooth}: give an odd number, a window and as many on both sides of it")
    if asked.trust and not (asked.weights or "").lower().endswith(".pt2"):
        raise UsageError("--trust is for --weights FILE.pt2; nothing else runs code when it is loaded")
    check_shared(asked)


def check_shared(asked: Asked) -> None:
    """Raises UsageError for values that neither `classify` nor `embed` takes."""
    if asked.crops not in (None, 1, 3):
        raise UsageError(f"--crops {asked.crops}: there is the centre (1), or three along the longer side (3)")
    if asked.resume is not None and asked.out not in (None, asked.resume):
        raise UsageError("--out and --resume name two files; --resume FILE alone writes to FILE and goes on with it")
    if asked.resume is not None and asked.overwrite:
        raise UsageError("--resume goes on with a file, and --overwrite replaces it; give one of them")
    check_engine(asked)
    if asked.engine == "ray" and asked.given("jobs"):
        raise UsageError("--engine ray does not go together with --jobs: Ray gives each stage the cores that it needs")


def check_engine(asked: Asked) -> None:
    """Raises UsageError for an address without the engine that it is for, or if Ray is not installed."""
    asked.needs("--engine ray", asked.engine == "ray", "address")
    if asked.engine == "ray" and find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray; pip install 'softpool3d[ray]'")


def engine_of(asked: Asked) -> Engine:
    """Returns the engine that was asked for."""
    if asked.engine == "ray":
        from softpool3d.cluster.files import on_ray

        return partial(on_ray, asked.address)
    from softpool3d.inference.bulk import here

    return here


def trained_of(asked: Asked) -> Trained:
    """Loads the network that the options of `classify`, or of `embed`, ask for, and says what is to be known of it."""
    trained = load_and_tell(asked.weights, "cpu" if asked.engine == "ray" else asked.device, asked.trust)
    if asked.views and trained.config.data.sampling == "uniform":
        raise UsageError("--views: this network samples frames from the whole video (sampling: uniform), in one view")
    return trained


def load_and_tell(weights: str | None, device: str, trust: bool = False) -> Trained:
    """Loads a network, and says on standard error which one answers where none is named, and what was assumed."""
    from softpool3d.inference.trained import default_weights, load_trained
    from softpool3d.runtime.devices import pick_device

    picked, first = pick_device(device), os.environ.get("LOCAL_RANK", "0") == "0"
    if weights is None:
        weights, why = default_weights()
        if first:
            print(why, file=sys.stderr, flush=True)  # before what may be fetched
    trained = load_trained(weights, picked, trust)
    if trained.note and first:
        print(trained.note, file=sys.stderr)
    return trained


def options_of(asked: Asked) -> dict[str, Any]:
    """Returns the options of `Classifier` that the options of `classify`, or of `embed`, ask for."""
    return {
        "device": asked.device,
        "num_clips": asked.views,
        "num_crops": asked.crops,
        "precision": asked.precision and asked.precision.value,
        "compile": asked.compile,
        "batch": asked.batch,
        "max_missing": asked.max_missing,
    }


def classifier_of(asked: Asked) -> Classifier:
    """Makes the classifier that the options ask for."""
    from softpool3d.inference.classifier import Classifier

    return Classifier(trained_of(asked), **options_of(asked))


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
