"""Reversible Heun: a point and a copy that runs ahead of it by turns.

    z1 = 2 y0 - z0 + h F(z0, tau0),    y1 = y0 + h/2 (F(z0, tau0) + F(z1, tau1))

F = dy/dtau in one of the `coordinates`. Exchange the ends of the step and the sign of h, and the same two lines lead
back: the method is its own inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odesampler.coordinates import coordinate
from odesampler.frames import plus
from odesampler.program import Invertible, Program, Sigma, State


@dataclass(frozen=True)
class ReversibleHeun(Invertible):
    """Reversible Heun, in a coordinate that keeps its copy near the point.

    Order 2. Evaluations: 1 a step, and 1 to start. Error estimate: none. Memory: the copy z and its slope. Exactly
    invertible: yes, to rounding.

    Args:
        coordinate: What it steps: "sigma", "data", "angle", "flow", "asinh", "angle_asinh", "flow_asinh".
        delta: For asinh: where the clock goes over from sigma to log sigma.

    Raises:
        ValueError: An unknown coordinate, a delta not above 0.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:2]
        >>> latent = ods.encode(model, images, solver=ods.ReversibleHeun(), num_steps=10)
        >>> latent.nfe.tolist(), len(latent.memory)
        ([11, 11], 2)
        >>> bool((ods.decode(model, latent).x - images).abs().max() < 1e-9)
        True

    References:
        Kidger, Foster, Li, Lyons 2021, Efficient and Accurate Gradients for Neural SDEs, arXiv:2105.13493, Algorithms
        1 and 2.
    """

    coordinate: str = "flow_asinh"
    delta: float = 0.3

    summary = "reversible Heun: its own inverse, at one evaluation a step"
    order = 2
    evaluations = 1
    start_evaluations = 1

    def __post_init__(self) -> None:
        coordinate(self.coordinate, self.delta)

    def init(self, x: Tensor, sigma: Sigma) -> Program[State]:
        chart = coordinate(self.coordinate, self.delta)
        y = chart.inward(x, sigma)
        f0 = yield from chart.slope(y, sigma)
        return State(x, (y, f0))

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        chart, (z, f0) = coordinate(self.coordinate, self.delta), state.memory
        y, h = chart.inward(state.x, s0), chart.time(s1) - chart.time(s0)
        z = plus(2 * y - z, h, f0)
        f1 = yield from chart.slope(z, s1)
        return State(chart.outward(plus(y, h / 2, f0 + f1), s1), (z, f1))

    def unstep(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        return (yield from self.step(state, s1, s0))
