"""Tables of weights: what a multistep method makes of eps, found by running it on unit vectors.

    x_{i+1} = x_i + sum_j W_ij eps_j        asked with the unit vectors e_0, e_1, ... for answers, a solver shows W

Methods that ask once a step, at the sigmas of the grid, are linear in eps and leave x alone where eps is 0 have such a
table: multistep methods in the frames "noise", "data" and "flow", with corrected steps too, whose point is what the
next question is about; those in the frame "v" turn x on their own. Where sigmas are tensors, W is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from odesampler.combine import question
from odesampler.integrate import on_grid
from odesampler.program import Draw, Program, Sigma, Solver, State
from odesampler.registry import spec_of

SLACK = 1e-9  # of x
NONE = (
    "{} is no table of weights: it draws noise, asks more than once a step or elsewhere than at the sigmas, or changes "
    "x where eps is 0"
)


def table_of(solver: Solver, sigmas: Sequence[float] | Tensor) -> Tensor:
    """(n, n) weights of `solver` along `sigmas`, (n,), falling, above 0, and from the last of them into 0.

    Args:
        solver: Prepared for its course, if it has to be.
        sigmas: Numbers, or a tensor, in which the table is then differentiable.

    Raises:
        ValueError: A solver that draws noise, asks more than once a step, asks elsewhere than at the sigmas, or changes
            x where eps is 0.
    """
    nodes: list[Any] = list(sigmas)
    n = len(nodes)
    unit = torch.eye(n + 1, dtype=torch.float64)
    points, answers = list[Tensor](), iter(unit[:n])
    program = _through(solver, unit[n:], nodes)
    answer: Any = None
    try:
        while True:
            asked = question(program.send(answer))
            answer = next(answers, None)
            if isinstance(asked, Draw) or answer is None or not _same(asked.sigma, nodes[len(points)]):
                program.close()
                raise ValueError(NONE.format(spec_of(solver)))
            points.append(asked.x)
            answer = answer[None]
    except StopIteration as stop:
        points.append(stop.value.x)
    table = torch.cat([after - before for before, after in pairwise(points)])
    if len(points) <= n or bool((table[:, n].detach().abs() > SLACK).any()):
        raise ValueError(NONE.format(spec_of(solver)))
    return table[:, :n]


def _through(solver: Solver, x: Tensor, nodes: list[Any]) -> Program[State]:
    state = State(x)
    if len(nodes) > 1:
        state = yield from on_grid(solver, state, nodes)
    return (yield from solver.into_zero(state, nodes[-1]))


def _same(asked: Sigma, node: Sigma) -> bool:
    a, b = (v.detach() if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for v in (asked, node))
    return bool(torch.isclose(a.flatten()[0], b, rtol=1e-12, atol=0.0))
