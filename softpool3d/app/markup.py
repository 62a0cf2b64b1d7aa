"""HTML of what gradio has no component for. Names of files and classes come from strangers, and are escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np

from softpool3d.evaluation.scores import Miss
from softpool3d.inference.timeline import VideoTimeline
from softpool3d.inference.timeline_files import short_clock

HEAD = """
<style>
  .gradio-container :focus-visible { outline: 3px solid #0b6bcb !important; outline-offset: 2px; }
  .gradio-container p.note { margin: .5rem 0; font-size: .875rem; overflow-wrap: anywhere; }
  .gradio-container p.refusal { border-left: 4px solid #c62828; padding: .5rem .75rem; background: #c6282818; }
  .gradio-container h3 { margin: 1rem 0 .5rem; font-weight: 600; }
  #video video { max-height: 20rem; object-fit: contain; }
  #heat video { max-height: 28rem; object-fit: contain; }
  .asked { align-items: flex-end; }
  .wide { overflow-x: auto; }
  .wide img { width: 100%; background: #fff; }
  .wide img.broad { min-width: 40rem; }
  .thumbs, .parts { display: flex; gap: .4rem; padding: 4px; margin-bottom: .25rem; }
  .thumbs { overflow-x: auto; }
  .thumbs button { flex: 1 0 5.5rem; max-width: 9rem; text-align: center; }
  .thumbs img { width: 100%; border-radius: 4px; }
  .parts { flex-wrap: wrap; }
  .parts button { padding: .25rem .6rem; }
  .seek { font-size: .875rem; font-variant-numeric: tabular-nums; min-height: 2.75rem; cursor: pointer;
    border: 1px solid #8886; border-radius: 6px; padding: .25rem; text-align: left; }
  .seek:hover { background: #8883; }
  .page { width: 100%; height: min(85vh, 56rem); border: 1px solid #8886; border-radius: 6px; }
  .clips { border-collapse: collapse; width: 100%; font-size: .875rem; }
  .clips th, .clips td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #8886; }
  @media (max-width: 40rem) { .gradio-container .app { padding: .75rem !important; } }
</style>
<script>
"use strict";
document.addEventListener("click", event => {
  const button = event.target.closest("[data-seek]"), video = document.querySelector("#video video");
  if (!button || !video) return;
  video.currentTime = Number(button.dataset.seek);
  video.scrollIntoView({block: "nearest", behavior: "smooth"});
});
</script>
"""


def escaped(text: str) -> str:
    """Returns text for HTML, where its characters mean themselves; what Unicode does not have becomes a ?."""
    return html.escape(text.encode(errors="replace").decode())


def notes(texts: Iterable[str]) -> str:
    """Returns a paragraph for each text that says something."""
    return "".join(f'<p class="note">{escaped(text)}</p>' for text in texts if text)


def refusal(text: str) -> str:
    """Returns what is wrong, and what to do, as a screen reader says it at once."""
    return f'<p class="note refusal" role="alert">{escaped(text)}</p>'


def section(title: str, content: str) -> str:
    return f"<h3>{escaped(title)}</h3>{content}"


def timeline(found: VideoTimeline, plot: bytes) -> str:
    """Returns a timeline: thumbnails and parts, which take the player to their time, and the plot, a PNG."""
    thumbs = (
        _seek(seconds, f'<img src="{_jpeg(picture)}" alt="">{short_clock(seconds)}', f"go to {short_clock(seconds)}")
        for seconds, picture in found.thumbnails
    )
    parts = (
        _seek(
            part.start,
            f"{short_clock(part.start)} to {short_clock(part.end)}<br>{escaped(part.label)} {part.score:.0%}",
        )
        for part in found.segments
    )
    told = "".join(parts) or '<p class="note">No label is likely enough for a part of its own.</p>'
    return (
        f'<div class="thumbs">{"".join(thumbs)}</div><div class="parts">{told}</div>'
        f"{picture(plot, 'Probabilities of the likeliest labels over time')}"
    )


def _seek(seconds: float, content: str, name: str = "") -> str:
    label = f' aria-label="{name}"' if name else ""
    return f'<button type="button" class="seek" data-seek="{seconds:.3f}"{label}>{content}</button>'


def picture(png: bytes, text: str, broad: bool = True) -> str:
    """Returns a picture with `text` for those who do not see it. A narrow screen scrolls over a broad one."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    if not broad:
        return f'<div class="wide"><img src="{source}" alt="{escaped(text)}"></div>'
    return f'<div class="wide" tabindex="0"><img class="broad" src="{source}" alt="{escaped(text)}"></div>'


def frame(page: str) -> str:
    """Returns a page within the page. Its scripts see nothing of what is around them."""
    title = "Split view of the clip and its pooled forms"
    return f'<iframe class="page" title="{title}" sandbox="allow-scripts" srcdoc="{html.escape(page)}"></iframe>'


def worst(clips: Sequence[Miss]) -> str:
    """Returns a table of videos that were taken for another class."""
    rows = "".join(
        f"<tr><td>{escaped(clip.video)}</td><td>{escaped(clip.label)}, {clip.probability:.1%}</td>"
        f"<td>{escaped(clip.prediction)}, {clip.score:.1%}</td></tr>"
        for clip in clips
    )
    head = "<tr><th>clip</th><th>is</th><th>taken for</th></tr>"
    return f'<div class="wide" tabindex="0"><table class="clips">{head}{rows}</table></div>'


def _jpeg(picture: np.ndarray) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
