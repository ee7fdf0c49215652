"""Figures of tuning: the grid chosen, and each sample before and after."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from odesampler.analysis.errors import quantile, rms
from odesampler.analysis.pictures import COLOURS, MARKERS, SMALLEST, WIDE, WIDTH, plain
from odesampler.analysis.table_pictures import table_of_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from odesampler.tuning.report import Tuning


def grids_chosen(found: Tuning) -> Figure:
    """The sigmas above 0 of each grid, a line each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 0.9 + 0.45 * len(found.cases)))  # inches
    figure.set_layout_engine("constrained")
    axis: Any = figure.subplots(1, 1)
    for i, case in enumerate(found.cases):
        inner = [s for s in case.grid if 0 < s < math.inf]
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axis.plot(inner, [-i] * len(inner), linewidth=0.6, markersize=5, **style)
    axis.set_xscale("log")
    axis.invert_xaxis()  # as it is walked
    axis.set_yticks([-i for i in range(len(found.cases))], [plain(c.name, WIDE) for c in found.cases], fontsize=8)
    axis.set_ylim(0.6 - len(found.cases), 0.5)
    axis.set_xlabel("sigma")
    axis.grid(visible=True, axis="x", linewidth=0.4)
    return figure


def ends_and_misses(found: Tuning) -> Figure:
    """A row of images for each end of a solve, with its error; below, what each misses, all enlarged alike."""
    first, *others = found.images
    goal = found.images[first]
    missed = {name: found.images[name] - goal for name in others}
    errors = {name: quantile(rms(one), 0.5) for name, one in missed.items()}
    least = 0.25 / max(*errors.values(), SMALLEST)  # beyond four times the error, black or white
    factor = max(k * 10 ** math.floor(math.log10(least)) for k in (1, 2, 5) if k <= 10 ** (math.log10(least) % 1))
    names = [first, *(f"{name}\n{error:.1e}" for name, error in errors.items())]
    names += [f"{name.splitlines()[0]}\nmisses, x {factor:g}" for name in others]
    rows = torch.stack([*found.images.values(), *(factor * one for one in missed.values())])
    return table_of_images(rows, [""] * len(goal), names)


def before_and_after(found: Tuning) -> Figure:
    """Errors of the default and of the tuned solver, sample by sample, on logarithmic axes; a panel a measure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    first, last = found.cases[0].errors, found.cases[-1].errors
    figure = Figure(figsize=(WIDTH, 3.6))  # inches
    figure.set_layout_engine("constrained")
    axes: Any = figure.subplots(1, len(first), squeeze=False)[0]
    for i, (axis, (kind, before)) in enumerate(zip(axes, first.items(), strict=True)):
        x, y = ([max(v, SMALLEST) for v in e.tolist()] for e in (before, last[kind]))
        finite = [v for v in (*x, *y) if math.isfinite(v)]
        ends = [min(finite) / 1.2, max(finite) * 1.2]
        axis.plot(ends, ends, color="0.4", linestyle=":", linewidth=1)
        axis.plot(x, y, "o", color=COLOURS[i % len(COLOURS)], markersize=4, alpha=0.7)
        subs = (1.0, 2.0, 5.0) if ends[1] < 50 * ends[0] else (1.0,)  # within a decade or two, more than its ends
        for scale, side in ((axis.set_xscale, axis.xaxis), (axis.set_yscale, axis.yaxis)):
            scale("log")
            side.set_major_locator(LogLocator(subs=subs))
            side.set_major_formatter("{x:g}")
            side.set_minor_locator(NullLocator())
        axis.tick_params(labelsize=7)
        axis.set_title(kind, fontsize=10)
        axis.set_xlabel("error of the untuned default")
        axis.grid(visible=True, linewidth=0.4)
    axes[0].set_ylabel("error of the tuned solver")
    return figure
