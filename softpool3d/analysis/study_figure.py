"""A picture of a study: the test score of each run, and the mean of each variant."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from softpool3d.analysis.folders import MEASURES
from softpool3d.analysis.study_findings import Findings

_HEIGHT, _ROW, _WIDTH = 0.9, 0.22, 3.6  # inches: of titles and scales, of a variant, of a panel


def study_figure(found: Mapping[tuple[str, str], Findings]):
    """Returns a matplotlib figure with a panel for each data set and network, and a row for each variant.

    A dot is a run, a bar the mean of a variant with several, the dotted line that of the reference.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    panels = {", ".join(filter(None, place)): finding for place, finding in found.items() if finding.outcomes}
    variants = [v for v in next(iter(panels.values())).study.variants if any(one.of(v) for one in panels.values())]
    figure = Figure((1 + _WIDTH * len(panels), _HEIGHT + _ROW * len(variants)), layout="constrained")
    for axes, (name, finding) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        scores = {v: [one.result.test for one in finding.of(v)] for v in variants}
        for row, values in enumerate(scores.values()):
            axes.scatter(values, [row] * len(values), s=14, color="C0", alpha=0.6, linewidths=0)
            if len(values) > 1:
                axes.scatter([statistics.fmean(values)], [row], marker="|", s=160, color="black")
        if reference := scores.get(finding.study.reference):
            axes.axvline(statistics.fmean(reference), color="gray", lw=0.8, ls=":")
        axes.set_yticks(range(len(scores)), list(scores), fontsize="small")
        axes.set_ylim(len(scores) - 0.5, -0.5)
        axes.tick_params(axis="x", labelsize="small")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(f"test {MEASURES[finding.outcomes[0].result.measure]}", fontsize="small")
        axes.set_title(name, fontsize="small")
    return figure
