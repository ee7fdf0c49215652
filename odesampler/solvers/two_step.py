"""Two-step methods that can be undone: leapfrog, BDIA, BELM.

    y1 = kappa y_1 + (1 - kappa) y0 + (h + kappa h_1) F0  =  y0 + h F0 - kappa d,    d = y0 - y_1 - h_1 F0

y_1, y0, y1 are the values at three neighbours of the grid, h_1 and h the steps between them, F0 = dy/dtau at y0, in one
of the `coordinates`. d is what the last step went beyond the slope at its end. The methods differ in kappa alone, and

    kappa = gamma u / u_1,    u of a step from s0 to s1:

    leapfrog    1
    bdia        sqrt((1 + s0^2) (1 + s1^2)), so that kappa = gamma alpha_1 / alpha1, with the alpha of a VP model
    belm        h^2, so that kappa = (h / h_1)^2, which cancels the second-order term of the local error

Keeping d / u_1 in place of y_1, a step needs to know its own ends only, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from odesampler.coordinates import coordinate
from odesampler.frames import plus, times
from odesampler.program import Invertible, Program, Sigma, State

RULES: dict[str, Callable[[Any, Any, Any], Any]] = {  # u, of s0, s1 and h
    "leapfrog": lambda s0, s1, h: 1.0,
    "bdia": lambda s0, s1, h: ((1 + s0**2) * (1 + s1**2)) ** 0.5,
    "belm": lambda s0, s1, h: h**2,
}


@dataclass(frozen=True)
class TwoStep(Invertible):
    """A two-step method in any coordinate: leapfrog, BDIA, BELM.

    Order: 2, on grids whose steps change smoothly; 1 if gamma is not 1. Evaluations: 1 a step, and 1 to start. Error
    estimate: none. Memory: d / u, and the last eps. Exactly invertible: yes, to rounding, which undoing amplifies by
    1 / kappa a step. The first step is Euler's, from either end.

    Args:
        coordinate: What it steps: "sigma", "data", "angle", "flow", "asinh", "angle_asinh", "flow_asinh".
        delta: For asinh: where the clock goes over from sigma to log sigma.
        rule: What kappa is: "leapfrog", "bdia" or "belm".
        gamma: A factor of kappa, in (0, 1]: below 1 it damps the parasitic solution a step down, and undoing the step
            amplifies it.

    Raises:
        ValueError: An unknown coordinate or rule, a delta not above 0, a gamma outside (0, 1].

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:2]
        >>> latent = ods.encode(model, images, solver=ods.TwoStep("sigma", rule="bdia"), num_steps=10)
        >>> latent.recipe.solver, latent.nfe.tolist()
        ('bdia', [11, 11])
        >>> bool((ods.decode(model, latent).x - images).abs().max() < 1e-6)
        True

    References:
        Zhang, Lewis, Kleijn 2023, Exact Diffusion Inversion via Bi-directional Integration Approximation,
        arXiv:2307.10829 (bdia).
        Wang et al. 2024, BELM, arXiv:2410.07273 (belm).
    """

    coordinate: str = "flow_asinh"
    delta: float = 0.1
    rule: str = "belm"
    gamma: float = 1.0

    evaluations = 1
    start_evaluations = 1
    names: ClassVar = {
        "leapfrog": {"rule": "leapfrog"},
        "bdia": {"coordinate": "sigma", "rule": "bdia"},
        "belm": {"coordinate": "sigma", "rule": "belm"},
        "o_belm": {"coordinate": "sigma", "rule": "belm"},
    }

    def __post_init__(self) -> None:
        coordinate(self.coordinate, self.delta)
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; got {self.rule!r}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1]; got {self.gamma!r}")

    @property
    def summary(self) -> str:  # type: ignore[override]  # a fact of the setting here, not of the class
        damped = "" if self.gamma == 1 else f", gamma {self.gamma:g}"
        return f"two-step: {self.rule} in {self.coordinate}{damped}, exactly invertible"

    @property
    def order(self) -> int:
        return 2 if self.gamma == 1 else 1

    def init(self, x: Tensor, sigma: Sigma) -> Program[State]:
        k0 = yield x, sigma
        return State(x, (torch.zeros_like(x), k0))

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        return (yield from self._across(state, s0, s1, self.gamma))

    def unstep(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        return (yield from self._across(state, s1, s0, 1 / self.gamma))

    def into_zero(self, state: State, s0: Sigma) -> Program[State]:
        """Euler's step, which needs no one to be asked any more."""
        if not state.memory:
            state = yield from self.init(state.x, s0)
        return State(state.x - s0 * state.memory[1])

    def _across(self, state: State, s0: Sigma, s1: Sigma, gamma: float) -> Program[State]:
        """From s0 to s1. To undo a step is to step backwards, with 1 / gamma, which then belongs to the new d."""
        chart, (d, k0) = coordinate(self.coordinate, self.delta), state.memory
        h = chart.time(s1) - chart.time(s0)
        u = RULES[self.rule](s0, s1, h)
        taken, left = (gamma, 1.0) if gamma <= 1 else (1.0, gamma)
        moved = plus(times(h, chart.seen(k0, state.x, s0)), -taken * u, d)
        x1 = chart.outward(chart.inward(state.x, s0) + moved, s1)
        k1 = yield x1, s1
        d = times(left / u, plus(moved, -h, chart.seen(k1, x1, s1)))
        return State(x1, (d, k1))
