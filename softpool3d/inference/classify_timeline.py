"""`classify --timeline`: prints and writes which label a video shows when."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from softpool3d.datasets.inputs import explain
from softpool3d.datasets.video.decoder import DecodeError
from softpool3d.datasets.video.stream import FrameStream
from softpool3d.errors import UsageError, WorkError
from softpool3d.files import replacing, write_atomically
from softpool3d.inference import timeline_files as files
from softpool3d.inference.classifier import Classifier
from softpool3d.inference.one_each import bar_of, check_targets, named
from softpool3d.inference.predictor import NoAnswer
from softpool3d.inference.timeline import VideoTimeline, watch
from softpool3d.runs.lock import Taken, claim_files
from softpool3d.runtime.interrupt import Interrupted
from softpool3d.signals import number_of


@dataclass(frozen=True)
class Options:
    """The options of `classify --timeline`.

    window, hop: length of a window, and distance between the starts of two, in seconds. None for the span of one clip,
        and for half a window.
    out, plot, annotate: files to write; {name} in them stands for the video's name without its ending.
    """

    window: float | None
    hop: float | None
    smooth: int
    min_score: float
    out: Path | None
    plot: Path | None
    annotate: Path | None
    overwrite: bool
    as_json: bool

    def check(self, videos: Sequence[str]) -> None:
        """Raises UsageError for files that cannot be written as asked, before any video is read."""
        for option, path, known in (
            ("--out", self.out, files.FORMATS),
            ("--plot", self.plot, files.PLOTS),
            ("--annotate", self.annotate, files.VIDEOS),
        ):
            if path is None:
                continue
            files.check_ending(option, path, known)
            if len(videos) > 1 and "{name}" not in str(path):
                raise UsageError(f"{option} {path}: {len(videos)} videos need a file each, as in {{name}}{path.suffix}")
            check_targets(option, path, videos, self.overwrite)

    def targets(self, video: str) -> list[Path]:
        """Returns the files that are written for a video."""
        return [named(path, video) for path in (self.out, self.plot, self.annotate) if path is not None]


def seconds(option: str, text: str | None) -> float | None:
    """Returns the seconds that a text such as 2, 2s, 500ms or 1.5m stands for.

    Raises:
        UsageError: if the text is no time above 0.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s|m|h|)", text.strip())
    value = float(match[1]) * {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if value <= 0:
        raise UsageError(f"{option} {text}: write a time above 0, as in 2s, 500ms or 1.5m")
    return value


def timelines(make_classifier: Callable[[], Classifier], videos: Sequence[str], options: Options) -> None:
    """Prints and writes the timeline of each video.

    Raises:
        WorkError: if some could not be read or written; all others are done then.
    """
    options.check(videos)
    classifier, failed = make_classifier(), 0
    for video in videos:
        try:
            with claim_files(options.targets(video), options.overwrite):
                _one(classifier, video, options)
        except (WorkError, Taken) as error:
            failed += 1
            reason = f"cannot read {video}: {explain(error)}" if isinstance(error, DecodeError) else str(error)
            reason = f"cannot classify {video}: {error}" if isinstance(error, NoAnswer) else reason
            print(f"error: {reason}", file=sys.stderr)
        except KeyboardInterrupt as stop:
            raise Interrupted(f"stopped in {video}", number_of(stop)) from None
    if failed:
        raise WorkError(f"{len(videos) - failed} of {len(videos)} done; {failed} could not be (listed above)")


def _one(classifier: Classifier, video: str, options: Options) -> None:
    with FrameStream(video) as stream:
        duration = stream.duration
    with bar_of(video, duration) as bar:
        task = bar.add_task("", total=duration)
        found = watch(
            classifier,
            video,
            options.window,
            options.hop,
            options.smooth,
            options.min_score,
            lambda seconds: bar.update(task, completed=seconds),
        )
    if found.damage:
        print(f"note: {video}: {found.damage}", file=sys.stderr)
    if options.as_json:
        print(json.dumps(files.as_record(found), ensure_ascii=False), flush=True)
    else:
        _print(found, options.min_score)
    if options.out:
        target = named(options.out, video)
        write_atomically(target, files.rendered(found, target.suffix))
    if options.plot:
        with replacing(named(options.plot, video)) as temporary:
            files.draw_plot(temporary, found, options.min_score)
    if options.annotate:
        _annotate(named(options.annotate, video), found)


def _annotate(target: Path, found: VideoTimeline) -> None:
    from softpool3d.datasets.video.encoder import write_video

    with FrameStream(found.file) as stream:
        fps, duration = stream.fps, stream.duration
    with replacing(target) as temporary, bar_of(f"writing {target.name}", duration) as bar:
        task = bar.add_task("", total=duration)

        def shown(pictures):
            for number, picture in enumerate(pictures):
                bar.update(task, completed=number / fps)
                yield picture

        with closing(files.annotated_frames(found)) as pictures:  # ends the thread that reads, whatever happens
            write_video(temporary, shown(pictures), fps)


def _print(found: VideoTimeline, min_score: float) -> None:
    print(f"{found.file}  {found.duration:.1f} s, {len(found.windows)} windows")
    for segment in found.segments:
        print(f"  {segment.start:8.1f} s  to {segment.end:8.1f} s  {segment.score:6.1%}  {segment.label}")
    below = found.duration - sum(segment.end - segment.start for segment in found.segments)
    if not found.segments:
        print(f"  no label reaches --min-score {min_score:g}")
    elif below > 0.05:
        print(f"  {below:8.1f} s of it ({below / found.duration:.0%}) lie below --min-score {min_score:g}")
