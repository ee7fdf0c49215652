"""Sampling: from noise at the top of a grid down to images.

x(sigma_max) = latent / alpha,     dx / dsigma = eps,     image = alpha * x at the end of the grid
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from odesampler.adaptive import Status
from odesampler.adjoint import AnyGrad
from odesampler.codec import Codec
from odesampler.guidance import AnyGuidance, usual_guidance, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_batch, checked_cond, checked_count, checked_shape
from odesampler.model import Model
from odesampler.noise import AnySeed, Noise, noise_for, seeds_for
from odesampler.observe import Trajectory
from odesampler.plan import AnyGrid, AnySolver, Outcome, Plan, execute, make_plan
from odesampler.program import State
from odesampler.room import AnyBatch
from odesampler.threshold import AnyThreshold


@dataclass(frozen=True, repr=False)
class Solution:
    """What a verb gives back.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> found = ods.sample(model, 3, solver="heun", num_steps=5)
        >>> tuple(found.x.shape), found.nfe.tolist(), found.calls
        ((3, 2), [9, 9, 9], 9)
        >>> {status.name for status in found.status}
        {'ARRIVED'}
    """

    x: Tensor  # (batch, *shape), in the model's own scale, state dtype, on the model's device
    nfe: Tensor  # (batch,) int64: evaluations of eps for each sample; a guided one counts once
    calls: int  # batched calls of the model
    seconds: float
    status: tuple[Status, ...]  # per sample; all ARRIVED on a fixed grid
    trajectory: Trajectory | None = None
    codec: Codec | None = None  # the model's, if it has one

    @cached_property
    def images(self) -> Tensor:
        """`x` as images (batch, *shape): what the model's codec makes of it when first asked, or itself."""
        return self.x if self.codec is None else self.codec.decode(self.x)

    def __repr__(self) -> str:
        late = sum(s is not Status.ARRIVED for s in self.status)
        fewest, most = int(self.nfe.min()), int(self.nfe.max())
        nfe = f"{most}" if fewest == most else f"{fewest}..{most}"
        trouble = f", {late} did not arrive" if late else ""
        return f"Solution(x={tuple(self.x.shape)}, nfe={nfe}, calls={self.calls}, {self.seconds:.3g} s{trouble})"


def sample(
    model: Model,
    num_samples: int | None = None,
    *,
    solver: AnySolver | None = None,
    num_steps: int | None = None,
    grid: AnyGrid | None = None,
    seed: AnySeed = 0,
    noise: str = "independent",
    x: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    clip_denoised: AnyThreshold = None,
    state_dtype: torch.dtype | None = None,
    max_batch: AnyBatch = None,
    progress: bool = False,
    trajectory: bool = False,
    grad: AnyGrad = False,
) -> Solution:
    """Draw images from a model.

    Args:
        model: The model; see `ods.load`, `ods.Model`.
        num_samples: How many; left out, as many as `x` has.
        solver: A name of `ods.solvers()` or an object such as `ods.Heun()`. By default the one that was measured to be
            best for so many steps, docs/defaults.md; for tolerances Dormand-Prince.
        num_steps: Transitions of a fixed grid, 20 by default. The last one goes into sigma = 0 and returns the
            denoised image, but for a few solvers that say so.
        grid: A name of `ods.grids()` such as "karras(rho=5)", a Grid, or falling sigmas. By default one that
            suits the solver and the number of steps, likewise.
        seed: An int s (sample i then has seed s + i), or one a sample, as a list, tensor or array. Sample and seed
            belong together in any batch.
        noise: What stochastic solvers draw: "independent" from step to step, or increments of one path a sample,
            "brownian", so that with more steps the same images come out better. Churn's are always independent.
        x: Latents to start from, (batch, *shape), in the model's own scale, about N(0, 1): instead of drawing them. The
            noise of stochastic steps is the same as if they had been drawn.
        cond: Conditions, {"label": 3} or one value a sample; missing ones mean "none", or what the model usually takes.
        guidance_scale: As in diffusers, eps_u + scale * (eps_c - eps_u); 1 is off, and the default, unless the model
            says otherwise. An `ods.Guidance` can also rescale the result, and guide in an interval of sigma only.
        rtol: Relative tolerance: asks for per-sample adaptive steps instead of a fixed grid.
        atol: Absolute tolerance, likewise, in units of x / sqrt(1 + sigma^2), x = x_t / alpha: of x_t itself where the
            model is variance-preserving. See `ods.Adaptive`.
        clip_denoised: Clamp the predicted image, after guidance, to [-clip, clip]; or an `ods.DynamicThreshold`. Off by
            default.
        state_dtype: torch.float32 (default) or float64; the network's own dtype is the model's affair.
        max_batch: The most rows to give the network at once. "auto": all, and where memory runs out half as many, and
            so on; the model remembers. Samples are the same but for their last bits, which depend on it.
        progress: Show a progress bar.
        trajectory: Keep x at every step (fixed grids only).
        grad: Let the samples be differentiated in `x`, the network's parameters and floating-point conditions. True or
            "plain" keeps the whole graph; "checkpointed" keeps the states between steps and asks again in the backward
            pass; "reversible", for exactly invertible solvers, keeps the last state only. See `odesampler.adjoint`.

    Returns:
        A `Solution`; its `x` are the images, but where the model has a codec: then `images` are.

    Raises:
        ValueError: What cannot be meant, before the model is called: unknown names, wrong shapes, grids out of range.

    Examples:
        >>> model = ods.load("digits")
        >>> found = ods.sample(model, 4, cond={"label": 3}, num_steps=10)
        >>> tuple(found.x.shape), found.nfe.tolist()
        ((4, 1, 8, 8), [10, 10, 10, 10])
        >>> last = ods.sample(model, 1, seed=3, cond={"label": 3}, num_steps=10).x  # in any batch
        >>> last.allclose(found.x[3:], atol=1e-4)
        True
        >>> ods.sample(model, 4, solver="huen")
        Traceback (most recent call last):
            ...
        ValueError: unknown solver 'huen'; did you mean heun...
    """
    plan = make_plan(
        model,
        solver,
        num_steps=num_steps,
        grid=grid,
        rtol=rtol,
        atol=atol,
        into_zero=True,
        guidance_scale=usual_guidance(model, guidance_scale),
        clip_denoised=clip_denoised,
        state_dtype=state_dtype,
    )
    warn_of_nothing_to_guide_to(model, cond, plan.guidance_scale)
    count = checked_count(num_samples, x)
    drawn = noise_for(noise, seeds_for(seed, count))
    outcome = execute(
        plan,
        model,
        State(first_x(model, plan, count, drawn, x)),
        cond=checked_cond(model, cond, count),
        noise=drawn,
        max_batch=max_batch,
        progress="sampling" if progress else None,
        trajectory=trajectory,
        grad=grad,
    )
    return to_solution(model, plan, outcome)


