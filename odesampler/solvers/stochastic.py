"""Stochastic solvers of one step: laws instead of trajectories. Noise around a step of any base, or inside one.

    ancestral    below s1 and back up:       x1 = base(x0; s0 -> down) + up z,       down^2 + up^2 = s1^2
    churn        above s0 and from there:    x1 = base(x0 + up z; hat -> s1),        s0^2 + up^2 = hat^2

Noise of variance up^2 makes of the law at a sigma exactly that at sqrt(sigma^2 + up^2), so in law both are as good as
their base. Noise comes from one stream, or along one path, a sample: `z = yield Draw(x, span=...)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from odesampler.combine import within
from odesampler.frames import DataFrame, times
from odesampler.program import Course, Draw, Program, Sigma, Solver, State
from odesampler.solvers.bases import checked_base
from odesampler.solvers.exponential import Singlestep
from odesampler.solvers.runge_kutta import Euler, Heun
from odesampler.solvers.weights import combined


@dataclass(frozen=True)
class Ancestral(Solver):
    """Any one-step solver, part of the noise drawn anew. With Euler: DDIM with eta > 0, and at eta = 1 DDPM.

    Order: the base's, in law; with `sigma_hat` 1. Evaluations: the base's. Error estimate: none. Memory: none. Exactly
    invertible: no; sampling only.
    In the variables x and sigma, eq. 12 with eq. 16 of the paper becomes up = eta * s1 * sqrt(1 - s1^2 / s0^2),
    whatever the schedule; k-diffusion's euler_ancestral is the same.

    Args:
        eta: Share of the noise drawn anew, 0 to 1. The equation that is solved is that of Multistep(eta=eta^2).
        sigma_hat: Draw noise of DDPM's larger variance, beta instead of the posterior's (the paper's sigma-hat); the
            deterministic part stays that of `eta`. In x, for VP models,
            up = sqrt((s0^2 - s1^2) (1 + s1^2) / (1 + s0^2)).
        base: A deterministic solver without memory of its own that asks nowhere below sqrt(s0 * down): its step ends
            below s1, where the last one must not ask. Euler and Midpoint are such, Heun is not.

    Raises:
        TypeError: A base that is no solver.
        ValueError: eta outside [0, 1]; another base than that; a rising step, since noise cannot be encoded.

    Examples:
        >>> model = ods.load("digits")
        >>> ddim = ods.sample(model, 2, solver="ddim", num_steps=10).x
        >>> ods.sample(model, 2, solver=ods.Ancestral(eta=0.0), num_steps=10).x.allclose(ddim, atol=1e-4)
        True
        >>> ods.sample(model, 2, solver=ods.Ancestral(eta=1.0), num_steps=10).x.allclose(ddim, atol=1e-4)
        False

    References:
        Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502, eq. 12, 16 and section 5. Ho et
        al. 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239 (ddpm, ddpm_sigma_hat). Lu et al. 2022,
        DPM-Solver, arXiv:2206.00927 (dpm_2_ancestral). Lu et al. 2022, DPM-Solver++, arXiv:2211.01095
        (dpmpp_2s_ancestral).
    """

    eta: float = 1.0
    sigma_hat: bool = False
    base: Solver = field(default_factory=Euler)

    names: ClassVar = {
        "ddpm": {},
        "euler_ancestral": {},
        "euler_a": {},
        "ddpm_sigma_hat": {"sigma_hat": True},
        "dpm_2_ancestral": {"base": Singlestep("noise", (1 / 2,), "dpm")},
        "dpmpp_2s_ancestral": {"base": Singlestep("data", (1 / 2,), "dpm")},
    }
    stochastic = True

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 (DDIM) to 1 (DDPM); got {self.eta}")
        lowest = checked_base("Ancestral", self.base)
        if lowest < 0.9 * (1 - 1e-6):  # of eta = 1, which goes furthest down: from 1 to 0.9 by way of 0.81
            raise ValueError(
                f"Ancestral steps below s1 and must not ask there, as {self.base} would; try ods.Midpoint()"
            )

    @property
    def summary(self) -> str:  # type: ignore[override]  # a fact of the setting here, not of the class
        if isinstance(self.base, Euler):
            return "DDIM's stochastic family; eta = 1 is DDPM"
        return f"ancestral noise around a step of {type(self.base).__name__}"

    @property
    def order(self) -> int:
        return 1 if self.sigma_hat else self.base.order

    @property
    def evaluations(self) -> int:
        return self.base.evaluations

    def prepared(self, course: Course) -> Ancestral:
        return replace(self, base=self.base.prepared(course))

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        refuse_rising(self, s0, s1)
        down, up = down_and_up(self.eta, s0, s1)
        program = self.base.step(State(state.x), s0, down)
        if not isinstance(s0, Tensor) and not isinstance(s1, Tensor):
            program = within(s1, s0, str(self.base), program)  # sqrt(s0 * down) is s1, up to rounding, for eta = 1
        after = yield from program
        drawn = ((s0**2 - s1**2) * (1 + s1**2) / (1 + s0**2)) ** 0.5 if self.sigma_hat else up
        if not self.eta and not self.sigma_hat:
            return State(after.x)
        power = -2 * (self.eta**2 or 1)
        z = yield Draw(torch.empty_like(after.x), span=(s0**power, s1**power))
        return State(after.x + drawn * z)


@dataclass(frozen=True)
class Churn(Solver):
    """Any one-step solver, noise added before each step: with Heun the stochastic sampler of EDM.

    Order: the base's, in law. Evaluations: the base's. Error estimate: none. Memory: none. Exactly invertible: no;
    sampling only.
    hat = (1 + gamma) s0, gamma = min(s_churn / steps, sqrt(2) - 1) where s_tmin <= s0 <= s_tmax, else 0; but never
    above the top of the grid, where no model is asked: so the first step has no churn, unlike in the paper. The step
    into zero has. `steps` is of the whole grid, which verbs tell (`prepared`). The noise is independent from step to
    step, on a Brownian path too.

    Args:
        base: A deterministic solver without memory of its own.
        s_churn: How much noise in all, in units of log sigma; 0 is the base alone.
        s_tmin: No churn below this sigma.
        s_tmax: No churn above this sigma.
        s_noise: Standard deviation of the noise z; the paper puts it slightly above 1 to make up for lost detail.

    Raises:
        TypeError: A base that is no solver.
        ValueError: A base that draws noise or carries memory; a negative number; a rising step.

    Examples:
        >>> model = ods.load("digits")
        >>> heun = ods.sample(model, 2, solver="heun", num_steps=10)
        >>> churned = ods.sample(model, 2, solver=ods.Churn(s_churn=10.0), num_steps=10)
        >>> churned.x.allclose(heun.x, atol=1e-4), churned.nfe.equal(heun.nfe)  # other images, at the same cost
        (False, True)

    References:
        Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364, Algorithm 2 and table 5.
    """

    base: Solver = field(default_factory=Heun)
    s_churn: float = 40.0
    s_tmin: float = 0.0
    s_tmax: float = float("inf")
    s_noise: float = 1.0
    course: Course | None = field(default=None, repr=False, compare=False)  # of the solve, told by `prepared`

    summary = "EDM's stochastic sampler; noise before each step of any base"
    names: ClassVar = {"edm_stochastic": {}, "edm_heun_stochastic": {}, "edm_euler_stochastic": {"base": Euler()}}

    def __post_init__(self) -> None:
        checked_base("Churn", self.base)
        for what in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
            most = float("inf") if what == "s_tmax" else 1e6
            if not 0 <= getattr(self, what) <= most:
                raise ValueError(f"{what} must be from 0 to {most:g}; got {getattr(self, what)!r}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]  # a fact of the setting here, not of the class
        return self.s_churn > 0

    @property
    def order(self) -> int:
        return self.base.order

    @property
    def evaluations(self) -> int:
        return self.base.evaluations

    def prepared(self, course: Course) -> Churn:
        return replace(self, base=self.base.prepared(course), course=course)

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        if self.s_churn:
            refuse_rising(self, s0, s1)
        x, hat = yield from self._churned(state.x, s0)
        after = yield from self.base.step(State(x), hat, s1)
        return State(after.x)

    def into_zero(self, state: State, s0: Sigma) -> Program[State]:
        x, hat = yield from self._churned(state.x, s0)
        return (yield from self.base.into_zero(State(x), hat))

    def _churned(self, x: Tensor, s0: Sigma) -> Program[tuple[Tensor, Sigma]]:
        """x with as much noise more as makes it one at `hat`, and hat."""
        if not self.s_churn:
            return x, s0
        hat = self._hat(s0)
        if not isinstance(hat, Tensor) and hat == s0:
            return x, s0
        z = yield Draw(torch.empty_like(x))
        return x + self.s_noise * (hat**2 - s0**2) ** 0.5 * z, hat

    def _hat(self, s0: Sigma) -> Sigma:
        if self.course is None:
            raise ValueError("Churn needs the grid: use a verb, or Solver.prepared(course)")
        grid = self.course.sigmas
        gamma = min(self.s_churn / (len(grid) - 1), 2**0.5 - 1)
        if isinstance(s0, Tensor):
            churned = torch.maximum(s0, ((1 + gamma) * s0).clamp(max=max(grid)))
            return torch.where((s0 >= self.s_tmin) & (s0 <= self.s_tmax), churned, s0)
        return max(s0, min((1 + gamma) * s0, max(grid))) if self.s_tmin <= s0 <= self.s_tmax else s0


@dataclass(frozen=True)
class StochasticMidpoint(Solver):
    """The stochastic equation in the data frame, asked once more in the middle of the step: DPM-Solver++ SDE.

    Order 2. Evaluations: 2 a step. Error estimate: none. Memory: none. Exactly invertible: no; sampling only.
    In law; on a path 1. The denoised image at m = sqrt(s0 s1) is taken for all of the step, and the noise of the step
    is the sum of that of its halves. k-diffusion's dpmpp_sde (r = 1/2) is this with eta = 1.

    Args:
        eta: Strength of the noise that is drawn anew, above 0, as for Multistep; 1 is the usual SDE.

    Raises:
        ValueError: eta not above 0; a rising step, since noise cannot be encoded.

    Examples:
        >>> model, how = ods.load("digits"), {"solver": ods.StochasticMidpoint(), "num_steps": 10}
        >>> found = ods.sample(model, 3, **how)
        >>> found.nfe.tolist()
        [19, 19, 19]
        >>> ods.sample(model, 1, seed=2, **how).x.allclose(found.x[2:], atol=1e-4)  # noise belongs to the seed
        True

    References:
        Lu et al. 2022, DPM-Solver++, arXiv:2211.01095, appendix A (the equation); Crowson 2022,
        k-diffusion, sample_dpmpp_sde (the step).
    """

    eta: float = 1.0

    summary = "DPM-Solver++ SDE, with a stage in the middle"
    names: ClassVar = {"dpmpp_sde": {}}
    order = 2
    evaluations = 2
    stochastic = True

    def __post_init__(self) -> None:
        if not 0 < self.eta < float("inf"):
            raise ValueError(f"eta must be above 0 and finite; got {self.eta}")

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        refuse_rising(self, s0, s1)
        frame, middle = DataFrame(self.eta), (s0 * s1) ** 0.5
        a, m, b = (s ** (-2 * self.eta) for s in (s0, middle, s1))
        k0 = yield state.x, s0
        first = yield Draw(state.x, span=(a, m))
        y = self._stepped(frame, state.x, frame.seen(k0, state.x, s0), first, s0, middle)
        km = yield y, middle
        second = yield Draw(state.x, span=(m, b))
        z = times(((m - a) / (b - a)) ** 0.5, first) + times(((b - m) / (b - a)) ** 0.5, second)
        return State(self._stepped(frame, state.x, frame.seen(km, y, middle), z, s0, s1))

    def _stepped(self, frame: DataFrame, x: Tensor, g: Tensor, z: Tensor, s0: Sigma, s1: Sigma) -> Tensor:
        """From s0 to s1 with the denoised image `g`."""
        return combined(frame.carried(s0, s1), x, [frame.total(s0, s1), frame.drawn(s0, s1)], [g, z])


def down_and_up(eta: float, s0: Sigma, s1: Sigma) -> tuple[Sigma, Sigma]:
    """How far an ancestral step goes down, and the standard deviation of the noise that brings it up to `s1`."""
    up = eta * s1 * (1 - s1**2 / s0**2) ** 0.5
    return (s1**2 - up**2) ** 0.5, up


def refuse_rising(solver: Solver, s0: Sigma, s1: Sigma) -> None:
    """Raises: ValueError: a step upward of a solver that draws noise, which cannot be encoded."""
    if not isinstance(s0, Tensor) and not isinstance(s1, Tensor) and s1 > s0:
        raise ValueError(
            f"{solver} draws noise and cannot go from sigma = {s0:g} up to {s1:g}: encode with an ODE solver"
        )
