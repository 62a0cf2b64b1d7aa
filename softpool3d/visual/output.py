"""Writes sheets as MP4, GIF or PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from softpool3d.datasets.video.encoder import write_video
from softpool3d.errors import UsageError, WorkError, os_reason
from softpool3d.files import replacing
from softpool3d.visual.sheet import Sheet

VIDEOS, GIF, PICTURES = (".mp4", ".mkv", ".mov"), ".gif", (".png", ".jpg")
FORMATS = (*VIDEOS, GIF, *PICTURES)
_GIF_DELAY = 2  # hundredths of a second; browsers slow down what is shorter
_PALETTE_FRAMES = 8


def check_free(outputs: list[Path], inputs: list[Path], overwrite: bool) -> None:
    """Raises UsageError for an output that is one of the inputs, or that exists and may not be overwritten."""
    for path in outputs:
        if any(path.exists() and clip.exists() and path.samefile(clip) for clip in inputs):
            raise UsageError(f"{path} is the clip itself; give another name to write to")
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists; give another name, or --overwrite")


def write_sheet(path: Path, sheet: Sheet, contact_frames: int = 6) -> None:
    """Writes a sheet in the format of the name's ending: a video, a GIF or a picture.

    A picture of a clip is a contact sheet, with `contact_frames` frames of each panel.

    Raises:
        WorkError: if it cannot be written; a file that was there before stays then.
    """
    import av

    suffix = path.suffix.lower()
    try:
        with replacing(path) as temporary:
            if suffix in VIDEOS:
                write_video(temporary, _frames(sheet, path, range(sheet.num_frames)), sheet.fps)
            elif suffix == GIF:
                _write_gif(temporary, sheet, path)
            else:
                write_picture(temporary, sheet.frame(0) if sheet.num_frames == 1 else sheet.contact(contact_frames))
    except av.error.FFmpegError as error:  # from the encoder itself, as for pictures larger than H.264 allows
        raise WorkError(f"cannot write {path}: {os_reason(error)}") from None


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, uint8 (H, W, 3)."""
    from PIL import Image

    Image.fromarray(picture).save(path, quality=92)


def _frames(sheet: Sheet, path: Path, times: range):
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    console = Console(stderr=True)
    for t in track(
        times, f"Writing {escape(path.name)}", console=console, transient=True, disable=not console.is_terminal
    ):
        yield sheet.frame(t)


def _write_gif(path: Path, sheet: Sheet, name: Path) -> None:
    from PIL import Image

    step = int(np.ceil(_GIF_DELAY * sheet.fps / 100))  # above a GIF's rate frames are left out: motion keeps its speed
    times = range(0, sheet.num_frames, step)
    # one palette for all frames: colours do not flicker, and what stands still takes no space
    some = np.unique(np.linspace(0, sheet.num_frames - 1, _PALETTE_FRAMES).round().astype(int))
    palette = Image.fromarray(np.concatenate([sheet.frame(t) for t in some.tolist()])).quantize(256)
    images = (
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in _frames(sheet, name, times)
    )
    ends = np.append([t * 100 / sheet.fps for t in times], sheet.num_frames * 100 / sheet.fps).round()
    delays = (np.diff(ends) * 10).astype(int).tolist()
    next(images).save(path, save_all=True, append_images=images, duration=delays, loop=0, disposal=1)
