"""Figures of the analyses. matplotlib is imported when used; figures belong to nobody's global state."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy
from torch import Tensor

from odesampler.analysis.errors import quantile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from odesampler.analysis.comparison import Comparison
    from odesampler.analysis.round_trips import RoundTrip, Trip

# Okabe and Ito's colours, which the colour-blind can tell apart, and markers for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":", "-.")
TILE = 0.42  # inches, of an image in a strip: four strips of six are as wide as a page
WIDTH = 7.6  # inches, the least: narrower figures cut off what is written in them
WIDE = 40  # characters, of a line in a legend: longer ones leave no room for the axes
SMALLEST = 1e-17  # where an error of exactly 0 is drawn on a logarithmic axis


def plain(name: str, width: int | None = None) -> str:
    """A name of the user's for a figure: dollars are dollars, no formula; in lines of `width`, if given."""
    lines = wrap(name, width, break_on_hyphens=False) if width else [name]
    return "\n".join(lines).replace("$", r"\$")


def round_trip_figure(report: RoundTrip, num_images: int, samples: Tensor | None) -> Figure:
    """Samples, if given; for each solver at its most steps originals, latents, reconstructions, errors; rmse by nfe."""
    from matplotlib.figure import Figure

    if report.originals.ndim != 4:
        figure = Figure(figsize=(WIDTH, 3.4))  # inches
        figure.set_layout_engine("constrained")
        _error_axes(figure.subplots(1, 1), report)
        return figure
    by_steps = sorted(report.trips, key=lambda t: t.num_steps or 0)
    names = dict.fromkeys(map(report.series, report.trips))  # in the order given
    best = [[t for t in by_steps if report.series(t) == name][-1] for name in names]
    count = min(num_images, len(report.originals))
    heights = [0.0 if samples is None else 1.0, TILE * len(best) * 1.6 + 0.5, 3.4]  # inches
    figure = Figure(figsize=(max(WIDTH, 1.1 + 4 * (TILE * count + 0.25)), sum(heights)))
    figure.set_layout_engine("constrained", w_pad=0.12)  # inches between the four columns
    parts: Any = figure.subfigures(3, 1, height_ratios=[max(h, 0.01) for h in heights])
    if samples is not None:
        axis = parts[0].subplots(1, 1)
        axis.set_title(f"drawn from {plain(report.model)}", fontsize=10)
        show(axis, samples[: 4 * count])
    axes = parts[1].subplots(len(best), 4, squeeze=False)
    for row, trip in zip(axes, best, strict=True):
        _strip_row(row, report.originals[:count], trip, report.series(trip), count)
    for axis, title in zip(axes[0], ("original", "latent", "reconstruction", "error"), strict=True):
        axis.set_title(title, fontsize=10)
    _error_axes(parts[2].subplots(1, 1), report)
    return figure


def _strip_row(axes: Any, originals: Tensor, trip: Trip, name: str, count: int) -> None:
    """One solver: four strips of images. The error strip has its own scale, written beside it."""
    error = trip.error[:count]
    limit = max(error.abs().max().item(), SMALLEST)
    strips = (originals, trip.latent.x[:count].cpu() / 3, trip.images[:count], error / limit)
    for axis, images in zip(axes, strips, strict=True):
        show(axis, images, "gray" if axis is not axes[3] else "RdBu_r")
    steps = "own steps" if trip.num_steps is None else f"{trip.num_steps} steps"
    lines = plain(name.replace(", ", "\n", 1))
    axes[0].set_ylabel(f"{lines}\n{steps}", fontsize=9, rotation=0, ha="right", va="center")
    axes[3].set_xlabel(f"full colour = ±{limit:.1e}", fontsize=8)


def show(axis: Any, images: Tensor, colours: str = "gray") -> None:
    """Images in [-1, 1], (n, channels, height, width), side by side, without ticks or frame."""
    picture = _strip(images)
    if picture.shape[-1] == 1:
        axis.imshow(picture[..., 0], cmap=colours, vmin=-1, vmax=1)
    else:
        there = ~numpy.isnan(picture[..., :1])  # what is not is transparent
        axis.imshow(numpy.concatenate([(numpy.nan_to_num(picture, nan=1.0).clip(-1, 1) + 1) / 2, there], axis=-1))
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def _strip(images: Tensor) -> Any:
    """(height, count * (width + 1), channels): images side by side with a pixel of nothing, left clear, between."""
    from torch.nn.functional import pad

    padded = pad(images.detach().cpu().double(), (0, 1), value=float("nan"))
    return padded.permute(2, 0, 3, 1).flatten(1, 2)[:, :-1].numpy()


