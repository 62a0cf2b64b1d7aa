"""Writes one HTML file that needs no server and no network: clips played in step, a split view, figures, settings."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

from softpool3d import __version__
from softpool3d.datasets.video.encoder import write_video
from softpool3d.files import write_atomically
from softpool3d.visual.quality import CHANNELS, Quality
from softpool3d.visual.quality_table import curves
from softpool3d.visual.sheet import Panel
from softpool3d.visual.source import Source

_GOP = 8  # frames between key frames: the slider shows any frame at once
_CRF = 17


def write_report(
    path: Path,
    source: Source,
    panels: Sequence[Panel],
    qualities: Sequence[Quality],
    settings: dict[str, str],
    command: str,
) -> None:
    """Writes the page about one clip.

    Args:
        panels: the original, followed by its pooled forms.
        settings: name -> value, listed on the page in this order.
        command: the command line that made the page.

    Raises:
        WorkError: if it cannot be written.
    """
    height, width = source.frames.shape[-2:]
    data = {
        "fps": source.fps,
        "frames": len(source.frames),
        "clips": [{"label": f"{panel.title}, {panel.size}", "video": _video(panel, source)} for panel in panels],
    }
    figure, span = _curves(qualities, source.fps)
    page = Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    content = page.substitute(
        title=html.escape(source.path.name),
        size=f"{len(source.frames)} frames of {height}x{width}",
        data=json.dumps(data).replace("<", "\\u003c"),
        table=_table(qualities),
        curves=figure,
        span=json.dumps(span),
        settings="\n".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in settings.items()),
        command=html.escape(command),
        version=__version__,
    )
    write_atomically(path, content.encode("utf-8", errors="replace"))


def settings_of(source: Source, pooled: str) -> dict[str, str]:
    """Returns what a page lists of a clip that was pooled over `pooled` (frames x rows x columns)."""
    return {
        "clip": str(source.path),
        "frames a second": f"{source.fps:.6g}",
        "pooled": f"{pooled} (frames x rows x columns)",
        "pixels": "in [0, 1]; SoftPool's beta multiplies them: beta 255 is beta 1 on [0, 255]",
    }


def _video(panel: Panel, source: Source) -> str:
    """Returns a panel as a data: address, with H.264 in MP4, which all browsers play."""
    height, width = source.frames.shape[-2:]
    pictures = (panel.picture(t, height, width) for t in range(len(source.frames)))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_video(file, pictures, source.fps, crf=_CRF, gop=_GOP)
        return "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode()


def _curves(qualities: Sequence[Quality], fps: float) -> tuple[str, tuple[float, float]]:
    """Returns the plot as SVG, and where time begins and ends in it, as fractions of its width."""
    import matplotlib

    figure, text = curves(qualities, fps), io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg")
    svg = text.getvalue()
    box = figure.axes[0].get_position()  # the layout is made while it is drawn
    return svg[svg.index("<svg") :], (box.x0, box.x1)


def _table(qualities: Sequence[Quality]) -> str:
    heads = ["pooling", "pooled to", "PSNR, dB", *CHANNELS, "SSIM", *CHANNELS]
    lines = ["<tr>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr>"]
    for quality in qualities:
        scores = quality.scores()
        cells = [quality.pooled]
        for kind, digits in (("psnr", 2), ("ssim", 4)):
            cells += [f"{scores[name]:.{digits}f}" for name in (kind, *(f"{kind}_{c}" for c in CHANNELS))]
        label = f'<th scope="row">{html.escape(quality.label)}</th>'
        lines.append(f"<tr>{label}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return "\n".join(lines)
