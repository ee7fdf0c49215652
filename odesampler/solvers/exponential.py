"""Single-step exponential methods: one family, frame x fractions x rule.

    x(r) = carried(r) * x0 + sum_j weights_j(r) g_j        at s0 * (s1 / s0)^r, for each of the fractions r, then r = 1

The stages lie at `fractions` of the step in log sigma. Each is the polynomial through the stages before it, integrated
exactly; the last sum follows a `rule`. `frames` says what g is, `weights` how it is integrated. DPM-Solver-2 and -3 and
DPM-Solver++ 2S and 3S are settings of this class, listed in its `names`. The literature on ODEs calls such methods
exponential Runge-Kutta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

from odesampler.frames import FRAMES, Frame, log, times
from odesampler.program import Program, Sigma, Solver, State
from odesampler.solvers.weights import Points, Weights, bh2, combined, exact


@dataclass(frozen=True)
class Singlestep(Solver):
    """A two- or three-stage exponential method in any frame, without memory.

    Order: 3 by default; with one fraction 2, with two 3 if the second is 2/3, else 2. Evaluations: 3 by default; in
    general one more than there are fractions. Error estimate: embedded, through as many stages as its order less one
    (DPM-Solver-12 and -23). Memory: none. Exactly invertible: no.

    Args:
        frame: What is interpolated: "noise", "data", "v" or "flow" (see `frames`).
        fractions: Where in log sigma the stages after the first lie, 0 being the start of the step, 1 its end: (r1,)
            for two stages, (r1, r2) for three.
        rule: How the last sum is integrated: "exact", the polynomial through all stages, or "dpm", as published: of two
            stages the line's value in the middle, of three the line through the first and third, exactly.
        data_scale: Standard deviation of the data, for the v frame.

    Raises:
        ValueError: An unknown frame or rule; fractions that do not rise from above 0 to 1 at most.

    Examples:
        >>> solver, model = ods.Singlestep("noise", (1 / 2,), "dpm"), ods.load("digits")
        >>> solver.order, solver.evaluations
        (2, 2)
        >>> found = ods.sample(model, 2, solver=solver, num_steps=5).x
        >>> found.equal(ods.sample(model, 2, solver="dpm_solver_2", num_steps=5).x)
        True

    References:
        Lu et al. 2022, DPM-Solver, arXiv:2206.00927, Algorithms 1, 4 and 5 (dpm_solver_2, dpm_solver_3), and appendix
        C, the error estimate. Lu et al. 2022, DPM-Solver++, arXiv:2211.01095, Algorithm 1 (dpmpp_2s); its authors' code
        (dpmpp_3s).
        Hochbruck, Ostermann 2010, Exponential integrators, Acta Numerica 19, 209 (singlestep).
    """

    frame: str = "flow"
    fractions: tuple[float, ...] = (1 / 3, 2 / 3)
    rule: str = "exact"
    data_scale: float = 1.0

    names: ClassVar = {
        "dpm_solver_2": {"frame": "noise", "fractions": (1 / 2,), "rule": "dpm"},
        "dpm_2": {"frame": "noise", "fractions": (1 / 2,), "rule": "dpm"},  # k-diffusion's name
        "dpm_solver_3": {"frame": "noise", "rule": "dpm"},
        "dpmpp_2s": {"frame": "data", "fractions": (1 / 2,), "rule": "dpm"},
        "dpmpp_3s": {"frame": "data", "rule": "dpm"},
    }

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise ValueError(f"frame must be one of {', '.join(sorted(FRAMES))}; got {self.frame!r}")
        if self.rule not in ("exact", "dpm"):
            raise ValueError(f'rule must be "exact" or "dpm"; got {self.rule!r}')
        if not _rising(self.fractions):
            raise ValueError(f"fractions must be (r1,) or (r1, r2) with 0 < r1 < r2 <= 1; got {self.fractions!r}")
        if not 0 < self.data_scale < math.inf:
            raise ValueError(f"data_scale must be above 0 and finite; got {self.data_scale!r}")

    @property
    def summary(self) -> str:  # type: ignore[override]  # a fact of the setting here, not of the class
        at = ", ".join(f"{r:.3g}" for r in self.fractions)
        return f"single-step: {self.frame} frame, stages at 0, {at}, rule {self.rule}"

    @property
    def order(self) -> int:
        return 3 if len(self.fractions) == 2 and math.isclose(self.fractions[1], 2 / 3) else 2

    @property
    def evaluations(self) -> int:
        return 1 + len(self.fractions)

    @property
    def error_order(self) -> int:
        return self.order - 1

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        x, frame = state.x, FRAMES[self.frame](0.0, self.data_scale)
        k0 = yield x, s0
        points, g = [s0], [frame.seen(k0, x, s0)]
        for r in self.fractions:
            s = s1 if r == 1 else s0 * (s1 / s0) ** r
            stage = combined(frame.carried(s0, s), x, exact(frame, log, s0, s, points), g)
            k = yield stage, s
            points.append(s)
            g.append(frame.seen(k, stage, s))
        weights, lower = (self._weights(frame, s0, s1, points[:n]) for n in (len(points), self.error_order))
        first, *others = (w - e for w, e in zip_longest(weights, lower, fillvalue=0.0))
        error = combined(1, times(first, g[0]), others, g[1:])
        return State(combined(frame.carried(s0, s1), x, weights, g), error=error)

    def _weights(self, frame: Frame, s0: Sigma, s1: Sigma, points: Points) -> Weights:
        """Of the last sum, through the first stages, at `points`."""
        if self.rule == "exact":
            return exact(frame, log, s0, s1, points)
        if len(points) < 3:
            return bh2(frame, log, s0, s1, points)
        first, third = exact(frame, log, s0, s1, points[::2])
        return [first, 0.0, third]


def _rising(fractions: object) -> bool:
    if not isinstance(fractions, tuple) or len(fractions) not in (1, 2):
        return False
    return all(isinstance(r, (int, float)) and 0 < r <= 1 for r in fractions) and fractions[0] < (*fractions, 2.0)[1]
