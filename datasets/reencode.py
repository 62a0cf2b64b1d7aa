"""Copies of videos made for training: small, with key frames close together, without sound."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from softpool3d.datasets.decoder import open_video
from softpool3d.datasets.encoder import ToBT601, h264_stream
from softpool3d.datasets.frame_index import DecodeError, errors_of, frame_index
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.orientation import UPRIGHT, orientation_of
from softpool3d.datasets.pictures import is_moving_webp
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

    partial = f"{target}.partial-{os.getpid()}"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        with av.open(partial, "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = None
            for time, frame, *_ in _frames(clip):
                if stream is None:
                    stream = _add_stream(container, frame, encoding)
                    upright = _Upright(stream.width, stream.height)
                frame = upright(frame)
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


class _Upright:
    """Frames as a copy holds them: upright, of its size, in its colours."""

    def __init__(self, width: int, height: int) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        # Without the flags each conversion rounds down and moves the edges of colours.
        self._way = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        self._size = width, height
        self._to_rgb, self._to_bt601 = VideoReformatter(), ToBT601(self._way)

    def __call__(self, frame):
        import av

        orientation = orientation_of(frame)
        if orientation != UPRIGHT:
            stored = self._size[::-1] if orientation.swaps_sides else self._size
            rgb = self._to_rgb.reformat(frame, *stored, format="rgb24", interpolation=self._way, threads=1)
            picture = np.ascontiguousarray(orientation.upright(rgb.to_ndarray()))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        return self._to_bt601(frame, *self._size)


def _add_stream(container, frame, encoding: Encoding):
    width, height = frame.width, frame.height
    if orientation_of(frame).swaps_sides:
        width, height = height, width
    width, height = scaled(width, height, min(encoding.short_side, width, height))
    stream = h264_stream(container, 25, like=frame)  # the rate is a hint: frames have times of their own
    stream.width, stream.height = max(width // 2 * 2, 2), max(height // 2 * 2, 2)
    stream.codec_context.time_base = _CLOCK
    parameters = f"keyint={encoding.gop}:min-keyint=1:scenecut=0:open-gop=0:bframes=3:b-adapt=0:b-pyramid=none"
    stream.options = {"crf": str(encoding.crf), "preset": "medium", "x264-params": parameters}
    return stream


def _frames(clip: Clip):
    """(seconds, frame, quarter turns to the left) of the clip's part of its video."""
    if os.path.isdir(clip.path) or is_moving_webp(clip.path):
        yield from _pictures(clip)
        return
    index = frame_index(clip.path)
    reader = PyAVReader(clip.path, index)
    first, end = _part(clip, index.times)
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


def _part(clip: Clip, times: np.ndarray) -> tuple[int, int]:
    """Numbers of the clip's first frame, and of the one after its last."""
    first = 0 if clip.start is None else int(np.searchsorted(times, clip.start - 1e-3))
    return first, len(times) if clip.end is None else int(np.searchsorted(times, clip.end - 1e-3))


def _pictures(clip: Clip):
    import av

    with open_video(clip.path) as video:
        first, end = _part(clip, video.times)
        for number in range(first, end):
            picture = np.ascontiguousarray(video.frames([number])[0].permute(1, 2, 0).numpy())
            yield video.times[number] - video.times[first], av.VideoFrame.from_ndarray(picture, format="rgb24"), 0


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