def _error_axes(axis: Any, report: RoundTrip) -> None:
    """Median rmse against evaluations, one line a solver."""
    for i, name in enumerate(dict.fromkeys(map(report.series, report.trips))):
        mine = sorted((t for t in report.trips if report.series(t) == name), key=lambda t: t.nfe)
        curve(axis, [t.nfe for t in mine], [quantile(t.rmse, 0.5) for t in mine], i, label=plain(name, WIDE))
    _by_evaluations(axis, [t.nfe for t in report.trips])
    axis.set_xlabel("model evaluations, encoding and decoding together")
    units = "data in [-1, 1]" if report.originals.ndim == 4 else "units of the data"
    axis.set_ylabel(f"round-trip rmse (median), {units}")


def comparison_figure(found: Comparison) -> Figure:
    """Median error against evaluations with its quartiles, a line each solver and grid; below, what nobody can tell.

    Hollow: so near to it that the error is not the solver's alone.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.2))  # inches
    figure.set_layout_engine("constrained")
    axis = figure.subplots(1, 1)
    series, grids = [*found.orders], [*dict.fromkeys(c.grid for c in found.cells)]
    for (solver, grid), order in found.orders.items():
        mine = sorted((c for c in found.cells if (c.solver, c.grid) == (solver, grid)), key=lambda c: c.cost)
        label = found.series(solver, grid) + ("" if order is None else f" (order {order.short})")
        style = {"linestyle": DASHES[grids.index(grid) % len(DASHES)], "label": plain(label, WIDE)}
        i, costs = series.index((solver, grid)), [c.cost for c in mine]
        curve(axis, costs, [c.median for c in mine], i, hollow=[not found.clear(c) for c in mine], **style)
        low, high = ([max(q, SMALLEST) for q in ends] for ends in zip(*(c.quartiles for c in mine), strict=True))
        axis.fill_between(costs, low, high, color=COLOURS[i % len(COLOURS)], alpha=0.12, linewidth=0)
    if found.reference.floor > 0:
        dotted: dict[str, Any] = {"color": "0.4", "linestyle": (0, (1, 1)), "linewidth": 1.2}
        axis.axhline(found.reference.floor, label="the reference's own error", **dotted)
    if not all(map(found.clear, found.cells)):
        axis.plot([], [], "o", color="0.4", markerfacecolor="none", label="not clear of it")
    _by_evaluations(axis, [c.cost for c in found.cells])
    axis.set_xlabel("model evaluations a sample")
    axis.set_ylabel("error (median, quartiles)")
    axis.set_title(f"{plain(found.model)}, {len(found.reference.x)} samples", fontsize=10)
    return figure


def curve(
    axis: Any, evaluations: list[float], errors: list[float], i: int, hollow: Sequence[bool] = (), **style: Any
) -> None:
    """A line in the i-th colour and marker; an error of exactly 0 is drawn at the smallest there is."""
    style |= {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linewidth": 1.5}
    errors = [max(e, SMALLEST) for e in errors]
    filled = [k for k in range(len(errors)) if not (hollow and hollow[k])]
    axis.plot(evaluations, errors, markersize=5, markevery=filled, **style)
    open_ones = [k for k in range(len(errors)) if k not in filled]
    if open_ones:
        style |= {"linestyle": "none", "markerfacecolor": "none", "label": "_"}
        axis.plot([evaluations[k] for k in open_ones], [errors[k] for k in open_ones], markersize=7, **style)


def _by_evaluations(axis: Any, evaluations: list[float]) -> None:
    """Logarithmic axes, ticks at evaluations that occur and do not touch each other, the legend beside them."""
    from matplotlib.ticker import NullLocator

    apart = max(1.01, (max(evaluations) / min(evaluations)) ** (1 / 12))  # twelve labels fit side by side
    ticks: list[int] = []
    for nfe in sorted({round(e) for e in evaluations}):
        if not ticks or nfe > apart * ticks[-1]:
            ticks.append(nfe)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(ticks, minor=False)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(visible=True, which="major", linewidth=0.4)
    axis.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
