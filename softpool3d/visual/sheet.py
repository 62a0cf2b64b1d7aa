"""Draws clips side by side, with labels, as frames of a video or on one contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from softpool3d.visual.pooled import Kernel, Pooled, as_pixels
from softpool3d.visual.source import Source, size_of

_BAR, _GAP, _LEAST_WIDTH = 32, 4, 120
_LINE, _FONT = 15, 13


@dataclass(frozen=True)
class Panel:
    """A clip, original or pooled, that is drawn at the original's size: each value fills a block of `factor`."""

    title: str
    size: str
    frames: Tensor  # uint8 (T', 3, H', W')
    factor: Kernel = (1, 1, 1)

    def picture(self, t: int, height: int, width: int) -> np.ndarray:
        """Returns the panel at the original's frame t, uint8 (height, width, 3); the edge is repeated to fill it."""
        frame = self.frames[min(t // self.factor[0], len(self.frames) - 1)].permute(1, 2, 0).numpy()
        for axis, (size, factor) in enumerate(((height, self.factor[1]), (width, self.factor[2]))):
            if factor > 1:
                frame = frame.take(np.minimum(np.arange(size) // factor, frame.shape[axis] - 1), axis)
        return frame


def original_panel(source: Source) -> Panel:
    return Panel("original", source.size, source.frames)


def pooled_panel(pooled: Pooled, is_picture: bool = False) -> Panel:
    factor = (1, *pooled.factor[1:]) if is_picture else pooled.factor
    size = f"{size_of(pooled.frames, is_picture)}, {pooled.shrink} smaller"
    return Panel(pooled.label, size, as_pixels(pooled.frames), factor)


class Sheet:
    """Panels in lines, each with its title and size above, and one caption below them all.

        lines = [[a, b], [c, d]]        a  b        below:  a  c
                                        c  d                b  d

    Args:
        lines: the panels of each line.
        below: lines go down instead of to the right.
    """

    def __init__(self, lines: Sequence[Sequence[Panel]], source: Source, caption: str, below: bool = False) -> None:
        self._height, self._width = source.frames.shape[-2:]
        self.num_frames, self.fps, self.caption = len(source.frames), source.fps, caption
        self.panels = [panel for line in lines for panel in line]
        cell_height, cell_width = self._height + _BAR + _GAP, max(self._width, _LEAST_WIDTH) + _GAP
        places = [(i, j) if below else (j, i) for i, line in enumerate(lines) for j in range(len(line))]  # column, row
        self._corners = [(row * cell_height + _BAR, column * cell_width) for column, row in places]
        width = (1 + max(column for column, _ in places)) * cell_width - _GAP
        footer = text_bar(_wrapped(caption, width), width)
        height = (1 + max(row for _, row in places)) * cell_height
        self._blank = np.zeros((height + len(footer), width, 3), np.uint8)
        self._blank[height:] = footer
        for panel, (top, left) in zip(self.panels, self._corners, strict=True):
            bar = text_bar([panel.title, panel.size], cell_width - _GAP)
            self._blank[top - _BAR : top, left : left + bar.shape[1]] = bar

    def frame(self, t: int) -> np.ndarray:
        """Returns all panels at frame t of the original, uint8 (H, W, 3)."""
        canvas = self._blank.copy()
        for panel, (top, left) in zip(self.panels, self._corners, strict=True):
            canvas[top : top + self._height, left : left + self._width] = panel.picture(t, self._height, self._width)
        return canvas

    def contact(self, count: int) -> np.ndarray:
        """Returns a contact sheet, uint8 (H, W, 3): a row for each panel, with `count` frames evenly spaced in time."""
        times = np.unique(np.linspace(0, self.num_frames - 1, count).round().astype(int)).tolist()
        cell = max(self._width, _LEAST_WIDTH // 2)
        width = len(times) * (cell + _GAP) - _GAP
        rows = [np.concatenate([_pad(text_bar([f"{t / self.fps:.2f} s"], cell), cell + _GAP) for t in times], axis=1)]
        rows[0] = rows[0][:, :width]
        once = {id(panel): panel for panel in self.panels}  # the original is in each line, and drawn once
        for panel in once.values():
            pictures = [_pad(panel.picture(t, self._height, self._width), cell + _GAP) for t in times]
            rows.append(text_bar([f"{panel.title}   {panel.size}"], width))
            rows.append(np.concatenate(pictures, axis=1)[:, :width])
        rows.append(text_bar(_wrapped(self.caption, width), width))
        return np.concatenate(rows)


def _pad(picture: np.ndarray, width: int) -> np.ndarray:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)))


def _wrapped(text: str, width: int) -> list[str]:
    """Returns the text in lines no wider than `width` pixels, as far as words allow."""
    from PIL import ImageFont

    font, lines = ImageFont.load_default(_FONT), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 4:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def text_bar(lines: Sequence[str], width: int) -> np.ndarray:
    """Returns lines of text in white on black, uint8 (height, width, 3). Wide text is made smaller, and at last cut."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, _LINE * len(lines) + 2), "black")
    draw = ImageDraw.Draw(image)
    for number, text in enumerate(lines):
        size = _FONT
        while size > 8 and ImageFont.load_default(size).getlength(text) > width - 4:
            size -= 1
        font = ImageFont.load_default(size)
        while len(text) > 1 and font.getlength(text) > width - 4:
            text = text.removesuffix("…")[:-1] + "…"
        draw.text((2, number * _LINE), text, "white" if number == 0 else "#c8c8c8", font)
    return np.asarray(image)
