"""The asynchronous leapfrog: a point and its slope, moved by turns.

    m = y0 + h/2 v0,    v1 = v0 + 2 eta (F(m, tau0 + h/2) - v0),    y1 = m + h/2 v1

F = dy/dtau in one of the `coordinates`. Each line can be undone: v0 = (v1 - 2 eta F) / (1 - 2 eta), with the same F. At
eta = 1 it is the leapfrog on the midpoints, smoothed: the parasitic solution sits in the slope, not in the image.
The first slope is asked for, but not in the noise where the clock is slow enough there (in asinh): to 1 / sigma it is
that of x = sigma eps.
How the defaults were chosen: docs/inversion.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from odesampler.coordinates import Coordinate, coordinate
from odesampler.frames import plus, times
from odesampler.program import Course, Invertible, Program, Sigma, State, euler_into_zero

NOISE = 10.0  # from this sigma up the first slope is known: data are of the order of 1
KNOWN = ("sigma", "asinh", "angle_asinh", "flow_asinh")  # in others it is the denoised image, however high sigma is


@dataclass(frozen=True)
class ALF(Invertible):
    """Asynchronous leapfrog, in a coordinate that keeps it tame.

    Order 2. Evaluations: 1 a step, and 1 to start below sigma = 10. Error estimate: none. Memory: the slope v.
    Exactly invertible: yes, to rounding; the slope's rounding is amplified D-fold over an encoding.

    Args:
        coordinate: What it steps: "sigma", "data", "angle", "flow", "asinh", "angle_asinh", "flow_asinh".
        delta: For asinh: where the clock goes over from sigma to log sigma.
        damping: D, 1 or more: by how much the parasitic part of the slope shrinks over a whole decoding, and grows over
            an encoding. 1 - 2 eta = -D^(-h/T) in a step h of T, the whole, so that D means the same on every grid.
        scale: k in y = x / (k + sigma) and its like: where y goes over from x to noise.

    Raises:
        ValueError: An unknown coordinate, a delta or a scale not above 0, a damping below 1.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:2]
        >>> latent = ods.encode(model, images, solver=ods.ALF(), num_steps=10)
        >>> latent.nfe.tolist(), [tuple(m.shape) for m in latent.memory]
        ([11, 11], [(2, 1, 8, 8)])
        >>> bool((ods.decode(model, latent).x - images).abs().max() < 1e-10)
        True

    References:
        Zhuang et al. 2021, MALI, arXiv:2102.04668, Algorithms 2 and 3, and section 3.3 for the damped form.
        Mutze 2013, An asynchronous leap-frog method II, arXiv:1311.6602.
    """

    coordinate: str = "flow_asinh"
    delta: float = 1.0
    damping: float = 2.0
    scale: float = 3.0
    course: Course | None = field(default=None, repr=False, compare=False)  # told by `prepared`

    summary = "asynchronous leapfrog: exactly invertible at one evaluation a step"
    order = 2
    evaluations = 1
    start_evaluations = 1

    def __post_init__(self) -> None:
        coordinate(self.coordinate, self.delta, self.scale)
        if not 1 <= self.damping < math.inf:
            raise ValueError(f"damping must be 1 (none) or more, and finite; got {self.damping!r}")

    def prepared(self, course: Course) -> ALF:
        return replace(self, course=course)

    def init(self, x: Tensor, sigma: Sigma) -> Program[State]:
        chart = self.chart
        if self._knows_slope(sigma):
            return State(x, (chart.seen(x / sigma, x, sigma),))
        v = yield from chart.slope(chart.inward(x, sigma), sigma)
        return State(x, (v,))

    def cost(self, num_steps: int) -> int:
        first = next(s for s in self.course.sigmas if s < math.inf) if self.course is not None else 0.0
        return num_steps + (not self._knows_slope(first))

    def _knows_slope(self, sigma: Sigma) -> bool:
        """Whether x says what eps is. Where each sample has a sigma of its own it is not looked at: that would wait."""
        return self.coordinate in KNOWN and not isinstance(sigma, Tensor) and NOISE <= sigma < math.inf

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        return (yield from self._across(state, s0, s1, undo=False))

    def unstep(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        return (yield from self._across(state, s1, s0, undo=True))

    def into_zero(self, state: State, s0: Sigma) -> Program[State]:
        """A step like the others, if its middle may be asked; else Euler's."""
        if self.course is None or isinstance(s0, Tensor) or self.coordinate == "data":
            return (yield from euler_into_zero(state, s0))
        chart = self.chart
        if chart.sigma((chart.time(s0) + chart.time(0.0)) / 2) < self.course.low:
            return (yield from euler_into_zero(state, s0))
        if not state.memory:
            state = yield from self.init(state.x, s0)
        state = yield from self.step(state, s0, 0.0)
        return State(state.x)

    def _across(self, state: State, s0: Sigma, s1: Sigma, *, undo: bool) -> Program[State]:
        """From s0 to s1. To undo a step is to step backwards, with 1 / kappa for kappa = 1 - 2 eta."""
        chart, (v,) = self.chart, state.memory
        t0, t1 = chart.time(s0), chart.time(s1)
        half, kappa = (t1 - t0) / 2, self.kappa(t1 - t0)
        if undo:
            kappa = 1 / kappa
        middle = plus(chart.inward(state.x, s0), half, v)
        slope = yield from chart.slope(middle, chart.sigma(t0 + half))
        v = plus(times(1 - kappa, slope), kappa, v)
        return State(chart.outward(plus(middle, half, v), s1), (v,))

    @property
    def chart(self) -> Coordinate:
        """What it steps."""
        return coordinate(self.coordinate, self.delta, self.scale)

    def kappa(self, h: Any) -> Any:
        """What a step of length `h` makes of the slope's parasitic part; over all of the course, D^-1."""
        if self.damping == 1:
            return -1.0
        if self.course is None:
            raise ValueError("damping is spread over the course: use a verb, or Solver.prepared(course)")
        least = 0 if self.coordinate == "data" else -1  # its time at sigma = 0 is infinite
        ends = [self.chart.time(s) for s in self.course.sigmas if least < s < math.inf]
        return -((1 / self.damping) ** (abs(h) / abs(ends[0] - ends[-1])))
