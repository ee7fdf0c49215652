"""Solvers whose step can be undone exactly: two coupled copies of y, each stepped from the other.

    y1 = c y0 + (1 - c) z0 + Psi(z0; tau0 -> tau1),     z1 = z0 - Psi(y1; tau1 -> tau0)

Psi is the increment of any one-step solver of dy/dtau, the equation in one of the `coordinates`. Either line can be
solved for its old value, which is all that `unstep` does. The second copy z is the state's memory: without it the
inverse is only as good as the solver.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from odesampler.coordinates import Coordinate, coordinate
from odesampler.program import Course, Invertible, Program, Sigma, Solver, State
from odesampler.solvers.bases import checked_base
from odesampler.solvers.runge_kutta import Euler, Heun
from odesampler.trial import reads_sigma


@dataclass(frozen=True)
class Reversible(Invertible):
    """Any one-step solver, made exactly invertible, in any coordinate.

    Order: the base's. Evaluations: twice the base's. Error estimate: none. Memory: the second copy of y. Exactly
    invertible: yes, to rounding, which `unstep` amplifies by coupling**-1 a step.

    Args:
        base: A deterministic solver without memory of its own.
        coupling: c, in (0, 1]; nearer to 1 amplifies less when undone and damps less when stepped.
        coordinate: What the base steps: "sigma", "data", "angle", "flow", "asinh", "angle_asinh", "flow_asinh".
        delta: For asinh: where the clock goes over from sigma to log sigma.

    Raises:
        TypeError: A base that is no solver.
        ValueError: A base that draws noise or carries memory, or that reads more from sigma than differences where it
            is shown another clock; a coupling outside (0, 1]; an unknown coordinate, a delta not above 0.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:2]
        >>> latent = ods.encode(model, images, solver=ods.Reversible(ods.RK4()), num_steps=5)
        >>> latent.nfe.tolist()  # twice the base's
        [40, 40]
        >>> bool((ods.decode(model, latent).x - images).abs().max() < 1e-9)
        True
        >>> ods.Reversible(ods.Multistep())
        Traceback (most recent call last):
            ...
        ValueError: Reversible needs a deterministic one-step solver without memory...

    References:
        McCallum, Foster 2024, Efficient, Accurate and Stable Gradients for Neural ODEs, arXiv:2410.11648.
        Blasingame, Liu 2025, Rex, arXiv:2502.08834 (rex).
    """

    base: Solver = field(default_factory=Heun)
    coupling: float = 0.999
    coordinate: str = "flow"
    delta: float = 0.1

    names: ClassVar = {"rex": {"base": Euler(), "coordinate": "data"}}

    def __post_init__(self) -> None:
        checked_base("Reversible", self.base)
        if not 0 < self.coupling <= 1:
            raise ValueError(f"coupling must be in (0, 1]; got {self.coupling}")
        coordinate(self.coordinate, self.delta)
        if self.coordinate != "sigma" and reads_sigma(self.base):
            raise ValueError(
                f"{self.base} is made for sigma itself, and the coordinate {self.coordinate!r} has another clock: take "
                "Reversible(base, coordinate='sigma')"
            )

    @property
    def summary(self) -> str:  # type: ignore[override]  # a fact of the setting here, not of the class
        base = type(self.base).__name__
        return f"McCallum-Foster: any one-step solver made exactly invertible, {base} in {self.coordinate}"

    @property
    def order(self) -> int:
        return self.base.order

    @property
    def evaluations(self) -> int:
        return 2 * self.base.evaluations

    def prepared(self, course: Course) -> Reversible:
        return replace(self, base=self.base.prepared(course))

    def init(self, x: Tensor, sigma: Sigma) -> Program[State]:
        return State(x, (self._chart.inward(x, sigma),))
        yield

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        y, (z,) = self._chart.inward(state.x, s0), state.memory
        y = self.coupling * y + (1 - self.coupling) * z + (yield from self._increment(z, s0, s1))
        z = z - (yield from self._increment(y, s1, s0))
        return State(self._chart.outward(y, s1), (z,))

    def unstep(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        y, (z,) = self._chart.inward(state.x, s1), state.memory
        z = z + (yield from self._increment(y, s1, s0))
        y = (y - (1 - self.coupling) * z - (yield from self._increment(z, s0, s1))) / self.coupling
        return State(self._chart.outward(y, s0), (z,))

    def _increment(self, y: Tensor, s0: Sigma, s1: Sigma) -> Program[Tensor]:
        chart = self._chart
        t0, t1 = chart.time(s0), chart.time(s1)
        state = yield from chart.shown(self.base.step(State(y), t0, t1), s0, t0, s1, t1)
        return state.x - y

    @property
    def _chart(self) -> Coordinate:
        return coordinate(self.coordinate, self.delta)
