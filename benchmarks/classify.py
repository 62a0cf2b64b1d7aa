"""Compares `softpool3d classify` with the time of decoding and of the network's forward passes alone.

Each of these bare parts is a few lines of PyAV and PyTorch, with nothing of softpool3d but the network and its kernels.

python benchmarks/classify.py clip.mp4
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from shared import begin, run

from softpool3d.analysis.measuring import DOCUMENT, interleaved, markdown_table, save_section
from softpool3d.config_file import load_config
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.parallel import cores
from softpool3d.datasets.sources.motion import CLASSES, FPS, NUM_FRAMES, render
from softpool3d.datasets.transforms import normalize
from softpool3d.datasets.video.encoder import write_video
from softpool3d.datasets.video.pyav_reader import scaled
from softpool3d.inference.bulk import decode, run_files
from softpool3d.inference.classifier import Classifier
from softpool3d.inference.timeline import watch
from softpool3d.inference.trained import SHIPPED, load_trained
from softpool3d.inference.windows import Sliding
from softpool3d.inference.work import Labelling
from softpool3d.models import build_model
from softpool3d.runs.checkpoint import save_weights

HEADER = ["what", "ours, s", "bare, s", "ratio", "bare is"]
_BATCH = 8  # windows that the bare timeline runs together
LEGEND = (
    "Medians of interleaved rounds. `30 views`: X3D-S with random weights, 13 frames at rate 6, short side 182, 10 "
    "clips x 3 crops of 182, of the clip; the others with the network that ships with the package. `timeline`: windows "
    "of 2 s, 1 s apart."
)
_VIEWS = ["model.name=x3d_s", "model.pool.where=[]", "data.num_frames=13", "data.sampling_rate=6"]
_VIEWS += ["data.short_side=182", "data.train_short_side=[182,228]", "data.crop_size=182", "test.num_clips=10"]
_VIEWS += ["test.num_crops=3", "model.width=null", "data.dataset=motion"]

_BARE_SHELL = """
import sys, av, torch, torchvision, pytorchvideo.models.x3d
from safetensors.torch import load_file
from softpool3d.models import create
from softpool3d.config_file import pool_config
state = load_file(sys.argv[1])
pool = pool_config(where=["downsample", "head"])
network = create("x3d_xs", 8, pool=pool, width=8, num_frames=8, crop_size=64).eval()
network.load_state_dict(state)
with av.open(sys.argv[2]) as container:
    stream = container.streams.video[0]
    frames = [frame.to_ndarray(format="rgb24", width=85, height=64) for frame in container.decode(stream)]
starts = (0, len(frames) - 29)
clips = [torch.stack([torch.from_numpy(f) for f in frames[start:start + 29:4]])[:, :64, :64] for start in starts]
video = (torch.stack(clips).permute(0, 4, 1, 2, 3).float() / 255 - 0.45) / 0.225
with torch.inference_mode():
    print(network(video).softmax(-1).mean(0).topk(5))
