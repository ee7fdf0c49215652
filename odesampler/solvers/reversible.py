"""Solvers whose step can be undone exactly: two coupled copies of x, each stepped from the other.

    y1 = c y0 + (1 - c) z0 + Psi(z0; s0 -> s1),     z1 = z0 - Psi(y1; s1 -> s0)

Psi is the increment of any one-step solver. Either line can be solved for its old value, which is all that `unstep`
does. The second copy z is the state's memory: without it the inverse is only as good as the solver.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from odesampler.program import Invertible, Program, Sigma, Solver, State
from odesampler.solvers.bases import checked_base
from odesampler.solvers.runge_kutta import Heun


@dataclass(frozen=True)
class Reversible(Invertible):
    """Any one-step solver, made exactly invertible.

    Order: the base's. Evaluations: twice the base's. Error estimate: none. Memory: the second copy of x. Exactly
    invertible: yes, to rounding, which `unstep` amplifies by coupling**-1 a step.

    Args:
        base: A deterministic solver without memory of its own.
        coupling: c, in (0, 1]; nearer to 1 amplifies less when undone and damps less when stepped.

    Raises:
        TypeError: A base that is no solver.
        ValueError: A base that draws noise or carries memory; a coupling outside (0, 1].

    References:
        McCallum, Foster 2024, Efficient, Accurate and Stable Gradients for Neural ODEs, arXiv:2410.11648.
    """

    base: Solver = field(default_factory=Heun)
    coupling: float = 0.999

    summary = "McCallum-Foster: any one-step solver, made exactly invertible"
    names: ClassVar = {"reversible_heun": {}}

    def __post_init__(self) -> None:
        checked_base("Reversible", self.base)
        if not 0 < self.coupling <= 1:
            raise ValueError(f"coupling must be in (0, 1]; got {self.coupling}")

    @property
    def order(self) -> int:
        return self.base.order

    @property
    def evaluations(self) -> int:
        return 2 * self.base.evaluations

    def init(self, x: Tensor, sigma: Sigma) -> Program[State]:
        return State(x, (x,))
        yield

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        y, (z,) = state.x, state.memory
        y = self.coupling * y + (1 - self.coupling) * z + (yield from self._increment(z, s0, s1))
        z = z - (yield from self._increment(y, s1, s0))
        return State(y, (z,))

    def unstep(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        y, (z,) = state.x, state.memory
        z = z + (yield from self._increment(y, s1, s0))
        y = (y - (1 - self.coupling) * z - (yield from self._increment(z, s0, s1))) / self.coupling
        return State(y, (z,))

    def _increment(self, x: Tensor, s0: Sigma, s1: Sigma) -> Program[Tensor]:
        state = yield from self.base.step(State(x), s0, s1)
        return state.x - x
