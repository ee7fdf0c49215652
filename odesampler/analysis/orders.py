"""Measured orders of convergence: how fast the errors of a solver fall with its steps, how sure that is, and whether
it is what the solver states.

    order of a sample = -d log(error) / d log(steps), by least squares;     of a solver: the median over the samples

The line is straight only where steps are short enough, so it is fitted to the finest steps whose local slopes agree,
where there are such. Its interval is that of other samples (`bootstrap`); it knows nothing of a line that is bent. So
what is said of the stated order goes by the finest slope and its own interval, and by whether slopes still fall: where
a term of a lower order is small, they begin near the stated order and sink away from it.

The line through the median errors scatters more, since another sample is in the middle at other steps, and the
intervals of its bootstrap hold the truth too often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from odesampler.analysis.bootstrap import FEWEST, Resamples, basis, interval
from odesampler.analysis.errors import quantile
from odesampler.analysis.report import Section, Table

APART = 0.35  # orders: slopes that agree differ by less, and an order is not as stated where it is less by more
NEAR = 0.1  # orders: a slope that falls and is less than stated by more has not come to rest there
FLAT = 0.01  # orders: slopes that change by less neither rise nor fall
SPAN = 2  # the most of the steps by the least, for slopes to tell anything
WORDS = (
    "The order that a solver shows on this network, over the finest steps between which the local slopes agree, "
    "against the one it states. Where slopes still change there is no order yet, and the line is through all clear "
    "errors. An order below the stated one is a fault of the solver, or of what keeps it from its order: a network "
    "that is not smooth, a grid whose ends move with the steps, a last step into zero other than Euler's, which the "
    "reference takes. One above it is none: the part of the error that falls most slowly is still small."
)


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
    last_high: float  # the upper end of the interval of the finest slope; inf: too few samples

    @property
    def flagged(self) -> bool:
        """Below the order that the solver states, where there is an order to measure: by far, and the finest slope too.

        Both with their whole intervals; slopes that rise may do so once more, by as much.
        """
        if not self.settled or self.stated is None:
            return False
        return max(self.high, self.last_high + max(self._rise, 0)) < self.stated - APART

    @property
    def sinking(self) -> bool:
        """Whether the slopes fall, and the finest, with its interval where there is one, is below the stated order."""
        if self.stated is None or self._rise > -FLAT:
            return False
        return (self.last_high if math.isfinite(self.last_high) else self.slopes[-1]) < self.stated - NEAR

    @property
    def _rise(self) -> float:
        return self.slopes[-1] - self.slopes[-2] if len(self.slopes) > 1 else 0.0

    @property
    def verdict(self) -> str:
        """What is to be said of the stated order."""
        if self.stated is None:
            return "none stated"
        if not self.settled:
            return "cannot tell: slopes still change" if len(self.slopes) > 1 else "cannot tell: two numbers of steps"
        if self.flagged:
            return "NOT as stated"
        if self.sinking:
            return "cannot tell: slopes still fall; take more steps"
        off = self.value - self.stated
        if abs(off) <= APART:
            return "as stated"
        if off > 0:
            return "more than stated"
        return "cannot tell: " + ("slopes still rise" if self.high < self.stated - APART else "wide interval")

    @property
    def claim(self) -> str:
        """What was measured against what is stated."""
        return f"measured {self.value:.1f} {self.interval}, stated {self.stated}"

    @property
    def short(self) -> str:
        """For a legend: with the interval, where it is wider than its last digit."""
        if not math.isfinite(self.low) or f"{self.low:.1f}" == f"{self.high:.1f}":
            return f"{self.value:.1f}"
        return f"{self.value:.1f}, {self.low:.1f} to {self.high:.1f}"

    @property
    def interval(self) -> str:
        """As "[1.9, 2.1]"; nothing where there is none."""
        return f"[{self.low:.2f}, {self.high:.2f}]" if math.isfinite(self.low) else ""


def measured_order(steps: list[int], errors: Tensor, resamples: Resamples, stated: int | None) -> Order:
    """The order from positive `errors`, (samples, steps), of two numbers of rising steps or more."""
    n, e = torch.tensor(steps, dtype=torch.float64).log(), errors.double().log()
    slopes = [quantile(slope, 0.5) for slope in (-e.diff() / n.diff()).unbind(1)]
    first = _settled(steps, slopes)
    used = slice(first or 0, None)
    orders, finest = fitted(n[used], e[:, used]), fitted(n[-2:], e[:, -2:])
    low, high, last_high = -math.inf, math.inf, math.inf
    if len(errors) >= FEWEST:
        ends = interval(resamples.medians(torch.stack([orders, finest], 1)))
        (low, _), (high, last_high) = (end.tolist() for end in ends)
    value = quantile(orders, 0.5)
    return Order(value, low, high, tuple(steps[used]), tuple(slopes), stated, first is not None, last_high)


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


def orders_section(orders: Mapping[str, Order], num_samples: int) -> Section:
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
    return Section("Orders", f"{WORDS} {basis(num_samples)}", Table(head, rows, notes))
