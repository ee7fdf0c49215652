"""Methods for any equation, stepped in a coordinate in which it is tame.

    y = x / scale(sigma),  tau = time(sigma):     base steps dy/dtau from tau0 to tau1

Runge-Kutta methods follow polynomials. In x and sigma those must follow a state that shrinks with sigma over four
orders of magnitude; in y and tau it stays of order 1. `coordinates` has the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from odesampler.coordinates import Coordinate, coordinate
from odesampler.program import Course, Program, Sigma, Solver, State
from odesampler.solvers.runge_kutta import RK4
from odesampler.trial import carries, reads_sigma


@dataclass(frozen=True)
class Charted(Solver):
    """Any Runge-Kutta method, in any coordinate.

    Order: the base's. Evaluations: the base's. Error estimate: none, since `Adaptive` has a coordinate of its own.
    Memory: the base's, slopes of y in place of eps. Exactly invertible: no.

    Args:
        base: A deterministic solver that is not made for sigma itself: one of those in `runge_kutta`, or of your own.
        coordinate: What it steps: "sigma", "data", "angle", "flow", "asinh", "angle_asinh", "flow_asinh".
        delta: For asinh: where the clock goes over from sigma to log sigma.

    Raises:
        TypeError: A base that is no solver.
        ValueError: A base that draws noise, builds on the steps before, or reads more from sigma than differences; an
            unknown coordinate, a delta not above 0.

    Examples:
        >>> model = ods.load("digits")
        >>> exact = ods.sample(model, 4, solver="rk4", num_steps=100).x
        >>> plain, charted = (ods.sample(model, 4, solver=s, num_steps=5) for s in (ods.RK4(), ods.Charted(ods.RK4())))
        >>> plain.nfe.equal(charted.nfe), bool((charted.x - exact).norm() < 0.5 * (plain.x - exact).norm())
        (True, True)

    References:
        Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364, eq. 4: any scale and clock give an ODE.
    """

    base: Solver = field(default_factory=RK4)
    coordinate: str = "flow"
    delta: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.base, Solver):
            raise TypeError(f"Charted takes a solver such as ods.RK4(); got {self.base!r}")
        if self.base.stochastic or reads_sigma(self.base) or carries(self.base):
            raise ValueError(f"Charted needs a deterministic solver for any equation, such as RK4(); got {self.base}")
        coordinate(self.coordinate, self.delta)

    @property
    def summary(self) -> str:  # type: ignore[override]  # a fact of the setting here, not of the class
        return f"any Runge-Kutta method in any coordinate, {type(self.base).__name__} in {self.coordinate}"

    @property
    def order(self) -> int:
        return self.base.order

    @property
    def evaluations(self) -> int:
        return self.base.evaluations

    @property
    def start_evaluations(self) -> int:  # type: ignore[override]  # a fact of the base
        return self.base.start_evaluations

    @property
    def differentiable(self) -> bool:  # type: ignore[override]  # a fact of the base
        return self.base.differentiable

    def prepared(self, course: Course) -> Charted:
        return replace(self, base=self.base.prepared(course))

    def init(self, x: Tensor, sigma: Sigma) -> Program[State]:
        return (yield from self._chart.started(self.base, x, sigma))

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        return (yield from self._chart.stepped(self.base, state, s0, s1))._replace(error=None)

    @property
    def _chart(self) -> Coordinate:
        return coordinate(self.coordinate, self.delta)
