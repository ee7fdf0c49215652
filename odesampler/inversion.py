"""Inversion: images to latents and back, on one grid.

    encode: sigma rises from sigma_min, where the image is taken to be, to sigma_max.      decode: the same grid down.

The step into sigma = 0 cannot be undone, so neither takes it: what comes back is the point at sigma_min. An exactly
invertible solver encodes by undoing its own steps and keeps what it needs for it in `Latent.memory`; any other encodes
by stepping upward, as `conventions` says: explicitly, which comes back with an error that `round_trip` measures, or
implicitly, by solving the equations of decoding, which says for every sample how well they are solved.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odesampler import lossless
from odesampler.adjoint import AnyGrad
from odesampler.conventions import AnyConvention, upward
from odesampler.guidance import AnyGuidance, rows_a_sample, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_batch, checked_cond, checked_images, checked_model, coded
from odesampler.latent import Latent, Recipe
from odesampler.model import Model
from odesampler.null_steps import with_null_steps
from odesampler.plan import AnyGrid, AnySolver, Plan, clean_end, execute, make_plan, refuse_what_cannot_be_encoded
from odesampler.precision import finest_dtype
from odesampler.program import State
from odesampler.room import AnyBatch
from odesampler.sampling import Solution, arrived, to_solution
from odesampler.solvers.fixed_point import FixedPoint
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
    convention: AnyConvention = None,
    rtol: float | None = None,
    atol: float | None = None,
    clip_denoised: AnyThreshold = None,
    state_dtype: torch.dtype | None = None,
    max_batch: AnyBatch = None,
    exact: str | None = None,
    micro_batch: int | None = None,
    progress: bool = False,
    grad: AnyGrad = False,
) -> Latent:
    """Turn images into latents.

    Args:
        model: The model.
        images: (batch, *shape), float, in the model's data range; where the model has a codec, images or what the codec
            makes of them, which is then what comes back to the bit or nearly.
        solver: As for `sample`; not a stochastic one. By default "alf", which can be undone exactly; docs/inversion.md.
        num_steps: Transitions between sigma_min and sigma_max, 20 by default.
        grid: As for `sample`, but it ends at sigma_min or above, not at 0. "leading" and "quadratic" stop short of
            sigma_max, "trailing" starts above sigma_min.
        cond: What the images show, as for `sample`. Kept in the latent.
        guidance_scale: As for `sample`. Off by default: guided encoding leaves the range of latents that a model was
            trained on.
        convention: How to step upward with a solver that cannot be undone exactly: "source" (default) and "target" are
            explicit, the network being told the level that a step starts from, or the one that it leads to (for Euler:
            as null-text inversion and diffusers do). "implicit", or an `ods.Implicit`, solves the equations of decoding
            instead, which costs several times as much; see `Latent.converged`.
        rtol: As for `sample`.
        atol: As for `sample`.
        clip_denoised: As for `sample`. Puts a floor under the round trip; warns.
        state_dtype: torch.float64 by default, where the device has it.
        max_batch: As for `sample`.
        exact: What makes the round trip lossless, so that `decode` returns the very images: "bits", the solver "alf" in
            whole numbers, which undoes its steps to the bit; or "residual", with any solver, which decodes at once and
            keeps what that misses. Both need a network that answers twice with the same bits: what those depend on is
            kept and compared by `decode`, which also compares a checksum a sample.
        micro_batch: Samples in each call of the network, with `exact`; 1 makes the bits independent of the batch.
        progress: As for `sample`.
        grad: As for `sample`; gradients flow from the latent, with its memory, to the images.

    Returns:
        A `Latent`, which knows how it was made: `decode(model, latent)` needs nothing else.

    Raises:
        ValueError: What cannot be meant, before the model is called: images far outside the model's data range, a
            solver that draws noise. Images outside by more than a tenth of its width are encoded, with a warning.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:4]
        >>> latent = ods.encode(model, images)
        >>> latent.recipe.solver, tuple(latent.x.shape), latent.nfe.tolist()
        ('alf', (4, 1, 8, 8), [21, 21, 21, 21])
        >>> bool((ods.decode(model, latent).x - images).abs().max() < 1e-10)
        True
        >>> ods.encode(model, images, solver="euler_ancestral")
        Traceback (most recent call last):
            ...
        ValueError: ancestral draws noise, which cannot be encoded: use an ODE solver such as 'heun'
    """
    images = checked_images(checked_model(model), images)
    max_batch = lossless.rows_at_once(exact, micro_batch, max_batch, rows_a_sample(model, guidance_scale), grad)
    plan = make_plan(
        model,
        lossless.in_whole_numbers(solver) if exact == "bits" else solver,
        num_steps=num_steps,
        grid=grid,
        rtol=rtol,
        atol=atol,
        into_zero=False,
        guidance_scale=guidance_scale,
        clip_denoised=clip_denoised,
        state_dtype=state_dtype or finest_dtype(model.device),
    )
    refuse_what_cannot_be_encoded(plan)
    warn_of_losses(plan, model)
    warn_of_nothing_to_guide_to(model, cond, guidance_scale)
    loop, how = upward(plan.loop, convention)
    recipe, conditions = replace(Recipe.of(plan, model), convention=how), checked_cond(model, cond, len(images))
    x_t = coded(model, images)
    carry: dict[str, Any] = {"max_batch": max_batch, "progress": "encoding" if progress else None, "grad": grad}
    up, start = replace(plan, loop=loop), clean_end(plan, model, x_t)
    outcome = execute(up, model, start, rising=True, cond=conditions, **carry)
    state = outcome.solved.state
    x, _ = arrived(model.schedule.to_model_scale(state.x, plan.grid[0]), outcome)
    memory = state.memory if plan.invertible else ()
    alone = lossless.checksums(x) if memory and math.isinf(plan.grid[0]) else None
    if exact == "bits":
        lossless.check_lattice(x)
    converged, defect = (None if v is None else v.cpu() for v in (outcome.solved.converged, outcome.solved.defect))
    warn_of_unconverged(converged, defect, "take more steps, more evaluations, or an exactly invertible solver")
    latent = Latent(x, recipe, memory, conditions, outcome.nfe, plan, converged, defect, untouched=alone)
    return latent if exact is None else replace(latent, sidecar=_sidecar(model, latent, x_t, max_batch, progress))


def decode(
    model: Model,
    latent: Latent,
    *,
    insist: bool = False,
    max_batch: AnyBatch = None,
    progress: bool = False,
    trajectory: bool = False,
    grad: AnyGrad = False,
) -> Solution:
    """Turn latents back into images, the way they came.

    Args:
        model: The model that they were made with.
        latent: What `encode` returned, or `Latent.load`.
        insist: Decode with another model all the same, or where the bits may come out otherwise.
        max_batch: As for `sample`.
        progress: As for `sample`.
        trajectory: As for `sample`.
        grad: As for `sample`; gradients flow from the images to the latent, with its memory and conditions.

    Returns:
        A `Solution`; its `x` are the images at sigma_min.

    Raises:
        ValueError: The latent was made with another model, or it should come back to the bit and that is not to be
            had here, and `insist` is not given; one whose `x` has been changed, while its memory was kept.
        TypeError: Not a Latent.

    Warns of samples that should have come back to the bit and did not.

    Examples:
        >>> model, (images, labels) = ods.load("digits"), ods.held_out("digits")
        >>> latent = ods.encode(model, images[:2], cond={"label": labels[:2]}, exact="bits", num_steps=10)
        >>> back = ods.decode(model, latent).x
        >>> back.float().equal(images[:2])  # the very same bits
        True
    """
    if not isinstance(latent, Latent):
        raise TypeError(f"decode takes a Latent, which knows how it was made; got {type(latent).__name__}")
    latent.recipe.check_model(model, insist)
    plan = latent.plan or latent.recipe.plan(model)
    start = _start(model, latent, plan)
    if latent.sidecar is not None:
        max_batch = _batch_as_encoded(model, latent, plan, max_batch, insist, grad)
    conditions, eps = checked_cond(model, latent.cond, len(latent)), None
    if latent.null is not None:
        plan, eps, conditions = with_null_steps(plan, model, conditions, latent.null)
    outcome = execute(
        plan,
        model,
        start,
        cond=conditions,
        max_batch=max_batch,
        progress="decoding" if progress else None,
        trajectory=trajectory,
        grad=grad,
        eps=eps,
    )
    found = to_solution(model, plan, outcome)
    return found if latent.sidecar is None else replace(found, x=latent.sidecar.checked(found.x))


def _start(model: Model, latent: Latent, plan: Plan) -> State:
    """Where decoding starts. Warns of a latent that lacks the memory which makes its solver exact."""
    x_t = checked_batch(model, latent.x, "latent.x").to(model.device, plan.state_dtype)
    x, solver = model.schedule.from_model_scale(x_t, plan.grid[0]), plan.invertible
    memory = tuple(m.to(model.device, plan.state_dtype if m.is_floating_point() else m.dtype) for m in latent.memory)
    if solver is not None and not memory and not latent.recipe.polished:
        warnings.warn(
            f"this latent has no memory, without which {latent.recipe.solver} is not exact: see Latent.without_memory",
            stacklevel=3,
        )
    if any(m.shape != x_t.shape or (m.is_floating_point() and not m.isfinite().all()) for m in memory):
        shapes = [tuple(m.shape) for m in memory]
        raise ValueError(f"latent.memory must be finite and of the shape of latent.x, {tuple(x_t.shape)}; got {shapes}")
    if latent.untouched is not None and memory:
        lossless.refuse_changed(lossless.checksums(latent.x) != latent.untouched)
    elif isinstance(solver, FixedPoint) and memory:
        lossless.check_unchanged(solver, x, memory[0], plan.grid[0])
    return State(x, memory)


def _batch_as_encoded(
    model: Model, latent: Latent, plan: Plan, max_batch: AnyBatch, insist: bool, grad: AnyGrad
) -> AnyBatch:
    """The most rows to give the network at once, as when `latent` was made. Raises and warns as `decode`."""
    assert latent.sidecar is not None
    if grad:
        raise ValueError("this latent gives the images themselves back, which have no gradient: replace its sidecar")
    lossless.refuse_auto(max_batch)
    width = rows_a_sample(model, plan.guidance_scale)
    max_batch = latent.sidecar.place["samples in a call"] * width if max_batch is None else max_batch
    latent.sidecar.check_place(lossless.place_of(model, len(latent), max_batch, width), insist)
    return max_batch


def _sidecar(model: Model, latent: Latent, images: Tensor, max_batch: AnyBatch, progress: bool) -> lossless.SideCar:
    """What decoding `latent` misses of `images`."""
    assert latent.plan is not None  # fresh from encode
    solver, end = latent.plan.invertible, latent.plan.grid[-1]
    if isinstance(solver, FixedPoint):  # what comes back is known: what the lattice holds of each image
        lattice = solver.snapped(clean_end(latent.plan, model, images).x, end)
        back = model.schedule.to_model_scale(lattice, end)
    else:
        back = decode(model, latent, max_batch=max_batch, progress=progress).x
    width = rows_a_sample(model, latent.plan.guidance_scale)
    return lossless.SideCar.of(images, back, lossless.place_of(model, len(images), max_batch, width))


def warn_of_unconverged(converged: Tensor | None, defect: Tensor | None, advice: str) -> None:
    """Warns of the samples whose equations do not hold to the tolerance, by what they miss; says what to do."""
    if converged is None or defect is None or bool(converged.all()):
        return
    bad = torch.nonzero(~converged).flatten().tolist()
    missed = ", ".join(f"sample {i}: {defect[i].item():.1e}" for i in bad[:5])
    warnings.warn(
        f"{len(bad)} of {len(converged)} samples did not converge ({missed}); see Latent.converged, Latent.defect; "
        f"{advice}",
        RuntimeWarning,
        stacklevel=3,
    )


def warn_of_losses(plan: Plan, model: Model) -> None:
    """Warns of a plan that clips the denoised image, and of a network that answers otherwise each time."""
    if model.answers_by_chance:
        warnings.warn(
            f"the network of {model.name} is in training mode and has dropout or batch norm, so that it answers "
            "otherwise when decoding: network.eval() first",
            stacklevel=3,
        )
    if plan.clip_denoised is not None:
        warnings.warn(
            f"clip_denoised={plan.clip_denoised} puts a floor under the round trip: what is clipped cannot come back",
            stacklevel=3,
        )
