"""The stochastic family of the DDIM paper: part of the noise predicted, part drawn anew.

    x1 = denoised + sqrt(s1^2 - up^2) * eps + up * z,     denoised = x0 - s0 * eps,     z ~ N(0, 1)

In the variables x and sigma, eq. 12 with eq. 16 of the paper becomes up = eta * s1 * sqrt(1 - s1^2 / s0^2), whatever
the schedule. Noise comes from one stream a sample: `z = yield Draw(x)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from odesampler.program import Draw, Program, Sigma, Solver, State


@dataclass(frozen=True)
class Ancestral(Solver):
    """DDIM with eta > 0: eta = 0 is Euler on the ODE, eta = 1 is DDPM's ancestral sampling.

    Order 1. Evaluations: 1 a step. Error estimate: none. Memory: none. Exactly invertible: no; sampling only.
    With eta = 1 also k-diffusion's euler_ancestral.

    Args:
        eta: Share of the noise drawn anew, 0 to 1.
        sigma_hat: Draw noise of DDPM's larger variance, beta instead of the posterior's (the paper's sigma-hat); the
            deterministic part stays that of `eta`. In x, for VP models,
            up = sqrt((s0^2 - s1^2) (1 + s1^2) / (1 + s0^2)).

    Raises:
        ValueError: eta outside [0, 1]; a rising step, since noise cannot be encoded.

    References:
        Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502, eq. 12, 16 and section 5.
    """

    eta: float = 1.0
    sigma_hat: bool = False

    summary = "DDIM's stochastic family; eta = 1 is DDPM"
    names: ClassVar = {"ddpm": {}, "euler_ancestral": {}, "euler_a": {}, "ddpm_sigma_hat": {"sigma_hat": True}}
    order = 1
    evaluations = 1
    stochastic = True

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 (DDIM) to 1 (DDPM); got {self.eta}")

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        refuse_rising(self, s0, s1)
        up = self.eta * s1 * (1 - s1**2 / s0**2) ** 0.5
        k0 = yield state.x, s0
        x1 = state.x + ((s1**2 - up**2) ** 0.5 - s0) * k0
        drawn = ((s0**2 - s1**2) * (1 + s1**2) / (1 + s0**2)) ** 0.5 if self.sigma_hat else up
        if isinstance(drawn, Tensor) or drawn > 0:
            z = yield Draw(torch.empty_like(x1))
            x1 = x1 + drawn * z
        return State(x1)


def refuse_rising(solver: Solver, s0: Sigma, s1: Sigma) -> None:
    """Raises: ValueError: a step upward of a solver that draws noise, which cannot be encoded."""
    if not isinstance(s0, Tensor) and not isinstance(s1, Tensor) and s1 > s0:
        raise ValueError(
            f"{solver} draws noise and cannot go from sigma = {s0:g} up to {s1:g}: encode with an ODE solver"
        )
