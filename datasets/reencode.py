"""Copies of videos made for training: small, with key frames close together, without sound."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from softpool3d.datasets.lists import format_seconds
from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.parallel import Crashed, Each, each
from softpool3d.datasets.video.damage import MAX_MISSING
from softpool3d.datasets.video.decoder import Video, open_video
from softpool3d.datasets.video.encoder import ToBT601, h264_stream
from softpool3d.datasets.video.frame_index import DecodeError, errors_of
from softpool3d.datasets.video.orientation import UPRIGHT, Orientations, orientation_of
from softpool3d.datasets.video.pyav_reader import convert, scaled
from softpool3d.datasets.video.stream import FrameStream
from softpool3d.errors import UsageError, WorkError, os_reason
from softpool3d.files import remove_abandoned, replacing, write_atomically

_CLOCK = Fraction(1, 90000)


@dataclass(frozen=True)
class Encoding:
    """How copies are encoded.

    short_side: pixels; frames are never enlarged.
    gop: frames between key frames.
    crf: x264's quality, the lower the better.
    """

    short_side: int = 256
    gop: int = 16
    crf: int = 20


def reencode(
    manifests: dict[str, Manifest],
    root: Path,
    out: Path,
    encoding: Encoding,
    workers: int | None = None,
    *,
    max_missing: float = MAX_MISSING,
    on_damage: Callable[[str, str], None] = lambda path, what: None,
    each: Each = each,
) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Makes copies of the clips in `out`, at the same relative paths as the originals have below `root`.

    Copies that are newer than their originals are not made again. Only one process may write to `out` at a time: what
    others left unfinished there is removed.

    Args:
        max_missing: the share of an original that may be missing (damage.py).
        on_damage: is called with the path of an original of which a part is missing, and a sentence.
        each: does the work on each clip.

    Returns:
        Manifests of the copies, and for each original with a clip that cannot be decoded: path -> reason. Such clips
        are left out of the manifests.

    Raises:
        UsageError: if `out` holds copies of another encoding.
        WorkError: if it cannot be written.
    """
    settings = out / "reencoding.json"
    wish = json.dumps(asdict(encoding) | {"colours": "BT.601"})  # earlier copies did not keep colours
    if settings.is_file() and settings.read_text(encoding="utf-8") != wish:
        raise UsageError(
            f"{out} holds copies made with {settings.read_text(encoding='utf-8')}, and {wish} is asked for; "
            "name another folder with --out, or remove that one"
        )
    write_atomically(settings, wish.encode())
    targets = _targets(manifests, root, out)
    todo = ((clip, target) for clip, target in targets.items() if not _is_newer(target, clip.path))
    jobs = [(clip, target, encoding, max_missing) for clip, target in todo]
    bad: dict[Clip, str] = {}
    with _without_leftovers(targets.values()):
        for (clip, *_), result in each(_copy, jobs, "Encoding", workers):
            if isinstance(result, Crashed):
                bad[clip] = str(result)
            elif isinstance(result, DecodeError):
                bad[clip] = result.reason
            elif isinstance(result, Exception):
                raise result
            elif result:
                on_damage(clip.path, result)
    copies = {
        split: Manifest(
            manifest.classes,
            [Clip(targets[_place(clip)], clip.label) for clip in manifest.clips if _place(clip) not in bad],
            manifest.missing,
            str(out),
        )
        for split, manifest in manifests.items()
    }
    return copies, {clip.path: reason for clip, reason in bad.items()}


@contextmanager
def _without_leftovers(targets: Iterable[str]) -> Iterator[None]:
    """Removes the unfinished copies of processes that were killed: first those of an earlier run, afterwards those of
    this run, whose workers end with it in the middle of a file."""
    folders = {Path(target).parent for target in targets}
    try:
        for folder in folders:
            remove_abandoned(folder)
        yield
    finally:
        for folder in folders:
            remove_abandoned(folder)


def encode_copy(clip: Clip, target: str, encoding: Encoding, max_missing: float = MAX_MISSING) -> str:
    """Writes one copy, whole or not at all: H.264 in 4:2:0, upright, every frame at its own time.

    Between any two other frames lie three B-frames that nothing refers to, so most of them need not be decoded for a
    clip that takes every fourth frame.

    Returns:
        What of the original is missing, as a sentence; "" if nothing is known to be.

    Raises:
        DecodeError: if the original cannot be decoded.
        WorkError: if the copy cannot be written.
    """
    import av

    options = {"movflags": "faststart"}
    with replacing(target) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as container:
        stream, part = None, _Part(clip, max_missing)
        for time, frame in part:
            if stream is None:
                stream = _add_stream(container, frame, encoding)
                upright = _Upright(stream.width, stream.height)
            with errors_of(clip.path):
                frame = upright(frame)
            frame.pts, frame.time_base = round(time / _CLOCK), _CLOCK
            frame.pict_type = av.video.frame.PictureType.NONE  # not that of the original
            container.mux(stream.encode(frame))
        if stream is None:
            raise DecodeError(clip.path, "there are no frames in its part of the video")
        container.mux(stream.encode(None))
    return part.damage


