"""What a comparison of solvers found: errors of single solves, the order at which they fall, the best for a budget.

error = rms over a sample of (x - reference),     order = -d log(median error) / d log(steps), by least squares
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odesampler.analysis import tables
from odesampler.analysis.reference import CLEAR, Reference, quantile
from odesampler.analysis.report import Report, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """One solver at one grid and number of steps."""

    solver: str  # as the user named it
    grid: str  # "own" where the solver chooses its own steps
    num_steps: int | None  # transitions; None: it chose its own
    tolerance: float | None  # rtol = atol, where it was set by the comparison
    x: Tensor  # (batch, *shape), what came out, as `sample` gives it
    error: Tensor  # (batch,) root mean square difference from the reference, in units of the data
    nfe: Tensor  # (batch,) int64, evaluations of eps for each sample
    calls: int  # batched calls of the model in which it took part

    @property
    def cost(self) -> float:
        """Evaluations a sample, the mean over the samples."""
        return self.nfe.double().mean().item()

    @property
    def median(self) -> float:
        """The median error over the samples."""
        return quantile(self.error, 0.5)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The errors below which a quarter and three quarters of the samples are."""
        return quantile(self.error, 0.25), quantile(self.error, 0.75)

    @property
    def steps(self) -> str:
        """Steps, or the tolerance that chose them, for tables."""
        if self.num_steps is not None:
            return str(self.num_steps)
        return "own" if self.tolerance is None else f"tol {self.tolerance:g}"


@dataclass(frozen=True, repr=False)
class Comparison(Report):
    """The errors of several solvers by evaluations; prints as a table and draws itself."""

    cells: tuple[Cell, ...]
    failures: Mapping[str, str]  # solver, grid and steps -> why it has no cell
    reference: Reference
    model: str
    calls: int  # batched calls of the model, all cells together, without the reference
    seconds: float

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Solvers compared on {self.model}, {len(self.reference.x)} samples"

    def sections(self) -> Sequence[Section]:
        """A row for each solver, grid and number of steps, `nfe` the mean over the samples; the figure; the best."""
        head = ("solver", "grid", "steps", "nfe", "error (median)", "quarter", "three quarters", "calls")
        rows = [
            (c.solver, c.grid, c.steps, f"{c.cost:.0f}", *(f"{e:.2e}" for e in (c.median, *c.quartiles)), str(c.calls))
            for c in self.cells
        ]
        return [
            Section(self.title, table=Table(head, rows, self._notes()), draw=self.plot if self.cells else None),
            Section("The best for a budget of evaluations", table=self._best()),
        ]

    def _notes(self) -> list[str]:
        notes = [f"{name} failed: {why}" for name, why in self.failures.items()]
        known = {name: order for name, order in self.orders.items() if order is not None}
        if known:
            notes.append("orders: " + "; ".join(f"{self.series(*name)} {order:.1f}" for name, order in known.items()))
        notes.append(f"reference: {self.reference}")
        return [*notes, f"{self.calls} calls of the model, shared; {self.seconds:.1f} s with the reference"]

    def records(self) -> list[dict[str, Any]]:
        """A record for each cell."""
        return [
            {
                "solver": c.solver,
                "grid": c.grid,
                "steps": c.num_steps,
                "tolerance": c.tolerance,
                "nfe": c.cost,
                "median": c.median,
                "quarter": c.quartiles[0],
                "three_quarters": c.quartiles[1],
                "calls": c.calls,
            }
            for c in self.cells
        ]

    @property
    def orders(self) -> dict[tuple[str, str], float | None]:
        """The fitted order for each (solver, grid), over errors well above the reference's own and below the data's.

        None where fewer than two such errors are left, or the solver chose its own steps.
        """
        size = self.reference.x.double().std().item() if self.reference.x.numel() > 1 else math.inf
        return {
            name: fitted_order(
                [
                    (c.num_steps, c.median)
                    for c in self.cells
                    if (c.solver, c.grid) == name and c.num_steps and CLEAR * self.reference.floor < c.median < size
                ]
            )
            for name in dict.fromkeys((c.solver, c.grid) for c in self.cells)
        }

    def series(self, solver: str, grid: str) -> str:
        """A solver's name, and its grid's where there are several."""
        several = len({c.grid for c in self.cells if c.num_steps}) > 1
        return f"{solver}, {grid}" if several and grid != "own" else solver

    def best(self, nfe: int) -> Cell:
        """The cell of least median error in which no sample took more than `nfe` evaluations.

        Raises:
            ValueError: There is none.
        """
        within = [c for c in self.cells if int(c.nfe.max()) <= nfe]
        if not within:
            cheapest = min((int(c.nfe.max()) for c in self.cells), default=None)
            raise ValueError(f"no solve took at most {nfe} evaluations; the cheapest took {cheapest}")
        return min(within, key=lambda c: c.median)

    def best_table(self) -> str:
        """The best cell for each budget of evaluations at which it changes."""
        best = self._best()
        return tables.text(best.head, best.rows)

    def _best(self) -> Table:
        found: list[tuple[int, Cell]] = []
        for nfe in sorted({int(c.nfe.max()) for c in self.cells}):
            best = self.best(nfe)
            if not found or best is not found[-1][1]:
                found.append((nfe, best))
        rows = [(f"{nfe}", c.solver, c.grid, c.steps, f"{c.median:.2e}") for nfe, c in found]
        return Table(("evaluations", "best solver", "grid", "steps", "error (median)"), rows)

    def plot(self) -> Figure:
        """Error against evaluations, on logarithmic axes, with the quartiles, the orders and the reference's own error.

        Raises:
            ValueError: No solver came back.
        """
        if not self.cells:
            raise ValueError("no solver came back, so there is nothing to draw")
        from odesampler.analysis.pictures import comparison_figure

        return comparison_figure(self)


def fitted_order(points: Sequence[tuple[int, float]]) -> float | None:
    """The order from (steps, error), by least squares in the logarithms; None for fewer than two numbers of steps."""
    if len({steps for steps, _ in points}) < 2:
        return None
    n, e = torch.tensor(points, dtype=torch.float64).log().unbind(1)
    n = n - n.mean()
    return -((n * e).sum() / n.square().sum()).item()
