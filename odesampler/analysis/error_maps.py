"""Error maps: where in the image the error of solvers sits.

    map[i, j] = mean over samples and channels of |x - reference|[i, j]

Half of what an error is made of may sit in a few pixels, at edges say, where one number for the image does not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odesampler.analysis.comparison import Comparison
from odesampler.analysis.report import Report, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GATHERED = 0.05  # of the pixels: where so few hold half of the error, that is said


@dataclass(frozen=True, repr=False, eq=False)
class ErrorMaps(Report):
    """The error of several solves by pixel; prints as a table and draws itself.

    Examples:
        >>> maps = ods.error_maps(ods.compare(ods.load("digits"), "ddim", 5, num_samples=2, reference_steps=20))
        >>> 0 < maps.gathered.item() <= 0.5  # so much of the image holds half of the error
        True
        >>> [record["solver"] for record in maps.records()]
        ['ddim']
    """

    maps: Tensor  # (solves, height, width), mean absolute error, in units of the data
    names: tuple[tuple[str, str], ...]  # solver and grid, steps
    samples: int
    model: str

    @property
    def gathered(self) -> Tensor:
        """(solves,) the least share of the pixels that holds half of the error; 1/2 where it is even, or 0."""
        falling = self.maps.flatten(1).sort(dim=1, descending=True).values.cumsum(1)
        within = falling < falling[:, -1:] / 2 * (1 - 1e-12)
        return ((within.sum(1) + 1) / self.maps[0].numel()).where(falling[:, -1] > 0, 0.5)

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Where the error sits: {self.model}, mean over {self.samples} samples"

    def sections(self) -> Sequence[Section]:
        """A row for each solve; the maps."""
        head = ("solver", "steps", "mean", "largest", "at row", "at column", "half in")
        rows = [
            (
                r["solver"],
                r["steps"],
                f"{r['mean']:.2e}",
                f"{r['largest']:.2e}",
                str(r["row"]),
                str(r["column"]),
                f"{r['half_in']:.0%}",
            )
            for r in self.records()
        ]
        notes = ["mean absolute error, in units of the data; half in: the fewest pixels that hold half of it"]
        few = [" at ".join(name) for name, share in zip(self.names, self.gathered, strict=True) if share < GATHERED]
        if few:
            notes.append(f"gathered in few pixels: {'; '.join(few)}")
        return [Section(self.title, table=Table(head, rows, notes), draw=self.plot)]

    def records(self) -> list[dict[str, Any]]:
        """A record for each solve; rows and columns from 0 at the top left."""
        width = self.maps.shape[2]
        made = []
        for (solver, steps), one, share in zip(self.names, self.maps, self.gathered.tolist(), strict=True):
            at = int(one.argmax())
            made.append(
                {
                    "solver": solver,
                    "steps": steps,
                    "mean": one.mean().item(),
                    "largest": one.max().item(),
                    "row": at // width,
                    "column": at % width,
                    "half_in": share,
                }
            )
        return made

    def plot(self) -> Figure:
        """A row of maps for each solver and grid, each map in colours of its own scale."""
        from odesampler.analysis.map_pictures import error_maps_figure

        return error_maps_figure(self)


def error_maps(found: Comparison) -> ErrorMaps:
    """Where in the image the errors of a comparison sit.

    Args:
        found: What `compare` returned, of images (batch, channels, height, width).

    Returns:
        An `ErrorMaps`, a map for each of its cells.

    Raises:
        TypeError: Not a Comparison.
        ValueError: One of no images, or without cells.

    Examples:
        >>> found = ods.compare(ods.load("digits"), ["ddim", "heun"], 5, num_samples=2, reference_steps=20)
        >>> maps = ods.error_maps(found)
        >>> tuple(maps.maps.shape), maps.names
        ((2, 8, 8), (('ddim', '5'), ('heun', '5')))
    """
    if not isinstance(found, Comparison):
        raise TypeError(f"error_maps takes what ods.compare returns; got {type(found).__name__}")
    if not found.cells or found.reference.x.ndim != 4:
        what = "no solver came back" if not found.cells else f"its samples are {tuple(found.reference.x.shape[1:])}"
        raise ValueError(f"error_maps needs solves of images (channels, height, width), but {what}")
    maps = torch.stack([(c.x - found.reference.x).double().abs().mean((0, 1)) for c in found.cells])
    names = tuple((found.series(c.solver, c.grid), c.steps) for c in found.cells)
    return ErrorMaps(maps, names, len(found.reference.x), found.model)
