"""What a comparison of solvers found: errors of single solves, the order at which they fall, the best for a budget.

error = rms over a sample of (x - reference),     order: see `orders`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from odesampler.analysis import tables
from odesampler.analysis.bootstrap import FEWEST, LEVEL, Resamples, basis
from odesampler.analysis.cell import Cell
from odesampler.analysis.orders import Order, measured_order, orders_section
from odesampler.analysis.ranking import Ranking, places, ranking_section
from odesampler.analysis.reach import Reached, reach_section, reached, round_errors
from odesampler.analysis.reference import CLEAR, Reference
from odesampler.analysis.report import Report, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Name: TypeAlias = "tuple[str, str]"  # of a solver, and of its grid
TINY = 1e-300  # what an error of 0 is taken for where it needs a logarithm
TOLD = {True: "yes", False: "no", None: "-"}
SIMILAR = 1.25  # budgets that differ by less are one


@dataclass(frozen=True, repr=False)
class Comparison(Report):
    """The errors of several solvers by evaluations; prints as a table and draws itself.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> found = ods.compare(model, ["ddim", "multistep"], [10, 20, 40], num_samples=4, reference_steps=200)
        >>> found.best(nfe=20).solver, round(found.orders["ddim", "default"].value)
        ('multistep', 1)
        >>> reached = found.evaluations_for(0.01)
        >>> reached["multistep", "default"].value < reached["ddim", "default"].value
        True
    """

    cells: tuple[Cell, ...]
    failures: Mapping[str, str]  # solver, grid and steps -> why it has no cell
    reference: Reference
    model: str
    calls: int  # batched calls of the model, all cells together, without the reference
    seconds: float
    made: str = ""  # the settings that the table does not show

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Solvers compared on {self.model}, {len(self.reference.x)} samples"

    def sections(self) -> Sequence[Section]:
        """A row for each solve, `nfe` the mean over the samples, and the figure; then what follows for the solvers."""
        head = ("solver", "grid", "steps", "nfe", "error (median)", "quarter", "three quarters", "clear", "calls")
        rows = [
            (
                *(c.solver, c.grid, c.steps, f"{c.cost:.0f}", *(f"{e:.2e}" for e in (c.median, *c.quartiles))),
                *("yes" if self.clear(c) else f"NO, {c.median / self.reference.floor:.2g}x", str(c.calls)),
            )
            for c in self.cells
        ]
        main = Section(self.title, table=Table(head, rows, self._notes()), draw=self.plot if self.cells else None)
        return [main, *self._conclusions] if self.cells else [main]

    @cached_property
    def _conclusions(self) -> list[Section]:
        """What follows from the errors, where there are any."""
        orders = {self.series(*name): order for name, order in self.orders.items() if order is not None}
        errors = {
            error: {self.series(*name): found for name, found in self.evaluations_for(error).items()}
            for error in round_errors(*self._resolved)
        }
        count = len(self.reference.x)
        return [
            Section("Best for a budget", table=self._best()),
            *([orders_section(orders, count)] if orders else []),
            *([reach_section(errors, count)] if errors else []),
            ranking_section([self.ranking(nfe) for nfe in self._budgets], count),
        ]

    def _notes(self) -> list[str]:
        notes = [f"{name} failed: {why}" for name, why in self.failures.items()]
        known = {self.series(*name): order for name, order in self.orders.items() if order is not None}
        if known:
            notes.append("orders: " + "; ".join(f"{name} {order.value:.1f}" for name, order in known.items()))
        for name, order in known.items():
            if order.flagged:
                notes.append(f"{name} is NOT of the order that it states: {order.claim}")
        notes.append(f"reference: {self.reference}" + (f"; {self.convergence}" if self.cells else ""))
        notes += [self.made] if self.made else []
        return [*notes, f"{self.calls} calls of the model, shared; {self.seconds:.1f} s with the reference"]

    def clear(self, cell: Cell) -> bool:
        """Whether the error of `cell` is the solver's, and not the reference's own."""
        return cell.median >= CLEAR * self.reference.floor

    @property
    def converged(self) -> bool | None:
        """Whether the reference is, for these solves: all errors are clear. None: it was given, and not checked."""
        return None if self.reference.difference is None else all(map(self.clear, self.cells))

    @property
    def convergence(self) -> str:
        """What is to be said of the reference."""
        if self.converged is None:
            return "whether it is converged is not known"
        if self.converged:
            return f"converged: all errors are {CLEAR} times that or more"
        near = sum(not self.clear(c) for c in self.cells)
        return f"NOT converged for {near} of {len(self.cells)} errors, less than {CLEAR} times that (clear: NO)"

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
                "clear": self.clear(c),
                "of_reference": c.median / self.reference.floor if self.reference.floor else None,
                "calls": c.calls,
            }
            for c in self.cells
        ]

    @cached_property
    def orders(self) -> dict[Name, Order | None]:
        """The measured order for each (solver, grid), over steps whose median error is clear and smaller than the data.

        None where fewer than two such errors are left, or the solver chose its own steps.
        """
        return {name: self._order(indices) for name, indices in self._series.items()}

    def _order(self, indices: list[int]) -> Order | None:
        cells = self.cells
        used = [i for i in indices if cells[i].num_steps and self.clear(cells[i]) and 0 < cells[i].median < self._size]
        used.sort(key=lambda i: cells[i].num_steps or 0)
        if len(used) < 2:
            return None
        stated = {cells[i].order for i in used}
        errors = torch.stack([cells[i].error for i in used], 1).clamp(self._least)
        steps = [cells[i].num_steps or 0 for i in used]
        return measured_order(steps, errors, self._resamples, stated.pop() if len(stated) == 1 else None)

    def evaluations_for(self, error: float) -> dict[Name, Reached | None]:
        """The evaluations at which each (solver, grid) reaches a median error; None where it does not.

        Raises:
            ValueError: The error is not positive, or so small that the reference's own would decide.
        """
        least = CLEAR * self.reference.floor
        if not (0 < error < math.inf and error >= least):
            raise ValueError(f"error must be positive, and at least {least:.1e} with this reference; got {error!r}")
        costs = torch.tensor([c.cost for c in self.cells], dtype=torch.float64)
        medians, (resampled, spent) = self._medians, self._resampled
        return {
            name: reached(
                error,
                costs[i],
                medians[i].clamp(self._least),
                spent[:, i],
                resampled[:, i].clamp(self._least),
                len(self.reference.x),
            )
            for name, i in self._series.items()
        }

    def ranking(self, nfe: int) -> Ranking:
        """Every (solver, grid) that has a solve of at most `nfe` evaluations, ranked by its best one.

        Raises:
            ValueError: There is none.
        """
        within = {name: [i for i in of if int(self.cells[i].nfe.max()) <= nfe] for name, of in self._series.items()}
        within = {name: of for name, of in within.items() if of}
        if not within:
            self.best(nfe)  # says what was spent at least
        medians = torch.stack([self._medians[of].amin() for of in within.values()])
        resampled = torch.stack([self._resampled[0][:, of].amin(1) for of in within.values()], 1)
        samples = len(self.reference.x)
        names = {name: self.series(*name) for name in within}
        return Ranking(nfe, places(names, medians, resampled, self.reference.floor, samples), samples, self.model)

    @cached_property
    def _series(self) -> dict[Name, list[int]]:
        """The cells, by index, of each solver on each grid."""
        found: dict[Name, list[int]] = {}
        for i, c in enumerate(self.cells):
            found.setdefault((c.solver, c.grid), []).append(i)
        return found

    @cached_property
    def _medians(self) -> Tensor:
        return torch.tensor([c.median for c in self.cells], dtype=torch.float64)

    @cached_property
    def _resamples(self) -> Resamples:
        return Resamples.of(len(self.reference.x))

    @cached_property
    def _resampled(self) -> tuple[Tensor, Tensor]:
        """(resamples, cells) median errors, and mean evaluations."""
        errors, nfe = (torch.stack([getattr(c, name) for c in self.cells], 1) for name in ("error", "nfe"))
        return self._resamples.medians(errors), self._resamples.means(nfe)

    @property
    def _least(self) -> float:
        """What smaller errors are taken for where they need a logarithm."""
        return max(self.reference.floor, TINY)

    @property
    def _size(self) -> float:
        """Standard deviation of the data: an error as large is no error but another image."""
        return self.reference.x.double().std().item() if self.reference.x.numel() > 1 else math.inf

    @property
    def _resolved(self) -> tuple[float, float]:
        """The largest and the smallest error that say anything."""
        found = [c.median for c in self.cells if 0 < c.median < self._size]  # 0: a reference that is one of these
        return max(found, default=0.0), max(min(found, default=0.0), CLEAR * self.reference.floor)

    @property
    def _budgets(self) -> list[int]:
        """Evaluations that were spent, the largest of those that are similar."""
        found: list[list[int]] = []
        for nfe in sorted({int(c.nfe.max()) for c in self.cells}):
            if found and nfe <= SIMILAR * found[-1][0]:
                found[-1].append(nfe)
            else:
                found.append([nfe])
        return [similar[-1] for similar in found]

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
        return tables.text(best.head, best.rows, best.notes)

    def _best(self) -> Table:
        found: list[tuple[int, Cell]] = []
        for nfe in sorted({int(c.nfe.max()) for c in self.cells}):
            best = self.best(nfe)
            if not found or best is not found[-1][1]:
                found.append((nfe, best))
        rankings = [self.ranking(nfe) for nfe, _ in found]
        rows = [
            (f"{nfe}", c.solver, c.grid, c.steps, TOLD[ranking.told], f"{c.median:.2e}")
            for (nfe, c), ranking in zip(found, rankings, strict=True)
        ]
        head = ("evaluations", "least error", "grid", "steps", "told apart", "error (median)")
        told = f"told apart: it has the least error in {LEVEL:.0%} of the resamples; -: it is the only one"
        if len(self.reference.x) < FEWEST:
            told += f". {basis(len(self.reference.x))}"
        unclear = "is not clear of the reference, whose own error it may be: raise reference_steps"
        vague = [f"{nfe} evaluations: the error of {c.solver} {unclear}" for nfe, c in found if not self.clear(c)]
        return Table(head, rows, [told, *vague])

    def plot(self) -> Figure:
        """Error against evaluations, on logarithmic axes, with the quartiles, the orders and the reference's own error.

        Raises:
            ValueError: No solver came back.
        """
        if not self.cells:
            raise ValueError("no solver came back, so there is nothing to draw")
        from odesampler.analysis.pictures import comparison_figure

        return comparison_figure(self)
