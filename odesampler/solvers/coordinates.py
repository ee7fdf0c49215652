"""Coordinates: the equation with a scaled state and a clock of its own, for solvers that need both to be tame.

    y = x / scale(sigma),    tau = time(sigma),    dy / dtau = speed(sigma) * g

    coordinate    y                     tau                     dy / dtau
    sigma         x                     sigma                   eps
    data          x / sigma             1 / sigma               denoised
    angle         x / sqrt(1 + sigma^2) arctan(sigma)           v = (eps - sigma denoised) / sqrt(1 + sigma^2)
    flow          x / (1 + sigma)       sigma / (1 + sigma)     eps - denoised
    asinh         x                     asinh(sigma / delta)    sqrt(sigma^2 + delta^2) eps
    angle_asinh   as angle              asinh(sigma / delta)    sqrt(sigma^2 + delta^2) / (1 + sigma^2)^(1/2) v
    flow_asinh    as flow               asinh(sigma / delta)    sqrt(sigma^2 + delta^2) / (1 + sigma)^2 (eps - denoised)

A method that keeps two coupled values has a second, parasitic solution. In x it grows by sigma_max on the way down; in
a coordinate whose y stays of order 1 it does not: which coordinate a reversible solver works in decides whether it is
of any use. asinh is log sigma where sigma is large and sigma itself near 0. `frames` says what g is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from odesampler.combine import question
from odesampler.program import Program, Sigma
from odesampler.solvers.frames import DataFrame, FlowFrame, Frame, NoiseFrame, VFrame, times

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

    def slope(self, y: Tensor, sigma: Sigma) -> Program[Tensor]:
        """dy / dtau at `y`, `sigma`."""
        x = self.outward(y, sigma)
        eps = yield x, sigma
        return self.seen(eps, x, sigma)

    def seen(self, eps: Tensor, x: Tensor, sigma: Sigma) -> Tensor:
        """dy / dtau, from eps (batch, *shape) at `x`, `sigma`."""
        return times(self.speed(sigma), self.frame.seen(eps, x, sigma))

    def shown(self, program: Program[T], s0: Sigma, t0: Sigma, s1: Sigma, t1: Sigma) -> Program[T]:
        """Run a program that solves dy/dtau, asking about y and tau: it is told slopes, the model is asked for eps.

        Of the ends, given as sigma and tau, the model is told the very sigma: the way there and back through tau may
        leave its range by a rounding.
        """
        slope: Tensor | None = None
        try:
            while True:
                y, tau, *_ = question(program.send(cast(Tensor, slope)))
                sigma = s0 if tau is t0 else s1 if tau is t1 else self.sigma(tau)
                try:
                    slope = yield from self.slope(y, sigma)
                except Exception as error:
                    program.throw(error)
                    raise
        except StopIteration as stop:
            return cast(T, stop.value)


def coordinate(name: str, delta: float) -> Coordinate:
    """The coordinate of that name; `delta` is where asinh goes over from sigma to log sigma.

    Raises:
        ValueError: An unknown name; a delta that is not above 0 and finite.
    """
    if name not in COORDINATES:
        raise ValueError(f"coordinate must be one of {', '.join(COORDINATES)}; got {name!r}")
    if not 0 < delta < math.inf:
        raise ValueError(f"delta must be above 0 and finite; got {delta!r}")
    return COORDINATES[name](float(delta))


def _asinh(frame: Frame, delta: float) -> Coordinate:
    """Any frame, with asinh(sigma / delta) for its clock."""
    return Coordinate(
        frame,
        lambda s: _of(torch.asinh, math.asinh, s / delta),
        lambda tau: delta * _of(torch.sinh, math.sinh, tau),
        lambda s: (s**2 + delta**2) ** 0.5 * frame.density(s),
    )


COORDINATES: dict[str, Callable[[float], Coordinate]] = {
    "sigma": lambda _: Coordinate(NoiseFrame(), lambda s: s, lambda tau: tau, lambda s: 1.0),
    "data": lambda _: Coordinate(DataFrame(), lambda s: 1 / s, lambda tau: 1 / tau, lambda s: 1.0),
    "angle": lambda _: Coordinate(
        VFrame(), lambda s: _of(torch.atan, math.atan, s), lambda tau: _of(torch.tan, math.tan, tau), lambda s: 1.0
    ),
    "flow": lambda _: Coordinate(FlowFrame(), lambda s: s / (1 + s), lambda tau: tau / (1 - tau), lambda s: -1.0),
    "asinh": lambda delta: _asinh(NoiseFrame(), delta),
    "angle_asinh": lambda delta: _asinh(VFrame(), delta),
    "flow_asinh": lambda delta: _asinh(FlowFrame(), delta),
}


def _of(tensors: Callable[[Tensor], Tensor], numbers: Callable[[float], float], value: Any) -> Any:
    return tensors(value) if isinstance(value, Tensor) else numbers(value)
