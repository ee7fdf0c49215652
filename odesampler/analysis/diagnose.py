"""Diagnoses of latents: are they noise, and how far are they from where the exact equation puts them?

    z = x_T / scale should be d independent draws of N(0, 1) (`normality`);      error = x_T - x_T of a tight solve

A latent that is no noise will decode to its image, but what is done to it on the way (edits, interpolation, another
guidance) leaves what the model was trained on. A small round-trip error says nothing about either.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odesampler.analysis.errors import quantile, rms
from odesampler.analysis.normality import Measure, measures
from odesampler.analysis.reference import CLEAR, grids_between
from odesampler.analysis.report import Report, Section, Table
from odesampler.analysis.settings import made_with, shown_cond
from odesampler.grid import Grid
from odesampler.guidance import AnyGuidance, rows_a_sample
from odesampler.inputs import checked_cond, checked_images, checked_model, coded
from odesampler.latent import Latent
from odesampler.model import Model
from odesampler.plan import clean_end, execute, make_plan
from odesampler.precision import finest_dtype
from odesampler.room import AnyBatch, check_max_batch

LEVEL = 0.01  # false alarms: how often true noise is called none
REFERENCE_STEPS = 400


@dataclass(frozen=True)
class LatentError:
    """How far latents are from those of the exact equation, in the model's own scale."""

    exact: Tensor  # (batch, *shape), x_T of the reference solve, on the CPU
    rmse: Tensor  # (batch,) root mean square over each latent
    largest: Tensor  # (batch,)
    how: str
    difference: Tensor  # (batch,) rms, of the same solve with half the steps: what the reference leaves open


@dataclass(frozen=True, repr=False)
class Diagnosis(Report):
    """What was found of each latent; prints as a table.

    Examples:
        >>> from dataclasses import replace
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:1]
        >>> latent = ods.encode(model, images, num_steps=10)
        >>> found = ods.diagnose(model, replace(latent, x=torch.zeros_like(latent.x)))  # no noise at all
        >>> found.normal.tolist(), found.reasons
        ([False], (('std', 'ks'),))
    """

    measures: Mapping[str, Measure]  # by name, see `normality`
    reasons: tuple[tuple[str, ...], ...]  # per sample: which measures are too far off for noise; none: it looks normal
    level: float
    error: LatentError | None
    size: int  # values of one latent
    model: str
    made: str = ""  # how the latents were made

    @property
    def normal(self) -> Tensor:
        """(batch,) bool: nothing speaks against N(0, 1)."""
        return torch.tensor([not reasons for reasons in self.reasons])

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Are these {len(self.reasons)} latents noise? {self.model}"

    def sections(self) -> Sequence[Section]:
        """What d draws of N(0, 1) have, its standard error, then a row for each latent; and what is to be said."""
        head = ("latent", *self.measures, *(() if self.error is None else ("rmse", "max error")), "noise?")
        blank = ("",) * (len(head) - 1 - len(self.measures))
        expected = ("N(0, 1)", *(_cell(m.expected) for m in self.measures.values()), *blank)
        error = ("+-", *(_cell(m.error) for m in self.measures.values()), *blank)
        found = [
            (str(i), *(_cell(v) for v in values), *(f"{e:.1e}" for e in off), self._verdict(i))
            for i, (values, off) in enumerate(self._values())
        ]
        return [Section(self.title, table=Table(head, [expected, error, *found], self._notes(), 2))]

    def records(self) -> list[dict[str, Any]]:
        """A record for each latent."""
        names = (*self.measures, *(() if self.error is None else ("rmse", "max error")))
        return [
            {"latent": i, **dict(zip(names, (*values, *off), strict=True)), "noise?": self._verdict(i)}
            for i, (values, off) in enumerate(self._values())
        ]

    def _values(self) -> list[tuple[list[float], list[float]]]:
        """Of each latent the measures and the errors."""
        measured = torch.stack([m.value for m in self.measures.values()], 1)
        off = (
            torch.empty(len(measured), 0)
            if self.error is None
            else torch.stack([self.error.rmse, self.error.largest], 1)
        )
        return list(zip(measured.tolist(), off.tolist(), strict=True))

    def _verdict(self, i: int) -> str:
        return f"no: {', '.join(self.reasons[i])}" if self.reasons[i] else "yes"

    def _notes(self) -> list[str]:
        odd, batch = sum(map(bool, self.reasons)), len(self.reasons)
        notes = [
            f"{odd} of {batch} latents are not {self.size} draws of N(0, 1), at a level of {self.level:g}: "
            f"of so many samples of noise about {self.level * batch:.2g} would be called so"
        ]
        if self.error is not None:
            floor = quantile(self.error.difference, 0.5)
            notes.append(f"errors from {self.error.how}; half as many differ by {floor:.1e}")
        return [*notes, *([self.made] if self.made else [])]


