"""Bases: what a solver that wraps another may wrap. One-step solvers, without noise and memory of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from odesampler.program import Sigma, Solver
from odesampler.trial import one_step


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

    if base.stochastic or one_step(base, 1.0, nothing).memory:
        raise ValueError(f"{name} needs a deterministic one-step solver without memory; got {base}")
    return min(asked)
