"""Rankings: which solver has the least error for a budget of evaluations, and whether the samples suffice to say so.

    error of a solver = the least median of its solves within the budget;     rank = 1 + how many have less

The same in resamples of the samples (`bootstrap`), the same for all solvers. Only what is best in 95 % of them is
called the best. Errors that differ by less than a thousandth, or than what the reference leaves open, are equal; so are
all that are not clear of the reference (`reference.CLEAR`): they are as much its own as the solvers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odesampler.analysis.bootstrap import FEWEST, LEVEL, basis, interval
from odesampler.analysis.reference import CLEAR
from odesampler.analysis.report import Report, Section, Table

EQUAL = 1e-3  # relative: nobody chooses a solver for less
WORDS = "Ranks by median error within each budget, and in brackets in what part of the resamples a solver is the best."


@dataclass(frozen=True)
class Place:
    """How one solver on one grid came out."""

    solver: str
    grid: str
    name: str  # of both, for people
    error: float  # median
    rank: int  # from 1; equal errors have equal ranks
    low: int  # the interval of ranks
    high: int
    best: float | None  # of the resamples, in what part it is the best; None: too few samples to say
    clear: bool  # of the reference's own error


@dataclass(frozen=True, repr=False)
class Ranking(Report):
    """Solvers by error for one budget; prints as a table."""

    nfe: int
    places: tuple[Place, ...]  # by error
    samples: int
    model: str

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Solvers of at most {self.nfe} evaluations ranked on {self.model}, {self.samples} samples"

    @property
    def contenders(self) -> tuple[Place, ...]:
        """The fewest of which one is the best in 95 % of the resamples; all, where there are too few samples to say."""
        likely = sorted(self.places, key=lambda p: -(p.best or 0))
        sums = torch.tensor([p.best or 0 for p in likely]).cumsum(0)
        return tuple(likely[: int((sums < LEVEL - 1e-9).sum()) + 1])

    @property
    def told(self) -> bool | None:
        """Whether one is the best, and can be told from the others; None: there are no others."""
        if len(self.places) == 1:
            return None
        return self.samples >= FEWEST and len(self.contenders) == 1

    @property
    def verdict(self) -> str:
        """Which is the best, if that can be said."""
        vague = [p.name for p in self.contenders if not p.clear]
        return self._verdict + (f"; not clear of the reference: {', '.join(vague)}" if vague else "")

    @property
    def _verdict(self) -> str:
        first = self.contenders[0]
        if self.told is None:
            return f"only {first.name}, nothing to tell it from"
        if self.samples < FEWEST:
            return f"cannot be told from {self.samples} samples; {FEWEST} are the fewest"
        if not self.told:
            return f"cannot be told apart: {', '.join(p.name for p in self.contenders)}"
        return f"best: {first.name}, in {first.best:.0%} of the resamples"

    def sections(self) -> Sequence[Section]:
        """A row a solver, by error."""
        head = ("solver", "rank", "95 % interval", "best in", "error (median)")
        rows = [
            (p.name, str(p.rank), f"[{p.low}, {p.high}]", "-" if p.best is None else f"{p.best:.0%}", f"{p.error:.2e}")
            for p in self.places
        ]
        return [Section(self.title, table=Table(head, rows, [self.verdict]))]

    def records(self) -> list[dict[str, Any]]:
        """A record for each solver."""
        names = ("solver", "grid", "rank", "low", "high", "best", "error")
        return [{name: getattr(p, name) for name in names} for p in self.places]


def places(
    names: Mapping[tuple[str, str], str], errors: Tensor, resampled: Tensor, floor: float, samples: int
) -> tuple[Place, ...]:
    """Rank solvers by errors (solvers,), and in each resample, (resamples, solvers)."""
    ranks, _ = _ranks(errors[None], floor)
    first, last = _ranks(resampled, floor)
    leads = (first == 1).double()
    best = (leads / leads.sum(1, keepdim=True)).mean(0)  # those that share the lead share the resample
    low, high = interval(first.double())[0], interval(last.double())[1]
    few = samples < FEWEST
    found = [
        Place(
            *name,
            called,
            errors[i].item(),
            int(ranks[0, i]),
            1 if few else int(low[i]),
            len(errors) if few else int(high[i]),
            None if few else best[i].item(),
            errors[i].item() >= CLEAR * floor,
        )
        for i, (name, called) in enumerate(names.items())
    ]
    return tuple(sorted(found, key=lambda p: p.error))


def _ranks(errors: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """(rows, solvers), the first and the last rank that each may have among its equals."""
    errors = errors.clamp(min=CLEAR * floor)
    less = errors[:, None, :] < (1 - EQUAL) * errors[:, :, None] - 2 * floor  # the reference is off in both
    return 1 + less.sum(2), errors.shape[1] - less.sum(1)


def ranking_section(rankings: Sequence[Ranking], num_samples: int) -> Section:
    """A row a solver, a column a budget: rank, its interval, and in what part of the resamples it is the best."""
    of = [{p.name: p for p in ranking.places} for ranking in rankings]
    names = [p.name for p in rankings[-1].places]
    rows = [(name, *(_cell(places.get(name)) for places in of)) for name in names]
    notes = [f"at most {ranking.nfe} evaluations: {ranking.verdict}" for ranking in rankings]
    table = Table(("solver", *(f"nfe {ranking.nfe}" for ranking in rankings)), rows, notes)
    return Section("Ranking", f"{WORDS} {basis(num_samples)}", table)


def _cell(place: Place | None) -> str:
    if place is None:
        return "-"
    if place.best is None:
        return str(place.rank)
    ends = str(place.low) if place.low == place.high else f"{place.low}-{place.high}"
    return f"{ends} ({place.best:.0%})"
