"""Figures of quality: intervals beside the real data's, samples above the real images nearest to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from odesampler.analysis.errors import quantile
from odesampler.analysis.pictures import COLOURS, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from odesampler.analysis.qualities import Quality


def quality_figure(found: Quality) -> Figure:
    """A panel for each measure, with an axis of its own: they have different units."""
    from matplotlib.figure import Figure

    count = len(found.marks)
    figure = Figure(figsize=(7.2, 0.5 + 0.75 * count))  # inches
    figure.set_layout_engine("constrained", hspace=0.08)
    axes: Any = figure.subplots(count, 1, squeeze=False)
    for axis, mark in zip(axes[:, 0], found.marks, strict=True):
        for y, values, colour in ((1, mark.samples, COLOURS[1]), (0, mark.real, COLOURS[0])):
            ends = (mark.interval, mark.floor)[1 - y]
            if ends[0] == ends[0]:
                axis.plot(ends, (y, y), color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt")
                axis.plot(quantile(values, 0.5), y, "os"[1 - y], color=colour, markersize=6)
        axis.set_yticks([0, 1], ["real", "samples"], fontsize=8)
        axis.set_ylim(-0.7, 1.7)
        axis.margins(x=0.08)
        axis.tick_params(axis="x", labelsize=8)
        worse = "; worse to the right" if mark.kind.worse > 0 else "; worse to the left"
        axis.set_title(mark.kind.what + worse, fontsize=9, loc="left")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure


def nearest_figure(found: Quality) -> Figure:
    """Two strips of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.9 + 0.62 * len(found.nearest[0]), 1.6))
    figure.set_layout_engine("constrained")
    axes: Any = figure.subplots(2, 1)
    for axis, images, name in zip(axes, found.nearest, ("sample", "nearest\nreal"), strict=True):
        show(axis, images)
        axis.set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    return figure
