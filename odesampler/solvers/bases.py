"""Bases: what a solver that wraps another may wrap. One-step solvers, without noise and memory of their own."""

from __future__ import annotations

import torch

from odesampler.program import Course, Program, Solver, State


def checked_base(name: str, base: Solver) -> float:
    """The lowest sigma at which `base` asks in a step from 1 to 0.81, found out by trying, with eps = 0.

    Raises:
        TypeError: It is no solver.
        ValueError: It draws noise, or carries memory from one step to the next.
    """
    if not isinstance(base, Solver):
        raise TypeError(f"{name} takes a solver such as ods.Euler(); got {base!r}")
    asked: list[float] = []
    remembers = True
    if not base.stochastic:
        program = _one_step(base.prepared(Course(torch.log, (1.0, 0.81))))
        try:
            asked.append(next(program)[1])
            while True:
                asked.append(program.send(torch.zeros(1, 1))[1])
        except StopIteration as stop:
            remembers = bool(stop.value.memory)
    if remembers:
        raise ValueError(f"{name} needs a deterministic one-step solver without memory; got {base}")
    return min(asked)


def _one_step(base: Solver) -> Program[State]:
    state = yield from base.init(torch.zeros(1, 1), 1.0)
    return (yield from base.step(state, 1.0, 0.81))
