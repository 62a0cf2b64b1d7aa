"""Show a clip or a picture beside its pooled forms: soft, average, maximum, strided, any kind there is.

python tools/visualize.py clip.mp4 --pools soft,avg,max,stride --out pooled.mp4
python tools/visualize.py clip.mp4 --repeat 3 --format gif            # 2x, 4x, 8x smaller in time, height and width
python tools/visualize.py photo.jpg --pools soft --below              # the picture above, SoftPool's below
python tools/visualize.py videos/ --measure --csv kept.csv --plot kept.png      # PSNR and SSIM of what pooling leaves
python tools/visualize.py clip.mp4 --report report.html               # a page with players in step and all figures

Pooled clips are drawn at the original's size, each value as a block of pixels, shown for as many frames as were pooled,
so that all clips play in step. SoftPool's weights depend on the scale of the values: pixels lie in [0, 1] here, and
beta multiplies them (1 is close to average pooling; 255, which is beta 1 on [0, 255], close to max pooling).
"""

import math
import shlex
import sys
from pathlib import Path

import typer

from softpool3d.command import Asked
from softpool3d.errors import SoftPool3dError, UsageError, WorkError
from softpool3d.naming import check_files


def main(
    clips: list[Path] = typer.Argument(help="Video files, pictures, folders of videos or of frames."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="A file: .mp4 (.mkv, .mov), .gif, .png (.jpg: a contact sheet); or a folder of them."
    ),
    format: str | None = typer.Option(None, help="mp4, gif or png, where --out does not say; mp4, of a picture png."),
    kernel: str = typer.Option("2", help="Pool so many frames, rows and columns into one: 2, or 1,2,2."),
    pools: str = typer.Option("soft,avg,max,stride", help="Kinds of pooling (`softpool3d models --pools`), stride."),
    beta: str = typer.Option("16", help="SoftPool's inverse temperatures for pixels in [0, 1], like 1,4,16."),
    repeat: int = typer.Option(1, min=1, help="Times to pool, each time the previous result: 2x, 4x, 8x smaller."),
    start: float = typer.Option(0.0, min=0, help="Second to begin at."),
    seconds: float = typer.Option(10.0, min=0.01, help="Length to show."),
    short_side: int = typer.Option(224, min=16, help="Pixels of the shorter side of each picture; never enlarged."),
    below: bool = typer.Option(False, "--below", help="Original above, pooled below, instead of side by side."),
    columns: int = typer.Option(6, min=1, help="Frames of a contact sheet."),
    measure: bool = typer.Option(False, "--measure", help="Print PSNR and SSIM of the clip brought back trilinearly."),
    csv: Path | None = typer.Option(None, help="Write PSNR and SSIM as CSV."),
    plot: Path | None = typer.Option(None, help="Draw PSNR and SSIM, as .png, .svg or .pdf."),
    report: Path | None = typer.Option(None, help="Write a page with players, split view, figures: .html."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace files that exist."),
) -> None:
    """Draw clips beside their pooled forms; measure what each pooling keeps; report it.

    With --measure, --csv, --plot or --report, clips are drawn only where --out or --format asks for it.
    """
    asked = Asked(main, locals())
    check_files(clips)
    from softpool3d.visual.output import check_free, write_sheet

    windows, betas, kinds = _kernel(kernel), _betas(beta), _kinds(pools)
    found = _expand(clips)
    measures = measure or csv is not None or plot is not None
    draws = out is not None or format is not None or not (measures or report)
    targets = _targets(found, out, format) if draws else dict.fromkeys(found)
    _check_files(csv, plot, report, len(found))
    written = [path for path in (*targets.values(), csv, plot, report) if path is not None]
    _check_options(asked, found, draws, written, "soft" in kinds)
    check_free(written, found, overwrite)

    from softpool3d.runs.lock import claim_files
    from softpool3d.visual.pooled import check_size, pool_clip, poolings
    from softpool3d.visual.quality import measure as compare
    from softpool3d.visual.sheet import Sheet, original_panel, pooled_panel
    from softpool3d.visual.source import read_source

    layers = {size: poolings(kinds, betas, size) for size in (windows, (1, *windows[1:]))}  # clips, pictures
    names, measured = _names(found), {}

    def draw(clip: Path, target: Path | None) -> None:
        source = read_source(clip, start, seconds, short_side)
        if source.damage:
            print(f"note: {clip}: {source.damage}", file=sys.stderr)
        size = (1, *windows[1:]) if source.is_picture else windows
        check_size(source, size, repeat)
        levels = [pool_clip(source.frames, layer, size, repeat) for layer in layers[size]]
        original = original_panel(source)
        pooled = [[pooled_panel(p, source.is_picture) for p in line] for line in levels]
        if target is not None:
            lines = [[original, *(line[0] for line in pooled)]] if repeat == 1 else [[original, *p] for p in pooled]
            caption = f"{clip.name}: pixels in [0, 1], pooled {_over(size, source.is_picture, repeat)}; "
            caption += "every pooled value is drawn as a block"
            write_sheet(target, Sheet(lines, source, caption, below), columns)
            print(_line(target, source, levels))
        if measures or report:
            measured[names[clip]] = [compare(source.frames, p, source.is_picture) for line in levels for p in line]
        if report is not None:
            panels = [original, *(p for line in pooled for p in line)]
            _report(report, source, panels, measured[names[clip]], size, repeat)

    def work(clip: Path, target: Path | None) -> None:
        with claim_files([target], overwrite):
            draw(clip, target)

    with claim_files([csv, plot, report], overwrite):
        try:
            _each(targets, work)
        finally:  # shows what was measured, even if some clips failed
            if measured and measures:
                _show(measured, csv, plot)


def _check_options(asked: Asked, clips: list[Path], draws: bool, written: list[Path], softly: bool) -> None:
    """Refuses options that would do nothing."""
    from softpool3d.datasets.video.pictures import is_still
    from softpool3d.visual.output import PICTURES

    asked.needs("soft among --pools", softly, "beta")
    asked.needs("a clip that is drawn (--out, --format)", draws, "below")
    asked.needs("a contact sheet (--format png)", any(path.suffix.lower() in PICTURES for path in written), "columns")
    asked.needs("a video", not clips or not all(map(is_still, clips)), "start", "seconds")
    asked.needs("a file that is written", bool(written), "overwrite")


def _check_files(csv: Path | None, plot: Path | None, report: Path | None, clips: int) -> None:
    for path, endings in ((csv, (".csv",)), (plot, (".png", ".svg", ".pdf")), (report, (".html", ".htm"))):
        if path is not None and path.suffix.lower() not in endings:
            raise UsageError(f"{path}: unknown format {path.suffix!r} (known here: {', '.join(endings)})")
    if report is not None and clips != 1:
        raise UsageError(f"--report is a page about one clip, and there are {clips}")


def _kernel(text: str) -> tuple[int, int, int]:
    try:
        sizes = [int(size) for size in text.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 3) or min(sizes) < 1 or max(sizes) == 1:
        raise UsageError(f"--kernel {text}: give a number from 2 on, or frames, rows and columns, as in 1,2,2")
    return tuple(sizes * 3 if len(sizes) == 1 else sizes)


def _kinds(text: str) -> list[str]:
    if not (kinds := text.replace(",", " ").split()):
        raise UsageError("--pools names no kind of pooling; try --pools soft,avg,max,stride")
    return kinds


def _betas(text: str) -> list[float]:
    try:
        betas = [float(value) for value in text.split(",")]
    except ValueError:
        betas = [math.nan]
    if not all(map(math.isfinite, betas)):
        raise UsageError(f"--beta {text} has to be a finite number, or several: 1,4,16")
    return list(dict.fromkeys(betas))


def _expand(clips: list[Path]) -> list[Path]:
    """Returns the clips: a folder of videos is replaced by its videos, a folder of frames is one clip."""
    from softpool3d.datasets.video.find import videos_in

    found: list[Path] = []
    for clip in clips:
        found += map(Path, videos_in(clip)) if clip.is_dir() else [clip]
    return list(dict.fromkeys(found))


def _names(clips: list[Path]) -> dict[Path, str]:
    """Returns the names of the clips in tables, as short as tells them apart."""
    for name in (lambda clip: clip.name, lambda clip: "/".join(clip.parts[-2:]), str):
        names = {clip: name(clip) for clip in clips}
        if len(set(names.values())) == len(clips):
            break
    return names


def _targets(clips: list[Path], out: Path | None, format: str | None) -> dict[Path, Path]:
    """Returns clip -> the file to draw it into."""
    from softpool3d.datasets.video.pictures import is_still
    from softpool3d.visual.output import FORMATS

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
        suffix = f".{format.lower()}" if format else ".png" if is_still(clip) else ".mp4"
        names = (clip.stem, clip.name, "_".join(clip.parts[-2:]), "_".join(clip.absolute().parts[1:]))
        free = (Path(folder or ".") / f"{name}_pooled{suffix}" for name in names)
        targets[clip] = next(path for path in free if path not in targets.values())
    for clip, target in targets.items():
        if target.suffix.lower() not in FORMATS:
            raise UsageError(f"--out {target}: unknown format {target.suffix!r} (known: {known})")
        if format and target.suffix.lower() != f".{format.lower()}":
            raise UsageError(f"--out {target} is not what --format {format} says; give one of the two")
        if is_still(clip) and target.suffix.lower() not in (".png", ".jpg"):
            raise UsageError(f"{target}: a picture has one frame and makes a .png, not a {target.suffix}")
    return targets


def _each(targets: dict[Path, Path | None], work) -> None:
    """Runs `work` on each clip. A single clip's error is raised; of several, errors are printed and the others done."""
    from rich.console import Console
    from rich.progress import track

    console, failed = Console(stderr=True), 0
    hidden = len(targets) == 1 or not console.is_terminal
    for clip, target in track(targets.items(), "Clips", console=console, transient=True, disable=hidden):
        try:
            work(clip, target)
        except SoftPool3dError as error:
            if len(targets) == 1:
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    if len(targets) > 1:
        counted = f"{len(targets) - failed} of {len(targets)} clips done"
        if failed:
            raise WorkError(f"{counted}, {failed} failed")
        print(counted, file=sys.stderr)


def _over(size: tuple[int, int, int], is_picture: bool, repeat: int) -> str:
    text = "x".join(map(str, size[1:] if is_picture else size))
    return text if repeat == 1 else f"{text}, {repeat} times over"


def _line(target: Path, source, levels: list) -> str:
    def size(frames) -> str:
        time, _, height, width = frames.shape
        return (
            f"{width}x{height}" if source.is_picture else f"{time} frame{'s' if time > 1 else ''} of {width}x{height}"
        )

    kinds = ", ".join(line[0].label for line in levels)
    to = ", ".join(size(pooled.frames) for pooled in levels[0])
    length = f"; {len(source.frames) / source.fps:.1f} s at {source.fps:.4g} frames a second"
    return f"{target}: {size(source.frames)}, pooled to {to} ({kinds}){'' if source.is_picture else length}"


def _show(measured: dict, csv: Path | None, plot: Path | None) -> None:
    from rich.console import Console

    from softpool3d.files import replacing, write_csv
    from softpool3d.visual import quality_table

    Console(width=1000).print(quality_table.table(measured))  # wide rather than cut
    if csv is not None:
        write_csv(csv, quality_table.csv_rows(measured))
    if plot is not None:
        with replacing(plot) as temporary:
            quality_table.figure(measured).savefig(temporary, dpi=110)


def _report(path: Path, source, panels: list, qualities: list, size: tuple[int, int, int], repeat: int) -> None:
    from softpool3d.visual.report import settings_of, write_report

    if source.is_picture:
        raise UsageError(f"--report: {source.path} is a picture, and the page is a player; write a .png instead")
    program = "python tools/visualize.py" if sys.argv[0].endswith("visualize.py") else "softpool3d"
    settings = settings_of(source, _over(size, False, repeat))
    write_report(path, source, panels, qualities, settings, f"{program} {shlex.join(sys.argv[1:])}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    from softpool3d.command import run_tool

    run_tool(main)
