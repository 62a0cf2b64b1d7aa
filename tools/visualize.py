"""Show a clip beside its soft-, average- and max-pooled forms, smaller in time, height and width.

python tools/visualize.py clip.mp4 --out pooled.mp4
python tools/visualize.py clip.mp4 --out sheet.png --kernel 4 --beta 64

The pooled clips are drawn at the original's size, each value as a block of pixels that stays for as many frames as were
pooled, so that all play in step. SoftPool's weights depend on the scale of the values: here pixels lie in [0, 1], and
beta multiplies them (1 is close to average pooling, 255 close to max pooling).
"""

import math
import os
from pathlib import Path

import typer

from softpool3d.errors import UsageError, WorkError

FORMATS = (".mp4", ".mkv", ".mov", ".gif", ".png")


def main(
    clip: Path = typer.Argument(help="A video file."),
    out: Path = typer.Option(help="What to write: .mp4 (.mkv, .mov), .gif, or .png for a contact sheet."),
    kernel: int = typer.Option(2, min=1, help="Pool so many frames, rows and columns into one."),
    beta: float = typer.Option(16.0, help="SoftPool's inverse temperature, for pixels in [0, 1]."),
    seconds: float = typer.Option(10.0, min=0.01, help="Length to show, from the beginning."),
    short_side: int = typer.Option(224, min=16, help="Pixels of the shorter side of each picture; never enlarged."),
    overwrite: bool = typer.Option(False, help="Replace OUT if it exists."),
) -> None:
    """Draw a clip beside its soft-, average- and max-pooled forms."""
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {out}: unknown format {out.suffix!r} (known: {', '.join(FORMATS)})")
    if not math.isfinite(beta):
        raise UsageError(f"--beta {beta} has to be a finite number")
    if out.exists() and not overwrite:
        raise UsageError(f"--out {out} exists; give another name, or --overwrite")

    frames, fps = _read(clip, seconds, short_side, kernel)
    rows = {f"original {_size(frames)}": frames}
    for kind, pooled in _pool(frames, kernel, beta).items():
        rows[f"{kind} {_size(pooled)}"] = _as_blocks(pooled, kernel, frames.shape)
    try:
        _write(out, rows, fps)
    except OSError as error:
        raise WorkError(f"cannot write {out}: {(error.strerror or str(error)).lower()}") from None
    print(f"{out}: {', '.join(rows)}; {len(frames) / fps:.1f} s at {fps:.4g} frames a second")


def _read(path: Path, seconds: float, short_side: int, kernel: int):
    """uint8 (T, C, H, W) from the beginning of the video, and its frames a second."""
    import numpy as np
    import torch

    from softpool3d.datasets.decoder import open_video
    from softpool3d.datasets.transforms import resize_short_side

    with open_video(path) as video:
        count = min(video.num_frames, max(round(seconds * video.fps), kernel))
        # in portions, so that a large picture is only kept at the size shown
        portions = (video.frames(np.arange(a, min(a + 32, count))) for a in range(0, count, 32))
        frames = torch.cat([resize_short_side(p, min(short_side, *p.shape[-2:])) for p in portions])
        fps = video.fps
    if min(frames.shape[0], *frames.shape[-2:]) < kernel:
        raise UsageError(f"--kernel {kernel}: {path} has {_size(frames)} frames, rows and columns")
    return frames, fps


def _pool(frames, kernel: int, beta: float) -> dict:
    """name -> uint8 (T', C, H', W'), each dimension divided by `kernel` and rounded down."""
    import torch
    import torch.nn.functional as F

    from softpool3d import soft_pool3d

    kinds = {
        f"SoftPool (beta {beta:g})": lambda x: soft_pool3d(x, kernel, beta=beta),
        "average pool": lambda x: F.avg_pool3d(x, kernel),
        "max pool": lambda x: F.max_pool3d(x, kernel),
    }
    step = kernel * max(1, 32 // kernel)  # whole windows, few enough frames at a time to be small as floats
    pooled: dict[str, list] = {name: [] for name in kinds}
    for start in range(0, frames.shape[0] // kernel * kernel, step):
        stop = min(start + step, frames.shape[0] // kernel * kernel)
        x = frames[start:stop].transpose(0, 1).float() / 255
        for name, pool in kinds.items():
            pooled[name].append((pool(x) * 255).round().clamp(0, 255).to(torch.uint8).transpose(0, 1))
    return {name: torch.cat(parts) for name, parts in pooled.items()}


def _as_blocks(pooled, kernel: int, shape):
    """Back to the original's size: every value becomes a block of kernel^3; what was left over repeats the edge."""
    import torch

    for dim, size in ((0, shape[0]), (2, shape[2]), (3, shape[3])):
        index = torch.arange(size).div(kernel, rounding_mode="floor").clamp_max(pooled.shape[dim] - 1)
        pooled = pooled.index_select(dim, index)
    return pooled


def _size(frames) -> str:
    return f"{frames.shape[0]}x{frames.shape[2]}x{frames.shape[3]}"


def _write(out: Path, rows: dict, fps: float) -> None:
    """Writes a temporary file beside `out` and renames it."""
    import numpy as np
    from PIL import Image

    from softpool3d.datasets.encoder import write_video

    clips = [np.ascontiguousarray(clip.permute(0, 2, 3, 1).numpy()) for clip in rows.values()]
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if out.suffix.lower() == ".png":
            times = np.unique(np.linspace(0, len(clips[0]) - 1, 6).round().astype(int))
            lines = [
                np.concatenate([_label(text, clip.shape[2] * len(times)), np.concatenate(list(clip[times]), axis=1)])
                for text, clip in zip(rows, clips, strict=True)
            ]
            Image.fromarray(np.concatenate(lines)).save(temporary)
        else:
            panels = [
                np.concatenate([np.repeat(_label(text, clip.shape[2])[None], len(clip), axis=0), clip], axis=1)
                for text, clip in zip(rows, clips, strict=True)
            ]
            pictures = np.concatenate(panels, axis=2)
            if out.suffix.lower() == ".gif":
                images = [Image.fromarray(picture) for picture in pictures]
                duration = max(20, round(1000 / fps))  # browsers slow down anything below 20 ms
                images[0].save(temporary, save_all=True, append_images=images[1:], duration=duration, loop=0)
            else:
                write_video(temporary, pictures, fps)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _label(text: str, width: int):
    """White on black, uint8 (height, width, 3)."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    size = 14
    font = ImageFont.load_default(size)
    while size > 8 and font.getlength(text) > width - 8:
        size -= 1
        font = ImageFont.load_default(size)
    image = Image.new("RGB", (width, 22), "black")
    ImageDraw.Draw(image).text((4, 3), text, "white", font)
    return np.asarray(image)


if __name__ == "__main__":
    from softpool3d.cli import run_tool

    run_tool(main)
