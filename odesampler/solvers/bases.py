"""Bases: what a solver that wraps another may wrap. One-step solvers, without noise and memory of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odesampler.program import Course, Program, Sigma, Solver, State
from odesampler.trial import answered


def checked_base(name: str, base: Solver) -> float:
    """The lowest sigma at which `base` asks in a step from 1 to 0.81, found out by trying, with eps = 0.

    Raises:
        TypeError: It is no solver.
        ValueError: It draws noise, or carries memory from one step to the next.
    """
    if not isinstance(base, Solver):
        raise TypeError(f"{name} takes a solver such as ods.Euler(); got {base!r}")
    asked: list[float] = []

    def nothing(x: Tensor, sigma: Sigma) -> Tensor:
        asked.append(float(sigma))
        return torch.zeros_like(x)

    if base.stochastic or _one_step(base, 1.0, nothing).memory:
        raise ValueError(f"{name} needs a deterministic one-step solver without memory; got {base}")
    return min(asked)


def reads_sigma(base: Solver) -> bool:
    """Whether a step depends on what sigma is, not on differences alone, as of a method for any equation.

    Found out by trying, with an eps that is moved up by 1 together with the step.
    """
    first, second = (_one_step(base, s0, _moved(s0)).x for s0 in (1.0, 2.0))
    return not torch.allclose(first, second, rtol=1e-9, atol=0)


def _moved(s0: float) -> Callable[[Tensor, Sigma], Tensor]:
    return lambda x, sigma: x * 0 + (sigma - s0 + 2) ** 2


def _one_step(base: Solver, s0: float, eps: Callable[[Tensor, Sigma], Tensor]) -> State:
    """`base` stepped once from `s0`, by 0.19 down, from x = 0."""
    s1 = s0 - 0.19
    return answered(_stepped(base.prepared(Course(torch.log, (s0, s1))), s0, s1), eps)


def _stepped(base: Solver, s0: float, s1: float) -> Program[State]:
    state = yield from base.init(torch.zeros(1, 1, dtype=torch.float64), s0)
    return (yield from base.step(state, s0, s1))
