"""Fitted methods: a step's weights from a table that was made for one model and one grid.

    x_{i+1} = x_i + sum_j weights_ij k_j,    k_j = eps(x_j, s_j), newest first,    sum_j weights_ij = s_{i+1} - s_i

Every linear multistep method in the frames "noise", "data" and "flow", in whatever variable, is such a table on a given
grid: the state it carries is x and a sum of values of eps. So a table can begin as any of them and be fitted from there
(`ods.tune`), and no table has more to remember than eps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from odesampler.frames import NoiseFrame, log
from odesampler.program import Program, Sigma, Solver, State, euler_into_zero
from odesampler.solvers.weights import Weights, combined, exact

ORDER = 2  # off the table
SLACK = 1e-9  # of the sum of a row's weights, relative to the step and the largest of them


@dataclass(frozen=True)
class Fitted(Solver):
    """A multistep method by its table of weights; where that says nothing, the exponential Adams method of order 2.

    Order 2 off its grid; on it 1 by construction, and as exact as it was fitted. Evaluations: 1 a step. Error estimate:
    none. Memory: eps at earlier sigmas, as many as the table counts. Exactly invertible: no.

    Args:
        sigmas: The grid of the table, falling, finite; may end at 0.
        weights: Of each step in turn, one for each eps that it counts, newest first: 1 to i + 1 of them in step i.

    Raises:
        ValueError: A table that does not belong to its grid, or is not consistent to first order.

    Examples:
        >>> table = ods.Fitted((2.0, 1.0, 0.5), ((-1.0,), (-0.75, 0.25)))  # each row sums to its step
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> ods.sample(model, 2, solver=table, grid=table.sigmas).nfe.tolist()
        [2, 2]
        >>> ods.Fitted((2.0, 1.0), ((-0.9,),))
        Traceback (most recent call last):
            ...
        ValueError: the weights of a step must sum to its length...

    References:
        Zhang, Chen 2023, DEIS, arXiv:2204.13902 (off the table). Shaul et al. 2024, Bespoke Non-Stationary Solvers,
        arXiv:2403.01329, section 3; Frankel et al. 2025, S4S, arXiv:2502.17423 (fitted tables).
    """

    sigmas: tuple[float, ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()

    order = ORDER
    evaluations = 1

    def __post_init__(self) -> None:
        sigmas = tuple(float(s) for s in self.sigmas)
        weights = tuple(tuple(float(w) for w in row) for row in self.weights)
        object.__setattr__(self, "sigmas", sigmas)
        object.__setattr__(self, "weights", weights)
        if len(weights) != max(0, len(sigmas) - 1):
            raise ValueError(f"a table needs a row of weights a step: {len(sigmas)} sigmas, {len(weights)} rows")
        if not all(a > b >= 0 for a, b in pairwise(sigmas)) or math.inf in sigmas:
            raise ValueError(f"the sigmas of a table must fall, and be finite and 0 or more; got {list(sigmas)}")
        for i, (row, (s0, s1)) in enumerate(zip(weights, pairwise(sigmas), strict=True)):
            if not 1 <= len(row) <= i + 1:
                raise ValueError(f"step {i} has {i + 1} values of eps to count; got {len(row)} weights")
            off = abs(sum(row) - (s1 - s0))
            if not off <= SLACK * max(s0 - s1, *map(abs, row)):
                raise ValueError(
                    f"the weights of a step must sum to its length, or it is not consistent: step {i} from {s0:g} to "
                    f"{s1:g} has {sum(row):g}"
                )

    @property
    def summary(self) -> str:  # type: ignore[override]  # a fact of the table here, not of the class
        return f"multistep by a table of {len(self.weights)} fitted steps" if self.weights else "multistep by a table"

    def __repr__(self) -> str:
        ends = f"{len(self.weights)} steps from {self.sigmas[0]:g}" if self.weights else ""
        return f"Fitted({ends})"

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        k0 = yield state.x, s0
        known, at = (k0, *state.memory), (s0, *state.sigmas)
        row = self._row(at, s1) or exact(NoiseFrame(), log, s0, s1, at[:ORDER])
        keep = max(ORDER - 1, self._counted - 1)
        return State(combined(1, state.x, row, known), known[:keep], sigmas=at[:keep])

    def into_zero(self, state: State, s0: Sigma) -> Program[State]:
        row = self._row((s0, *state.sigmas), 0.0)
        if row is None:
            return (yield from euler_into_zero(state, s0))
        k0 = yield state.x, s0
        return State(combined(1, state.x, row, (k0, *state.memory)))

    @property
    def _counted(self) -> int:
        """The most values of eps that a step counts."""
        return max((len(row) for row in self.weights), default=0)

    def _row(self, at: tuple[Sigma, ...], s1: Sigma) -> Weights | None:
        """The weights of the step to `s1` from where eps is known, newest first; None: the table says nothing of it."""
        if isinstance(s1, Tensor) or any(isinstance(s, Tensor) for s in at) or at[0] not in self.sigmas[:-1]:
            return None
        i = self.sigmas.index(at[0])
        row = self.weights[i]
        seen = self.sigmas[i + 1 - len(row) : i + 1][::-1]
        return list(row) if s1 == self.sigmas[i + 1] and at[: len(row)] == seen else None
