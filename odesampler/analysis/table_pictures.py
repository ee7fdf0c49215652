"""Figures of many images in rows and columns, and of what changes along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from odesampler.analysis.pictures import COLOURS, DASHES, MARKERS, SMALLEST, plain, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from odesampler.analysis.consistency import Consistency
    from odesampler.analysis.interpolation_grids import InterpolationGrid

CELL = 0.75  # inches


def table_of_images(images: Tensor, columns: Sequence[str], rows: Sequence[str]) -> Figure:
    """Images (rows, columns, channels, height, width) with names above and to the left.

    Raises:
        ValueError: These are no images.
    """
    from matplotlib.figure import Figure

    if images.ndim != 5 or images.shape[2] not in (1, 3):
        raise ValueError(f"only images can be shown, of 1 or 3 channels; these are {tuple(images.shape[2:])}")
    height, width = images.shape[:2]
    left = 0.1 + 0.07 * max(len(line) for name in rows for line in name.split("\n"))
    figure = Figure(figsize=(left + CELL * width, 0.3 + CELL * height), layout="none")  # type: ignore[arg-type]  # a stub lacks it
    axes: Any = figure.subplots(height, width, squeeze=False)
    size = figure.get_size_inches()
    figure.subplots_adjust(left / size[0], 0.01, 0.995, 1 - 0.3 / size[1], wspace=0.06, hspace=0.06)
    for line, row, name in zip(axes, images, rows, strict=True):
        for axis, image in zip(line, row, strict=True):
            show(axis, image[None])
        line[0].set_ylabel(plain(name), fontsize=8, rotation=0, ha="right", va="center")
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(plain(name), fontsize=8)
    return figure


def consistency_figure(found: Consistency) -> Figure:
    """Median distances against steps, the quartiles shaded, on logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(6.4, 3.4))
    figure.set_layout_engine("constrained")
    axis = figure.subplots(1, 1)
    steps = found.num_steps[:-1]
    for i, (name, values) in enumerate((("to the next", found.to_next), ("to the finest", found.to_finest))):
        low, middle, high = values.quantile(values.new_tensor([0.25, 0.5, 0.75]), dim=1).clamp(min=SMALLEST).tolist()
        axis.fill_between(steps, low, high, color=COLOURS[i], alpha=0.15, linewidth=0)
        axis.plot(steps, middle, DASHES[i], color=COLOURS[i], marker=MARKERS[i], markersize=5, label=name)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(steps, [str(n) for n in steps])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(visible=True, which="major", linewidth=0.4)
    axis.set_xlabel("steps")
    axis.set_ylabel("rms distance (units of the data)")
    axis.set_title(f"{plain(found.solver)} on {plain(found.model)}, {found.x.shape[1]} latents", fontsize=10)
    axis.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def along_figure(found: InterpolationGrid) -> Figure:
    """Two panels over the place along a row: length of the latents, distance of each image from the one before."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.0))
    figure.set_layout_engine("constrained")
    lengths, jumps = figure.subplots(1, 2)
    columns = found.x.shape[1]
    place = [i / (columns - 1) for i in range(columns)]
    middles = [(a + b) / 2 for a, b in zip(place[1:], place[:-1], strict=True)]
    several = len(found.names) <= len(COLOURS)  # more lines than colours have no names
    for i, ((a, b), length, jump) in enumerate(zip(found.names, found.length, found.jumps, strict=True)):
        style: dict[str, Any] = {"color": "0.4", "linewidth": 0.8}
        if several:
            style = {
                "color": COLOURS[i],
                "marker": MARKERS[i],
                "markersize": 4,
                "label": plain(a if found.square else f"{a} to {b}"),
            }
        lengths.plot(place, length.tolist(), **style)
        jumps.plot(middles, jump.tolist(), **style)
    lengths.axhline(1, color="0.4", linestyle=":", linewidth=1)
    low, high = lengths.get_ylim()
    lengths.set_ylim(min(low, 0.6), max(high, 1.2))  # not to make much of a little
    jumps.set_ylim(bottom=0)
    for axis, name in ((lengths, "length of the latent (rms)"), (jumps, "rms distance of neighbours (data)")):
        axis.set_xlabel("place along the path")
        axis.set_ylabel(name)
        axis.grid(visible=True, linewidth=0.4)
    if several:
        jumps.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
