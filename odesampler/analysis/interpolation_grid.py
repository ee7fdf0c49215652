"""Interpolation grids: what lies between images, by rows between two latents, or as a square between four.

    row: x(w) = slerp(a, b, w);        square: x(w, v) = slerp(slerp(a, c, v), slerp(b, d, v), w)

Slerp keeps the length of ends of equal length, as draws of many values have. `interpolation_grids` says what is lost by
the straight line.

References:
    Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502, section 5.3, Figure 6, appendix D.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesampler.analysis.interpolation_grids import InterpolationGrid
from odesampler.analysis.settings import made_with, shown_cond
from odesampler.guidance import AnyGuidance, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_cond, checked_model, checked_shape
from odesampler.interpolation import slerp
from odesampler.inversion import decode
from odesampler.latent import Latent
from odesampler.model import Model
from odesampler.noise import Streams, seeds_for
from odesampler.plan import AnyGrid, AnySolver, make_plan
from odesampler.precision import finest_dtype
from odesampler.room import AnyBatch
from odesampler.sampling import sample
from odesampler.threshold import AnyThreshold

Between = Callable[[Tensor, Tensor, Tensor], Tensor]


def interpolation_grid(
    model: Model,
    ends: Sequence[int] | Latent = (0, 1),
    num: int = 8,
    *,
    square: bool = False,
    how: str = "slerp",
    solver: AnySolver | None = None,
    num_steps: int | None = None,
    grid: AnyGrid | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance = 1.0,
    clip_denoised: AnyThreshold = None,
    max_batch: AnyBatch = None,
    progress: bool = False,
) -> InterpolationGrid:
    """Images between latents.

    Args:
        model: The model.
        ends: Seeds, whose latents are the ones of `sample`; or a `Latent` of `encode`, to go between images, which is
            decoded as it was made. Two for each row, from the first to the second; four for a square.
        num: Images a row, both ends included; rows too, in a square.
        square: The square between four: the first two are its upper corners, left and right, the last two the lower.
        how: "slerp", or "linear" to see what that loses.
        solver: As for `sample`; an ODE solver. With seeds only, like all that follows up to `clip_denoised`.
        num_steps: As for `sample`.
        grid: As for `sample`.
        cond: As for `sample`, one value or one an end; between two ends it is that of the nearer.
        guidance_scale: As for `sample`.
        clip_denoised: As for `sample`.
        max_batch: As for `sample`.
        progress: Show a progress bar.

    Returns:
        An `InterpolationGrid`.

    Raises:
        ValueError: What cannot be meant, before the model is called: ends that do not make pairs or four corners, `num`
            below 3, options that a `Latent` settles, a solver that draws noise.

    Examples:
        >>> model = ods.load("digits")
        >>> found = ods.interpolation_grid(model, (0, 1, 2, 3), 5, num_steps=5)  # from seed 0 to 1, and from 2 to 3
        >>> tuple(found.x.shape)
        (2, 5, 1, 8, 8)
        >>> latent = ods.encode(model, ods.held_out("digits").images[:2], num_steps=10)
        >>> tuple(ods.interpolation_grid(model, latent, 4).x.shape)
        (1, 4, 1, 8, 8)
    """
    checked_model(model)
    _check_ends(ends, num, square, how)
    layout = _Layout(len(ends), num, square, slerp if how == "slerp" else _line)
    run: dict[str, Any] = {"max_batch": max_batch, "progress": progress}
    if isinstance(ends, Latent):
        given = (solver, num_steps, grid, cond, guidance_scale, clip_denoised)
        if given != (None, None, None, None, 1.0, None):
            raise ValueError("a Latent knows how it is decoded: leave solver, num_steps, grid, cond and the like out")
        found = _between_images(model, ends, layout, run)
    else:
        options: dict[str, Any] = {"solver": solver, "num_steps": num_steps, "grid": grid}
        options |= {"guidance_scale": guidance_scale, "clip_denoised": clip_denoised}
        options["state_dtype"] = finest_dtype(model.device)
        top = _top(model, options)
        warn_of_nothing_to_guide_to(model, cond, guidance_scale)
        found = _between_seeds(model, ends, layout, top, cond, options, run)
    columns = (len(found.x) // num, num)
    images, latents = (v.cpu().reshape(*columns, *v.shape[1:]) for v in (found.x, found.latents))
    scale, turns = model.schedule.latent_scale(found.top), _turns(found.cond, columns)
    names = layout.pairs(found.names)
    return InterpolationGrid(images, latents, scale, turns, names, square, how, model.name, found.made)


@dataclass(frozen=True)
class _Layout:
    """Where points lie between their ends."""

    count: int  # ends
    num: int  # points a row
    square: bool  # one square between four ends, not a row between each two
    between: Between

    def spread(self, z: Tensor) -> Tensor:
        """The points between the ends `z` (ends, *shape), row by row, (rows * num, *shape)."""
        w = torch.linspace(0, 1, self.num, dtype=z.dtype, device=z.device)

        def path(a: Tensor, b: Tensor) -> Tensor:
            return self.between(a.expand(self.num, *z.shape[1:]), b.expand(self.num, *z.shape[1:]), w)

        if self.square:
            left, right = path(z[0], z[2]), path(z[1], z[3])
            return torch.cat([path(a, b) for a, b in zip(left, right, strict=True)])
        return torch.cat([path(a, b) for a, b in zip(z[::2], z[1::2], strict=True)])

    @property
    def nearest(self) -> Tensor:
        """The end that each point is nearest to, (points,); in the middle the later."""
        late = (torch.arange(self.num) >= (self.num - 1) / 2).long()
        if self.square:
            return (2 * late[:, None] + late).flatten()
        return (torch.arange(0, self.count, 2)[:, None] + late).flatten()

    def pairs(self, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """What stands at both ends of each row."""
        if self.square:
            return tuple((f"left, {v:.2f} down", "right") for v in torch.linspace(0, 1, self.num).tolist())
        return tuple(zip(names[::2], names[1::2], strict=True))


class _Points(NamedTuple):
    """What lies there."""

    latents: Tensor  # (points, *shape), in the model's own scale
    x: Tensor  # likewise, decoded
    top: float  # sigma of the latents
    cond: Mapping[str, Tensor]  # each (points, ...)
    names: Sequence[str]  # of the ends
    made: str


def _between_images(model: Model, ends: Latent, layout: _Layout, run: Mapping[str, Any]) -> _Points:
    memory = tuple(layout.spread(m) for m in ends.blendable)
    points, recipe = ends.select(layout.nearest).elsewhere(layout.spread(ends.x), memory), ends.recipe
    made = made_with(solver=recipe.solver, cond=shown_cond(model, ends.cond), guidance_scale=recipe.guidance_scale)
    names = [f"image {i}" for i in range(layout.count)]
    return _Points(points.x, decode(model, points, **run).x, recipe.sigmas[0], points.cond, names, made)


def _between_seeds(
    model: Model,
    seeds: Sequence[int],
    layout: _Layout,
    top: float,
    cond: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    run: Mapping[str, Any],
) -> _Points:
    drawn = Streams(seeds_for(list(seeds), layout.count)).draw(torch.empty(layout.count, *checked_shape(model)))
    latents = layout.spread(drawn.double() * model.schedule.latent_scale(top))
    conditions = {k: v[layout.nearest] for k, v in checked_cond(model, cond, layout.count).items()}
    x = sample(model, x=latents.to(finest_dtype(model.device)), cond=conditions, **options, **run).x
    made = made_with(**{**options, "state_dtype": None}, cond=cond)
    return _Points(latents, x, top, conditions, [f"seed {i}" for i in seeds], made)


def _check_ends(ends: Sequence[int] | Latent, num: int, square: bool, how: str) -> None:
    count = len(ends)
    if num < 3 or (count != 4 if square else count < 2 or count % 2):
        wanted = "four ends" if square else "two ends a row"
        raise ValueError(f"interpolation_grid needs {wanted} and num of 3 or more; got {count} ends, num={num}")
    if how not in ("slerp", "linear"):
        raise ValueError(f'how must be "slerp" or "linear"; got {how!r}')
    if not isinstance(ends, Latent):
        _refuse_equal(list(ends), square)


def _refuse_equal(seeds: list[int], square: bool) -> None:
    """Raises: ValueError: both ends of a row are one latent, so that nothing lies between; in a square any two."""
    for row in [seeds] if square else zip(seeds[::2], seeds[1::2], strict=True):
        if len(set(row)) < len(row):
            raise ValueError(f"nothing lies between equal seeds: give others than {list(row)}")


def _turns(cond: Mapping[str, Tensor], columns: tuple[int, int]) -> Tensor:
    """(rows, columns - 1) whether a condition changes between neighbours."""
    turns = torch.zeros(columns[0], columns[1] - 1, dtype=torch.bool)
    for value in cond.values():
        rows = value.cpu().reshape(*columns, -1)
        turns |= (rows[:, 1:] != rows[:, :-1]).any(-1)
    return turns


def _top(model: Model, options: Mapping[str, Any]) -> float:
    """Sigma at which a solve with these options starts. Raises: ValueError: its solver draws noise."""
    plan = make_plan(model, into_zero=True, rtol=None, atol=None, **options)
    if plan.stochastic:
        raise ValueError("a solver that draws noise has no path between two latents: take an ODE solver such as 'ddim'")
    return plan.grid[0]


def _line(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return torch.lerp(a, b, weight.reshape(-1, *[1] * (a.ndim - 1)))
