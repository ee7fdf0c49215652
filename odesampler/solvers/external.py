"""Solvers of other libraries: torchdiffeq and scipy, as loops under the same verbs.

They call the right-hand side themselves, so each runs as an inverted program (`combine.inverted`). Adaptive ones pool
the error over whatever they are given, implicit ones the test that their iteration has converged; here each sample is
given alone, side by side in one model batch, so that batch mates don't matter. torchdiffeq's adaptive methods integrate
past the end and interpolate back, asking far outside the range; `step_t` makes them land on the end instead.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odesampler.combine import inverted, together
from odesampler.program import Loop, Observer, Program, Sigma, Solved, State, check_tolerances

Ask: TypeAlias = Callable[[Tensor, Sigma], Tensor]

SCIPY_METHODS = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
_EXPLICIT = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams")  # the others pool a norm over the batch
_EQUAL_STEPS = ("explicit_adams", "implicit_adams", "fixed_adams")  # their weights assume steps of one length


def torchdiffeq_methods() -> list[str]:
    """The methods of the installed torchdiffeq."""
    import torchdiffeq

    return list(sys.modules[torchdiffeq.odeint.__module__].SOLVERS)


def _is_fixed(method: str) -> bool:
    import torchdiffeq

    solver = sys.modules[torchdiffeq.odeint.__module__].SOLVERS[method]
    return any(base.__name__ == "FixedGridODESolver" for base in solver.__mro__)


@dataclass(frozen=True)
class Torchdiffeq(Loop):
    """A method of torchdiffeq. Fixed-step ones walk the grid, adaptive ones only its ends.

    The Adams methods assume steps of one length; they are given equal steps in log sigma, as many as the grid has.

    Args:
        method: One of `torchdiffeq_methods()`.
        rtol, atol: Tolerances of the adaptive methods.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> theirs = ods.sample(model, 2, solver=ods.Torchdiffeq("midpoint"), num_steps=10)
        >>> ours = ods.sample(model, 2, solver=ods.Midpoint(), num_steps=10)
        >>> theirs.x.allclose(ours.x, atol=1e-4), theirs.nfe.equal(ours.nfe)
        (True, True)

    References:
        Chen 2018, torchdiffeq, the code.
    """

    method: str
    rtol: float = 1e-5
    atol: float = 1e-5

    observable = False

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol)
        if self.method not in torchdiffeq_methods():
            raise ValueError(
                f"the installed torchdiffeq has no method {self.method!r}; it has {', '.join(torchdiffeq_methods())}"
            )

    @property
    def takes_steps(self) -> bool:  # type: ignore[override]  # a fact of the method here, not of the class
        return _is_fixed(self.method)

    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        if self.method in _EXPLICIT:
            return Solved(State((yield from inverted(partial(self._fixed, state.x, sigmas)))))
        work = self._fixed if self.takes_steps else self._adaptive
        return (yield from _one_by_one(work, state.x, sigmas))

    def _fixed(self, x: Tensor, sigmas: Sequence[float], ask: Ask) -> Tensor:
        if self.method in _EQUAL_STEPS:
            logs = torch.linspace(math.log(sigmas[0]), math.log(sigmas[-1]), len(sigmas), dtype=torch.float64)
            modest = {"max_order": 4}  # by default it goes to 12, where an explicit Adams method explodes

            def f(log_sigma: Any, y: Tensor) -> Tensor:  # dx / dlog sigma = sigma * eps
                sigma = min(max(math.exp(float(log_sigma)), min(sigmas)), max(sigmas))  # exp(log(sigma)) rounds
                return sigma * ask(y, sigma)

            return self._odeint(f, x, logs, modest)
        return self._odeint(lambda s, y: ask(y, float(s)), x, torch.tensor(sigmas, dtype=torch.float64), {})

    def _adaptive(self, x: Tensor, sigmas: Sequence[float], ask: Ask) -> Tensor:
        ends = torch.tensor([sigmas[0], sigmas[-1]], dtype=torch.float64)
        options: dict[str, Any] = {"step_t": ends[1:], "first_step": _first_step(sigmas)}
        if self.method == "scipy_solver":
            options = {"solver": "LSODA"}
        return self._odeint(lambda s, y: ask(y, float(s)), x, ends, options)

    def _odeint(self, f: Callable[[Any, Tensor], Tensor], x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
        from torchdiffeq import odeint

        t = t.to(x.device)
        options = {k: v.to(x.device) if isinstance(v, Tensor) else v for k, v in options.items()}
        end: Tensor = odeint(f, x, t, rtol=self.rtol, atol=self.atol, method=self.method, options=options)[-1]
        return end


@dataclass(frozen=True)
class Scipy(Loop):
    """A method of `scipy.integrate.solve_ivp`, in float64 on the CPU, each sample alone.

    Args:
        method: One of `SCIPY_METHODS`. The implicit ones estimate a Jacobian: one evaluation a pixel and more.
        rtol, atol: Tolerances.

    Examples:
        >>> model = ods.exact.Gaussian(torch.zeros(2), 1.0).model()  # of N(0, 1): samples are their latents
        >>> solver = ods.Scipy("DOP853", rtol=1e-6, atol=1e-6)  # or by name, "scipy:DOP853(rtol=1e-6, atol=1e-6)"
        >>> bool((ods.sample(model, x=torch.ones(1, 2), solver=solver).x - 1).abs().max() < 1e-3)
        True

    References:
        Virtanen et al. 2020, SciPy 1.0, Nature Methods 17, 261.
    """

    method: str
    rtol: float = 1e-5
    atol: float = 1e-5

    takes_steps = False
    observable = False
    differentiable = False

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol)
        if self.method not in SCIPY_METHODS:
            raise ValueError(f"scipy's solve_ivp has no method {self.method!r}; it has {', '.join(SCIPY_METHODS)}")

    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        return (yield from _one_by_one(self._solve, state.x, sigmas))

    def _solve(self, x: Tensor, sigmas: Sequence[float], ask: Ask) -> Tensor:
        from scipy.integrate import solve_ivp

        def f(sigma: float, y: Any) -> Any:
            point = torch.from_numpy(y.copy()).reshape(x.shape).to(x.device, x.dtype)
            return ask(point, float(sigma)).detach().double().cpu().flatten().numpy()

        start = x.detach().double().cpu().flatten().numpy()
        ends = (sigmas[0], sigmas[-1])
        options: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol, "first_step": _first_step(sigmas)}
        found = solve_ivp(f, ends, start, method=self.method, t_eval=ends[1:], **options)
        if not found.success:
            raise RuntimeError(f"scipy's {self.method} gave up at sigma = {found.t[-1:]}: {found.message}")
        return torch.from_numpy(found.y[:, -1].copy()).reshape(x.shape).to(x.device, x.dtype)


def _first_step(sigmas: Sequence[float]) -> float:
    """A first step that stays inside the range: their own guess is made by a probe that may not."""
    return min(0.1 * sigmas[0], 0.5 * abs(sigmas[-1] - sigmas[0]))


def _one_by_one(
    work: Callable[[Tensor, Sequence[float], Ask], Tensor], x: Tensor, sigmas: Sequence[float]
) -> Program[Solved]:
    """Solve each sample by itself, all of them side by side."""
    ends = yield from together(*(inverted(partial(work, one, sigmas)) for one in list(torch.split(x, 1))))
    return Solved(State(torch.cat(ends)))
