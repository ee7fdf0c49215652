"""Guidance with null conditions of its own for every step and sample, as `null_text` finds them.

    on step i, from s_i to s_{i+1}:    guided = u_i + scale * (c - u_i),    u_i predicted under null condition i

What a solver asks within a step, its end included, is answered under that step's null condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from odesampler.combine import moved
from odesampler.drive import Eps
from odesampler.guidance import Guided, guided
from odesampler.model import Model
from odesampler.plan import Plan
from odesampler.program import Loop, Observer, Program, Sigma, Solved, State
from odesampler.threshold import thresholded

PREFIX = "null."  # of the conditions that hold null conditions, (batch, steps, ...): so they follow their rows


@dataclass(frozen=True, eq=False)
class NullGuided:
    """A guided model that takes each step's null conditions out of its conditions."""

    guided: Guided
    sigmas: tuple[float, ...]  # falling: step i goes from i to i + 1
    width: int = 2

    @property
    def base(self) -> Model:
        """The model under all that wraps it."""
        return self.guided.base

    def __call__(self, x: Tensor, sigma: float | Tensor, /, **cond: Tensor) -> Tensor:
        """Guided noise; arguments as for `Model.__call__`, and "null.key" for some of the conditions."""
        if isinstance(sigma, Tensor):
            raise ValueError("null conditions belong to the steps of one grid: samples cannot have steps of their own")
        step = min(sum(s >= sigma for s in self.sigmas[1:]), len(self.sigmas) - 2)
        null = self.guided.model.nothing(len(x))
        for key, value in cond.items():
            if key.startswith(PREFIX):
                null[key.removeprefix(PREFIX)] = value[:, step].to(null[key.removeprefix(PREFIX)].dtype)
        ordinary = {k: v for k, v in cond.items() if not k.startswith(PREFIX)}
        return self.guided.away_from(null, x, sigma, ordinary)


@dataclass(frozen=True)
class StepsApart(Loop):
    """The steps of a loop of one-step methods. What one asks at its end is asked a rounding earlier, so within it."""

    loop: Loop

    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        for i, (s0, s1) in enumerate(pairwise(sigmas), 1):
            state = (yield from moved(self.loop.across(state, (s0, s1)), _before(s0, s1))).state
            if observe is not None:
                observe(i, s1, state.x, None)
        return Solved(state)


def with_null_steps(
    plan: Plan, model: Model, cond: Mapping[str, Tensor], null: Mapping[str, Tensor]
) -> tuple[Plan, Eps, dict[str, Tensor]]:
    """A plan, what it asks and under which conditions, so that its step i is guided away from `null[key][:, i]`.

    Args:
        plan: Guided, on a grid, by a one-step method.
        model: The model.
        cond: Each (batch, ...).
        null: Each (batch, steps, ...).

    Raises:
        ValueError: Null conditions of another model, or not one a step and sample; a plan without guidance.
    """
    sigmas, away = plan.grid.down().sigmas, guided(model, plan.guidance_scale)
    if not isinstance(away, Guided):
        raise ValueError("null conditions have no effect without guidance: decode latent.without_null()")
    batch = len(next(iter(cond.values())))
    for key, value in null.items():
        wanted = (batch, len(sigmas) - 1)
        if key not in model.null_cond or value.shape[:2] != wanted:
            raise ValueError(
                f"null conditions of {model.name} are {', '.join(model.null_cond)}, each (batch, steps, ...) = "
                f"{wanted}; got {key!r} of shape {tuple(value.shape)}"
            )
    moved_here = {PREFIX + k: v.to(model.device) for k, v in null.items()}
    eps = thresholded(NullGuided(away, sigmas), plan.clip_denoised)
    return replace(plan, loop=StepsApart(plan.loop)), eps, {**cond, **moved_here}


def _before(s0: float, s1: float) -> Callable[[Sigma], Sigma]:
    def before(sigma: Sigma) -> Sigma:
        return math.nextafter(s1, s0) if sigma == s1 else sigma

    return before
