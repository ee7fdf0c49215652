"""Where to put the sigmas: dynamic programming on local errors that were measured along reference trajectories.

    cost(h, i, j) = mean over samples of rms( y_i + w0 g_i + w1 g_h - y_j ),     y = x / (1 + sigma)

the local error of a step from s_i to s_j that remembers s_h, in the flow frame and log sigma, the reference's own x and
eps in place of the solver's. The path from the first node into 0 of least total cost is a grid. It knows nothing
of how later steps amplify an error: a place to start from, or to race against others.

References:
    Chen et al. 2024, On the Trajectory Regularity of ODE-based Diffusion Sampling (GITS), arXiv:2405.11326, section 4
    (the same with Euler's steps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from odesampler.drive import Eps, run
from odesampler.frames import FlowFrame, log
from odesampler.grid import Grid
from odesampler.integrate import on_grid
from odesampler.program import Program, State
from odesampler.room import AnyBatch
from odesampler.solvers.runge_kutta import RK4
from odesampler.solvers.weights import exact

FRAME = FlowFrame()
BETWEEN = 2  # steps of RK4 between two nodes


def measured_grid(
    eps: Eps,
    x: Tensor,
    cond: Mapping[str, Tensor],
    nodes: Sequence[float],
    num_steps: int,
    first: Sequence[float] = (),
    *,
    max_batch: AnyBatch = None,
) -> Grid:
    """The best grid of `num_steps` through some of `nodes`.

    Args:
        eps: The model, guided if need be.
        x: (n, *shape), at nodes[0], in the equation's scale.
        cond: Its conditions.
        nodes: Falling sigmas above 0, of which the first is taken; at least as many as steps.
        num_steps: Transitions from the first node on, the last of them into 0.
        first: What stands before the first node: infinity.
        max_batch: The most rows to ask at once.
    """
    nodes = [float(s) for s in nodes]
    with torch.no_grad():
        [walked] = run(_walked(x, nodes), model=eps, cond=cond, max_batch=max_batch)
        chosen = cheapest(costs(walked, nodes), num_steps)
    return Grid((*first, *(nodes[i] for i in chosen[:-1]), 0.0), "measured")


def _walked(x: Tensor, nodes: Sequence[float]) -> Program[list[tuple[Tensor, Tensor]]]:
    """x and eps at every node, by RK4."""
    found = []
    for i, s in enumerate(nodes):
        if i:
            ratio = (s / nodes[i - 1]) ** (1 / BETWEEN)
            between = [nodes[i - 1] * ratio**k for k in range(BETWEEN)]
            x = (yield from on_grid(RK4(), State(x), [*between, s])).x
        found.append((x, (yield x, s)))
    return found


def costs(walked: Sequence[tuple[Tensor, Tensor]], nodes: Sequence[float]) -> Tensor:
    """(m + 2, m + 1, m + 1) cost(h, i, j) for m nodes; node m is 0, h = m + 1: nothing is remembered.

    Infinite but for h < i < j. The step into 0 returns the denoised image, whatever is remembered.
    """
    m = len(nodes)
    ys = torch.stack([(x / (1 + s)).flatten(1) for (x, _), s in zip(walked, nodes, strict=True)])  # (m, n, values)
    gs = torch.stack([FRAME.seen(k, x, s).flatten(1) for (x, k), s in zip(walked, nodes, strict=True)])
    end = ys[-1] + FRAME.total(nodes[-1], 0.0) * gs[-1]
    cost = torch.full((m + 2, m + 1, m + 1), math.inf, dtype=torch.float64)
    logs = torch.tensor(nodes, dtype=torch.float64, device=ys.device).log()
    for i, s in enumerate(nodes):
        for j, to in enumerate((*nodes[i + 1 :], 0.0), i + 1):
            y = ys[j] if j < m else end
            euler = ys[i] + FRAME.total(s, to) / (1 + to) * gs[i] - y
            cost[-1, i, j] = _size(euler)
            if j == m:
                cost[:i, i, j] = cost[-1, i, j]
            elif i:
                slope = float(exact(FRAME, log, s, to, [s, 2 * s])[1]) * math.log(2) / (1 + to)
                per_log = (gs[:i] - gs[i]) / (logs[:i] - logs[i])[:, None, None].to(gs.dtype)
                cost[:i, i, j] = _size(euler + slope * per_log)
    return cost


def _size(missed: Tensor) -> Tensor:
    return missed.square().mean(-1).sqrt().mean(-1).double().cpu()


def cheapest(cost: Tensor, steps: int) -> list[int]:
    """The nodes of the cheapest path of `steps` steps from the first node to the last; `cost` as of `costs`.

    A step's cost depends on the step before, so that what is optimised over is pairs of nodes.
    """
    last = cost.shape[1] - 1
    total = torch.full_like(cost[0], math.inf)
    total[0] = cost[-1, 0]
    before: list[Tensor] = []
    for _ in range(steps - 1):
        total, h = (total[:, :, None] + cost[: last + 1]).min(0)
        before.append(h)
    i, j = int(total[:, last].argmin()), last
    found = [j, i]
    for h in reversed(before):
        i, j = int(h[i, j]), i
        found.append(i)
    return found[::-1]
