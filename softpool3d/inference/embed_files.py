"""`softpool3d embed`: writes the features of videos, or of windows that slide over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from softpool3d.datasets.inputs import Inputs, clip_name, explain
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.datasets.video.stream import FrameStream
from softpool3d.inference.bulk import Failure, embed_files
from softpool3d.inference.classifier import Classifier
from softpool3d.inference.each_file import Share, go_through
from softpool3d.inference.embedder import Embedder, Features
from softpool3d.inference.features_file import FeaturesFile, FeaturesFiles
from softpool3d.inference.one_each import bar_of, check_targets, named, whole_videos
from softpool3d.inference.predictor import NoAnswer
from softpool3d.inference.windows import windows_of


@dataclass(frozen=True)
class Options:
    """The options of `embed`.

    layer, pool: as for `Classifier.features`.
    window, hop: length of a window, and distance between the starts of two, in seconds; None for whole videos.
    out: with {name} in it, each video has a file of its own.
    """

    layer: str | None
    pool: str | None
    window: float | None
    hop: float | None
    out: Path
    resume: bool
    overwrite: bool
    jobs: int | None


def embed(make_classifier: Callable[[], Classifier], inputs: Inputs, options: Options) -> None:
    """Writes the features of this process's share of the inputs: with torchrun, every WORLD_SIZE-th file.

    Raises:
        WorkError: if some files could not be embedded; all others are done then.
        Interrupted: after Ctrl-C.
    """
    share, one_each = Share.mine(), "{name}" in str(options.out)
    with share.claimed(None if one_each else options.out):
        classifier = make_classifier()
        embedder = classifier.embedder(options.layer, options.pool)
        inputs = replace(inputs, pictures=classifier.takes_pictures)
        total = inputs.count()
        clips = list(inputs) if one_each or options.window is not None else inputs
        if options.window is not None:
            whole_videos("--window", clips)
        about = embedder.about(options.window, options.hop)
        if one_each:
            results = _one_each(clips, about, options)
        else:
            results = FeaturesFile(options.out, about, options.resume, options.overwrite, share.rank, share.world_size)

        def run(left: Iterator[Clip], jobs: int) -> Iterator[Features | Failure]:
            if options.window is None:
                return embed_files(embedder, left, jobs)
            return _windows(embedder, left, options, results)

        bar = options.window is None
        go_through(clips, total, share, run, results, jobs=options.jobs, done="embedded", bar=bar)


def _one_each(clips: Iterable[Clip], about: dict, options: Options) -> FeaturesFiles:
    videos = [clip_name(clip) for clip in clips]
    check_targets("--out", options.out, videos, options.overwrite or options.resume)
    targets = {video: named(options.out, video) for video in videos}
    return FeaturesFiles(options.out, targets, about, options.resume, options.overwrite)


def _windows(
    embedder: Embedder, clips: Iterator[Clip], options: Options, results: FeaturesFile | FeaturesFiles
) -> Iterator[Features | Failure]:
    """Adds the windows of each video to the results as they are known, and yields what is left to say of the video."""
    for clip in clips:
        try:
            damage = _add_windows(embedder, clip.path, options, results)
        except (DecodeError, NoAnswer) as error:
            results.undo()
            read = isinstance(error, NoAnswer)
            yield Failure(clip.path, str(error) if read else explain(error), "embed" if read else "read")
        else:
            yield Features(clip.path, (), damage)


def _add_windows(embedder: Embedder, video: str, options: Options, results: FeaturesFile | FeaturesFiles) -> str:
    data = embedder.config.data
    with (
        FrameStream(video, data.decode_timeout_s, data.max_missing) as stream,
        bar_of(video, stream.duration) as bar,
        closing(windows_of(embedder, stream, options.window, options.hop)) as windows,
    ):
        task = bar.add_task("", total=stream.duration)
        for start, end, vector in windows:
            results.add(video, start, end, vector)
            bar.update(task, completed=end)
        return str(stream.damage or "")
