"""Figures of errors by pixel, of paths in a plane and of grids."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from odesampler.analysis.grid_picture import GridPicture, steps_of
from odesampler.analysis.pictures import COLOURS, DASHES, MARKERS, WIDE, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from odesampler.analysis.error_maps import ErrorMaps
    from odesampler.analysis.trajectory_plane import TrajectoryPlane

CELL = 1.25  # inches


def error_maps_figure(found: ErrorMaps) -> Figure:
    """A row for each solver and grid, a map for each number of steps; below it its largest error, the full colour."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    rows = [[i for i, (name, _) in enumerate(found.names) if name == of] for of in dict(found.names)]
    width = max(map(len, rows))
    labels = [found.names[chosen[0]][0].replace(", ", "\n") for chosen in rows]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    left, high = 0.3 + 0.08 * longest, 0.2 + (CELL + 0.35) * len(rows)  # inches
    wide = left + CELL * width + 0.9
    figure = Figure(figsize=(wide, high), layout="none")  # type: ignore[arg-type]  # a stub lacks it
    axes: Any = figure.subplots(len(rows), width, squeeze=False)
    # by hand: names that lie on their side are no part of what the layout engine leaves room for
    figure.subplots_adjust(left / wide, 0.25 / high, 1 - 0.9 / wide, 1 - 0.25 / high, wspace=0.12, hspace=0.36)
    for line, chosen, label in zip(axes, rows, labels, strict=True):
        for axis in line[len(chosen) :]:
            axis.set_axis_off()
        for axis, i in zip(line, chosen, strict=False):
            one, steps = found.maps[i], found.names[i][1]
            axis.imshow(one.numpy(), cmap="cividis", vmin=0, vmax=one.max().item() or 1.0)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(steps if steps.startswith("tol") else f"{steps} steps", fontsize=8)
            axis.set_xlabel(f"largest {one.max().item():.1e}", fontsize=8)
        line[0].set_ylabel(plain(label), fontsize=9, rotation=0, ha="right", va="center")
    beside = figure.add_axes((1 - 0.75 / wide, 0.25 / high, 0.12 / wide, 1 - 0.5 / high))
    bar = figure.colorbar(ScalarMappable(cmap="cividis"), cax=beside)
    bar.set_label("mean |error| / largest of the map", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def trajectory_figure(found: TrajectoryPlane) -> Figure:
    """The plane, each axis with a scale of its own; beside it the distance outside of it, from noise to image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2))
    figure.set_layout_engine("constrained")
    plane, outside = figure.subplots(1, 2, width_ratios=[1.5, 1])
    finest = found.paths[-1]
    for i, path in enumerate(found.paths):
        style: dict[str, Any] = {"color": COLOURS[i % 6], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        style |= {"linestyle": DASHES[i % len(DASHES)], "linewidth": 1.2, "label": plain(path.solver, WIDE)}
        if path is finest:
            style |= {"color": "0.2", "marker": "", "linestyle": "-", "linewidth": 2.5, "alpha": 0.5, "zorder": 0}
        plane.plot(*path.place.T.tolist(), **style)
        outside.plot([math.degrees(math.atan(s)) for s in path.sigmas], path.outside.tolist(), **style)
    for name, at, away in (("noise", 0, -1), ("image", -1, 1)):
        side: Any = {"xytext": (9 * away, 0), "textcoords": "offset points", "ha": "right" if away < 0 else "left"}
        plane.annotate(name, finest.place[at].tolist(), va="center", fontsize=9, **side)
    plane.margins(0.2)
    plane.set_xlabel("first principal direction (rms, units of the data)")
    plane.set_ylabel("second (likewise, on a scale of its own)")
    outside.set_xlim(90, 0)
    outside.set_ylim(bottom=0)
    outside.set_xlabel("arctan sigma (degrees): noise to image")
    outside.set_ylabel("distance outside the plane (rms)")
    for axis in (plane, outside):
        axis.grid(visible=True, linewidth=0.4)
    outside.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def grids_figure(found: GridPicture) -> Figure:
    """Marks at the sigmas, a line for each grid; below, the factor of each step at its geometric middle, if any."""
    from matplotlib.figure import Figure

    count = len(found.grids)
    heights = [0.32 * count + 0.2, *([2.6] if any(map(steps_of, found.grids)) else [])]
    figure = Figure(figsize=(8.0, 0.6 + sum(heights)))
    figure.set_layout_engine("constrained")
    axes: Any = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    marks = axes[0]
    finite = [s for grid in found.grids for s in grid if 0 < s < math.inf] or [1.0]
    low, high = min(finite), max(finite)
    width = (high / low) ** 0.06 if high > low else 2.0
    for i, grid in enumerate(found.grids):
        style: dict[str, Any] = {"color": COLOURS[i % 7], "label": plain(grid.name, WIDE)}
        inside = [s for s in grid if 0 < s < math.inf]
        marks.plot(inside, [i] * len(inside), "|", markersize=14, markeredgewidth=2, color=style["color"])
        if grid[0] == math.inf:
            marks.plot(high * width, i, ">", color=style["color"])
        if grid[-1] == 0:
            marks.plot(low / width, i, "<", color=style["color"])
        steps = steps_of(grid)
        middles, lengths = [math.sqrt(a * b) for a, b in steps], [a / b for a, b in steps]
        for axis in axes[1:]:
            axis.plot(middles, lengths, marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1.2, **style)
    marks.set_yticks(range(count), [plain(grid.name) for grid in found.grids], fontsize=9)
    marks.set_ylim(count - 0.5, -0.5)
    marks.set_title("sigmas; < goes on to 0, > comes from infinity", fontsize=9, loc="left")
    marks.set_xscale("log")
    marks.set_xlim(low / width**2, high * width**2)
    axes[-1].set_xlabel("sigma = std / alpha")
    for axis in axes[1:]:
        axis.set_yscale("log")
        axis.set_ylabel("factor of a step")
        axis.grid(visible=True, which="major", linewidth=0.4)
        axis.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
