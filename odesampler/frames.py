"""Frames: charts of the equation in which part of it is solved exactly and only the rest is interpolated.

    z = x / scale(sigma),    dz / dsigma = density(sigma) * g,    g = what the network says, seen in this frame

    frame    scale                    g                                        density
    noise    1                        eps                                      1
    data     sigma                    denoised                                 -scale^-2
    v        sqrt(k^2 + sigma^2)      (k^2 eps - sigma denoised) / scale       scale^-2
    flow     k + sigma                denoised - k eps                         -scale^-2

If g were constant, x1 = carried * x0 + total * g would be exact; `weights` says what to do where it is not.

The data frame also holds the stochastic equation of strength eta, whose linear part takes z = x / sigma^(1 + eta); the
noise that it adds from s0 to s1 has the standard deviation s1 sqrt(1 - (s1 / s0)^(2 eta)).

Sigmas are numbers or arrays, computed with on the host in float64, or tensors, one value a sample, computed with where
they lie. Knows neither networks nor steps.

References:
    Lu et al. 2022, DPM-Solver, arXiv:2206.00927, Proposition 3.1 (noise). Lu et al. 2022, DPM-Solver++,
    arXiv:2211.01095, Proposition 4.1 (data) and appendix A (the stochastic one).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from odesampler.program import Sigma

Variable: TypeAlias = Callable[[Any], Any]  # u(sigma), elementwise on an array or a tensor


class Frame(ABC):
    """One chart. Its functions take and return numbers, arrays or tensors, elementwise."""

    @abstractmethod
    def scale(self, sigma: Any) -> Any:
        """x / z."""

    @abstractmethod
    def density(self, sigma: Any) -> Any:
        """dz/dsigma / g."""

    @abstractmethod
    def total(self, s0: Any, s1: Any) -> Any:
        """scale(s1) times the integral of `density` from `s0` to `s1`, in closed form; s1 may be 0."""

    @abstractmethod
    def seen(self, eps: Tensor, x: Tensor, sigma: Sigma) -> Tensor:
        """g, from eps (batch, *shape) at `x`, `sigma`."""

    def carried(self, s0: Any, s1: Any) -> Any:
        """scale(s1) / scale(s0): what a step makes of x itself."""
        return self.scale(s1) / self.scale(s0)


@dataclass(frozen=True)
class NoiseFrame(Frame):
    """eps is what is interpolated: Adams-Bashforth in sigma, DPM-Solver, DEIS."""

    def scale(self, sigma: Any) -> Any:
        return sigma * 0 + 1

    def density(self, sigma: Any) -> Any:
        return sigma * 0 + 1

    def total(self, s0: Any, s1: Any) -> Any:
        return s1 - s0

    def seen(self, eps: Tensor, x: Tensor, sigma: Sigma) -> Tensor:
        return eps

    def carried(self, s0: Any, s1: Any) -> Any:
        return 1.0


@dataclass(frozen=True)
class DataFrame(Frame):
    """The denoised image is what is interpolated: DPM-Solver++, UniPC. `eta` above 0: the stochastic equation."""

    eta: float = 0.0

    def scale(self, sigma: Any) -> Any:
        return sigma ** (1 + self.eta)

    def density(self, sigma: Any) -> Any:
        return -(1 + self.eta) * sigma ** (-2 - self.eta)

    def total(self, s0: Any, s1: Any) -> Any:
        return 1 - (s1 / s0) ** (1 + self.eta)

    def seen(self, eps: Tensor, x: Tensor, sigma: Sigma) -> Tensor:
        return plus(x, -sigma, eps)

    def drawn(self, s0: Any, s1: Any) -> Any:
        """Standard deviation of the noise that is added between `s0` and `s1`."""
        return s1 * (1 - (s1 / s0) ** (2 * self.eta)) ** 0.5


@dataclass(frozen=True)
class VFrame(Frame):
    """v is what is interpolated, for data of standard deviation `data_scale`; azula's vAB has 1."""

    data_scale: float = 1.0

    def scale(self, sigma: Any) -> Any:
        return (self.data_scale**2 + sigma**2) ** 0.5

    def density(self, sigma: Any) -> Any:
        return self.scale(sigma) ** -2.0

    def total(self, s0: Any, s1: Any) -> Any:
        k = self.data_scale
        return self.scale(s1) / k * (_arctan(s1 / k) - _arctan(s0 / k))

    def seen(self, eps: Tensor, x: Tensor, sigma: Sigma) -> Tensor:
        scale = self.scale(sigma)
        return plus(times(-sigma / scale, x), scale, eps)


@dataclass(frozen=True)
class FlowFrame(Frame):
    """The velocity noise - data is what is interpolated, as a flow model says it, data in units of `data_scale`."""

    data_scale: float = 1.0

    def scale(self, sigma: Any) -> Any:
        return self.data_scale + sigma

    def density(self, sigma: Any) -> Any:
        return -(self.scale(sigma) ** -2.0)

    def total(self, s0: Any, s1: Any) -> Any:
        return (s0 - s1) / self.scale(s0)

    def seen(self, eps: Tensor, x: Tensor, sigma: Sigma) -> Tensor:
        return plus(x, -self.scale(sigma), eps)


FRAMES: dict[str, Callable[[float, float], Frame]] = {  # from eta and the scale of the data
    "noise": lambda eta, data_scale: NoiseFrame(),
    "data": lambda eta, data_scale: DataFrame(eta),
    "v": lambda eta, data_scale: VFrame(data_scale),
    "flow": lambda eta, data_scale: FlowFrame(),
}


def log(sigma: Any) -> Any:
    """Natural logarithm of a number, an array or a tensor."""
    return sigma.log() if isinstance(sigma, Tensor) else np.log(sigma)


def _arctan(sigma: Any) -> Any:
    return sigma.arctan() if isinstance(sigma, Tensor) else np.arctan(sigma)


VARIABLES: dict[str, Variable] = {  # and "t", the model's clock, which only its schedule knows
    "sigma": lambda sigma: sigma,
    "log_sigma": log,
    "log1p": lambda sigma: log(1 + sigma / 0.1),  # log sigma where it is large, sigma itself near 0
    "phi": _arctan,
    "flow": lambda sigma: sigma / (1 + sigma),
}


def times(weight: Any, x: Tensor) -> Tensor:
    """weight * x, for a number or one weight a sample."""
    return x * (weight.to(x.dtype) if isinstance(weight, Tensor) else float(weight))


def plus(total: Tensor, weight: Any, x: Tensor) -> Tensor:
    """total + weight * x, in one operation."""
    if isinstance(weight, Tensor):
        return torch.addcmul(total, weight.to(x.dtype), x)
    return torch.add(total, x, alpha=float(weight))
