"""Measured orders of convergence: how fast the errors of a solver fall with its steps, how sure that is, and whether
it is what the solver states.

    order = -d log(median error) / d log(steps), by least squares;     local slope = the same between two neighbours

The line is straight only where steps are short enough, so it is fitted to the finest steps whose local slopes agree,
where there are such. Its interval is that of other samples (`bootstrap`); it knows nothing of a line that is bent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from odesampler.analysis.bootstrap import FEWEST, interval
from odesampler.analysis.report import Table

APART = 0.35  # orders: slopes that agree differ by less, and an order is not as stated where it differs by more
SPAN = 2  # the most of the steps by the least, for slopes to tell anything


@dataclass(frozen=True)
class Order:
    """The order of one solver on one grid."""

    value: float
    low: float  # the interval; -inf and inf: too few samples
    high: float
    steps: tuple[int, ...]  # what it was fitted to
    slopes: tuple[float, ...]  # local, between neighbours of all clear errors, from coarse to fine
    stated: int | None  # by the solver; None: by none, or not of this equation
    settled: bool  # the slopes between `steps` agree: what is measured is an order

    @property
    def flagged(self) -> bool:
        """Not the order that the solver states: the interval excludes it by far, where there is an order to measure."""
        return self.settled and self.stated is not None and self._distance > APART

    @property
    def _distance(self) -> float:
        """From the stated order to the interval; 0 inside."""
        return 0.0 if self.stated is None else max(self.low - self.stated, self.stated - self.high, 0.0)

    @property
    def verdict(self) -> str:
        """What is to be said of the stated order."""
        if self.stated is None:
            return "none stated"
        if not self.settled:
            return "cannot tell: slopes still change" if len(self.slopes) > 1 else "cannot tell: two numbers of steps"
        if self.flagged:
            return "NOT as stated"
        return "as stated" if abs(self.value - self.stated) <= APART else "cannot tell: few samples"

    @property
    def claim(self) -> str:
        """What was measured against what is stated."""
        return f"measured {self.value:.1f} {self.interval}, stated {self.stated}"

    @property
    def interval(self) -> str:
        """As "[1.9, 2.1]"; nothing where there is none."""
        return f"[{self.low:.2f}, {self.high:.2f}]" if math.isfinite(self.low) else ""


def measured_order(
    steps: list[int], medians: Tensor, resampled: Tensor, stated: int | None, samples: int
) -> Order | None:
    """The order from medians (steps,) and those of resamples (resamples, steps); None for fewer than two steps."""
    if len(steps) < 2:
        return None
    n, e = torch.tensor(steps, dtype=torch.float64).log(), medians.double().log()
    slopes = (-e.diff() / n.diff()).tolist()
    first = _settled(steps, slopes)
    used = slice(first or 0, None)
    low, high = -math.inf, math.inf
    if samples >= FEWEST:
        low, high = (end.item() for end in interval(fitted(n[used], resampled[:, used].double().log())))
    value = fitted(n[used], e[used]).item()
    return Order(value, low, high, tuple(steps[used]), tuple(slopes), stated, first is not None)


def fitted(n: Tensor, e: Tensor) -> Tensor:
    """(...,) the orders of lines through `e`, (..., steps), over `n`, (steps,), both logarithms."""
    n = n - n.mean()
    return -(e * n).sum(-1) / n.square().sum()


def _settled(steps: list[int], slopes: list[float]) -> int | None:
    """The first of the finest three steps or more between which all slopes agree; None: there are none."""
    first = len(slopes)
    while first and max(slopes[first - 1 :]) - min(slopes[first - 1 :]) < APART:
        first -= 1
    return first if len(slopes) - first > 1 and steps[-1] >= SPAN * steps[first] else None


def orders_table(orders: Mapping[str, Order]) -> Table:
    """A row a solver: its order with interval, what it states, and what that was read from."""
    head = ("solver", "order", "95 % interval", "stated", "steps used", "local slopes", "verdict")
    rows = [
        (
            name,
            f"{o.value:.2f}",
            o.interval or "-",
            "-" if o.stated is None else str(o.stated),
            " ".join(map(str, o.steps)),
            " ".join(f"{slope:.2f}" for slope in o.slopes),
            o.verdict,
        )
        for name, o in orders.items()
    ]
    notes = [f"{name}: {o.claim}" for name, o in orders.items() if o.flagged]
    return Table(head, rows, notes)
