"""Likelihood: how probable images are under a model, by the change of variables along its equation.

    log p(image) = log N(latent) + integral of div eps along its trajectory (`density`)
    bits per dimension = -(log p(image) + d log width) / (d log 2)

The images are taken to be at sigma_min, as `encode` does, so this is the density of the data with that much noise on
them.

Pixels that were rounded to levels have no density, but a probability: the integral of p over their cells. `dequantise`
puts noise on them, uniform in a cell of that `width`, centred at the level; the mean of log p then is a lower bound of
the log-probability, and the log of the mean of p a tighter one (`importance_weighted`). `divergence` says how div eps
is found.

References:
    Song et al. 2021, Score-based generative modeling through SDEs, arXiv:2011.13456, section 4.3. Theis et al. 2016, A
    note on the evaluation of generative models, arXiv:1511.01844, 3.1 (uniform noise). Burda et al. 2016, Importance
    weighted autoencoders, arXiv:1509.00519, equation 8.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odesampler.adaptive import Adaptive
from odesampler.analysis.density import log_density
from odesampler.analysis.likelihoods import Likelihood
from odesampler.analysis.settings import made_with
from odesampler.divergence import KINDS, PROBES, draw_probes
from odesampler.grid import Grid
from odesampler.guidance import AnyGuidance, rows_a_sample, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_cond, checked_images, checked_model, coded
from odesampler.model import Model
from odesampler.noise import Streams, seeds_for
from odesampler.plan import AnyGrid, AnySolver, Plan, make_plan, refuse_stochastic
from odesampler.precision import finest_dtype
from odesampler.registry import spec_of
from odesampler.room import AnyBatch, check_max_batch

MOST_EXACT = 256  # values of a sample up to which the divergence is exact unless told otherwise
RANGE = (-1.0, 1.0)  # of data of which the model does not say it


@dataclass(frozen=True)
class _Estimate:
    """What is drawn, and how often."""

    probes: int  # 0: the divergence is exact
    kind: str
    levels: int | None
    draws: int
    ends: tuple[float, float]  # the values of the first and the last level

    @property
    def width(self) -> float:
        return 1.0 if self.levels is None else (self.ends[1] - self.ends[0]) / (self.levels - 1)


def log_likelihood(
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
    divergence: str | None = None,
    probes: int = 8,
    probe: str = "rademacher",
    dequantise: int | None = None,
    draws: int = 1,
    seed: int | Sequence[int] = 0,
    state_dtype: torch.dtype | None = None,
    check: bool | None = None,
    max_batch: AnyBatch = None,
    progress: bool = False,
) -> Likelihood:
    """Log-likelihood of images, in nats and in bits per dimension, under a model's ODE.

    Args:
        model: The model; its network must be differentiable.
        images: (batch, *shape), float, in the model's data range.
        solver: As for `sample`: any that neither draws noise nor is exactly invertible. By default Dormand-Prince,
            whose steps are accepted by the errors of x and of log p, which counts as one value more. Adaptive steps are
            taken in the coordinate "asinh", or in "sigma" where the solver says so.
        num_steps: As for `encode`.
        grid: As for `encode`.
        cond: As for `encode`: the likelihood given this condition.
        guidance_scale: As for `encode`; the likelihood under what guidance samples.
        rtol: As for `encode`; 1e-4 where neither steps nor tolerances are given.
        atol: As for `encode`; likewise.
        divergence: "exact", which takes one pass back through the network for each value of an image and evaluation,
            or "hutchinson", which takes one for each probe. By default exact for up to 256 values.
        probes: How many for each image, with "hutchinson".
        probe: "rademacher", random signs, or "gaussian", whose estimates scatter more.
        dequantise: The number of levels that the pixels were rounded to, 256 for bytes, evenly spaced over the model's
            data range, [-1, 1] where it says none. None takes the images for what they are, and gives a density.
        draws: With `dequantise`, how often noise is put on the images; all is solved anew for each draw.
        seed: As for `sample`, of noise and probes.
        state_dtype: As for `encode`.
        check: Solve the first draw again with every second step, or ten times the tolerances, and tell the difference:
            about the error of that solve, which is larger than that of the other. Costs up to half as much again; by
            default done wherever the steps are ours, since a likelihood of too few steps looks like any other.
        max_batch: As for `sample`. The passes back keep what the network computed for so many rows.
        progress: Show a progress bar.

    Returns:
        A `Likelihood`. What steps and tolerances leave open is not in its standard error, but see `check`. Warns of
        what cannot be: images that did not arrive, probabilities above 1; and of too few steps, where checked.

    Raises:
        ValueError: What cannot be meant, before the model is called: a solver that is no method for the ODE alone,
            images that are not at the levels, a `check` of steps that are not ours. While running: a network that
            answers without a graph.

    Examples:
        >>> model = ods.exact.Gaussian(torch.zeros(2), 1.0).model()
        >>> images = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
        >>> exactly = torch.distributions.Normal(0.0, 1.0).log_prob(images).sum(1)
        >>> bool((ods.log_likelihood(model, images).log_p - exactly).abs().max() < 1e-2)
        True
    """
    images = checked_images(checked_model(model), images)
    _check_draws(divergence, probes, probe, dequantise, draws)
    plan = make_plan(
        model,
        "dopri5" if solver is None else solver,
        num_steps=num_steps,
        grid=grid,
        rtol=rtol,
        atol=atol,
        into_zero=False,
        guidance_scale=guidance_scale,
        state_dtype=state_dtype or finest_dtype(model.device),
    )
    plan = _carrying(plan)
    check_max_batch(max_batch, rows_a_sample(model, guidance_scale))
    coarser = _coarser(plan) if check or (check is None and _ours(plan)) else None
    conditions, streams = checked_cond(model, cond, len(images)), Streams(seeds_for(seed, len(images)))
    warn_of_nothing_to_guide_to(model, cond, guidance_scale)
    x_t = coded(model, images)
    found = _measured(
        model,
        plan,
        coarser,
        x_t.detach().to(model.device, plan.state_dtype),
        conditions,
        streams,
        _estimate(model, x_t, divergence, probes, probe, dequantise, draws),
        max_batch=max_batch,
        progress=progress,
    )
    drawn = dequantise is not None or not found.exact
    made = made_with(seed=seed if drawn else None, cond=cond, guidance_scale=guidance_scale, grid=grid)
    found = replace(found, how=", ".join(filter(None, [found.how, made])))
    for doubt in found.doubts():
        if "did not arrive" not in doubt:  # said by the solve, with the reasons
            warnings.warn(doubt, RuntimeWarning, stacklevel=2)
    return found


def _check_draws(divergence: str | None, probes: int, kind: str, levels: int | None, draws: int) -> None:
    """Raises: ValueError: what is to be drawn cannot be meant."""
    if divergence not in (None, "exact", "hutchinson"):
        raise ValueError(f'divergence must be "exact" or "hutchinson"; got {divergence!r}')
    if kind not in KINDS:
        raise ValueError(f"probe must be one of {', '.join(KINDS)}; got {kind!r}")
    for name, number, least in (("probes", probes, 1), ("draws", draws, 1), ("dequantise", levels, 2)):
        if (number, name) != (None, "dequantise") and (type(number) is not int or number < least):
            raise ValueError(f"{name} must be a whole number of {least} or more; got {number!r}")
    if levels is None and draws != 1:
        raise ValueError(f"draws={draws} is how often noise is put on pixels of so many levels: give dequantise")


def _estimate(
    model: Model, x_t: Tensor, divergence: str | None, probes: int, kind: str, levels: int | None, draws: int
) -> _Estimate:
    """What is drawn. Raises: ValueError: pixels that were not rounded to so many levels."""
    exact = divergence == "exact" or (divergence is None and x_t[0].numel() <= MOST_EXACT)
    made = _Estimate(0 if exact else probes, kind, levels, draws, model.data_range or RANGE)
    if levels is not None:
        _check_levels(x_t, made)
    return made


def _check_levels(x_t: Tensor, estimate: _Estimate) -> None:
    low, high = estimate.ends
    place = (x_t.detach().double() - low) / estimate.width
    off = (place - place.round().clamp(0, (high - low) / estimate.width)).abs().flatten(1).amax(1)
    if bool((off > 0.01).any()):
        i = int(off.argmax())
        raise ValueError(
            f"dequantise={estimate.levels}: image {i} is up to {off[i].item():.2g} of a step away from the "
            f"{estimate.levels} levels between {low:g} and {high:g}; give the number of levels that its pixels were "
            "rounded to, or leave dequantise out for a density"
        )


def _carrying(plan: Plan) -> Plan:
    """`plan`, whose adaptive loop steps x itself: what is carried along does not grow with sigma, as x does.

    Raises:
        ValueError: A solver or a coordinate that cannot carry a density along, or too short a way to infinity.
    """
    refuse_stochastic(plan)
    if plan.invertible is not None:
        raise ValueError(
            f"{spec_of(plan.loop)} couples two values that drift apart in log p, by hundreds of nats on a trained "
            "network: take a solver that is not exactly invertible, such as 'dopri5' or 'multistep'"
        )
    least = 3 if math.isinf(plan.grid[0]) else 2
    if plan.loop.takes_steps and plan.grid.num_steps < least:
        raise ValueError(
            f"a likelihood takes {least} steps or more, so that half of them can tell what the steps leave open; "
            f"got num_steps={plan.grid.num_steps}"
        )
    if not isinstance(plan.loop, Adaptive) or plan.loop.coordinate in ("sigma", "asinh"):
        return plan
    if plan.loop.coordinate != Adaptive.coordinate:
        raise ValueError(
            "a likelihood is carried along with x itself, so its steps are taken in the coordinate 'asinh' or 'sigma'; "
            f"got {spec_of(plan.loop)}"
        )
    return replace(plan, loop=replace(plan.loop, coordinate="asinh"))


def _ours(plan: Plan) -> bool:
    return plan.loop.takes_steps or isinstance(plan.loop, Adaptive)


def _coarser(plan: Plan) -> Plan:
    """`plan` with every second step, or with ten times the tolerances. Raises: ValueError: its steps are not ours.

    Out of infinity both take the same first step.
    """
    if isinstance(plan.loop, Adaptive):
        return replace(plan, loop=replace(plan.loop, rtol=10 * plan.loop.rtol, atol=10 * plan.loop.atol))
    if not plan.loop.takes_steps:
        raise ValueError(
            "check compares with half the steps, or with other tolerances of our own adaptive solvers; "
            f"got {spec_of(plan.loop)}"
        )
    first = int(math.isinf(plan.grid[0]))
    sigmas = plan.grid.sigmas
    return replace(plan, grid=Grid((*sigmas[:first], *sigmas[first:-1:2], sigmas[-1]), plan.grid.name))


def _measured(
    model: Model,
    plan: Plan,
    coarser: Plan | None,
    x_t: Tensor,
    cond: dict[str, Tensor],
    streams: Streams,
    estimate: _Estimate,
    *,
    max_batch: AnyBatch,
    progress: bool,
) -> Likelihood:
    """Every draw solved; their mean, and how far it may be off."""
    found, nfe, difference = [], torch.zeros(len(x_t), dtype=torch.int64), None
    for i in range(estimate.draws):
        points = x_t if estimate.levels is None else x_t + estimate.width * _uniform(streams, x_t)
        given = dict(cond)
        if estimate.probes:
            given[PROBES] = draw_probes(streams, x_t.flatten(1), estimate.probes, estimate.kind)
        what = "likelihood" if estimate.draws == 1 else f"likelihood, draw {i + 1} of {estimate.draws}"
        values, cost = log_density(model, plan, points, given, max_batch, what if progress else None)
        found.append(values)
        nfe += cost
        if coarser is not None and i == 0:
            values, cost = log_density(model, coarser, points, given, max_batch, "check" if progress else None)
            difference = (values - found[0]).mean(1).abs()
            nfe += cost
    each = torch.stack(found)  # (draws, batch, estimates of one solve)
    draws = each.mean(2)
    scatter = draws if estimate.levels is not None else each[0].T
    error = scatter.std(0, correction=min(1, len(scatter) - 1)) / math.sqrt(len(scatter))
    drawn_once = len(scatter) == 1 and bool(estimate.probes or estimate.levels)
    trace = f"{estimate.probes} {estimate.kind} probes" if estimate.probes else "exact divergence"
    return Likelihood(
        draws.mean(0),
        error.fill_(math.nan) if drawn_once else error,
        draws,
        nfe,
        difference,
        x_t[0].numel(),
        estimate.levels,
        estimate.width,
        not estimate.probes,
        f"{spec_of(plan.loop)}, {f'{plan.grid.num_steps} steps, ' if plan.loop.takes_steps else ''}{trace}",
        model.name,
    )


def _uniform(streams: Streams, like: Tensor) -> Tensor:
    """Uniform noise in (-1/2, 1/2), of the shape of `like`: the rank of a normal one."""
    rank: Tensor = torch.special.ndtr(streams.draw(like.double()))
    return (rank - 0.5).to(like.dtype)
