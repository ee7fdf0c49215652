"""Null-text inversion: null conditions under which guided decoding comes back to the images.

    pivot       x_0 .. x_N: images encoded without guidance
    step i      null_i = argmin |guided step(z_i; null) - x_{i+1}|^2,   z_{i+1} = guided step(z_i; null_i),   z_0 = x_0

Guided decoding leaves the way that encoding without guidance took, and guided encoding leads out of the range of a
model. Here the way stays as it is, and what the model takes for "none" is bent, step by step from pure noise down,
until the guided way is that one.

References:
    Mokady et al. 2022, Null-text Inversion for Editing Real Images using Guided Diffusion Models, arXiv:2211.09794,
    algorithm 1. Kingma, Ba 2015, Adam, arXiv:1412.6980.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesampler.combine import for_rows, within
from odesampler.drive import Tally, run
from odesampler.grid import Grid
from odesampler.guidance import AnyGuidance, Guided, guided
from odesampler.implicit import largest
from odesampler.inputs import checked_cond, checked_images, checked_model, coded
from odesampler.integrate import solve
from odesampler.latent import Latent, Recipe
from odesampler.model import Model
from odesampler.null_steps import with_null_steps
from odesampler.observe import Progress
from odesampler.plan import AnyGrid, Plan, clean_end, execute, make_plan
from odesampler.precision import dtype_name, finest_dtype, is_number
from odesampler.program import Solver, State
from odesampler.registry import find_solver, spec_of
from odesampler.room import check_max_batch
from odesampler.solvers.bases import checked_base
from odesampler.tuned import Tuned

STEPS = 50
BETAS, TINY = (0.9, 0.999), 1e-8  # Adam's


def null_text(
    model: Model,
    images: Tensor,
    *,
    cond: Mapping[str, Any],
    guidance_scale: AnyGuidance,
    solver: Solver | Tuned | str = "ddim",
    num_steps: int | None = None,
    grid: AnyGrid | None = None,
    key: str | None = None,
    inner_steps: int = 10,
    learning_rate: float = 1e-2,
    early_stop: float = 1e-5,
    state_dtype: torch.dtype | None = None,
    max_batch: int | None = None,
    progress: bool = False,
) -> Latent:
    """Turn images into latents that come back under guidance.

    Each sample has null conditions of its own, found from its own error: batch mates do not matter, and samples that
    are near enough stop changing.

    Args:
        model: One whose null condition is a floating-point tensor, an embedding for example.
        images: (batch, *shape), float, in the model's data range.
        cond: What the images show, as for `sample`.
        guidance_scale: As for `sample`, not 1.
        solver: A deterministic one-step solver: "ddim", "heun", ...; or such a one that was tuned, with its grid.
        num_steps: Transitions between sigma_min and sigma_max, 50 by default.
        grid: As for `encode`.
        key: The condition whose null value is optimised; may be left out where there is but one of floating point.
        inner_steps: The most steps of Adam for one step of the grid.
        learning_rate: Of Adam, on the first step of the grid; it falls to one half on the last. The paper's suits text,
            some 60,000 numbers of size 1. Short embeddings need more: 0.1 for the 64 numbers of "digits".
        early_stop: A sample is near enough where its mean squared error, in the model's scale, is below this.
        state_dtype: As for `encode`.
        max_batch: The most rows to give the network at once, two a sample: also bounds the memory of the graph.
        progress: Show a progress bar.

    Returns:
        A `Latent` with `null`, which `decode` uses and `latent.without_null()` forgets; its `x` is what `encode` gives
        without guidance. Its `nfe` counts all evaluations, those of the search too; `defect` says how far from its
        image each sample ends, the largest error of any pixel.

    Raises:
        ValueError: What cannot be meant, before the model is called: no guidance, no floating-point null condition, a
            solver that draws noise, remembers (tuned or not) or chooses its own steps. Afterwards: an answer that does
            not depend on the null condition.

    Examples:
        >>> model, (images, labels) = ods.load("digits", embedded=True), ods.held_out("digits")
        >>> how = {"cond": {"embedding": model.network.embed(labels[:2])}, "guidance_scale": 3.0, "num_steps": 10}
        >>> latent = ods.null_text(model, images[:2], learning_rate=0.1, **how)
        >>> missed, without = (ods.decode(model, z).x - images[:2] for z in (latent, latent.without_null()))
        >>> bool(missed.norm() < without.norm() / 2)
        True
    """
    images = checked_images(checked_model(model), images)
    found = _checked_solver(solver)
    own = isinstance(found, Tuned) or not (grid is None or isinstance(grid, str))  # a grid that has its steps
    plan = make_plan(
        model,
        found,
        num_steps=STEPS if num_steps is None and not own else num_steps,
        grid=grid,
        rtol=None,
        atol=None,
        into_zero=False,
        guidance_scale=guidance_scale,
        state_dtype=state_dtype or finest_dtype(model.device),
    )
    key, name = _checked_key(plan, model, key), spec_of(plan.loop)
    search = _Search(plan, model, key, name, inner_steps, learning_rate, early_stop)
    if check_max_batch(max_batch, 2) == "auto":
        raise ValueError('max_batch must be a number here, which also bounds the graph of each search; got "auto"')
    recipe, conditions = Recipe.of(plan, model), checked_cond(model, cond, len(images))
    x_t = coded(model, images)
    outcome = execute(
        replace(plan, guidance_scale=1.0),
        model,
        clean_end(plan, model, x_t),
        rising=True,
        cond=conditions,
        max_batch=max_batch,
        progress="encoding" if progress else None,
        trajectory=True,
    )
    assert outcome.trajectory is not None
    pivot = outcome.trajectory.x_t.flip(0).to(model.device)
    null, nfe, end = search.along(pivot, conditions, max_batch, progress)
    defect = largest(end - pivot[-1]).cpu()
    nfe = outcome.nfe + nfe
    return Latent(pivot[0], recipe, (), conditions, nfe, plan=plan, defect=defect, null={search.key: null})


class _Found(NamedTuple):
    """A step of the grid, searched."""

    z: Tensor  # (batch, *shape), where it leads, in the equation's scale
    null: Tensor  # (batch, ...)
    nfe: Tensor  # (batch,)
    depends: bool | None  # whether the step depends on the null condition; None: no need to know


@dataclass(frozen=True)
class _Search:
    """How to look for null conditions."""

    plan: Plan
    model: Model
    key: str
    name: str  # of the solver
    inner_steps: int
    learning_rate: float
    early_stop: float

    def __post_init__(self) -> None:
        if type(self.inner_steps) is not int or self.inner_steps < 1:
            raise ValueError(f"inner_steps must be a whole number of 1 or more; got {self.inner_steps!r}")
        if not is_number(self.learning_rate) or not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a finite number above 0; got {self.learning_rate!r}")
        if not is_number(self.early_stop) or not 0 <= self.early_stop < math.inf:
            raise ValueError(f"early_stop must be a finite number of 0 or more; got {self.early_stop!r}")

    def along(
        self, pivot: Tensor, cond: Mapping[str, Tensor], max_batch: int | None, progress: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Null conditions (batch, steps, ...) for `pivot` (steps + 1, batch, *shape), their cost (batch,), and where
        they lead (batch, *shape), in the model's scale."""
        steps, batch = len(pivot) - 1, pivot.shape[1]
        null = self.model.nothing(batch)[self.key]
        null = null.to(torch.promote_types(null.dtype, torch.float32))
        z = self.model.schedule.from_model_scale(pivot[0], self.plan.grid[0])
        nulls, nfe, depends = [], torch.zeros(batch, dtype=torch.int64), set()
        size = batch if max_batch is None else max_batch // 2
        with Progress(steps, show=progress, what="null-text") as bar:
            for i in range(steps):
                chunks = [
                    self._found(i, z[rows], null[rows], pivot[i + 1][rows], {k: v[rows] for k, v in cond.items()})
                    for rows in torch.split(torch.arange(batch, device=z.device), size)
                ]
                z, null = torch.cat([c.z for c in chunks]), torch.cat([c.null for c in chunks])
                nfe += torch.cat([c.nfe for c in chunks]).cpu()
                depends |= {c.depends for c in chunks}
                nulls.append(null)
                bar(i + 1, 0.0, z, None)
        if False in depends and True not in depends:
            raise ValueError(
                f"what {self.model.name} answers does not depend on its null condition {self.key!r}: is its network "
                "under torch.no_grad(), or the guidance interval where the grid asks nothing?"
            )
        return torch.stack(nulls, 1), nfe, self.model.schedule.to_model_scale(z, self.plan.grid[-1])

    def _found(self, i: int, z: Tensor, null: Tensor, goal: Tensor, cond: Mapping[str, Tensor]) -> _Found:
        """Step i from `z`, searched from `null` on for where it leads to `goal`, in the model's scale."""
        plan, tally = replace(self.plan, grid=Grid(self.plan.grid.sigmas[i : i + 2], "step")), Tally()
        rate = self.learning_rate * (1 - i / (2 * self.plan.grid.num_steps))
        null, mean, spread = null.clone(), torch.zeros_like(null), torch.zeros_like(null)
        end, rows, depends = torch.empty_like(z), torch.arange(len(z), device=z.device), None
        for j in range(1, self.inner_steps + 2):
            free = null.clone().requires_grad_(j <= self.inner_steps)
            x = self._ended(plan, z, free, cond, rows, tally)
            end[rows] = x.detach()
            losses = (self.model.schedule.to_model_scale(x, plan.grid[-1]) - goal[rows]).square().flatten(1).mean(1)
            far = losses.detach() >= self.early_stop
            if j > self.inner_steps or not far.any():
                break
            slope = torch.autograd.grad(losses[far].sum(), free, allow_unused=True)[0] if losses.requires_grad else None
            depends = slope is not None
            if slope is None:
                break
            rows, slope = rows[far], slope[rows[far]]
            mean[rows] = BETAS[0] * mean[rows] + (1 - BETAS[0]) * slope
            spread[rows] = BETAS[1] * spread[rows] + (1 - BETAS[1]) * slope.square()
            size = (spread[rows] / (1 - BETAS[1] ** j)).sqrt() + TINY
            null[rows] -= rate * mean[rows] / (1 - BETAS[0] ** j) / size
        assert tally.nfe is not None
        return _Found(end, null, tally.nfe, depends)

    def _ended(
        self, plan: Plan, z: Tensor, null: Tensor, cond: Mapping[str, Tensor], rows: Tensor, tally: Tally
    ) -> Tensor:
        """Where the one step of `plan` leads the samples `rows`; the other arguments are of the whole batch."""
        one, eps, conditions = with_null_steps(plan, self.model, cond, {self.key: null[:, None]})
        program = within(*self.model.range, self.name, solve(one.loop, State(z[rows]), plan.grid.sigmas))
        with torch.set_grad_enabled(null.requires_grad):
            [solved] = run(for_rows(rows, program), model=eps, cond=conditions, tally=tally)
        return solved.state.x


