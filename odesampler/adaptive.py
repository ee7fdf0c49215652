"""The adaptive loop: every sample takes its own steps.

    where it steps:           y = x / sqrt(1 + sigma^2),  tau = asinh(sigma / delta)   or another of the `coordinates`
    error of a step, scaled:  e = rms(error / (atol + rtol * max(|y0|, |y1|))) over one sample; accepted if e <= 1
    next step (predictive):   h * clamp(0.9 * e^(-1/k) * e_before^(0.8/k) * (h / h_before)^0.8, 0.2, 5),
                              h in tau, k = order of the estimate + 1

No decision for one sample depends on another: each has its own sigma, step and status. Samples that arrive leave the
batch, so only those under way are asked about. The step is cut at the end of the range and never goes beyond it.

In x and sigma the right step falls with sigma, over four orders of magnitude, and the error that is allowed with |x|.
In y and tau neither does: so a method for any equation, such as Runge-Kutta's, takes its steps there, and the control
of every solver works there. Dormand-Prince takes half as many evaluations (docs/speed.md). The control expects e / h^k
to go on changing much as it did.

References:
    Hairer, Norsett, Wanner 1993, Solving Ordinary Differential Equations I, II.4 (initial step; error norm).
    Gustafsson 1994, Control-theoretic techniques for stepsize selection in implicit Runge-Kutta methods, ACM TOMS 20
    (predictive control; the exponents here were chosen by measurement, docs/speed.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial

import torch
from torch import Tensor

from odesampler.combine import for_rows, knowing
from odesampler.coordinates import Coordinate, coordinate
from odesampler.program import Course, Loop, Observer, Program, Solved, Solver, State, check_tolerances
from odesampler.trial import reads_sigma


class Status(IntEnum):
    """How a sample's solve ended.

    Examples:
        >>> [status.name for status in ods.Status]
        ['ARRIVED', 'STEP_LIMIT', 'FLOOR']
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> ods.sample(model, 2, solver="dopri5", rtol=1e-3, atol=1e-3).status == (ods.Status.ARRIVED,) * 2
        True
    """

    ARRIVED = 0
    STEP_LIMIT = 1  # still under way after max_steps; raise it, or rtol and atol
    FLOOR = 2  # the step it needed was too small for its dtype: a model that is not smooth, or too tight a tolerance


@dataclass(frozen=True)
class Adaptive(Loop):
    """Steps chosen per sample to keep the local error at a tolerance.

    Args:
        solver: One with an error estimate, such as `ods.Dopri5()`. By name the whole is "adaptive:dopri5(rtol=1e-6)".
        rtol, atol: Relative and absolute tolerance of y; of x = x_t / alpha itself with "sigma" and "asinh".
        max_steps: Limit of steps, accepted or not, for any sample.
        coordinate: What y and tau are: "sigma" (x and sigma), "data", "angle", "flow", "asinh", "angle_asinh",
            "flow_asinh". A solver that is made for sigma itself, as DPM-Solver is, takes its steps in x all the same.
        delta: For asinh: where the clock goes over from sigma to log sigma.

    Raises:
        TypeError: Not a solver.
        ValueError: The solver estimates no error, or a tolerance is negative or infinite, or both are 0; an unknown
            coordinate, a delta not above 0.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> fine = ods.sample(model, 4, solver=ods.Adaptive(ods.Dopri5(), rtol=1e-6, atol=1e-6))
        >>> coarse = ods.sample(model, 4, solver="adaptive:dopri5(rtol=1e-2, atol=1e-2)")
        >>> bool((coarse.nfe < fine.nfe).all())
        True
        >>> ods.Adaptive(ods.RK4())
        Traceback (most recent call last):
            ...
        ValueError: RK4 estimates no error, so it cannot choose steps: give num_steps
    """

    solver: Solver
    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 10_000
    coordinate: str = "angle_asinh"
    delta: float = 0.1

    takes_steps = False

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise TypeError(f"Adaptive takes a solver such as ods.Dopri5(); got {self.solver!r}")
        if self.solver.error_order is None:
            raise ValueError(
                f"{type(self.solver).__name__} estimates no error, so it cannot choose steps: give num_steps"
            )
        check_tolerances(self.rtol, self.atol)
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be 1 or more; got {self.max_steps}")
        coordinate(self.coordinate, self.delta)

    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        return (yield from adaptive(self, state.x, sigmas[0], sigmas[-1], observe))

    def prepared(self, course: Course) -> Adaptive:
        return replace(self, solver=self.solver.prepared(course))


def adaptive(
    control: Adaptive, x: Tensor, start: float, stop: float, observe: Observer | None = None
) -> Program[Solved]:
    """Solve from `x` (batch, *shape) at `start` to `stop`, each sample by its own steps.

    A sample that cannot arrive is returned where it got to, with its status; it holds up no other.
    """
    chart, k = coordinate(control.coordinate, control.delta), (control.solver.error_order or 0) + 1
    solver = control.solver
    own = solver.stochastic or reads_sigma(solver)  # how much noise a step adds is a matter of sigma
    init, step = (solver.init, solver.step) if own else (partial(chart.started, solver), partial(chart.stepped, solver))
    clock = _Clock(chart, start, stop)
    rows = torch.arange(len(x), device=x.device)
    s = torch.full((len(x),) + (1,) * (x.ndim - 1), start, dtype=x.dtype, device=x.device)
    tau = torch.full_like(s, clock.first)
    h, k0 = yield from _first_step(control, clock, x, s, tau)
    state = yield from knowing(k0, x, s, init(x, s))
    before, h_before = torch.ones_like(s), h  # the scaled error of the last accepted step, and its size
    out, status = x.clone(), torch.full((len(x),), int(Status.STEP_LIMIT), device=x.device)
    for i in range(1, control.max_steps + 1):
        tau1 = torch.where((clock.last - tau - h) * h > 0, tau + h, clock.last)
        s1 = clock.sigma(tau1)
        tried = step(state, s, s1) if i > 1 else knowing(k0, x, s, step(state, s, s1))
        trial = yield from (tried if len(rows) == len(x) else for_rows(rows, tried))  # all: nothing has to be picked
        assert trial.error is not None  # Adaptive takes only solvers that estimate it
        e = _scaled(control, *(chart.inward(v, at) for v, at in ((trial.error, s1), (state.x, s), (trial.x, s1))))
        accept = e <= 1
        factor = 0.9 * e ** (-1 / k) * before ** (0.8 / k) * (h / h_before) ** 0.8
        factor = torch.where(accept, factor, (0.9 * e ** (-1 / k)).clamp(max=0.9))  # after a rejection never grow
        before, h_before = torch.where(accept, e, before), torch.where(accept, h, h_before)
        state, s, tau = trial.where(accept, state), torch.where(accept, s1, s), torch.where(accept, tau1, tau)
        h = h * factor.nan_to_num(0.2).clamp(0.2, 5)  # NaN, until the driver finds it: go no further
        arrived = (tau == clock.last).flatten()
        stuck = (h.abs() < 8 * torch.finfo(x.dtype).eps * tau.abs()).flatten() & ~arrived
        if observe is not None:
            observe(i, s, state.x, rows)
        going = torch.nonzero(~(arrived | stuck)).flatten()  # the one wait for the device in a round
        if len(going) < len(rows):
            out[rows] = state.x
            ended = torch.where(stuck, int(Status.FLOOR), int(Status.STEP_LIMIT))
            status[rows] = torch.where(arrived, int(Status.ARRIVED), ended)
            rows, s, tau, h, before, h_before = (v[going] for v in (rows, s, tau, h, before, h_before))
            state = state.select(going)
        if len(rows) == 0:
            break
    out[rows] = state.x
    return Solved(State(out), status)


@dataclass(frozen=True)
class _Clock:
    """tau along a solve, and sigma: the very ends at the ends, and never outside them."""

    chart: Coordinate
    start: float
    stop: float

    @property
    def first(self) -> float:
        return float(self.chart.time(self.start))

    @property
    def last(self) -> float:
        return float(self.chart.time(self.stop))

    def sigma(self, tau: Tensor) -> Tensor:
        inside = self.chart.sigma(tau).clamp(min(self.start, self.stop), max(self.start, self.stop))
        return torch.where(tau == self.last, self.stop, inside)


def _first_step(control: Adaptive, clock: _Clock, x: Tensor, s: Tensor, tau: Tensor) -> Program[tuple[Tensor, Tensor]]:
    """Hairer's initial step, per sample, signed, and eps at the start: two evaluations, the second inside the range."""
    chart, first, last = clock.chart, clock.first, clock.last
    span = abs(last - first)
    k0 = yield x, s
    y, f0 = chart.inward(x, s), chart.seen(k0, x, s)
    scale = _scale(control, _rms(y))  # a sample's, not a pixel's: one of exactly 0 under atol = 0 would blow it up
    size, slope = _rms(y / scale), _rms(f0 / scale)
    probe = torch.where((size < 1e-5) | (slope < 1e-5), 1e-6, 0.01 * size / slope).clamp(max=span)
    probe = probe * math.copysign(1, last - first)
    f1 = yield from chart.slope(y + probe * f0, clock.sigma((tau + probe).clamp(min(first, last), max(first, last))))
    bend = _rms((f1 - f0) / scale) / probe.abs()
    worst = torch.maximum(slope, bend)
    fitting = (0.01 / worst) ** (1 / (control.solver.order + 1))
    h = torch.where(worst <= 1e-15, (probe.abs() * 1e-3).clamp(min=1e-6), fitting)
    least = 1e-6 * span  # a sample of nothing but 0 makes `worst` infinite, and a step of 0 gets nowhere
    return torch.minimum(100 * probe.abs(), h).clamp(least, span) * math.copysign(1, last - first), k0


def _scaled(control: Adaptive, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
    return _rms(error / _scale(control, torch.maximum(y0.abs(), y1.abs()))).clamp(min=1e-10)


def _scale(control: Adaptive, size: Tensor) -> Tensor:
    tiny = torch.finfo(size.dtype).tiny  # a pixel of exactly 0 under atol = 0 would make 0 / 0
    return (control.atol + control.rtol * size).clamp(min=tiny)


def _rms(v: Tensor) -> Tensor:
    """Root mean square over each sample, (batch, 1, ...). Without a graph: gradients go along the steps taken, not
    through how they were chosen, whose square root has none where an error is 0."""
    return v.detach().flatten(1).square().mean(1).sqrt().reshape((len(v),) + (1,) * (v.ndim - 1))
