"""Copies of videos made for training: small, with key frames close together, without sound."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from softpool3d.datasets.decoder import open_video
from softpool3d.datasets.frame_index import DecodeError, errors_of, frame_index
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.pool import Crashed, each
from softpool3d.datasets.pyav_reader import PyAVReader, scaled
from softpool3d.errors import UsageError, WorkError
from softpool3d.files import write_atomically

_CLOCK = Fraction(1, 90000)


@dataclass(frozen=True)
class Encoding:
    """short_side: pixels, never enlarged; gop: frames between key frames; crf: x264's quality, the lower the better."""

    short_side: int = 256
    gop: int = 16
    crf: int = 20


def reencode(
    manifests: dict[str, Manifest], root: Path, out: Path, encoding: Encoding, workers: int | None = None
) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Manifests of copies in `out`, which lie there as the originals below `root`, and path -> reason of those that
    cannot be decoded. Copies that are there and are newer than their originals are not made again.

    Raises:
        UsageError: if `out` holds copies of another encoding.
        WorkError: if it cannot be written.
    """
    settings = out / "reencoding.json"
    wish = json.dumps(asdict(encoding))
    if settings.is_file() and settings.read_text(encoding="utf-8") != wish:
        raise UsageError(
            f"{out} holds copies made with {settings.read_text(encoding='utf-8')}, and {wish} is asked for; "
            "name another folder with --out, or remove that one"
        )
    write_atomically(settings, wish.encode())
    targets = _targets(manifests, root, out)
    jobs = [(clip, target, encoding) for clip, target in targets.items() if not _is_newer(target, clip.path)]
    bad: dict[str, str] = {}
    for (clip, _, _), failure in each(_copy, jobs, "Encoding", workers):
        if isinstance(failure, Crashed):
            bad[clip.path] = "decoding it crashes the decoder"
        elif isinstance(failure, DecodeError):
            bad[clip.path] = failure.reason
        elif failure is not None:
            raise failure
    copies = {
        split: Manifest(
            manifest.classes,
            [Clip(targets[_place(clip)], clip.label) for clip in manifest.clips if clip.path not in bad],
            manifest.missing,
            str(out),
        )
        for split, manifest in manifests.items()
    }
    return copies, bad


def encode_copy(clip: Clip, target: str, encoding: Encoding) -> None:
    """Writes one copy, whole or not at all: H.264 in 4:2:0, upright, every frame at its own time.

    Three B-frames that nothing refers to lie between any two other frames: a clip that takes every fourth frame leaves
    most of them undecoded.

    Raises:
        DecodeError: if the original cannot be decoded.
        OSError: if the copy cannot be written.
    """
    import av
    from av.video.reformatter import VideoReformatter

    partial = f"{target}.partial-{os.getpid()}"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        with av.open(partial, "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream, scaler = None, VideoReformatter()
            for time, frame, turns in _frames(clip):
                if stream is None:
                    stream = _add_stream(container, frame, turns, encoding)
                    size = (stream.height, stream.width) if turns % 2 else (stream.width, stream.height)
                frame = scaler.reformat(frame, *size, format="yuv420p", interpolation="AREA", threads=1)
                if turns:
                    planes = np.rot90(frame.to_ndarray(format="rgb24"), turns)
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format="rgb24")
                frame.pts, frame.time_base = round(time / _CLOCK), _CLOCK
                frame.pict_type = av.video.frame.PictureType.NONE  # not that of the original
                container.mux(stream.encode(frame))
            if stream is None:
                raise DecodeError(clip.path, "there are no frames in its part of the video")
            container.mux(stream.encode(None))
        os.replace(partial, target)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def _add_stream(container, frame, turns: int, encoding: Encoding):
    width, height = frame.width, frame.height
    if turns % 2:
        width, height = height, width
    width, height = scaled(width, height, min(encoding.short_side, width, height))
    stream = container.add_stream("libx264", rate=25)  # the rate is a hint: frames have times of their own
    stream.width, stream.height = max(width // 2 * 2, 2), max(height // 2 * 2, 2)
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = _CLOCK
    context.thread_count = 1  # every core has a file of its own
    parameters = f"keyint={encoding.gop}:min-keyint=1:scenecut=0:open-gop=0:bframes=3:b-adapt=0:b-pyramid=none"
    stream.options = {"crf": str(encoding.crf), "preset": "medium", "x264-params": parameters}
    return stream


def _frames(clip: Clip):
    """(seconds, frame, quarter turns to the left) of the clip's part of its video."""
    if os.path.isdir(clip.path):
        yield from _pictures(clip.path)
        return
    index = frame_index(clip.path)
    reader = PyAVReader(clip.path, index)
    first = 0 if clip.start is None else np.searchsorted(index.times, clip.start - 1e-3)
    end = index.num_frames if clip.end is None else np.searchsorted(index.times, clip.end - 1e-3)
    number = -1
    try:
        with errors_of(clip.path):
            for number, frame in enumerate(reader.all_frames()):
                if number >= end:
                    return
                if number >= first:
                    yield index.times[number] - index.times[first], frame, round(frame.rotation / 90) % 4
    finally:
        reader.close()
    if number + 1 < end:
        raise DecodeError(clip.path, f"only {number + 1} of its {index.num_frames} frames can be decoded")


def _pictures(path: str):
    import av

    with open_video(path) as video:
        for number in range(video.num_frames):
            picture = np.ascontiguousarray(video.frames([number])[0].permute(1, 2, 0).numpy())
            yield video.times[number], av.VideoFrame.from_ndarray(picture, format="rgb24"), 0


def _copy(job: tuple[Clip, str, Encoding]) -> DecodeError | WorkError | None:
    import av

    clip, target, encoding = job
    try:
        encode_copy(clip, target, encoding)
    except DecodeError as error:
        return error
    except (OSError, av.error.FFmpegError) as error:
        return WorkError(f"cannot write {target}: {(error.strerror or str(error)).lower()}")
    return None


def _place(clip: Clip) -> Clip:
    return Clip(clip.path, 0, clip.start, clip.end)


def _targets(manifests: dict[str, Manifest], root: Path, out: Path) -> dict[Clip, str]:
    """Each clip, without its label -> its copy, no two the same."""
    targets: dict[Clip, str] = {}
    taken: set[str] = set()
    for clip in sorted({_place(clip) for manifest in manifests.values() for clip in manifest.clips}, key=repr):
        relative = os.path.relpath(clip.path, root)
        if relative.startswith(os.pardir):
            relative = os.path.join("elsewhere", os.path.abspath(clip.path).lstrip(os.sep))
        part = "" if clip.start is None and clip.end is None else f"_{clip.start or 0:g}_{clip.end or 0:g}"
        target = os.path.join(out, os.path.splitext(relative)[0] + part + ".mp4")
        if target in taken:  # the same name with another ending
            target = os.path.join(out, relative + part + ".mp4")
        taken.add(target)
        targets[clip] = target
    return targets


def _is_newer(target: str, original: str) -> bool:
    try:
        return os.stat(target).st_mtime >= os.stat(original).st_mtime
    except OSError:
        return False
