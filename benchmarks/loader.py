"""Compares the time to read a clip: ours, the decoders alone, and other libraries, on the same files and frames.

python benchmarks/loader.py --clips videos
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
import typer
from shared import begin, run
from torch import Tensor

from softpool3d.analysis.measuring import interleaved, markdown_table, save_section
from softpool3d.config import Config, DataConfig
from softpool3d.datasets.loader import train_loader
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.parallel import cores
from softpool3d.datasets.reencode import Encoding, reencode
from softpool3d.datasets.sampling import random_clip
from softpool3d.datasets.sources.motion import read_motion
from softpool3d.datasets.transforms import resize_short_side
from softpool3d.datasets.video.decoder import DecodeError, open_video
from softpool3d.datasets.video.find import find_videos
from softpool3d.errors import UsageError

FRAMES, RATE, SHORT_SIDE = 16, 4, 128
FILES = 12  # of each set
LEGEND = (
    f"One clip is {FRAMES} frames, every {RATE}th one, from a random place of a file that is opened for it, as uint8 "
    f"with a short side of {SHORT_SIDE}; one thread. Milliseconds a clip: the medians of each file, averaged over the "
    "files; in brackets how many times as long as ours. decord, pyav, torchcodec: the library alone, seeking, and one "
    "resize; pytorchvideo: `EncodedVideo.get_clip` of the same span, subsampled, and the same resize."
)
HEADER = ["files", "ours", "decord", "pyav", "pytorchvideo decord", "pytorchvideo pyav", "torchcodec"]
WORKERS_LEGEND = (
    "Clips a second of the whole loader (random crop of 112x112, flip, batches of 8) by number of workers, the best of "
    f"two passes, on {cores()} cores; in brackets as a multiple of one worker."
)


def real_files(folder: Path) -> list[str]:
    """Returns videos of the folder that are long enough and that decord, too, can read whole.

    Raises:
        UsageError: if there are fewer than two.
    """
    files = []
    for path in sorted(find_videos(folder)):
        with suppress(DecodeError), open_video(path, decoder="decord") as video:
            if video.decoder == "decord" and video.num_frames > (FRAMES - 1) * RATE:
                files.append(path)
    if len(files) < 2:
        raise UsageError(f"--clips {folder}: fewer than two videos there that decord reads, of 61 frames or more")
    return [files[i] for i in np.linspace(0, len(files) - 1, min(FILES, len(files))).astype(int)]


def file_sets(clips: Path | None, temporary: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields name and files of each set: `motion`, and with a folder of clips these and their re-encoded copies."""
    yield "motion", [clip.path for clip in read_motion()["test"].clips][:FILES]
    if clips is None:
        return
    files = real_files(clips)
    yield "real clips", files
    for short_side in (256, SHORT_SIDE):
        manifest = Manifest(("clip",), [Clip(path, 0) for path in files])
        out = temporary / str(short_side)
        copies, _ = reencode({"train": manifest}, clips, out, Encoding(short_side))
        yield f"copies, short side {short_side}, gop 16", [clip.path for clip in copies["train"].clips]


def table(files: list[str], seconds: float) -> list[str]:
    """Returns the cells of one set of files: milliseconds per clip of each contender, in the order of `HEADER`."""
    sums: dict[str, list[float]] = {}
    for number, path in enumerate(files):
        with open_video(path) as video:
            count, times, fps = video.num_frames, video.times, video.fps
        indices = np.sort(random_clip(count, FRAMES, RATE, np.random.default_rng(number)))
        calls = contenders(path, indices, times, fps)
        timings = interleaved(calls, torch.device("cpu"), seconds, rounds=(3, 51))
        for name, timing in timings.items():
            sums.setdefault(name, []).append(timing.median * 1e3)
    means = {name: float(np.mean(values)) for name, values in sums.items() if len(values) == len(files)}
    cells = [f"{means['ours']:.1f}"]
    for name in HEADER[2:]:
        cells.append(f"{means[name]:.1f} ({means[name] / means['ours']:.2f}x)" if name in means else "-")
    return cells


def contenders(path: str, indices: np.ndarray, times: np.ndarray, fps: float) -> dict[str, Callable[[], Tensor]]:
    """Returns the contenders that can read the file: calls that open it and return uint8 (16, 3, H, W)."""
    wanted = indices.tolist()
    calls = {
        "ours": lambda: _ours(path, indices),
        "decord": lambda: _decord(path, wanted),
        "pyav": lambda: _pyav(path, times[np.unique(indices)], fps),
        "pytorchvideo decord": lambda: _pytorchvideo(path, "decord", times[wanted[0]], times[wanted[-1]] + 1 / fps),
        "pytorchvideo pyav": lambda: _pytorchvideo(path, "pyav", times[wanted[0]], times[wanted[-1]] + 1 / fps),
    }
    if find_spec("torchcodec"):
        calls["torchcodec"] = lambda: _torchcodec(path, wanted)
    able = {}
    for name, call in calls.items():
        try:
            call()
            able[name] = call
        except Exception:
            if name == "ours":
                raise
    return able


