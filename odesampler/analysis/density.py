"""Density: log p at given points of the data, by the change of variables along the equation.

    log p(x(s0), s0) = log N(x(s1); 0, (1 + s1^2) I) + integral from s0 to s1 of div eps dsigma,    s1 = sigma_max
    log p(x_t) = log p(x) - d log alpha

What stands at s1 is where `sample` starts. Out of infinity leads one Euler step in x / sigma, of which the density is
taken too. Knows neither levels nor draws.

References:
    Chen et al. 2018, Neural Ordinary Differential Equations, arXiv:1806.07366, Theorem 1.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from odesampler.combine import for_rows
from odesampler.divergence import PROBES, Spreading, followed
from odesampler.drive import Tally, run
from odesampler.grid import Grid
from odesampler.model import Model
from odesampler.plan import Plan, eps_of, execute
from odesampler.program import Program, Sigma, State
from odesampler.room import AnyBatch
from odesampler.sampling import arrived


def log_density(
    model: Model, plan: Plan, x_t: Tensor, cond: dict[str, Tensor], max_batch: AnyBatch, progress: str | None
) -> tuple[Tensor, Tensor]:
    """log p of x_t (batch, *shape), (batch, estimates) in float64 on the CPU, and the evaluations of each sample."""
    grid, d = plan.grid.up(), x_t[0].numel()
    endless = math.isinf(grid[-1])
    eps = Spreading(eps_of(plan, followed(model)), tuple(x_t.shape[1:]))
    estimates = cond[PROBES].shape[1] if PROBES in cond else 1
    x = model.schedule.from_model_scale(x_t, grid[0]).flatten(1)
    outcome = execute(
        replace(plan, grid=Grid(grid.sigmas[:-1], grid.name)) if endless else plan,
        model,
        State(torch.cat([x, x.new_zeros(len(x), estimates)], 1)),
        rising=True,
        cond=cond,
        max_batch=max_batch,
        progress=progress,
        eps=eps,
    )
    y, _ = arrived(outcome.solved.state.x, outcome)
    tally = Tally(outcome.nfe.to(y.device))
    if endless:
        top = _at_infinity(y, grid[-2], eps, d, cond, max_batch, tally)
    else:
        top = _log_normal(y[:, :d].double() / math.hypot(1, grid[-1]))
    alpha = model.schedule.alpha(torch.tensor(grid[0], dtype=torch.float64)).item()
    log_p = top + y[:, d:].double() - d * (math.log1p(grid[0] ** 2) / 2 + math.log(alpha))
    assert tally.nfe is not None
    return log_p.cpu(), tally.nfe.cpu()


def _at_infinity(
    y: Tensor, s: float, eps: Spreading, d: int, cond: dict[str, Tensor], max_batch: AnyBatch, tally: Tally
) -> Tensor:
    """log of the density of x / sqrt(1 + s^2) at `s`, (batch, estimates), by one Euler step to 1 / sigma = 0.

    There z = x / sigma is eps, and on the way log p(z) grows by d - s div eps, to first order in 1 / s.
    """
    rows = torch.nonzero(y.isfinite().all(1)).flatten()
    slope = torch.full_like(y, math.nan)
    if len(rows):
        step = for_rows(rows, _asked(y[rows], s))
        slope[rows] = run(step, model=eps, cond=cond, max_batch=max_batch, tally=tally)[0]
    slope = slope.double()
    return _log_normal(slope[:, :d]) + s * slope[:, d:] + d * (math.log1p(s**-2) / 2 - 1 / (1 + s**2))


def _asked(y: Tensor, sigma: Sigma) -> Program[Tensor]:
    return (yield y, sigma)


def _log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I), (batch, 1)."""
    return -(z.square().sum(1, keepdim=True) + z.shape[1] * math.log(2 * math.pi)) / 2
