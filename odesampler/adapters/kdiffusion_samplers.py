"""Samplers of k-diffusion's form, fn(model, x, sigmas, ...), made of any of our solvers of a fixed grid.

    x in units of sigma, x_t / alpha,     model(x, sigma, **extra_args) -> denoised,     eps = (x - denoised) / sigma

So k-diffusion, ComfyUI and what speaks their language can use our solvers. Knows how they ask; nothing of how a step is
made.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odesampler.drive import run
from odesampler.grid import Grid
from odesampler.inputs import checked_batch
from odesampler.model import Model
from odesampler.noise import LIMIT, noise_for, seeds_for
from odesampler.observe import Progress, tell_all
from odesampler.plan import make_plan, program_of
from odesampler.program import Sigma, Solver, State
from odesampler.registry import find_solver, spec_of
from odesampler.schedule import VE, RectifiedFlow

Callback: TypeAlias = Callable[[dict[str, Any]], object]


def sampler(solver: Solver | str, *, noise: str = "independent", flow: bool = False) -> Sampler:
    """Any of our solvers of a fixed grid as a sampler of k-diffusion's form, for its models and its users' programs.

    Args:
        solver: A name of `ods.solvers()` or an object, such as "dpmpp_2m" or `ods.Heun()`.
        noise: What stochastic ones draw, as for `ods.sample`: "independent" or "brownian".
        flow: For flow models as ComfyUI asks them: x is x_t, and the sigmas are times u, from 1 or below to 0.

    Returns:
        A function of (model, x, sigmas, extra_args=None, callback=None, disable=None).

    Raises:
        ValueError: An unknown name, or one of a loop that chooses its own steps.

    Examples:
        >>> def normal(x, sigma):  # the denoiser of N(0, 1)
        ...     return x / (1 + sigma[:, None] ** 2)
        >>> ods.adapters.kdiffusion.sampler("ddim")(normal, torch.full((1, 2), 3.0), torch.tensor([3.0, 0.0]))
        tensor([[0.3000, 0.3000]])
    """
    found = find_solver(solver)
    if not isinstance(found, Solver):
        raise ValueError(
            "a sampler steps along the sigmas that it is given, one step of a solver of ours each; "
            f"{solver!r} is a loop of its own: use ods.sample(from_denoiser(...), solver=...)"
        )
    noise_for(noise, [])  # raises for another kind
    return Sampler(found, noise, flow)


@dataclass(frozen=True)
class Sampler:
    """A solver as k-diffusion's samplers are called; see `sampler`."""

    solver: Solver
    noise: str = "independent"
    flow: bool = False

    @property
    def __name__(self) -> str:
        return f"sample_{spec_of(self.solver)}"

    def __call__(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
        *,
        seed: int | Sequence[int] | None = None,
    ) -> Tensor:
        """Carry `x` along `sigmas`.

        Args:
            model: Called as `model(x, sigma, **extra_args)`, sigma (batch,), both in the dtype of `x`.
            x: (batch, *shape) at the first sigma, in units of sigma: noise times sigmas[0], or added to an image.
            sigmas: (n + 1,) falling, and the last may be 0; or rising from above 0, which encodes.
            extra_args: What the model is given with every call, as it is.
            callback: Called in every step with a dict: i, the number of the step from 0; sigma, where it starts; and a
                question to the model, the first of the step, with its answer: x, sigma_hat, denoised. A step that asks
                nothing shows the latest.
            disable: Show no progress bar; None: show one in a terminal.
            seed: Of stochastic solvers: an int s (sample i then has seed s + i), or one a sample. By default the "seed"
                in `extra_args`, as ComfyUI gives it, else 0. The first noise of a seed is passed over, since the latent
                may have been drawn with it: so what comes out is what `ods.sample` draws.

        Returns:
            (batch, *shape) at the last sigma, in the dtype of `x`. No gradients.

        Raises:
            ValueError: Sigmas that are no grid, x that is no batch; before the model is called.
        """
        given = sigmas if isinstance(sigmas, Tensor) else torch.tensor(sigmas, dtype=torch.float64)
        extra = dict(extra_args or {})
        grid = _grid(given, self.flow)
        asked = _asked(model, extra, grid, self.flow, x)
        plan = make_plan(
            asked,
            self.solver,
            num_steps=None,
            grid=grid,
            rtol=None,
            atol=None,
            into_zero=grid.falls,
            state_dtype=torch.promote_types(checked_batch(asked, x, "x").dtype, torch.float32),
        )
        if not grid.falls and self.solver.stochastic:
            raise ValueError(f"{spec_of(self.solver)} draws noise and cannot encode: these sigmas rise")
        drawn = noise_for(self.noise, _seeds(seed, extra, len(x)))
        if self.solver.stochastic:
            drawn.draw(x)
        watch = None if callback is None else _Watch(asked, callback, given, self.flow, x.dtype)
        show = sys.stderr.isatty() if disable is None else not disable
        start = State(asked.schedule.from_model_scale(x.to(plan.state_dtype), grid[0]))
        with torch.no_grad(), Progress(grid.num_steps, show=show) as bar:
            program = program_of(plan, asked, start, grid, tell_all([bar] if watch is None else [bar, watch.stepped]))
            [solved] = run(program, model=asked if watch is None else watch, noise=drawn)
        return asked.schedule.to_model_scale(solved.state.x, grid[-1]).to(x.dtype)