def diagnose(
    model: Model,
    latent: Latent,
    images: Tensor | None = None,
    *,
    level: float = LEVEL,
    reference_steps: int = REFERENCE_STEPS,
    insist: bool = False,
    max_batch: AnyBatch = None,
    progress: bool = False,
) -> Diagnosis:
    """Tell which latents are not noise, and why; and how far they are from the exact equation's.

    Args:
        model: The model that they were made with.
        latent: What `encode` returned, or `Latent.load`.
        images: What was encoded, (batch, *shape): then the latent error is measured too, against RK4 with many steps
            over the same range of sigma, with the same conditions and guidance (none for `null_text`, as it encodes).
        level: The chance that d independent draws of N(0, 1) are called no noise: 1 % of samples. Each of the tests
            gets an equal part, so the true rate is at most this, and little below.
        reference_steps: Steps of the reference, an even number; its check takes half of them.
        insist: Take another model than the latent's all the same.
        max_batch: As for `sample`, for the reference.
        progress: Show a progress bar, likewise.

    Returns:
        A `Diagnosis`. Latents with NaN are no noise, for the reason "not finite". Warns where the reference's own error
        is not much smaller than the errors found.

    Raises:
        TypeError: Not a Latent.
        ValueError: What cannot be meant, before the model is called: a latent of another model, other images than
            latents, a level outside (0, 1).

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:3]
        >>> coarse = ods.encode(model, images, solver="ddim", num_steps=5)
        >>> fine = ods.encode(model, images, solver="heun", num_steps=20)
        >>> ods.diagnose(model, coarse).normal.tolist(), ods.diagnose(model, fine).normal.tolist()
        ([False, False, False], [True, True, True])
    """
    if not isinstance(latent, Latent):
        raise TypeError(f"diagnose takes a Latent, which knows how it was made; got {type(latent).__name__}")
    checked_model(model)
    latent.recipe.check_model(model, insist)
    if not 0 < level < 1:
        raise ValueError(f"level is the rate of false alarms, between 0 and 1, such as {LEVEL}; got {level!r}")
    if images is not None:
        images, _ = checked_images(model, images), _reference_grids(model, latent, reference_steps)
        check_max_batch(max_batch, rows_a_sample(model, _reference_guidance(latent)))
        checked_cond(model, latent.cond, len(images))
        images = coded(model, images)
        if images.shape != latent.x.shape:
            raise ValueError(
                f"images must be those that were encoded: {tuple(latent.x.shape)} latents, {tuple(images.shape)} images"
            )
    exact = None if images is None else _exact(model, latent, images, reference_steps, max_batch, progress)
    found = measures(latent.x / model.schedule.latent_scale(latent.recipe.sigmas[0]))
    reasons = _reasons(found, level, latent.x.detach().flatten(1).isfinite().all(1).tolist())
    recipe = latent.recipe
    made = made_with(
        solver=recipe.solver,
        num_steps=len(recipe.sigmas) - 1,
        cond=shown_cond(model, latent.cond),
        guidance_scale=recipe.guidance_scale,
        clip_denoised=recipe.clip_denoised,
    )
    return Diagnosis({m.name: m for m in found}, reasons, level, exact, latent.x[0].numel(), model.name, made)


def _reasons(found: tuple[Measure, ...], level: float, finite: list[bool]) -> tuple[tuple[str, ...], ...]:
    tested = [(m.name, m.p) for m in found if m.p is not None]
    odd = {name: (p < level / len(tested)).tolist() for name, p in tested}  # Bonferroni: in all at most `level`
    return tuple(
        tuple(name for name, of in odd.items() if of[i]) if fine else ("not finite",) for i, fine in enumerate(finite)
    )


def _exact(
    model: Model, latent: Latent, images: Tensor, steps: int, max_batch: AnyBatch, progress: bool
) -> LatentError:
    """The errors of `latent`, by a solve from `images` up to its sigma, and the same solve with half the steps."""
    grids = _reference_grids(model, latent, steps)
    whole, half = (_solved(model, latent, images, grid, max_batch, progress) for grid in grids)
    off, difference = latent.x.detach().cpu() - whole, rms(half - whole)
    error = rms(off)
    if quantile(error, 0.5) < CLEAR * quantile(difference, 0.5):
        warnings.warn(
            f"the median latent error, {quantile(error, 0.5):.1e}, is not well above what the reference leaves open, "
            f"{quantile(difference, 0.5):.1e}: raise reference_steps={steps}, or compute the network in float64",
            stacklevel=3,
        )
    how = f"rk4, {steps} steps on log_snr"
    return LatentError(whole, error, off.double().abs().flatten(1).amax(1), how, difference)


def _reference_grids(model: Model, latent: Latent, steps: int) -> list[Grid]:
    """Over the sigmas of `latent`, in so many steps and in half of them. Raises: ValueError: no such numbers."""
    high, low = latent.recipe.sigmas[0], latent.recipe.sigmas[-1]
    return grids_between(model, low, high, steps, into_zero=False)


def _reference_guidance(latent: Latent) -> AnyGuidance:
    return 1.0 if latent.null else latent.recipe.guidance_scale  # null conditions are for the way down


def _solved(model: Model, latent: Latent, images: Tensor, grid: Grid, max_batch: AnyBatch, progress: bool) -> Tensor:
    """`images` carried up `grid` by RK4, under the latent's conditions and guidance; (batch, *shape), on the CPU."""
    plan = make_plan(
        model,
        "rk4",
        num_steps=None,
        grid=grid,
        rtol=None,
        atol=None,
        into_zero=False,
        guidance_scale=_reference_guidance(latent),
        clip_denoised=latent.recipe.clip_denoised,
        state_dtype=finest_dtype(model.device),
    )
    outcome = execute(
        plan,
        model,
        clean_end(plan, model, images),
        rising=True,
        cond=checked_cond(model, latent.cond, len(images)),
        max_batch=max_batch,
        progress="reference" if progress else None,
    )
    return model.schedule.to_model_scale(outcome.solved.state.x, plan.grid[0]).cpu()


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
