"""Accuracies that were published for networks, to show beside our own.

torchvision's come with its weights. Those of SoftPool's ImageNet networks are of table 4 of its paper; they were
written down from memory, because the paper could not be read where this was written.
"""

from __future__ import annotations

from typing import Any

from softpool3d.config import Config, PoolConfig
from softpool3d.models.weights import Figures

SOFTPOOL = PoolConfig(kind="soft", where=["stem"], paper_stem=True)  # in its own ImageNet networks
_SOFTPOOL_TOP1 = {  # in percent, trained from the beginning
    "resnet18": 71.27,
    "resnet34": 74.67,
    "resnet50": 77.35,
    "resnet101": 78.32,
    "resnet152": 79.24,
    "densenet121": 75.88,
    "densenet161": 78.72,
    "densenet169": 76.95,
    "resnext50_32x4d": 78.48,
    "wide_resnet50_2": 79.52,
}
_CLASSES = {"pictures": ("ImageNet-1K", 1000), "kinetics400": ("Kinetics-400", 400)}  # data.dataset -> what it may be


def published_figures(config: Config, figures: Figures | None, classes: int) -> dict[str, Any] | None:
    """Returns what was published for a network, as a test shows and keeps it; None where nothing was for its data.

    Args:
        config: of the test.
        figures: those that came with the weights.
        classes: how many the data set has.

    Returns:
        top1, in [0, 1], and `of`: whose figure it is, and what it holds for.
    """
    model = config.model
    if figures is None and model.pool == SOFTPOOL and model.width is None and model.name in _SOFTPOOL_TOP1:
        source = "SoftPool's paper, arXiv 2101.00440, table 4; from memory, not checked"
        figures = Figures("ImageNet-1K", _SOFTPOOL_TOP1[model.name], source)
    if figures is None or _CLASSES.get(config.data.dataset) != (figures.dataset, classes):
        return None
    return {"top1": round(figures.top1 / 100, 6), "of": f"{figures.dataset}: {figures.source}"}