def _ours(path: str, indices: np.ndarray) -> Tensor:
    with open_video(path, SHORT_SIDE) as video:
        return video.frames(indices)


def _decord(path: str, wanted: list[int]) -> Tensor:
    import decord

    batch = decord.VideoReader(path, decord.cpu(0), num_threads=1).get_batch(wanted)
    frames = torch.as_tensor(batch.asnumpy() if hasattr(batch, "asnumpy") else batch)
    return resize_short_side(frames.permute(0, 3, 1, 2), SHORT_SIDE)


def _pyav(path: str, times: np.ndarray, fps: float) -> Tensor:
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        begin = float((stream.start_time or 0) * stream.time_base)
        container.seek(int((begin + times[0]) / stream.time_base), stream=stream)
        pictures = []
        for frame in container.decode(stream):
            if frame.time - begin > times[len(pictures)] - 0.5 / fps:
                pictures.append(frame.to_ndarray(format="rgb24"))
                if len(pictures) == len(times):
                    break
    return resize_short_side(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), SHORT_SIDE)


def _pytorchvideo(path: str, decoder: str, start: float, end: float) -> Tensor:
    from pytorchvideo.data.encoded_video import EncodedVideo

    video = EncodedVideo.from_path(path, decode_audio=False, decoder=decoder)
    clip = video.get_clip(float(start), float(end))["video"]
    video.close()
    clip = clip[:, torch.linspace(0, clip.shape[1] - 1, FRAMES).long()].transpose(0, 1)
    height, width = clip.shape[2:]
    scale = SHORT_SIDE / min(height, width)
    return TF.resize(clip, [round(height * scale), round(width * scale)], antialias=True)


def _torchcodec(path: str, wanted: list[int]) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    frames = VideoDecoder(path, num_ffmpeg_threads=1).get_frames_at(wanted).data
    return resize_short_side(frames, SHORT_SIDE)


def throughput(files: list[str], workers: int, passes: int = 2) -> float:
    """Returns the clips per second of the training loader, once its workers have started."""
    import time

    sizes = {"num_frames": FRAMES, "sampling_rate": RATE, "crop_size": 112, "short_side": SHORT_SIDE}
    data = DataConfig(**sizes, train_short_side=[SHORT_SIDE, SHORT_SIDE], num_workers=workers)
    config = Config(data=data, train={"batch_size": 8})
    repeats = max(1, 48 // len(files))
    manifest = Manifest(("clip",), [Clip(path, 0) for path in files] * repeats)
    loader = train_loader(manifest, config)
    best = 0.0
    for epoch in range(passes + 1):  # the first one starts workers
        loader.batch_sampler.set_position(epoch)
        began = time.perf_counter()
        clips = sum(len(batch.label) for batch in loader)
        if epoch:
            best = max(best, clips / (time.perf_counter() - began))
    return best


def report(clips: Path | None, seconds: float, say: Callable[[str], None]) -> str:
    """Measures everything; returns the tables as Markdown."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    counts = sorted({1, 2, cores()})
    rows, rates = [], []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, files in file_sets(clips, Path(folder)):
                say(f"measuring {name} ({len(files)} files)")
                rows.append([name, *table(files, seconds)])
                speeds = [throughput(files, count) for count in counts]
                rates.append([name, *(f"{speed:.0f} ({speed / speeds[0]:.2f}x)" for speed in speeds)])
    finally:
        torch.set_num_threads(threads)
    parts = [LEGEND, "", markdown_table(HEADER, rows), "", WORKERS_LEGEND, ""]
    parts.append(markdown_table(["files", *map(str, counts)], rates))
    return "\n".join(parts)


def clips_folder(clips: Path | None) -> Path | None:
    """Returns the folder of --clips, else of $SOFTPOOL3D_CLIPS, else None.

    Raises:
        UsageError: if there is no such folder.
    """
    if clips is None and os.environ.get("SOFTPOOL3D_CLIPS"):
        clips = Path(os.environ["SOFTPOOL3D_CLIPS"])
    if clips is not None and not clips.is_dir():
        raise UsageError(f"--clips: no folder {clips}")
    return clips


def measure(
    clips: Annotated[
        Path | None, typer.Option(help="A folder of videos to measure on, beside `motion`; or $SOFTPOOL3D_CLIPS.")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Write the tables to docs/benchmarks.md.")] = False,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each file's rounds.")] = 2.0,
) -> None:
    """Compare readers of clips (ours, decord, PyAV, pytorchvideo), and the whole loader by number of workers."""

    folder = clips_folder(clips)
    about, say = begin()
    tables = report(folder, seconds, say)
    say(tables)
    if save:
        saved = save_section("Loading clips", f"{about}\n\n{tables}")
        say(f"Written to {saved}")


if __name__ == "__main__":
    run(measure)
