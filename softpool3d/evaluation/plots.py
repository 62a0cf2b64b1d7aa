"""Pictures of numbers. They are drawn without pyplot, which keeps a global list of figures and asks for a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED, _COUNTED = 60, 20  # up to so many classes, axes have names, and cells numbers
DRAWN = 1000  # up to so many classes, each has a cell: a picture has no more pixels


def confusion_figure(confusion: Tensor, classes: Sequence[str], title: str = "") -> Figure:
    """Draws a confusion matrix, int64 (C, C): rows are labels, columns predictions, colours shares of the row.

    Of more than `DRAWN` classes, a cell stands for several, and shows the greatest share of them.
    """
    from matplotlib.figure import Figure

    count = len(classes)
    names = [literal(name) for name in classes] if count <= _NAMED else []
    margin = 0.8 + 0.08 * min(max(map(len, names), default=0), 40)  # inches, for the names
    side = max(3.0, 0.3 * count) if names else 10.0
    figure = Figure((side + margin + 1, side + margin), layout="constrained")
    axes = figure.add_subplot()
    clips = confusion.sum(1, keepdim=True)
    shares = confusion / clips.clamp_min(1)
    if count > DRAWN:
        shares = adaptive_max_pool2d(shares[None], DRAWN)[0]
        title = f"{title}; {count} classes, {count / DRAWN:.1f} in a row".lstrip("; ")
    picture = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    figure.colorbar(picture, ax=axes, label="share of the class's clips", shrink=0.8)
    axes.set(xlabel="taken for", ylabel="is", title=title)
    if names:
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
    if count <= _COUNTED:
        for row in range(count):
            for column in range(count):
                if value := int(confusion[row, column]):
                    colour = "black" if shares[row, column] > 0.6 else "white"
                    axes.text(column, row, str(value), ha="center", va="center", color=colour, fontsize=8)
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


def literal(text: str) -> str:
    """Returns text escaped for matplotlib, which reads formulas between dollars."""
    return text.replace("$", r"\$")
