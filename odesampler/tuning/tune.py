"""Tune: the best sampler for one model at one number of steps, found by measurement; its weights stay untouched.

    race    solvers x grids, and a grid made from measured local errors (`race`, `knots`)
    knots   the sigmas of the best three, by gradients through the solve (`fitting`, `shapes`)
    table   the sigmas of the best of these and the weights of its steps, always consistent to first order

Two thirds of the latents are tuned on; the others decide when to stop, and whether what came out is taken: only if it
is better on them than the best that was not tuned. How good it is then is measured on latents by which nothing was
chosen; of images to encode a fourth is kept for this. docs/tuning.md has the sources, and what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from odesampler.grid import check_num_steps
from odesampler.guidance import AnyGuidance, checked_guidance, guided, usual_guidance, warn_of_nothing_to_guide_to
from odesampler.inputs import (
    checked_batch,
    checked_cond,
    checked_count,
    checked_images,
    checked_model,
    checked_shape,
    coded,
)
from odesampler.model import Model
from odesampler.noise import seeds_for
from odesampler.precision import is_whole
from odesampler.room import AnyBatch, check_max_batch
from odesampler.tuned import Tuned, checked_name
from odesampler.tuning.encoder import tuned_encoder
from odesampler.tuning.fitting import Clock
from odesampler.tuning.resumable import Resumable
from odesampler.tuning.sampler import tuned_sampler
from odesampler.tuning.task import Task

FEWEST = {"sample": 6, "encode": 8}  # two to validate on, two to test on
SAMPLES = 96
ITERATIONS = {"sample": 500, "encode": 60}
REFERENCE_STEPS = 200
FINER = 4  # the reference's steps, of four evaluations each, for one that is tuned


def tune(
    model: Model,
    num_steps: int,
    *,
    task: str = "sample",
    num_samples: int | None = None,
    seed: int = 0,
    x: Tensor | None = None,
    images: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance | None = None,
    coefficients: bool = True,
    iterations: int | None = None,
    budget: float | None = None,
    held_out: Sequence[Mapping[str, Any]] | None = None,
    reference_steps: int = REFERENCE_STEPS,
    max_batch: AnyBatch = None,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> Tuned:
    """Find the solver, the grid and the weights of its steps that suit this model at this number of evaluations.

    Args:
        model: The model. Its weights are neither changed nor differentiated.
        num_steps: Transitions, 2 or more, of one evaluation each.
        task: "sample"; or "encode": the reversible solver whose latents are best without their memory.
        num_samples: Latents, 96 by default; every third is for validation, of each class too.
        seed: Of the first latent, as for `sample`; the next has seed + 1.
        x: Latents instead, (num_samples, *shape), as for `sample`.
        images: To encode, with task="encode": (num_samples, *shape), 8 or more, as for `encode`. Every second is tuned
            on; of the others every second validates, and the rest is for the errors that are reported.
        cond: As for `sample`, for these samples. Give the conditions that will be asked for: classes in turn, prompts.
        guidance_scale: As for `sample`; to encode as for `encode`.
        coefficients: Fit the weights of the steps too, not only the grid.
        iterations: Of the fit, 500 by default; with task="encode" settings that are tried, 60. The same number gives
            the same recipe.
        budget: Seconds of processor time, all of it counted, after which the fit ends, wherever it is; `measured` then
            says so. What comes before and after the fit is not cut short.
        held_out: What to report besides: settings such as {"cond": {"label": 3}, "guidance_scale": 2}, whose `cond` is
            for 16 samples; conditions that it does not name are those tuned with. By default the classes that were not
            tuned on, four samples or more of each and sixteen classes at most, and another guidance scale; () for none.
        reference_steps: Of the solves that errors are measured from, RK4; even, four times `num_steps` or more.
        max_batch: The most rows to give the network at once.
        checkpoint: A .safetensors in which to keep what was found so far, and from which to go on after a kill. It is
            deleted when `out` has been written; without `out` it stays, and to ask again costs the race only.
        out: A .json to write the recipe to, as `save` does.
        progress: Show progress bars.

    Returns:
        A `Tuned`, which `solver=` takes in every verb; `save` writes it. Its `measured` says how good it is, its
        `warning` what to be careful about, its `report` shows it.

    Raises:
        ValueError: What cannot be meant, before the model is called; a checkpoint of something else.
        OSError: `out` cannot be written; the checkpoint then stays.
        FloatingPointError: The reference solve fails, or every solver does.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> recipe = ods.tune(model, 6, num_samples=12, iterations=30, reference_steps=60)
        >>> recipe.grid.num_steps, ods.sample(model, 2, solver=recipe).nfe.tolist()
        (6, [6, 6])
    """
    checked_model(model)
    _check_numbers(num_steps, task, iterations, budget, reference_steps)
    at_once = _checked_rest(coefficients, max_batch, out)
    encoding = 1.0 if guidance_scale is None else guidance_scale
    scale = checked_guidance(usual_guidance(model, guidance_scale) if task == "sample" else encoding)
    guided(model, scale)  # raises where this model cannot be guided so
    given = _given(model, task, x, images)
    count = checked_count(SAMPLES if num_samples is None and given is None else num_samples, given)
    shape = checked_shape(model, " or latents x") if given is None else tuple(given.shape[1:])
    if count < FEWEST[task]:
        raise ValueError(f"tuning needs {FEWEST[task]} samples or more, some of them to validate on; got {count}")
    warn_of_nothing_to_guide_to(model, cond, scale)
    if task == "encode" and held_out:
        raise ValueError("held_out is for samplers: hold images back, and give them to ods.round_trip")
    made = Task(
        model=model,
        num_steps=int(num_steps),
        seeds=seeds_for(seed, count),
        shape=(count, *shape),
        given=given,
        cond=checked_cond(model, cond, count),
        told=cond,
        guidance_scale=scale,
        coefficients=coefficients,
        iterations=ITERATIONS[task] if iterations is None else int(iterations),
        reference_steps=reference_steps,
        max_batch=at_once,
        progress=progress,
    )
    others = made.held_out(held_out) if task == "sample" else {}
    saved = Resumable(checkpoint, made.question(task, others))
    clock = Clock(budget, earlier=saved.facts.get("seconds", 0.0))
    found: Tuned = _TASKS[task](made, others, saved, clock)
    if out is not None:
        found.save(out)
        saved.done()  # not before: what could not be saved must not cost the checkpoint
    return found


_TASKS: dict[str, Callable[..., Tuned]] = {"sample": tuned_sampler, "encode": tuned_encoder}


def _given(model: Model, task: str, x: Tensor | None, images: Tensor | None) -> Tensor | None:
    """The latents to sample from, or the images to encode, if they are given. Raises as `tune`."""
    if task == "encode":
        if x is not None or images is None:
            raise ValueError('task="encode" tunes on images=..., real or drawn, (num_samples, *shape); x is to sample')
        return coded(model, checked_images(model, images))
    if images is not None:
        raise ValueError('images are for task="encode"; to sample from given latents there is x')
    return None if x is None else checked_batch(model, x, "x")


def _checked_rest(coefficients: bool, max_batch: AnyBatch, out: str | Path | None) -> int | None:
    """The rows at once. Raises as `tune`."""
    if not isinstance(coefficients, bool):
        raise TypeError(f"coefficients must be True or False; got {coefficients!r}")
    check_max_batch(max_batch, 1)
    if max_batch == "auto":
        raise ValueError('max_batch="auto" has no effect with gradients: give a number')
    if out is not None and not checked_name(out).parent.is_dir():
        raise ValueError(f"the folder of {out} does not exist")
    if out is not None and Path(out).is_dir():
        raise ValueError(f"{out} is a folder: give the name of a file")
    return max_batch


def _check_numbers(
    num_steps: int, task: str, iterations: int | None, budget: float | None, reference_steps: int
) -> None:
    check_num_steps(num_steps)
    if num_steps < 2:
        raise ValueError("one step leaves nothing to tune: num_steps must be 2 or more")
    if task not in ITERATIONS:
        raise ValueError(f"task must be one of {', '.join(ITERATIONS)}; got {task!r}")
    if iterations is not None and not (is_whole(iterations) and iterations >= 0):
        raise ValueError(f"iterations must be a whole number of 0 or more; got {iterations!r}")
    number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if budget is not None and not (number and 0 < budget < math.inf):
        raise ValueError(f"budget must be seconds of processor time above 0; got {budget!r}")
    check_num_steps(reference_steps)
    if reference_steps < FINER * num_steps:
        raise ValueError(
            f"reference_steps must be {FINER} times num_steps or more, or what is fitted is the reference's error; got "
            f"{reference_steps} for {num_steps} steps"
        )
    if reference_steps % 2:
        raise ValueError(f"reference_steps must be even, since the check takes half of them; got {reference_steps}")
