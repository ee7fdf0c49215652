"""Figures of where round-trip errors come from: by sigma, on logarithmic axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from odesampler.analysis.pictures import COLOURS, SMALLEST, curve, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from odesampler.analysis.estimate import Estimate
    from odesampler.analysis.growth import Growth
    from odesampler.analysis.sources import ErrorSources


def defect_figure(found: Estimate) -> Figure:
    """What each step misses, and what of it arrives at the image."""
    figure, axes = _figure(1)
    _defects(axes[0], found)
    axes[0].set_title(f"{plain(found.how)}, {plain(found.model)}: before decoding", fontsize=10)
    return figure


def sources_figure(found: ErrorSources) -> Figure:
    """Defects by sigma; growth of a small change by sigma. What there is of them."""
    figure, axes = _figure((found.estimate is not None) + (found.growth is not None))
    rest = list(axes)
    rest[0].set_title(f"{plain(found.how)}, {plain(found.model)}", fontsize=10)
    if found.estimate is not None:
        _defects(rest.pop(0), found.estimate)
    if found.growth is not None:
        _growths(rest.pop(0), found.growth)
    axes[0].set_xlim(axes[-1].get_xlim())  # the same sigmas above each other
    return figure


def _figure(rows: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.4 * rows))  # inches
    figure.set_layout_engine("constrained")
    return figure, figure.subplots(rows, 1, squeeze=False)[:, 0]


def _defects(axis: Any, found: Estimate) -> None:
    _band(axis, found.sigmas, found.defects, 0, "a step's own miss, at its sigma")
    _band(axis, found.sigmas, found.arriving, 1, "what of it arrives\nat the image (by size)")
    total = found.rmse.median().item()
    axis.axhline(max(total, SMALLEST), color="0.3", linestyle=(0, (4, 2)), linewidth=1.2, label="estimate of the whole")
    axis.set_ylabel("rmse, in the model's scale\n(median; least to greatest)")
    _by_sigma(axis, "sigma = std / alpha where the step ends (image at the left)")


def _growths(axis: Any, both: tuple[Growth, Growth]) -> None:
    for i, (growth, label) in enumerate(
        zip(both, ("a change of the image,\non its way up", "a change of the latent,\non its way down"), strict=True)
    ):
        _band(axis, growth.sigmas, growth.curve, 2 + i, label)
    axis.axhline(1, color="0.3", linewidth=0.8)
    axis.set_ylabel("growth, in the model's scale\n(median; least to greatest)")
    _by_sigma(axis, "sigma = std / alpha (image at the left)")


def _band(axis: Any, sigmas: tuple[float, ...], values: Tensor, i: int, label: str) -> None:
    """The median over the samples, (sigmas, batch), between the least and the greatest; infinity has no place."""
    finite = [k for k, s in enumerate(sigmas) if s != float("inf")]
    at, shown = [sigmas[k] for k in finite], values[finite].clamp(min=SMALLEST)
    curve(axis, at, shown.median(1).values.tolist(), i, label=label)
    low, high = shown.amin(1).tolist(), shown.amax(1).tolist()
    axis.fill_between(at, low, high, color=COLOURS[i % len(COLOURS)], alpha=0.15, linewidth=0)


def _by_sigma(axis: Any, label: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(label)
    axis.grid(visible=True, which="major", linewidth=0.4)
    axis.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
