"""Figures of the analyses. matplotlib is imported when used; figures belong to nobody's global state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from odesampler.analysis.round_trip import RoundTrip, Trip

# Okabe and Ito's colours, which the colour-blind can tell apart, and markers for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
SMALLEST = 1e-17  # where an error of exactly 0 is drawn on a logarithmic axis


def round_trip_figure(report: RoundTrip, num_images: int, samples: Tensor | None) -> Figure:
    """Samples, if given; for each solver at its most steps originals, latents, reconstructions, errors; rmse by nfe."""
    from matplotlib.figure import Figure

    by_steps = sorted(report.trips, key=lambda t: t.num_steps or 0)
    names = dict.fromkeys(t.solver for t in report.trips)  # in the order given
    best = [[t for t in by_steps if t.solver == name][-1] for name in names]
    count = min(num_images, len(report.originals))
    heights = [0.0 if samples is None else 1.0, 0.62 * len(best) * 1.25 + 0.5, 3.6]  # inches
    figure = Figure(figsize=(1.1 + 4 * (0.62 * count + 0.25), sum(heights)))
    figure.set_layout_engine("constrained", w_pad=0.12)  # inches between the four columns
    parts: Any = figure.subfigures(3, 1, height_ratios=[max(h, 0.01) for h in heights])
    if samples is not None:
        axis = parts[0].subplots(1, 1)
        axis.set_title(f"drawn from {report.model}", fontsize=10)
        _show(axis, samples[: 4 * count])
    axes = parts[1].subplots(len(best), 4, squeeze=False)
    for row, trip in zip(axes, best, strict=True):
        _strip_row(row, report.originals[:count], trip, count)
    for axis, title in zip(axes[0], ("original", "latent", "reconstruction", "error"), strict=True):
        axis.set_title(title, fontsize=10)
    _error_axes(parts[2].subplots(1, 1), report)
    return figure


def _strip_row(axes: Any, originals: Tensor, trip: Trip, count: int) -> None:
    """One solver: four strips of images. The error strip has its own scale, written beside it."""
    error = trip.error[:count]
    limit = max(error.abs().max().item(), SMALLEST)
    strips = (originals, trip.latent.x[:count].cpu() / 3, trip.images[:count], error / limit)
    for axis, images in zip(axes, strips, strict=True):
        _show(axis, images, "gray" if axis is not axes[3] else "RdBu_r")
    steps = "own steps" if trip.num_steps is None else f"{trip.num_steps} steps"
    axes[0].set_ylabel(f"{trip.solver}\n{steps}", fontsize=9, rotation=0, ha="right", va="center")
    axes[3].set_xlabel(f"full colour = ±{limit:.1e}", fontsize=8)


def _show(axis: Any, images: Tensor, colours: str = "gray") -> None:
    """Images in [-1, 1], (n, channels, height, width), side by side, without ticks or frame."""
    picture = _strip(images)
    if picture.shape[-1] == 1:
        axis.imshow(picture[..., 0], cmap=colours, vmin=-1, vmax=1)
    else:
        axis.imshow((numpy.nan_to_num(picture, nan=1.0).clip(-1, 1) + 1) / 2)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def _strip(images: Tensor) -> Any:
    """(height, count * (width + 1), channels): images side by side with a pixel of nothing, drawn white, between."""
    from torch.nn.functional import pad

    padded = pad(images.detach().cpu().double(), (0, 1), value=float("nan"))
    return padded.permute(2, 0, 3, 1).flatten(1, 2)[:, :-1].numpy()


def _error_axes(axis: Any, report: RoundTrip) -> None:
    """Median rmse against evaluations, one line a solver."""
    from matplotlib.ticker import NullLocator

    names = list(dict.fromkeys(t.solver for t in report.trips))
    for i, name in enumerate(names):
        mine = sorted((t for t in report.trips if t.solver == name), key=lambda t: t.nfe)
        errors = [max(t.rmse.median().item(), SMALLEST) for t in mine]
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axis.plot([t.nfe for t in mine], errors, label=name, markersize=5, linewidth=1.5, **style)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(sorted({round(t.nfe) for t in report.trips}), minor=False)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("model evaluations, encoding and decoding together")
    axis.set_ylabel("round-trip rmse (median), data in [-1, 1]")
    axis.grid(visible=True, which="major", linewidth=0.4)
    axis.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
