"""Inversion: images to latents and back, on one grid.

    encode: sigma rises from sigma_min, where the image is taken to be, to sigma_max.      decode: the same grid down.

The step into sigma = 0 cannot be undone, so neither takes it: what comes back is the point at sigma_min. An exactly
invertible solver encodes by undoing its own steps and keeps what it needs for it in `Latent.memory`; any other encodes
by stepping upward, with the network told the noise level that a step starts from (convention "source": explicit Euler
upward is the reverse DDIM of Dhariwal & Nichol 2021, arXiv:2105.05233, appendix F), and comes back with an error that
`round_trip` measures.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odesampler.guidance import AnyGuidance
from odesampler.integrate import BackAlong
from odesampler.latent import Latent, Recipe
from odesampler.model import Model
from odesampler.plan import AnyGrid, AnySolver, Plan, checked_batch, checked_cond, checked_model, execute, make_plan
from odesampler.precision import finest_dtype
from odesampler.program import Course, State
from odesampler.registry import spec_of
from odesampler.sampling import Solution, arrived, is_reversible, to_solution
from odesampler.threshold import AnyThreshold


def encode(
    model: Model,
    images: Tensor,
    *,
    solver: AnySolver | None = None,
    num_steps: int | None = None,
    grid: AnyGrid | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance = 1.0,
    rtol: float | None = None,
    atol: float | None = None,
    clip_denoised: AnyThreshold = None,
    state_dtype: torch.dtype | None = None,
    max_batch: int | None = None,
    progress: bool = False,
) -> Latent:
    """Turn images into latents.

    Args:
        model: The model.
        images: (batch, *shape), float, in the model's data range.
        solver: As for `sample`; not a stochastic one. By default "alf", which can be undone exactly; docs/inversion.md.
        num_steps: Transitions between sigma_min and sigma_max, 20 by default.
        grid: As for `sample`, but it ends at sigma_min or above, not at 0. "leading" and "quadratic" stop short of
            sigma_max, "trailing" starts above sigma_min.
        cond: What the images show, as for `sample`. Kept in the latent.
        guidance_scale: As for `sample`. Off by default: guided encoding leaves the range of latents that a model was
            trained on.
        rtol: As for `sample`.
        atol: As for `sample`.
        clip_denoised: As for `sample`. Puts a floor under the round trip; warns.
        state_dtype: torch.float64 by default, where the device has it.
        max_batch: As for `sample`.
        progress: As for `sample`.

    Returns:
        A `Latent`, which knows how it was made: `decode(model, latent)` needs nothing else.

    Raises:
        ValueError: What cannot be meant, before the model is called; a solver that draws noise.
    """
    x_t = checked_batch(checked_model(model), images, "images")
    plan = make_plan(
        model,
        solver,
        num_steps=num_steps,
        grid=grid,
        rtol=rtol,
        atol=atol,
        into_zero=False,
        guidance_scale=guidance_scale,
        clip_denoised=clip_denoised,
        state_dtype=state_dtype or finest_dtype(model.device),
    )
    refuse_stochastic(plan)
    if plan.clip_denoised is not None:
        warnings.warn(
            f"clip_denoised={plan.clip_denoised} puts a floor under the round trip: what is clipped cannot come back",
            stacklevel=2,
        )
    recipe = Recipe.of(plan, model)
    conditions = checked_cond(model, cond, len(x_t))
    start = model.schedule.from_model_scale(x_t.to(model.device, plan.state_dtype), plan.grid[-1])
    reversible = is_reversible(plan)
    outcome = execute(
        plan if reversible is None else replace(plan, loop=BackAlong(reversible)),
        model,
        State(start),
        rising=True,
        cond=conditions,
        max_batch=max_batch,
        progress="encoding" if progress else None,
    )
    state = outcome.solved.state
    x, _ = arrived(model.schedule.to_model_scale(state.x, plan.grid[0]), outcome)
    memory = state.memory if reversible is not None else ()
    return Latent(x, recipe, memory, conditions, outcome.nfe, plan)


def decode(
    model: Model,
    latent: Latent,
    *,
    insist: bool = False,
    max_batch: int | None = None,
    progress: bool = False,
    trajectory: bool = False,
) -> Solution:
    """Turn latents back into images, the way they came.

    Args:
        model: The model that they were made with.
        latent: What `encode` returned, or `Latent.load`.
        insist: Decode with another model all the same.
        max_batch: As for `sample`.
        progress: As for `sample`.
        trajectory: As for `sample`.

    Returns:
        A `Solution`; its `x` are the images at sigma_min.

    Raises:
        ValueError: The latent was made with another model, and `insist` is not given.
        TypeError: Not a Latent.
    """
    if not isinstance(latent, Latent):
        raise TypeError(f"decode takes a Latent, which knows how it was made; got {type(latent).__name__}")
    check_model(model, latent.recipe, insist)
    plan = latent.plan or _prepared(latent.recipe.plan(), model)
    x_t = checked_batch(model, latent.x, "latent.x").to(model.device, plan.state_dtype)
    if is_reversible(plan) and not latent.memory:
        warnings.warn(
            f"this latent has no memory, without which {latent.recipe.solver} is not exact: see Latent.without_memory",
            stacklevel=2,
        )
    memory = tuple(m.to(model.device, plan.state_dtype) for m in latent.memory)
    outcome = execute(
        plan,
        model,
        State(model.schedule.from_model_scale(x_t, plan.grid[0]), memory),
        cond=checked_cond(model, latent.cond, len(x_t)),
        max_batch=max_batch,
        progress="decoding" if progress else None,
        trajectory=trajectory,
    )
    return to_solution(model, plan, outcome)


def _prepared(plan: Plan, model: Model) -> Plan:
    """`plan`, read from a file, with its solver told what it was told when the latent was made."""
    course = Course(model.schedule.t, plan.grid.sigmas, model.range[0])
    return replace(plan, loop=plan.loop.prepared(course))


def check_model(model: Model, recipe: Recipe, insist: bool = False) -> None:
    """Raises: ValueError: `recipe` belongs to another model, and `insist` is not given."""
    found = model.fingerprint()
    if found != recipe.fingerprint and not insist:
        raise ValueError(
            f"this latent was made with {recipe.model} ({recipe.fingerprint}), not with this {model.name} ({found}); "
            "decode it with the same weights, dtype and schedule, or insist=True"
        )


def refuse_stochastic(plan: Plan) -> None:
    """Raises: ValueError: the plan's solver draws noise, which cannot be encoded."""
    if getattr(getattr(plan.loop, "solver", None), "stochastic", False):
        raise ValueError(f"{spec_of(plan.loop)} draws noise, which cannot be encoded: use an ODE solver such as 'heun'")