class _Watch:
    """A model that tells a callback, step by step, what it was asked first and what it said."""

    def __init__(self, model: Model, callback: Callback, sigmas: Tensor, flow: bool, dtype: torch.dtype) -> None:
        self._model, self._callback, self._sigmas, self._flow, self._dtype = model, callback, sigmas, flow, dtype
        self._done = self._told = 0  # steps
        self._latest: tuple[Tensor, Sigma, Tensor] | None = None

    def __call__(self, x: Tensor, sigma: Sigma, **cond: Tensor) -> Tensor:
        answer = self._model(x, sigma, **cond)
        self._latest = x, sigma, answer
        if self._told == self._done:
            self._tell()
        return answer

    def stepped(self, step: int, sigma: Sigma, x: Tensor, rows: Tensor | None) -> None:
        """An observer: told of every step that is done."""
        if self._told < step:
            self._tell()
        self._done = step

    def _tell(self) -> None:
        assert self._latest is not None  # no solver takes its first step without a question
        x, sigma, answer = self._latest
        assert not isinstance(sigma, Tensor)  # the grid is one for all
        schedule = self._model.schedule
        denoised = answer if math.isinf(sigma) else x - sigma * answer
        asked = 1 / (1 + 1 / sigma) if self._flow else sigma
        i, self._told = self._told, self._told + 1
        self._callback(
            {
                "x": schedule.to_model_scale(x, sigma).to(self._dtype),
                "i": i,
                "sigma": self._sigmas[i],
                "sigma_hat": self._sigmas.new_tensor(asked),
                "denoised": denoised.to(self._dtype),
            }
        )


def _asked(model: Any, extra_args: Mapping[str, Any], grid: Grid, flow: bool, x: Tensor) -> Model:
    """Their model as ours, between the ends of the grid; down to its own sigma_min, if it says one."""
    if not callable(model):
        raise TypeError(f"model is called as model(x, sigma, **extra_args) and returns the image; got {model!r}")

    def network(x_t: Tensor, sigma: Tensor) -> Tensor:
        denoised: Tensor = model(x_t.to(x.dtype), sigma.to(x.dtype), **extra_args)
        return denoised

    high, low = max(grid), min(s for s in grid if s > 0)
    low = min(low, math.nextafter(high, 0))  # a grid of one step into zero has one sigma only
    own = getattr(model, "sigma_min", None)
    if isinstance(own, (float, int)) or (isinstance(own, Tensor) and own.numel() == 1):
        lowest = float(own) / (1 - float(own)) if flow else float(own)
        low = lowest if 0 < lowest < low else low
    schedule = RectifiedFlow() if flow else VE(low, high)
    return Model(network, schedule, "denoised", low, high, name=type(model).__name__)


def _grid(sigmas: Tensor, flow: bool) -> Grid:
    if sigmas.ndim != 1 or not sigmas.is_floating_point():
        raise ValueError(
            f"sigmas must be one row of floating-point numbers; got {sigmas.dtype} of shape {tuple(sigmas.shape)}"
        )
    values = sigmas.tolist()
    if flow:
        if not all(0 <= u <= 1 for u in values):
            raise ValueError(f"of a flow model the sigmas are times u from 0 to 1; got {values}")
        values = [u / (1 - u) if u < 1 else math.inf for u in values]
    elif any(math.isinf(s) for s in values):
        raise ValueError("sigma = infinity has no x in units of sigma: begin below, or with flow=True at u = 1")
    return Grid(tuple(values))


def _seeds(seed: int | Sequence[int] | None, extra_args: Mapping[str, Any], batch: int) -> list[int]:
    """One a sample. ComfyUI's seeds go up to 2^64; ours are taken modulo 2^63."""
    if seed is not None:
        return seeds_for(seed, batch)
    given = extra_args.get("seed")
    first = given if isinstance(given, int) else 0
    return [(first + i) % LIMIT for i in range(batch)]
