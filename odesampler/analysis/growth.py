"""Growth: by how much the equation magnifies a small change on its way, in the worst direction.

    up      max |d latent| / |d image|       down    max |d image| / |d latent|          the largest singular values

Found by power iteration on J'J, J the product of the derivatives of one-step steps along a path: forward derivatives
one way, the transposed ones back. Each iterate is a lower bound. It is a fact of the model at this image, not of the
solver that is used, nor of its steps: `own_grid`. A sample has the same numbers whatever batch it is in. For one
Gaussian all directions grow by sqrt((v + s1^2) / (v + s0^2)), in the equation's scale.

References:
    Griewank, Walther 2008, Evaluating Derivatives, chapter 3 (forward and reverse mode).
    Golub, Van Loan 2013, Matrix Computations, 7.3 (power iteration). Hairer, Norsett, Wanner 1993, Solving Ordinary
    Differential Equations I, I.14 (derivatives with respect to initial values).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from odesampler.combine import within
from odesampler.defaults import grid_for
from odesampler.divergence import followed
from odesampler.drive import Eps, run
from odesampler.grid import make_grid
from odesampler.integrate import stepped
from odesampler.model import Model
from odesampler.noise import Streams
from odesampler.plan import Plan, clean_end, eps_of
from odesampler.program import Solver, State
from odesampler.room import AnyBatch
from odesampler.solvers.runge_kutta import Heun

STEP = Heun()
STEPS = 32  # of its own grid: within a tenth of what 64 give, on digits at a guidance scale of 3
SETTLED = 0.05  # an iteration that adds a smaller part is the last


class Growth(NamedTuple):
    """The largest singular value, and how the direction that belongs to it grows on the way."""

    most: Tensor  # (batch,) in the model's own scale, float64
    sigmas: tuple[float, ...]  # in the order of the way
    curve: Tensor  # (sigmas, batch) growth of that direction up to there
    settled: Tensor  # (batch,) whether the last iteration added less than a twentieth: else it is `most` at least


@dataclass(frozen=True, eq=False)
class _Way:
    """Steps along known points, as a linear map."""

    model: Model
    plan: Plan
    points: tuple[Tensor, ...]  # where each step starts, (batch, *shape), in the equation's scale
    sigmas: tuple[float, ...]  # one more
    cond: Mapping[str, Tensor]
    max_batch: AnyBatch
    solver: Solver

    def pushed(self, v: Tensor) -> list[Tensor]:
        """Where the change `v` of the first point is after each step, itself first."""
        eps = eps_of(self.plan, replace(self.model, network=Carrying(self.model.network, self.model.name)))
        found = [v]
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the others know no forward mode
            for i, x in enumerate(self.points):
                with forward.dual_level():
                    moved = tangent(self._step(eps, dual(x, found[-1]), i))
                assert moved is not None  # x1 = x + ... at least
                found.append(moved)
        return found

    def pulled(self, u: Tensor) -> Tensor:
        """The transposed map: from a change at the end to one at the first point."""
        eps = eps_of(self.plan, followed(self.model))
        for i in range(len(self.points) - 1, -1, -1):
            with torch.enable_grad():
                x = self.points[i].detach().requires_grad_()
                u = torch.autograd.grad(self._step(eps, x, i), x, u)[0]
        return u

    def _step(self, eps: Eps, x: Tensor, i: int) -> Tensor:
        step = within(*self.model.range, "growth", stepped(self.solver, State(x), self.sigmas[i], self.sigmas[i + 1]))
        return run(step, model=eps, cond=self.cond, max_batch=self.max_batch)[0].x


def own_grid(model: Model, plan: Plan) -> Plan:
    """`plan` on a grid fine enough for growth between the same ends, whatever its own."""
    high, low = plan.grid.down()[0], plan.grid.down()[-1]
    name = grid_for(model.schedule, low, high, STEPS, STEP)
    return replace(plan, grid=make_grid(name, model.schedule, STEPS, into_zero=False, sigma_min=low, sigma_max=high))


def growths(
    model: Model,
    plan: Plan,
    images: Tensor,
    cond: Mapping[str, Tensor],
    iterations: int,
    max_batch: AnyBatch,
    solver: Solver = STEP,
) -> tuple[Growth, Growth]:
    """Growth up the plan's grid from `images` (batch, *shape), and down from where they lead, by steps of `solver`."""
    up = plan.grid.up().sigmas
    x = [clean_end(plan, model, images).x]
    eps = eps_of(plan, model)
    with torch.no_grad():
        for s0, s1 in pairwise(up):
            step = within(*model.range, "growth", stepped(solver, State(x[-1]), s0, s1))
            x.append(run(step, model=eps, cond=cond, max_batch=max_batch)[0].x)
    ways = ((tuple(x[:-1]), up), (tuple(x[:0:-1]), up[::-1]))
    found = [_growth(_Way(model, plan, *way, cond, max_batch, solver), iterations) for way in ways]
    return found[0], found[1]


def _growth(way: _Way, iterations: int) -> Growth:
    x = way.points[0]
    one = torch.ones((), dtype=torch.float64)
    scales = torch.stack([way.model.schedule.to_model_scale(one, s) for s in way.sigmas])
    v = _unit(Streams([0] * len(x)).draw(x))
    most, settled = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.bool)
    lengths = torch.zeros(len(scales), len(x), dtype=torch.float64)
    for i in range(iterations):
        path = way.pushed(v)
        now = torch.stack([_length(w) for w in path])
        lengths = torch.where(settled, lengths, now)  # what has settled stays, however many iterations others need
        settled |= now[-1] - most <= SETTLED * now[-1]
        most = lengths[-1]
        if bool(settled.all()) or i == iterations - 1:
            break
        v = _unit(way.pulled(path[-1]))
    curve = lengths * (scales / scales[0])[:, None]
    return Growth(curve[-1], way.sigmas, curve, settled)


def _length(x: Tensor) -> Tensor:
    """(batch,) float64 on the CPU: not every device has float64."""
    length: Tensor = torch.linalg.vector_norm(x.cpu().double().flatten(1), dim=1)
    return length


def _unit(x: Tensor) -> Tensor:
    lengths = _length(x).clamp(min=torch.finfo(x.dtype).tiny)
    return x / lengths.to(x.dtype).to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def dual(x: Tensor, v: Tensor) -> Tensor:
    """`x` that carries the change `v` along, inside a dual level."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)  # torch's own, at its first use
        return forward.make_dual(x, v)  # type: ignore[no-untyped-call, no-any-return]


def tangent(x: Tensor) -> Tensor | None:
    """The change that `x` carries; None: none."""
    return forward.unpack_dual(x).tangent  # type: ignore[no-untyped-call, no-any-return]


class Carrying(nn.Module):
    """A network that is refused where it answers without a forward derivative: it would be taken for 0."""

    def __init__(self, network: Any, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        out: Tensor = self.network(x_t, t, **cond)
        if tangent(x_t) is not None and tangent(out) is None:
            raise ValueError(
                f"{self.name} answers without a derivative, as from numpy or under inference_mode: this analysis "
                "needs it; give Model a network that torch can differentiate"
            )
        return out