def _checked_solver(solver: Solver | Tuned | str) -> Solver | Tuned:
    """Raises: ValueError: not one of our deterministic one-step solvers."""
    found = find_solver(solver)
    if isinstance(found, Tuned):
        try:
            checked_base("null_text", found.solver)
        except ValueError as error:
            raise ValueError(
                f"null_text searches a null condition for each step alone, but a step of {found!r} counts what earlier "
                "ones were answered: take its grid with a one-step solver, solver='ddim', grid=recipe.grid_to_encode"
            ) from error
        return found
    if not isinstance(found, Solver):
        raise ValueError(
            f"null_text goes step by step along a grid; {spec_of(found)} chooses its own steps, or belongs to another "
            "library: take a one-step solver such as 'ddim' or 'heun'"
        )
    checked_base("null_text", found)
    return found


def _checked_key(plan: Plan, model: Model, key: str | None) -> str:
    """Raises: ValueError: no guidance, or not one null condition of floating point."""
    if not isinstance(guided(model, plan.guidance_scale), Guided):
        raise ValueError("without guidance (guidance_scale=1) there is nothing to optimise: use ods.encode")
    null = model.nothing(1)
    fit = [k for k, v in null.items() if v.is_floating_point()]
    if not fit or (key is not None and key in null and key not in fit):
        kinds = ", ".join(f"{k} ({dtype_name(v.dtype)})" for k, v in null.items())
        raise ValueError(
            f"null_text optimises a floating-point null condition; {model.name} has {kinds}: give its network "
            "embeddings in place of labels. The embedded models do so with ods.load(name, embedded=True)"
        )
    if key is None and len(fit) == 1:
        return fit[0]
    if key not in fit:
        raise ValueError(f"key must be one of the conditions {', '.join(fit)} of {model.name}; got {key!r}")
    return key
