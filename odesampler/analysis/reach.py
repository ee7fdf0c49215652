"""Evaluations that a solver needs for a given error.

    log nfe = between those of its two solves around the error, linear in the logarithm of the median error

Nothing is extrapolated: an error that no solve reached has no number, one that the cheapest solve beat has a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from odesampler.analysis.bootstrap import FEWEST, basis, interval
from odesampler.analysis.report import Section, Table


@dataclass(frozen=True)
class Reached:
    """Evaluations a sample at which a median error is reached."""

    value: float
    low: float  # the interval; 0 and infinity: too few samples
    high: float  # infinity: more than were spent, in one resample of forty or more
    at_most: bool  # the cheapest solve is better already: no more than `value`

    def __str__(self) -> str:
        if self.at_most:
            return f"<= {self.value:.0f}"
        if not self.low:
            return f"{self.value:.0f}"
        return f"{self.value:.0f} [{self.low:.0f}, {'more' if math.isinf(self.high) else f'{self.high:.0f}'}]"


def reached(
    error: float, costs: Tensor, medians: Tensor, resampled_costs: Tensor, resampled_medians: Tensor, samples: int
) -> Reached | None:
    """Where `medians` over `costs`, (solves,), get down to `error`; None where they do not.

    Likewise in each resample, (resamples, solves). Errors of 0 have no logarithm: bound them from below.
    """
    order = costs.argsort()
    cheapest = order[0]
    at_most = bool(medians[cheapest] <= error)
    value = (costs[cheapest] if at_most else _crossing(error, costs[None, order], medians[None, order])).item()
    if math.isinf(value):
        return None
    low, high = 0.0, math.inf
    if samples >= FEWEST:
        low, high = (
            end.item() for end in interval(_crossing(error, resampled_costs[:, order], resampled_medians[:, order]))
        )
    return Reached(value, low, high, at_most)


def _crossing(error: float, costs: Tensor, errors: Tensor) -> Tensor:
    """(rows,) where the lines through (rows, solves) first get down to `error`; infinity: nowhere."""
    below = errors <= error
    after = below.int().argmax(1, keepdim=True)
    before = (after - 1).clamp(min=0)
    e0, e1, c0, c1 = (v.double().log().gather(1, i)[:, 0] for v in (errors, costs) for i in (before, after))
    part = torch.where(e0 > e1, (e0 - math.log(error)) / (e0 - e1), 1.0).clamp(0, 1)
    return torch.where(below.any(1), (c0 + part * (c1 - c0)).exp(), math.inf)


def round_errors(largest: float, smallest: float) -> list[float]:
    """Powers of ten from `largest` down to `smallest`."""
    if not 0 < smallest <= largest < math.inf:
        return []
    return [float(f"1e{k}") for k in range(math.floor(math.log10(largest)), math.ceil(math.log10(smallest)) - 1, -1)]


def reach_section(found: Mapping[float, Mapping[str, Reached | None]], num_samples: int) -> Section:
    """A row a solver, a column an error."""
    names = dict.fromkeys(name for of in found.values() for name in of)
    rows = [(name, *("-" if of[name] is None else str(of[name]) for of in found.values())) for name in names]
    notes = ["in brackets the 95 % interval; -: not reached; <=: by the cheapest solve already"]
    table = Table(("solver", *(f"error {error:.0e}" for error in found)), rows, notes)
    words = f"Model evaluations a sample, interpolated between solves, never extrapolated. {basis(num_samples)}"
    return Section("Evaluations to reach an error", words, table)
