"""Show a clip or a picture beside its pooled forms: soft, average, maximum, strided, any kind there is.

python tools/visualize.py clip.mp4 --pools soft,avg,max,stride --out pooled.mp4
python tools/visualize.py clip.mp4 --repeat 3 --format gif          # 2x, 4x, 8x smaller in time, height and width
python tools/visualize.py photo.jpg --pools soft --below            # the picture above, SoftPool's below

Pooled clips are drawn at the original's size, each value as a block of pixels that stays for as many frames as were
pooled, so that all play in step. SoftPool's weights depend on the scale of the values: pixels lie in [0, 1] here, and
beta multiplies them (1 is close to average pooling; 255, which is beta 1 on [0, 255], close to max pooling).
"""

import math
import sys
from pathlib import Path

import typer

from softpool3d.errors import SoftPool3dError, UsageError, WorkError


def main(
    clips: list[Path] = typer.Argument(help="Video files, pictures, folders of videos or of frames."),
    out: Path | None = typer.Option(
        None, help="What to write: .mp4 (.mkv, .mov), .gif, .png (.jpg: a contact sheet); a folder for several clips."
    ),
    format: str | None = typer.Option(None, help="mp4, gif or png, where --out does not say; mp4, of a picture png."),
    kernel: str = typer.Option("2", help="Pool so many frames, rows and columns into one: 2, or 1,2,2."),
    pools: str = typer.Option("soft,avg,max,stride", help="Kinds of pooling (`softpool3d models --pools`), stride."),
    beta: str = typer.Option("16", help="SoftPool's inverse temperatures for pixels in [0, 1], like 1,4,16."),
    repeat: int = typer.Option(1, min=1, help="Pool so often, each time what came out before: 2x, 4x, 8x smaller."),
    start: float = typer.Option(0.0, min=0, help="Second to begin at."),
    seconds: float = typer.Option(10.0, min=0.01, help="Length to show."),
    short_side: int = typer.Option(224, min=16, help="Pixels of the shorter side of each picture; never enlarged."),
    below: bool = typer.Option(False, "--below", help="Original above, pooled below, instead of side by side."),
    columns: int = typer.Option(6, min=1, help="Frames of a contact sheet."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace files that exist."),
) -> None:
    """Draw clips beside their soft-, average-, max-pooled and strided forms."""
    windows, betas = _kernel(kernel), _betas(beta)
    kinds = pools.replace(",", " ").split()
    if not kinds:
        raise UsageError("--pools names no kind of pooling; try --pools soft,avg,max,stride")
    targets = _targets(_expand(clips), out, format, overwrite)

    def draw(clip: Path, target: Path) -> None:
        from softpool3d.visual.output import write_sheet
        from softpool3d.visual.pooling import check_size, pool_clip, poolings
        from softpool3d.visual.sheet import Sheet, original_panel, pooled_panel
        from softpool3d.visual.source import read_source

        layers = poolings(kinds, betas, windows)
        source = read_source(clip, start, seconds, short_side)
        size = (1, *windows[1:]) if source.is_picture else windows
        if source.is_picture:
            layers = poolings(kinds, betas, size)
            _check_picture(target)
        check_size(source, size, repeat)
        panel = original_panel(source)
        levels = [
            [pooled_panel(p, source.is_picture) for p in pool_clip(source.frames, layer, size, repeat)]
            for layer in layers
        ]
        lines = [[panel, *(line[0] for line in levels)]] if repeat == 1 else [[panel, *line] for line in levels]
        text = "x".join(map(str, size[1:] if source.is_picture else size))
        often = "" if repeat == 1 else f", {repeat} times over"
        caption = f"{clip.name}: pixels in [0, 1], pooled {text}{often}; every pooled value is drawn as a block"
        write_sheet(target, Sheet(lines, source, caption, below), columns)
        length = (
            ""
            if source.is_picture
            else f"; {len(source.frames) / source.fps:.1f} s at {source.fps:.4g} frames a second"
        )
        pooled = [f"{line[0].title} {', '.join(p.size.partition(',')[0] for p in line)}" for line in levels]
        print(f"{target}: original {source.size}; {'; '.join(pooled)}{length}; pixels in [0, 1]")

    _each(targets, draw)


def _kernel(text: str) -> tuple[int, int, int]:
    try:
        sizes = [int(size) for size in text.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 3) or min(sizes) < 1 or max(sizes) == 1:
        raise UsageError(f"--kernel {text}: give a number from 2 on, or frames, rows and columns, as in 1,2,2")
    return tuple(sizes * 3 if len(sizes) == 1 else sizes)


def _betas(text: str) -> list[float]:
    try:
        betas = [float(value) for value in text.split(",")]
    except ValueError:
        betas = [math.nan]
    if not all(map(math.isfinite, betas)):
        raise UsageError(f"--beta {text} has to be a finite number, or several: 1,4,16")
    return list(dict.fromkeys(betas))


def _expand(clips: list[Path]) -> list[Path]:
    """Folders of videos become those; a folder of frames is one clip."""
    from softpool3d.datasets.videos import find_videos

    found = []
    for clip in clips:
        inside = sorted(map(Path, find_videos(clip))) if clip.is_dir() else []
        found += inside or [clip]
    return found


def _targets(clips: list[Path], out: Path | None, format: str | None, overwrite: bool) -> dict[Path, Path]:
    """clip -> the file to write for it, none of which exists, or may be overwritten."""
    from softpool3d.visual.output import FORMATS
    from softpool3d.visual.source import PICTURES

    known = ", ".join(suffix[1:] for suffix in FORMATS)
    if format is not None and f".{format.lower()}" not in FORMATS:
        raise UsageError(f"--format {format}: unknown format (known: {known})")
    folder = out if out is not None and (out.is_dir() or len(clips) > 1 or not out.suffix) else None
    if folder is not None and folder.suffix.lower() in FORMATS and not folder.is_dir():
        raise UsageError(f"--out {out} is one file, for {len(clips)} clips; give a folder")
    targets: dict[Path, Path] = {}
    for clip in clips:
        if out is not None and folder is None:
            targets[clip] = out
            continue
        suffix = f".{format.lower()}" if format else ".png" if clip.suffix.lower() in PICTURES else ".mp4"
        names = (clip.stem, clip.name, "_".join(clip.parts[-2:]), "_".join(clip.absolute().parts[1:]))
        free = (Path(folder or ".") / f"{name}_pooled{suffix}" for name in names)
        targets[clip] = next(path for path in free if path not in targets.values())
    for clip, target in targets.items():
        if target.suffix.lower() not in FORMATS:
            raise UsageError(f"--out {target}: unknown format {target.suffix!r} (known: {known})")
        if format and target.suffix.lower() != f".{format.lower()}":
            raise UsageError(f"--out {target} is not what --format {format} says; give one of the two")
        _check_free(target, [clip], overwrite)
    return targets


def _check_free(target: Path, inputs: list[Path], overwrite: bool) -> None:
    if any(target.exists() and clip.exists() and target.samefile(clip) for clip in inputs):
        raise UsageError(f"--out {target} is the clip itself; give another name")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; give another name with --out, or --overwrite")


def _check_picture(target: Path) -> None:
    from softpool3d.visual.output import PICTURES

    if target.suffix.lower() not in PICTURES:
        raise UsageError(f"{target}: a picture has one frame and makes a .png, not a {target.suffix}")


def _each(targets: dict[Path, Path], draw) -> None:
    """One clip's error is raised; of several it is printed, and the others are still done."""
    failed = 0
    for clip, target in targets.items():
        try:
            draw(clip, target)
        except SoftPool3dError as error:
            if len(targets) == 1:
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    if len(targets) > 1:
        counted = f"{len(targets) - failed} of {len(targets)} clips done"
        if failed:
            raise WorkError(f"{counted}, {failed} failed")
        print(counted)


if __name__ == "__main__":
    from softpool3d.cli import run_tool

    run_tool(main)