"""


def report(clip: Path, seconds: float, say: Callable[[str], None]) -> list[list[str]]:
    """Returns the rows of the table; each is printed as soon as it is measured."""
    rows = []
    parts = {"one file, shell": _shell, "30 views": _views, "folder": _folder, "timeline": _timeline}
    for name, measure in parts.items():
        ours, bare, what = measure(clip, seconds)
        rows.append([name, f"{ours:.3g}", f"{bare:.3g}", f"{ours / bare:.2f}", what])
        say("  ".join(rows[-1]))
    return rows


def _medians(ours: Callable[[], object], bare: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    times = interleaved({"ours": ours, **bare}, torch.device("cpu"), seconds, rounds=(5, 15))
    return {name: timing.median for name, timing in times.items()}


def _shell(clip: Path, seconds: float) -> tuple[float, float, str]:
    from softpool3d.inference.trained import SHIPPED

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    ours = ["-c", "from softpool3d.cli import run; run()", "classify", str(clip)]
    bare = ["-c", _BARE_SHELL, str(SHIPPED), str(clip)]
    times = _medians(lambda: run(*ours), {"bare": lambda: run(*bare)}, max(seconds, 20.0))
    return times["ours"], times["bare"], "a script that imports, decodes with PyAV, and runs the same network"


def _views(clip: Path, seconds: float) -> tuple[float, float, str]:
    config = load_config("r3d_softpool", _VIEWS)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "x3d_s.safetensors"
        save_weights(weights, build_model(config, 400), config, tuple(map(str, range(400))))
        classifier = Classifier(weights, "cpu")
    network = classifier.model
    views = classifier.read(Clip(str(clip), 0)).clips
    video = normalize(views, config.data.mean, config.data.std)

    def forwards(size: int) -> Callable[[], object]:
        parts = [part.contiguous(memory_format=torch.channels_last_3d) for part in video.split(size)]

        def run() -> None:
            with torch.inference_mode():
                for part in parts:
                    network(part)

        return run

    sizes = {f"batches of {size}": forwards(size) for size in (1, 2, 3)}
    bare = {"decode": lambda: _decode(clip, 182), **sizes}
    times = _medians(lambda: classifier(clip), bare, seconds)
    best = min(sizes, key=times.__getitem__)
    what = f"decoding once {times['decode']:.2f}, 30 forwards in {best} {times[best]:.2f}"
    return times["ours"], times["decode"] + times[best], what


def _folder(clip: Path, seconds: float) -> tuple[float, float, str]:
    jobs, count = cores(), 48
    with tempfile.TemporaryDirectory() as folder:
        clips = []
        for number in range(count):
            path = Path(folder) / f"{number}{clip.suffix}"
            path.symlink_to(clip.resolve())
            clips.append(Clip(str(path), 0))
        work = Labelling({"device": "cpu"}, 5).work(load_trained(SHIPPED))
        views = [work.reader(clip).views.clips for clip in clips[:1]] * count

        def network() -> None:
            for some in views:
                work.predictor(some)

        times = _medians(
            lambda: list(run_files(work, clips, jobs)),
            {"decode": lambda: [None for _ in decode(work.reader, iter(clips), jobs)], "network": network},
            seconds,
        )
    what = f"{count} files; decoding alone with {jobs} workers {times['decode']:.2f}, network {times['network']:.2f}"
    return times["ours"], max(times["decode"], times["network"]), what


def _timeline(clip: Path, seconds: float) -> tuple[float, float, str]:
    classifier, length = Classifier(device="cpu"), 120
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        pictures = [render(label, np.random.default_rng(label)) for label in range(len(CLASSES))]
        frames = (pictures[n // 250 % len(CLASSES)][n % NUM_FRAMES] for n in range(length * FPS))
        write_video(path, frames, FPS)
        sliding = Sliding(classifier.config.data, FPS, 2.0, 1.0)
        count = next(n for n in itertools.count(1) if not sliding.exists(n, length * FPS))
        windows = np.stack([sliding.start(n) + sliding.offsets[0] for n in range(count)])
        times = _medians(
            lambda: watch(classifier, path, 2.0, 1.0),
            {"bare": lambda: _bare_timeline(path, windows, classifier)},
            seconds,
        )
    what = f"{length} s of 112x112 in a script: decoding in threads, {count} windows in batches of {_BATCH}"
    return times["ours"], times["bare"], what


def _bare_timeline(path: Path, windows: np.ndarray, classifier: Classifier) -> None:
    """Does what a script would: FFmpeg decodes in its threads, needed frames are converted, windows run in batches.

    Args:
        windows: int64 (windows, frames of a clip), numbers of the video's frames.
    """
    import av

    data, needed = classifier.config.data, set(windows.ravel().tolist())
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        size = dict(zip(("width", "height"), scaled(stream.width, stream.height, data.short_side), strict=True))
        pictures = {
            number: torch.from_numpy(frame.to_ndarray(format="rgb24", **size))
            for number, frame in enumerate(container.decode(stream))
            if number in needed
        }
    last = max(pictures)
    edge = (data.short_side - data.crop_size) // 2
    with torch.inference_mode():
        for some in np.split(windows.clip(max=last), range(_BATCH, len(windows), _BATCH)):
            clips = torch.stack([torch.stack([pictures[i] for i in clip]) for clip in some.tolist()])
            clips = clips[:, :, edge : edge + data.crop_size, edge : edge + data.crop_size].permute(0, 4, 1, 2, 3)
            video = normalize(clips, data.mean, data.std).contiguous(memory_format=torch.channels_last_3d)
            classifier.model(video).softmax(-1)


def _decode(path: Path, short_side: int) -> int:
    """Decodes every frame with PyAV in one thread, scaled to the short side; returns the number of bytes."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        size = scaled(stream.width, stream.height, short_side)
        frames = container.decode(stream)
        return sum(frame.to_ndarray(format="rgb24", width=size[0], height=size[1]).nbytes for frame in frames)


def measure(
    clip: Annotated[Path, typer.Argument(help="A video of ten seconds or so.", exists=True, dir_okay=False)],
    save: Annotated[bool, typer.Option("--save", help="Write the table to docs/benchmarks-classify.md.")] = False,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each line's rounds.")] = 10.0,
) -> None:
    """Compare `softpool3d classify` with the time of decoding and of the network's forward passes alone."""

    about, say = begin()
    rows = report(clip, seconds, say)
    if save:
        document = DOCUMENT.with_name("benchmarks-classify.md")
        body = "\n".join([about, "", LEGEND, "", markdown_table(HEADER, rows)])
        say(f"Written to {save_section('Classifying', body, document)}")


if __name__ == "__main__":
    run(measure)
