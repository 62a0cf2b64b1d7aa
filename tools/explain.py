"""Look into a trained network: what speaks for a class (Grad-CAM), and what its poolings do to feature maps.

python tools/explain.py clip.mp4 --method gradcam --out cam.mp4                      # Kinetics-400, as classify
python tools/explain.py clip.mp4 --weights motion                    # with the network that ships with the package
python tools/explain.py clip.mp4 --weights best.safetensors --class "moving left" --out cam.gif
python tools/explain.py clip.mp4 --weights best.safetensors --method features --out maps.png
python tools/explain.py photo.jpg --weights resnet50:imagenet1k
"""

import sys
from fnmatch import fnmatchcase
from pathlib import Path

import typer

from softpool3d.command import Asked
from softpool3d.errors import UsageError
from softpool3d.naming import check_files, check_weights
from softpool3d.tools.classify import load_and_tell

METHODS = {"gradcam": ".mp4", "features": ".png"}


def main(
    clip: Path = typer.Argument(help="A video file, a folder of frames, or for networks of pictures a picture."),
    weights: str | None = typer.Option(
        None, help="As for classify, whose network answers if not given; exported networks have no layers."
    ),
    method: str = typer.Option("gradcam", help="gradcam, or features: maps before and after each pooling."),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        help="What to write; gradcam: .mp4, .gif, .png (of a picture .png); features: .png.",
    ),
    label: str | None = typer.Option(None, "--class", help="gradcam: the class to explain; else the likeliest one."),
    stage: str = typer.Option("stage4", help="gradcam: where in the network, stage1 to stage4."),
    channels: int = typer.Option(6, min=1, help="features: how many channels of each pooling."),
    layers: str = typer.Option("*", help="features: poolings whose names match, like 'blocks.1.*'."),
    seconds: float = typer.Option(10.0, min=0.01, help="gradcam: length to explain, from the beginning."),
    short_side: int = typer.Option(224, min=16, help="Pixels of the shorter side of the picture; never enlarged."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace OUT if it exists."),
) -> None:
    """Show what speaks for a class (Grad-CAM), or feature maps around each pooling."""
    asked = Asked(main, locals())
    from softpool3d.datasets.video.pictures import is_still

    if method not in METHODS:
        raise UsageError(f"--method {method}: unknown (known: {', '.join(METHODS)})")
    asked.needs("--method gradcam", method == "gradcam", "label", "stage", "seconds", "short_side")
    asked.needs("--method features", method == "features", "channels", "layers")
    asked.needs("a video", not is_still(clip), "seconds")
    out = out or Path(f"{clip.stem}_{method}{'.png' if is_still(clip) else METHODS[method]}")
    check_files([clip])
    check_weights(weights)
    _check(out, clip, method, stage, overwrite)

    from softpool3d.inference.classifier import Classifier
    from softpool3d.inference.exported import check_open
    from softpool3d.runs.lock import claim_files

    if weights is not None:
        check_open(weights)  # before anything in it is loaded
    with claim_files([out], overwrite):
        classifier = Classifier(load_and_tell(weights, device), device)
        if method == "gradcam":
            _gradcam(classifier, clip, out, label, stage, seconds, short_side)
        else:
            _features(classifier, clip, out, channels, layers)


def _check(out: Path, clip: Path, method: str, stage: str, overwrite: bool) -> None:
    from softpool3d.datasets.video.pictures import is_still
    from softpool3d.visual.gradcam import STAGES
    from softpool3d.visual.output import FORMATS, PICTURES, check_free

    known = FORMATS if method == "gradcam" and not is_still(clip) else PICTURES
    if out.suffix.lower() not in known:
        of = f"{method} of a picture" if is_still(clip) else method
        raise UsageError(f"--out {out}: unknown format {out.suffix!r} (known for {of}: {', '.join(known)})")
    if stage not in STAGES:
        raise UsageError(f"--stage {stage}: unknown (known: {', '.join(STAGES)})")
    check_free([out], [clip], overwrite)


def _gradcam(classifier, clip: Path, out: Path, label: str | None, stage: str, seconds: float, short_side: int) -> None:
    from softpool3d.visual.gradcam import explain, heat_sheet
    from softpool3d.visual.output import write_sheet
    from softpool3d.visual.source import read_source

    source = read_source(clip, 0.0, seconds, short_side)
    if source.damage:
        print(f"note: {clip}: {source.damage}", file=sys.stderr)
    found = explain(classifier, source, label, stage)
    write_sheet(out, heat_sheet(classifier, source, found, stage))
    print(
        f"{out}: {found.title}; {len(source.frames)} frame{'s' if len(source.frames) > 1 else ''}, Grad-CAM at {stage}"
    )


def _features(classifier, clip: Path, out: Path, channels: int, layers: str) -> None:
    from softpool3d.datasets.manifest import Clip
    from softpool3d.datasets.transforms import normalize
    from softpool3d.datasets.views import read_views
    from softpool3d.files import replacing
    from softpool3d.visual.features import draw, feature_maps
    from softpool3d.visual.output import write_picture

    data = classifier.config.data
    view = read_views(Clip(str(clip), 0), data, 1, 1).clips.to(classifier.device)
    maps = feature_maps(classifier, normalize(view, data.mean, data.std))
    chosen = [m for m in maps if fnmatchcase(m.name, layers)]
    if not chosen:
        raise UsageError(f"--layers {layers}: no pooling has such a name (there are {', '.join(m.name for m in maps)})")
    caption = f"{clip.name}, {classifier.config.model.name}: a channel's colours are the same before and after"
    with replacing(out) as temporary:
        write_picture(temporary, draw(chosen, channels, caption))
    print(f"{out}: {len(chosen)} poolings: {', '.join(m.name for m in chosen)}")


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
