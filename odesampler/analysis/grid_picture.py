"""Grid pictures: where grids put their sigmas, and how long their steps are.

factor of a step = sigma before / sigma after,     even: all factors equal, (sigma_max / sigma_min)^(1 / steps)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from odesampler.analysis.report import Report, Section, Table
from odesampler.grid import Grid, make_grid
from odesampler.inputs import checked_model
from odesampler.model import Model
from odesampler.plan import AnyGrid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDLESS, FINITE = ("linspace", "angle"), ("log_snr", "karras")  # shown by default
GAP = 4.0  # a step as long as so many even ones, in log sigma, is said


@dataclass(frozen=True, repr=False, eq=False)
class GridPicture(Report):
    """Grids side by side; prints as a table and draws itself.

    Examples:
        >>> found = ods.grid_picture(ods.load("digits"), ["karras", "log_snr"], 10, into_zero=False)
        >>> karras, log_snr = found.gaps  # how many even steps the longest one is
        >>> karras > 1.5, round(log_snr, 6)
        (True, 1.0)
    """

    grids: tuple[Grid, ...]  # falling
    model: str

    @property
    def gaps(self) -> tuple[float, ...]:
        """How many even steps, in log sigma, the longest of each grid is; those from infinity and to 0 left out.

        NaN for a grid that has no other steps.
        """
        found = []
        for grid in self.grids:
            factors = [math.log(a / b) for a, b in steps_of(grid)]
            found.append(max(factors) / (sum(factors) / len(factors)) if factors else math.nan)
        return tuple(found)

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Grids for {self.model}"

    def sections(self) -> Sequence[Section]:
        """A row for each grid; the picture."""
        head = ("grid", "steps", "from", "to", "last above 0", "middle", "longest factor", "in even steps")
        digits = ("", "d", ".4g", ".4g", ".4g", ".3g", ".3g", ".2f")
        rows = [
            tuple("-" if v is None else format(v, how) for v, how in zip(r.values(), digits, strict=True))
            for r in self.records()
        ]
        notes = ["sigmas; middle: the sigma of the middle of the grid; factor: sigma before a step over sigma after it"]
        uneven = [grid.name for grid, gap in zip(self.grids, self.gaps, strict=True) if gap > GAP]
        if uneven:
            notes.append(f"with one step as long as {GAP:g} even ones or more: {', '.join(uneven)}")
        return [Section(self.title, table=Table(head, rows, notes), draw=self.plot)]

    def records(self) -> list[dict[str, Any]]:
        """A record for each grid; None where no step has a length in log sigma."""
        return [
            {
                "grid": grid.name,
                "steps": grid.num_steps,
                "from": grid[0],
                "to": grid[-1],
                "last_above_0": min(s for s in grid if s > 0),
                "middle": grid[grid.num_steps // 2],
                "longest_factor": max((a / b for a, b in steps_of(grid)), default=None),
                "longest_in_even_steps": None if math.isnan(gap) else gap,
            }
            for grid, gap in zip(self.grids, self.gaps, strict=True)
        ]

    def plot(self) -> Figure:
        """The sigmas of each grid as marks on a logarithmic axis, and the factor of each step."""
        from odesampler.analysis.map_pictures import grids_figure

        return grids_figure(self)


def grid_picture(
    model: Model,
    grids: AnyGrid | Sequence[AnyGrid] | None = None,
    num_steps: int = 10,
    *,
    into_zero: bool = True,
) -> GridPicture:
    """Where grids put their sigmas on a model's range.

    Args:
        model: The model; no network is asked.
        grids: Names of `ods.grids()`, Grids or sequences of sigmas, or one. By default four that suit most models, or
            the two of them that can come from infinity.
        num_steps: Transitions of the named ones.
        into_zero: Whether the named ones end at sigma = 0, as for sampling, or at sigma_min, as for encoding.

    Returns:
        A `GridPicture`.

    Raises:
        ValueError: No grids, or one that cannot be made for this model.

    Examples:
        >>> found = ods.grid_picture(ods.load("digits"), ["karras", "log_snr", [20.0, 1.0, 0.0]], 10)
        >>> [(grid.name, grid.num_steps) for grid in found.grids]
        [('karras', 10), ('log_snr', 10), ('custom', 2)]
    """
    low, high = checked_model(model).range
    if grids is None:
        grids = ENDLESS if math.isinf(high) else (*ENDLESS, *FINITE)
    asked: Any = [grids] if isinstance(grids, (str, Grid)) else list(grids)
    if asked and all(isinstance(s, (int, float)) for s in asked):
        asked = [asked]
    if not asked:
        raise ValueError("grid_picture needs grids; got none")
    made = [
        make_grid(one, model.schedule, num_steps, into_zero=into_zero, sigma_min=low, sigma_max=high) for one in asked
    ]
    return GridPicture(tuple(made), model.name)


def steps_of(grid: Grid) -> list[tuple[float, float]]:
    """The steps that have a length in log sigma: neither from infinity nor to 0."""
    return [(a, b) for a, b in pairwise(grid) if math.isfinite(a) and b > 0]
