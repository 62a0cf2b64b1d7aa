"""A file for each video: {name} in a path stands for the video's name without its ending."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from softpool3d.datasets.inputs import clip_name
from softpool3d.datasets.manifest import Clip
from softpool3d.datasets.video.pictures import is_still
from softpool3d.errors import UsageError


def named(path: Path, video: str) -> Path:
    """Returns the file that is written for a video."""
    return Path(str(path).replace("{name}", Path(video).stem))


def check_targets(option: str, path: Path, videos: Sequence[str], may_exist: bool) -> None:
    """Raises UsageError if two videos would share a file, one would be written over, or a file is there already."""
    read = {os.path.realpath(video) for video in videos}
    written: dict[Path, str] = {}
    for video in videos:
        target = named(path, video)
        if target in written:
            raise UsageError(
                f"{option} {path}: {written[target]} and {video} would both be written to {target}; "
                "rename one of them, or give each a command of its own"
            )
        written[target] = video
        if target.exists() and not may_exist:
            raise UsageError(f"{option} {target} exists; give another name, or --overwrite")
        if os.path.realpath(target) in read:
            raise UsageError(f"{option} {target} is the video itself; give another name")


def whole_videos(option: str, clips: Iterable[Clip]) -> list[str]:
    """Returns the clips' files.

    Raises:
        UsageError: for pictures and parts of files, as a window slides over whole videos.
    """
    videos = []
    for clip in clips:
        if is_still(clip.path):
            raise UsageError(f"{option} is of videos, and {clip.path} is a picture")
        if clip.start is not None or clip.end is not None:
            raise UsageError(f"{option} is of whole files, and the list names a part: {clip_name(clip)}")
        videos.append(clip.path)
    return videos


def bar_of(text: str, total: float | None) -> Progress:
    """Returns a progress bar for the seconds of one video, on the error output if that is a terminal."""
    console = Console(stderr=True)
    share = "{task.percentage:3.0f} %" if total else "{task.completed:.0f} s"
    name = Path(text).name.replace("{", "{{").replace("}", "}}")  # TextColumn takes a format
    columns = (TextColumn(name, markup=False), BarColumn(None), TextColumn(share), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
