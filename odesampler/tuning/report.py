"""What tuning found: errors before and after, the grid chosen, sample by sample, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from odesampler.analysis.errors import quantile
from odesampler.analysis.report import Report, Section, Table
from odesampler.grid import Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Case:
    """A solver on its grid, before or after."""

    name: str
    grid: Grid
    errors: Mapping[str, Tensor]  # what was measured -> (n,), above 0; the last decides


@dataclass(frozen=True, repr=False, eq=False)
class Tuning(Report):
    """Errors before and after; prints as a table and draws itself."""

    cases: tuple[Case, ...]  # the untuned default first, what was tuned last
    images: Mapping[str, Tensor]  # (n, *shape) each; the first is what the others should be
    model: str
    num_steps: int
    measured: Mapping[str, Any]

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"{self.num_steps} steps tuned for {self.model}"

    def sections(self) -> Sequence[Section]:
        """Errors of each case; what was held out; the grids; sample by sample; pictures."""
        kinds = list(self.cases[0].errors)
        head = ("solver", *(f"{kind} (median)" for kind in kinds), f"{kinds[-1]}, of the default's")
        rows = [
            (
                *(r["solver"], *(f"{r[kind]:.2e}" for kind in kinds)),
                f"{r[kinds[-1]] / self.records()[0][kinds[-1]]:.2f}",
            )
            for r in self.records()
        ]
        found = [
            Section(self.title, table=Table(head, rows, self._notes()), draw=self.plot),
            *([self._held_out] if self.measured.get("held_out") else []),
            Section("Sample by sample", f"{kinds[-1]}: below the line is better than before.", draw=self.scatter),
        ]
        first = next(iter(self.images))
        if self.images[first].ndim == 4 and self.images[first].shape[1] in (1, 3):
            words = (
                f"A column for each of the first samples that were tested on, at {self.num_steps} steps: the {first}, "
                "what came out with its median error over these columns, and what that misses, grey where nothing. A "
                "recipe is for its own number of steps: for pictures at another, tune for that."
            )
            found.append(Section(f"Pictures at {self.num_steps} steps", words, draw=self.pictures))
        return found

    def _notes(self) -> list[str]:
        m = self.measured
        notes = [f"errors: rms from the reference, in units of the data; {m['reference']}"]
        cut = ", cut short by the budget" if m["cut_short_by_budget"] else ""
        notes.append(f"{m['iterations']} iterations{cut}, {m['seconds']:.0f} s of processor time")
        if m["refused"]:
            notes.append(f"not taken: {m['refused']}")
        return notes

    @property
    def _held_out(self) -> Section:
        head = ("held out", "default (median)", "tuned (median)", "ratio of errors", "worst class")
        rows = []
        for name, h in self.measured["held_out"].items():
            if "failed" in h:
                rows.append((name, "failed", "failed", "", ""))
                continue
            label, worst = max(h["classes"].items(), key=lambda one: one[1], default=("", 0.0))
            medians = (f"{h[which]['median']:.2e}" for which in ("default", "tuned"))
            rows.append((name, *medians, f"{h['ratio']:.2f}", f"{worst:.2f} (label {label})" if label else ""))
        words = "What was not tuned for: above 1 the tuned solver is worse there than the untuned default."
        return Section("Held out", words, Table(head, rows, ["ratio: geometric mean over the samples"]))

    def records(self) -> list[dict[str, Any]]:
        """A record for each case: medians."""
        return [
            {"solver": c.name, "grid": c.grid.name, **{kind: quantile(e, 0.5) for kind, e in c.errors.items()}}
            for c in self.cases
        ]

    def plot(self) -> Figure:
        """Where the sigmas of each grid are."""
        from odesampler.tuning.pictures import grids_chosen

        return grids_chosen(self)

    def scatter(self) -> Figure:
        """Each sample's error, before and after."""
        from odesampler.tuning.pictures import before_and_after

        return before_and_after(self)

    def pictures(self) -> Figure:
        """The first samples as they should be, after, before, and what is missed."""
        from odesampler.tuning.pictures import ends_and_misses

        return ends_and_misses(self)
