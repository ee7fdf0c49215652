"""Polish: a latent corrected until it decodes to its image, whatever decodes it.

    z <- z + E(x) - E(G(z)),    mixed with the last sweeps (Anderson)

G decodes, and E encodes about as well as the inverse of G would: each sweep costs one of both, and shrinks the error by
how much they disagree. Neither is looked into: G may be guided, adaptive, or another library's. The latent that comes
out is one tensor, with no memory beside it.

References:
    Stetter 1978, The defect correction principle and discretization methods, Numer. Math. 29, 425. Walker, Ni 2011,
    Anderson Acceleration for Fixed-Point Iterations, SIAM J. Numer. Anal. 49, 1715.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from odesampler.combine import within
from odesampler.conventions import upward
from odesampler.drive import Tally, run
from odesampler.guidance import rows_a_sample
from odesampler.implicit import Way, defect_correction
from odesampler.inputs import checked_batch, checked_cond, checked_images, checked_model, coded
from odesampler.inversion import warn_of_unconverged
from odesampler.latent import Latent
from odesampler.model import Model
from odesampler.observe import Progress
from odesampler.plan import AnySolver, Plan, eps_of, make_plan, refuse_stochastic
from odesampler.precision import is_number, is_whole
from odesampler.program import Program
from odesampler.registry import find_solver, spec_of
from odesampler.room import AnyBatch, check_max_batch
from odesampler.roots import Search, find_roots
from odesampler.tuned import Tuned

QUARTER_LEVEL = 0.5 / 255  # of 8 bits, in images from -1 to 1: well within what rounds to the same byte


def polish(
    model: Model,
    images: Tensor,
    latent: Latent,
    *,
    sweeps: int = 5,
    tolerance: float = QUARTER_LEVEL,
    encoder: AnySolver | None = None,
    insist: bool = False,
    max_batch: AnyBatch = None,
    progress: bool = False,
) -> Latent:
    """Correct latents until they decode to their images.

    Args:
        model: The model that the latent was made with.
        images: (batch, *shape), what was encoded.
        latent: Where to begin; its memory is left out, so that one tensor holds all.
        sweeps: The most corrections of any sample, 0 or more; each costs a decoding and an encoding.
        tolerance: The largest error of any pixel with which a sample is left alone, in units of the images. By default
            one with which 8-bit images come back exactly.
        encoder: What corrects: a solver as for `encode`, on the latent's grid, or its own if it was tuned. By default
            the latent's own, explicit.
        insist: Polish with another model than the latent's all the same.
        max_batch: As for `sample`.
        progress: Show a progress bar.

    Returns:
        A latent without memory that says of every sample how well it decodes: `converged`, and `defect`, the largest
        error of any pixel in units of the images. Never worse than the one given without its memory, which for an
        exactly invertible solver is what made it exact: begin rather from one such as "multistep". Warns of those that
        did not converge.

    Raises:
        ValueError: What does not belong together, before the model is called.
        TypeError: Not a Latent.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:2]
        >>> latent = ods.encode(model, images, solver="multistep", num_steps=20)
        >>> polished = ods.polish(model, images, latent)
        >>> polished.converged.tolist(), polished.memory
        ([True, True], ())
        >>> bool((ods.decode(model, polished).x - images).abs().max() < 0.5 / 255)
        True
    """
    images, x_t = _checked(model, images, latent, sweeps, tolerance, insist)
    plan = latent.plan or latent.recipe.plan(model)
    up, conditions = _encoder(model, plan, encoder), checked_cond(model, latent.cond, len(x_t))
    check_max_batch(max_batch, rows_a_sample(model, plan.guidance_scale))
    x = coded(model, images)
    if x.shape != x_t.shape:
        raise ValueError(
            f"polish needs the images that were encoded, {tuple(x_t.shape)} as the latents; got {tuple(x.shape)}"
        )
    low, high = plan.grid.down()[-1], plan.grid.down()[0]
    target = model.schedule.from_model_scale(x.to(model.device, plan.state_dtype), low)
    start = model.schedule.from_model_scale(x_t.to(model.device, plan.state_dtype), high)
    unit = model.schedule.to_model_scale(torch.ones(1, dtype=target.dtype), low).item()
    allowed = torch.full((len(x),), float(tolerance), dtype=target.dtype, device=target.device)
    correction = defect_correction(Way(plan.loop, plan.grid.down().sigmas), up, target, allowed, unit)
    tally = Tally()
    with torch.no_grad(), Progress(len(x), show=progress, what="polishing", counts_samples=True) as bar:

        def watched(z: Tensor, rows: Tensor, wanted: Tensor) -> Program[tuple[Tensor, Tensor]]:
            bar(0, high, z, rows)
            return correction(z, rows, wanted)

        search = find_roots(watched, start, allowed, int(sweeps) + 1, Search())
        [found] = run(
            within(*model.range, spec_of(plan.loop), search),
            model=eps_of(plan, model),
            cond=conditions,
            max_batch=max_batch,
            tally=tally,
        )
    converged, defect = found.converged.cpu(), found.defect.cpu()
    warn_of_unconverged(
        converged, defect, "take more sweeps, more steps, or a latent of another solver, such as 'multistep' or 'heun'"
    )
    assert tally.nfe is not None  # it decoded at least once
    return replace(
        latent.elsewhere(model.schedule.to_model_scale(found.x, high)),
        recipe=replace(latent.recipe, polished=True),
        nfe=tally.nfe.cpu() + (0 if latent.nfe is None else latent.nfe),
        converged=converged,
        defect=defect,
        plan=plan,
    )


def _checked(
    model: Model, images: Tensor, latent: Latent, sweeps: int, tolerance: float, insist: bool
) -> tuple[Tensor, Tensor]:
    """The images, and the latents, as batches."""
    if not isinstance(latent, Latent):
        raise TypeError(f"polish takes a Latent, such as encode returns; got {type(latent).__name__}")
    latent.recipe.check_model(checked_model(model), insist)
    if latent.null is not None:
        raise ValueError("null_text has already fitted this latent to its images: polish latent.without_null() instead")
    images, x_t = checked_images(model, images), checked_batch(model, latent.x, "latent.x")
    if len(images) != len(x_t):
        raise ValueError(f"polish needs the images that were encoded, {len(x_t)} as the latents; got {len(images)}")
    if not is_whole(sweeps) or sweeps < 0:
        raise ValueError(f"sweeps must be a whole number, 0 or more; got {sweeps!r}")
    if not is_number(tolerance) or not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number, 0 or more, in units of the images; got {tolerance!r}")
    return images, x_t


def _encoder(model: Model, plan: Plan, encoder: AnySolver | None) -> Way:
    """The way up of `encoder`, on the plan's grid where both take the steps of one and it has none of its own."""
    if encoder is None:
        return Way(upward(plan.loop, None)[0], plan.grid.up().sigmas)
    found = find_solver(encoder)
    takes_steps = plan.loop.takes_steps and getattr(found, "takes_steps", True)
    grid = plan.grid if takes_steps and not isinstance(found, Tuned) else None  # what was tuned has its own
    made = make_plan(model, found, num_steps=None, grid=grid, rtol=None, atol=None, into_zero=False)
    refuse_stochastic(made)
    ends = [(p.grid.down()[0], p.grid.down()[-1]) for p in (plan, made)]
    if ends[0] != ends[1]:
        raise ValueError(
            f"the encoder goes from {ends[1][1]:g} to {ends[1][0]:g}, the latent's grid from {ends[0][1]:g} to "
            f"{ends[0][0]:g}: take an encoder with steps of the same kind"
        )
    return Way(upward(made.loop, None)[0], made.grid.up().sigmas)