class _Upright:
    """Turns frames into what a copy holds: upright, of its size, in its colours."""

    def __init__(self, width: int, height: int) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        # Without the flags each conversion rounds down and moves the edges of colours.
        self._way = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        self._size = width, height
        self._orientation = Orientations()
        self._to_rgb, self._to_bt601 = VideoReformatter(), ToBT601(self._way)

    def __call__(self, frame):
        import av

        orientation = self._orientation(frame)
        if orientation != UPRIGHT:
            stored = self._size[::-1] if orientation.swaps_sides else self._size
            rgb = convert(self._to_rgb, frame, *stored, format="rgb24", interpolation=self._way)
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


class _Part:
    """Yields the frames of the clip's part of its video as (seconds, PyAV's frame). Afterwards `damage` says what of
    the video is missing."""

    def __init__(self, clip: Clip, max_missing: float) -> None:
        self._clip, self._max_missing = clip, max_missing
        self.damage = ""

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        with open_video(self._clip.path, max_missing=self._max_missing) as video:
            first, end = video.part(self._clip.start, self._clip.end)
            times = video.times[first:end]
            if video.decoder == "pictures":
                yield from zip(times - times[0], _pictures(video, range(first, end)), strict=True)
                return
        with FrameStream(self._clip.path, max_missing=self._max_missing) as stream:
            for time, frame in stream:
                if time > times[-1] + 1e-3:
                    return
                if time >= times[0] - 1e-3:
                    yield max(time - times[0], 0.0), frame
            self.damage = str(stream.damage)


def _pictures(video: Video, numbers: range) -> Iterator:
    import av

    for number in numbers:
        picture = np.ascontiguousarray(video.frames([number])[0].permute(1, 2, 0).numpy())
        yield av.VideoFrame.from_ndarray(picture, format="rgb24")


def _copy(job: tuple[Clip, str, Encoding, float]) -> str | DecodeError | WorkError:
    import av

    clip, target, encoding, max_missing = job
    try:
        return encode_copy(clip, target, encoding, max_missing)
    except WorkError as error:
        return error
    except av.error.FFmpegError as error:
        return WorkError(f"cannot write {target}: {os_reason(error)}")


def _place(clip: Clip) -> Clip:
    return Clip(clip.path, 0, clip.start, clip.end)


def _targets(manifests: dict[str, Manifest], root: Path, out: Path) -> dict[Clip, str]:
    """Returns the path of each clip's copy, by the clip without its label.

    No two paths are the same, even on disks that do not tell a from A. Two spellings of one original, as videos/a.mp4
    and videos/../videos/a.mp4, have one copy.
    """
    places = sorted({_place(clip) for manifest in manifests.values() for clip in manifest.clips}, key=repr)
    originals = {clip: repr((os.path.relpath(clip.path, root), clip.start, clip.end)) for clip in places}
    names = {clip: _name(clip, root) for clip in places}
    while shared := _shared(names, originals):
        for clip in shared:
            digest = hashlib.sha256(originals[clip].encode(errors="surrogateescape")).hexdigest()[:8]
            names[clip] = f"{names[clip].removesuffix('.mp4')}-{digest}.mp4"
    return {clip: os.path.join(out, name) for clip, name in names.items()}


def _shared(names: dict[Clip, str], originals: dict[Clip, str]) -> list[Clip]:
    """Returns the clips whose name another original has, too."""
    owners: dict[str, set[str]] = {}
    for clip, name in names.items():
        owners.setdefault(_folded(name), set()).add(originals[clip])
    return [clip for clip, name in names.items() if len(owners[_folded(name)]) > 1]


def _name(clip: Clip, root: Path) -> str:
    """Returns the copy's path below the folder of copies: the original's path, then the times of a part, then .mp4.

    The original's ending stays in the name, so that a name hardly ever depends on the other clips. When clips come or
    go, a copy that was made for one clip is then not taken for another's.
    """
    name = os.path.relpath(clip.path, root)
    if name.split(os.sep)[0] == os.pardir:
        name = os.path.join("elsewhere", os.path.abspath(clip.path).lstrip(os.sep))
    if clip.start is not None or clip.end is not None:
        end = "end" if clip.end is None else format_seconds(clip.end)
        return f"{name}_{format_seconds(clip.start or 0)}_{end}.mp4"
    return name if name.endswith(".mp4") else f"{name}.mp4"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _is_newer(target: str, original: str) -> bool:
    try:
        return os.stat(target).st_mtime >= os.stat(original).st_mtime
    except OSError:
        return False
