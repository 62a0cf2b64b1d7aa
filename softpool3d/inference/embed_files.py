"""`softpool3d embed`: writes the features of videos, or of windows that slide over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softpool3d.datasets.inputs import Inputs, clip_name, explain
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.datasets.video.stream import FrameStream
from softpool3d.evaluation.features import schema
from softpool3d.inference.bulk import Engine
from softpool3d.inference.classifier import Classifier
from softpool3d.inference.each_file import Results, Share, go_through
from softpool3d.inference.embedder import Embedder, Features
from softpool3d.inference.features_file import FeaturesFile, FeaturesFiles, features_row
from softpool3d.inference.one_each import bar_of, check_targets, named, whole_videos
from softpool3d.inference.parts import Parts, is_folder
from softpool3d.inference.predictor import NoAnswer
from softpool3d.inference.trained import Trained
from softpool3d.inference.windows import windows_of
from softpool3d.inference.work import Embedding, Failure


@dataclass(frozen=True)
class Options:
    """The options of `embed`.

    network: those of `Classifier`.
    layer, pool: as for `Classifier.features`.
    window, hop: length of a window, and distance between the starts of two, in seconds; None for whole videos.
    out: a file, a folder of parts, or, with {name} in it, a file for each video.
    """

    network: dict[str, Any]
    layer: str | None
    pool: str | None
    window: float | None
    hop: float | None
    out: str
    resume: bool
    overwrite: bool
    jobs: int | None


def embed(load: Callable[[], Trained], inputs: Inputs, options: Options, engine: Engine) -> None:
    """Writes the features of this process's share of the inputs: with torchrun, every WORLD_SIZE-th file.

    Args:
        load: returns the network.
        engine: starts the work; windows slide in this process.

    Raises:
        WorkError: if some files could not be embedded; all others are done then.
        Interrupted: after Ctrl-C.
    """
    share, one_each = Share.mine(), "{name}" in options.out
    with share.claimed(None if one_each else options.out):
        trained = load()
        inputs = replace(inputs, pictures=trained.config.data.of_pictures)
        total = inputs.count()
        if options.window is not None:
            return _embed_windows(trained, inputs, total, share, options)
        with engine(trained, Embedding(options.network, options.layer, options.pool)) as started:
            clips = list(inputs) if one_each else inputs
            results = _results(clips, started.about(), share, options)
            go_through(clips, total, share, started.run, results, jobs=options.jobs, done="embedded")


def _embed_windows(trained: Trained, inputs: Inputs, total: int | None, share: Share, options: Options) -> None:
    embedder = Classifier(trained, **options.network).embedder(options.layer, options.pool)
    clips = list(inputs)
    whole_videos("--window", clips)
    results = _results(clips, embedder.about(options.window, options.hop), share, options)

    def run(left: Iterator[Clip], _: int) -> Iterator[Features | Failure]:
        return _windows(embedder, left, options, results)

    go_through(clips, total, share, run, results, done="embedded", bar=False)


def _results(clips: Iterable[Clip], about: dict[str, Any], share: Share, options: Options) -> Results:
    out, how = options.out, (options.resume, options.overwrite)
    if "{name}" in out:
        return _one_each(clips, about, options)
    if is_folder(out):
        return Parts(out, about, schema(json.dumps(about, ensure_ascii=False)), features_row, *how)
    return FeaturesFile(Path(out), about, *how, share.rank, share.world_size)


def _one_each(clips: Iterable[Clip], about: dict, options: Options) -> FeaturesFiles:
    videos = [clip_name(clip) for clip in clips]
    out = Path(options.out)
    check_targets("--out", out, videos, options.overwrite or options.resume)
    targets = {video: named(out, video) for video in videos}
    return FeaturesFiles(out, targets, about, options.resume, options.overwrite)


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
