"""Coordinates: the equation with a scaled state and a clock of its own, for solvers that need both to be tame.

    y = x / scale(sigma),    tau = time(sigma),    dy / dtau = speed(sigma) * g

    coordinate    y                        tau                    dy / dtau
    sigma         x                        sigma                  eps
    data          x / sigma                1 / sigma              denoised
    angle         x / sqrt(k^2 + sigma^2)  arctan(sigma / k)      v = (k eps - sigma denoised / k) / sqrt(k^2 + sigma^2)
    flow          x / (k + sigma)          sigma / (k + sigma)    eps - denoised / k
    asinh         x                        asinh(sigma / delta)   rate eps,    rate = sqrt(sigma^2 + delta^2)
    angle_asinh   as angle                 asinh(sigma / delta)   rate k / (k^2 + sigma^2) v
    flow_asinh    as flow                  asinh(sigma / delta)   rate / (k + sigma)^2 (k eps - denoised)

A method that keeps two coupled values has a second, parasitic solution. In x it grows by sigma_max on the way down; in
a coordinate whose y stays of order 1 it does not: which coordinate a reversible solver works in decides whether it is
of any use. asinh is log sigma where sigma is large and sigma itself near 0; k is the scale of the data, at which y goes
over from x to noise. `frames` says what g is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from odesampler.combine import for_rows, question
from odesampler.frames import DataFrame, FlowFrame, Frame, NoiseFrame, VFrame, times
from odesampler.precision import is_number
from odesampler.program import Program, Sigma, Solver, State

T = TypeVar("T")


@dataclass(frozen=True)
class Coordinate:
    """A scaled state and its clock. The functions take and return numbers, or tensors with one value a sample."""

    frame: Frame
    time: Callable[[Any], Any]
    sigma: Callable[[Any], Any]  # the inverse of `time`
    speed: Callable[[Any], Any]  # dy/dtau / g, of sigma

    def inward(self, x: Tensor, sigma: Sigma) -> Tensor:
        """y, from x (batch, *shape) at `sigma`."""
        return times(1 / self.frame.scale(sigma), x)

    def outward(self, y: Tensor, sigma: Sigma) -> Tensor:
        """x, from y (batch, *shape) at `sigma`."""
        return times(self.frame.scale(sigma), y)

    def slope(self, y: Tensor, sigma: Sigma, x: Tensor | None = None) -> Program[Tensor]:
        """dy / dtau at `y`, `sigma`; `x`: what `y` is, if that is known."""
        x = self.outward(y, sigma) if x is None else x
        eps = yield x, sigma
        return self.seen(eps, x, sigma)

    def seen(self, eps: Tensor, x: Tensor, sigma: Sigma) -> Tensor:
        """dy / dtau, from eps (batch, *shape) at `x`, `sigma`."""
        return times(self.speed(sigma), self.frame.seen(eps, x, sigma))

    def started(self, solver: Solver, x: Tensor, sigma: Sigma) -> Program[State]:
        """`solver.init` for a method for any equation, which steps y and tau; what it remembers is in their terms."""
        y, tau = self.inward(x, sigma), self.time(sigma)
        state = yield from self.shown(solver.init(y, tau), sigma, tau, sigma, tau, (y, x))
        return state._replace(x=x)

    def stepped(self, solver: Solver, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        """`solver.step` likewise, from a state and to one that hold x."""
        y, t0, t1 = self.inward(state.x, s0), self.time(s0), self.time(s1)
        step = solver.step(state._replace(x=y), t0, t1)
        there = yield from self.shown(step, s0, t0, s1, t1, (y, state.x))
        error = None if there.error is None else self.outward(there.error, s1)
        return there._replace(x=self.outward(there.x, s1), error=error)

    def shown(
        self,
        program: Program[T],
        s0: Sigma,
        t0: Sigma,
        s1: Sigma,
        t1: Sigma,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Program[T]:
        """Run a program that solves dy/dtau, asking about y and tau: it is told slopes, the model is asked for eps.

        Of the ends, given as sigma and tau, the model is told the very sigma: the way there and back through tau may
        leave its range by a rounding. Likewise of a point that is known as (y, x) it is told the very x.
        """
        slope: Tensor | None = None
        try:
            while True:
                y, tau, rows, *_ = question(program.send(cast(Tensor, slope)))
                sigma = s0 if tau is t0 else s1 if tau is t1 else self.sigma(tau)
                asking = self.slope(y, sigma, known[1] if known and y is known[0] else None)
                try:
                    slope = yield from (asking if rows is None else for_rows(cast(Tensor, rows), asking))
                except Exception as error:
                    program.throw(error)
                    raise
        except StopIteration as stop:
            return cast(T, stop.value)


def coordinate(name: str, delta: float, scale: float = 1.0) -> Coordinate:
    """The coordinate of that name; `delta` is where asinh goes over from sigma to log sigma, `scale` is k.

    Raises:
        ValueError: An unknown name; a delta or a scale that is not above 0 and finite.
    """
    if not isinstance(name, str) or name not in COORDINATES:
        raise ValueError(f"coordinate must be one of {', '.join(COORDINATES)}; got {name!r}")
    if not (is_number(delta) and 0 < delta < math.inf):
        raise ValueError(f"delta must be above 0 and finite; got {delta!r}")
    if not (is_number(scale) and 0 < scale < math.inf):
        raise ValueError(f"scale must be above 0 and finite; got {scale!r}")
    return COORDINATES[name](float(delta), float(scale))


def _asinh(frame: Frame, delta: float) -> Coordinate:
    """Any frame, with asinh(sigma / delta) for its clock."""
    return Coordinate(
        frame,
        lambda s: _of(torch.asinh, math.asinh, s / delta),
        lambda tau: delta * _of(torch.sinh, math.sinh, tau),
        lambda s: (s**2 + delta**2) ** 0.5 * frame.density(s),
    )


COORDINATES: dict[str, Callable[[float, float], Coordinate]] = {  # from delta and k
    "sigma": lambda _, k: Coordinate(NoiseFrame(), lambda s: s, lambda tau: tau, lambda s: 1.0),
    "data": lambda _, k: Coordinate(DataFrame(), lambda s: 1 / s, lambda tau: 1 / tau, lambda s: 1.0),
    "angle": lambda _, k: Coordinate(
        VFrame(k),
        lambda s: _of(torch.atan, math.atan, s / k),
        lambda tau: k * _of(torch.tan, math.tan, tau),
        lambda s: 1 / k,
    ),
    "flow": lambda _, k: Coordinate(
        FlowFrame(k), lambda s: s / (k + s), lambda tau: k * tau / (1 - tau), lambda s: -1 / k
    ),
    "asinh": lambda delta, k: _asinh(NoiseFrame(), delta),
    "angle_asinh": lambda delta, k: _asinh(VFrame(k), delta),
    "flow_asinh": lambda delta, k: _asinh(FlowFrame(k), delta),
}


def _of(tensors: Callable[[Tensor], Tensor], numbers: Callable[[float], float], value: Any) -> Any:
    return tensors(value) if isinstance(value, Tensor) else numbers(value)
