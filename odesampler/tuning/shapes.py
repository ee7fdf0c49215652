"""What a fit may change: numbers that become sigmas and weights.

    log s_i = log s_i(start) + a_i d_i,    a_i = the shorter gap beside it        W = h (W(start; s) / h + D)

D is 0 on the diagonal, which takes what the row's sum lacks: every table is consistent to first order. All sigmas stay
in order and in the model's range; the first stays where it is, but after infinity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from odesampler.program import Solver
from odesampler.tuning.weight_tables import table_of

REACH = 20  # values of eps that a fitted step counts at most
NEAREST = 0.1  # two sigmas, in the least distance at the start


@dataclass(frozen=True, eq=False)
class Knots:
    """The sigmas above 0 of a grid, as numbers that may be moved: one each, but for the first where it is `pinned`."""

    sigmas: tuple[float, ...]  # (n,), falling
    low: float
    high: float  # the model's range
    pinned: bool = True

    @property
    def free(self) -> int:
        """How many numbers."""
        return len(self.sigmas) - self.pinned

    @property
    def _logs(self) -> Tensor:
        return torch.tensor(self.sigmas, dtype=torch.float64).log()

    @property
    def _scale(self) -> Tensor:
        """(n,) the shorter gap beside each."""
        gaps = -self._logs.diff()
        if not len(gaps):
            return torch.ones(1, dtype=torch.float64)
        return torch.minimum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]]))

    def made(self, moves: Tensor) -> Tensor:
        """(n,) sigmas, from (free,) moves; differentiable."""
        logs, scale, first = self._logs, self._scale, int(self.pinned)
        moved = (logs[first:] + scale[first:] * moves).exp()
        return torch.cat([torch.tensor(self.sigmas[:first], dtype=torch.float64), moved])

    def allowed(self, moves: Tensor) -> Tensor:
        """The moves nearest to `moves` that keep the order and the range."""
        logs, scale, first = self._logs, self._scale, int(self.pinned)
        n, least = len(logs), NEAREST * scale.min()
        wanted = logs.clone()
        wanted[first:] += scale[first:] * moves
        rank = torch.arange(n, dtype=torch.float64)
        inside = (wanted.clamp(max=math.log(self.high)) + least * rank).cummin(0).values - least * rank
        inside = torch.maximum(inside, math.log(self.low) + least * (n - 1 - rank))
        return ((inside - logs) / scale)[first:]


@dataclass(frozen=True, eq=False)
class MovedKnots:
    """A solver as it is, on a grid that moves: the parameters are the moves."""

    solver: Solver
    knots: Knots

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        sigmas = self.knots.made(theta)
        return sigmas, table_of(self.solver, sigmas)

    def start(self) -> Tensor:
        """Parameters that change nothing."""
        return torch.zeros(self.knots.free, dtype=torch.float64)

    def allowed(self, theta: Tensor) -> Tensor:
        """Back to where parameters may be."""
        return self.knots.allowed(theta)


@dataclass(frozen=True, eq=False)
class FreeTable:
    """A grid that moves, and a table that departs from a solver's: the parameters are the moves, then D row by row."""

    solver: Solver
    knots: Knots

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        moves, departures = theta[: self.knots.free], theta[self.knots.free :]
        sigmas = self.knots.made(moves)
        lengths = torch.cat([sigmas[1:], sigmas.new_zeros(1)]) - sigmas
        rows, columns = self._places
        empty = torch.zeros(len(sigmas), len(sigmas), dtype=torch.float64)
        changed = table_of(self.solver, sigmas) / lengths[:, None] + empty.index_put((rows, columns), departures)
        below = changed.tril(-1)
        return sigmas, lengths[:, None] * (below + torch.diag(1 - below.sum(1)))

    def start(self) -> Tensor:
        """Parameters that change nothing."""
        return torch.zeros(self.knots.free + len(self._places[0]), dtype=torch.float64)

    def allowed(self, theta: Tensor) -> Tensor:
        """Back to where parameters may be."""
        free = self.knots.free
        return torch.cat([self.knots.allowed(theta[:free]), theta[free:]])

    @property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Rows and columns below the diagonal, as far as a step reaches back."""
        rows, columns = torch.tril_indices(len(self.knots.sigmas), len(self.knots.sigmas), -1)
        near = rows - columns < REACH
        return rows[near], columns[near]