def first_x(model: Model, plan: Plan, count: int, drawn: Noise, x: Tensor | None) -> Tensor:
    """x (count, *shape) at the top of the grid: of the latents `x`, or of the first noise of each stream.

    Where latents are given, a stochastic solver passes that noise over: they may have been drawn with it, and its steps
    are to be independent of them.

    Raises:
        ValueError: `x` is no batch for the model; nothing says what shape a sample has.
    """
    top = plan.grid[0]
    x_t = None if x is None else checked_batch(model, x, "x").to(model.device, plan.state_dtype)
    if x_t is None or plan.stochastic:
        shape = (count, *checked_shape(model, " or latents x")) if x_t is None else x_t.shape
        first = drawn.draw(torch.empty(shape, dtype=plan.state_dtype, device=model.device))
        x_t = first * model.schedule.latent_scale(top) if x_t is None else x_t
    return model.schedule.from_model_scale(x_t, top)


def to_solution(model: Model, plan: Plan, outcome: Outcome) -> Solution:
    """An outcome in the model's scale, at the lower end of the plan's grid. Warns of samples that did not arrive."""
    end = plan.grid.down()[-1]
    x, status = arrived(model.schedule.to_model_scale(outcome.solved.state.x, end), outcome)
    return Solution(x, outcome.nfe, outcome.calls, outcome.seconds, status, outcome.trajectory, model.codec)


def arrived(x: Tensor, outcome: Outcome) -> tuple[Tensor, tuple[Status, ...]]:
    """`x` (batch, *shape) with NaN for the samples that did not arrive, and the status of each.

    Warns of those: an error would lose the others, which are finished.
    """
    codes, batch = outcome.solved.status, len(x)
    if codes is None:
        return x, (Status.ARRIVED,) * batch
    status = tuple(Status(code) for code in codes.tolist())
    late = [i for i, s in enumerate(status) if s is not Status.ARRIVED]
    if late:
        reasons = ", ".join(f"sample {i}: {status[i].name}" for i in late[:5])
        warnings.warn(
            f"{len(late)} of {batch} samples did not arrive ({reasons}) and are NaN; raise rtol, atol or max_steps",
            RuntimeWarning,
            stacklevel=3,
        )
    return x.where((codes == 0).reshape(-1, *[1] * (x.ndim - 1)), torch.nan), status
