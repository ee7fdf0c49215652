"""Captured solves: all evaluations and all steps of a fixed grid as one CUDA graph, launched at once.

    once:        places for latents, conditions and noise;     their solve, recorded
    each time:   fill the places,  launch,  copy the end

Small networks and small batches keep a GPU waiting for Python, which launches kernels one by one. A graph is launched
as a whole. What it does is fixed: the solver, the grid, the guidance, the number of samples. On other devices nothing
is recorded, and each solve is made step by step, with the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from odesampler.drive import Tally, Watch, run
from odesampler.fused import fused
from odesampler.guidance import AnyGuidance, rows_a_sample, usual_guidance, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_batch, checked_cond, checked_count, checked_shape
from odesampler.integrate import OnGrid
from odesampler.model import Model
from odesampler.noise import AnySeed, Noise, noise_for, seeds_for
from odesampler.plan import AnyGrid, AnySolver, Outcome, Plan, eps_of, make_plan, program_of
from odesampler.program import Solved, State
from odesampler.registry import spec_of
from odesampler.room import check_max_batch
from odesampler.sampling import Solution, to_solution
from odesampler.threshold import AnyThreshold

T = TypeVar("T")
WARM = 2  # solves before the one that is recorded, in which libraries choose their kernels


def capture(
    model: Model,
    num_samples: int,
    *,
    solver: AnySolver | None = None,
    num_steps: int | None = None,
    grid: AnyGrid | None = None,
    noise: str = "independent",
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance | None = None,
    clip_denoised: AnyThreshold = None,
    state_dtype: torch.dtype | None = None,
    max_batch: int | None = None,
    fuse: bool = False,
) -> Captured:
    """Make ready to draw `num_samples` images at a time, on a GPU as one CUDA graph.

    Args:
        model: The model. Compiled, if at all, without CUDA graphs of its own: compile=True.
        num_samples: How many are drawn at once, always.
        solver: As for `sample`, one of ours.
        num_steps: As for `sample`.
        grid: As for `sample`.
        noise: As for `sample`. It is drawn before the launch: a stochastic solver's of all its steps is in memory.
        cond: As for `sample`; what is taken where a call gives no conditions.
        guidance_scale: As for `sample`.
        clip_denoised: As for `sample`.
        state_dtype: As for `sample`.
        max_batch: As for `sample`, but a number.
        fuse: Compile what lies between two calls of the network into one kernel, see `fused`. That takes a compiler,
            and some seconds for each evaluation, now.

    Returns:
        What draws them: call it with a seed. On a GPU it keeps the memory that a solve needs.

    Raises:
        ValueError: What cannot be meant; tolerances or another library's solver, whose steps are not known beforehand.
        RuntimeError: The network does something that cannot be recorded, as to read a value from the device.

    Examples:
        >>> draw = ods.capture(ods.load("digits"), 4, num_steps=10, cond={"label": 3})
        >>> tuple(draw(seed=1).x.shape), tuple(draw(seed=1, cond={"label": 5}).x.shape)
        ((4, 1, 8, 8), (4, 1, 8, 8))
        >>> draw(seed=1).x.allclose(ods.sample(ods.load("digits"), 4, seed=1, num_steps=10, cond={"label": 3}).x)
        True
    """
    plan = make_plan(
        model,
        solver,
        num_steps=num_steps,
        grid=grid,
        rtol=None,
        atol=None,
        into_zero=True,
        guidance_scale=usual_guidance(model, guidance_scale),
        clip_denoised=clip_denoised,
        state_dtype=state_dtype,
    )
    if not isinstance(plan.loop, OnGrid):
        raise ValueError(f"capture takes a solver of ours on a fixed grid; got {spec_of(plan.loop)}: give num_steps")
    if check_max_batch(max_batch, rows_a_sample(model, plan.guidance_scale)) == "auto":
        raise ValueError('max_batch="auto" tries what fits into memory, which a graph cannot: give a number, or none')
    warn_of_nothing_to_guide_to(model, cond, plan.guidance_scale)
    noise_for(noise, [0])
    shape = (checked_count(num_samples, None), *checked_shape(model))
    _check_compiled(model)
    return Captured(model, plan, shape, checked_cond(model, cond, shape[0]), noise, max_batch, fuse)


class Captured:
    """A solve that is launched as one piece; made by `capture`.

    Examples:
        >>> draw = ods.capture(ods.load("digits"), 2, solver="heun", num_steps=5)
        >>> draw
        Captured(digits, 2 samples, heun, 5 steps)
        >>> draw(seed=7).nfe.tolist()
        [9, 9]
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        shape: tuple[int, ...],
        cond: Mapping[str, Tensor],
        noise: str,
        max_batch: int | None,
        fuse: bool,
    ) -> None:
        self._model, self._plan, self._noise, self._max_batch = model, plan, noise, max_batch
        self._usual, self._cond = cond, {key: value.clone() for key, value in cond.items()}
        self._x = torch.zeros(shape, dtype=plan.state_dtype, device=model.device)
        self._places = _Places()
        with torch.no_grad():
            if plan.stochastic:
                self._solve(model)  # makes the places of its noise
            solve = fused(self._solve, model) if fuse else partial(self._solve, model)
            self._launch = recorded(solve, model)

    def __repr__(self) -> str:
        grid = self._plan.grid
        return (
            f"Captured({self._model.name}, {len(self._x)} samples, {spec_of(self._plan.loop)}, {grid.num_steps} steps)"
        )

    def __call__(
        self, *, seed: AnySeed = 0, x: Tensor | None = None, cond: Mapping[str, Any] | None = None
    ) -> Solution:
        """Draw images; arguments and errors as for `sample`.

        Raises:
            ValueError: Also other conditions, or of other shapes, than those of `capture`.
        """
        model, plan, count = self._model, self._plan, len(self._x)
        drawn, top = noise_for(self._noise, seeds_for(seed, count)), plan.grid[0]
        if x is None:
            x_t = drawn.draw(self._x) * model.schedule.latent_scale(top)
        else:
            checked_count(count, x)
            x_t = checked_batch(model, x, "x").to(self._x)
        given = self._usual if cond is None else self._same(checked_cond(model, cond, count))
        began = time.perf_counter()
        with torch.no_grad():
            self._x.copy_(model.schedule.from_model_scale(x_t, top))
            for key, value in given.items():
                self._cond[key].copy_(value)
            self._places.fill(drawn)
            solved, tally, watch = self._launch()
            watch.check()
            nfe = torch.zeros(count, dtype=torch.int64) if tally.nfe is None else tally.nfe.cpu()
            return to_solution(model, plan, Outcome(solved, nfe, tally.calls, time.perf_counter() - began, None))

    def _same(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        """Raises: ValueError: conditions that have no place here."""
        places, given = ({k: tuple(v.shape) for k, v in each.items()} for each in (self._cond, cond))
        if places != given:
            raise ValueError(f"conditions have the shapes that were captured, {places}; got {given}")
        return cond

    def _solve(self, model: Model) -> tuple[Solved, Tally, Watch]:
        """From and to fixed places; nothing is read from the device."""
        tally, watch = Tally(), Watch(reads=False)
        self._places.asked = 0
        program = program_of(self._plan, model, State(self._x), self._plan.grid.down())
        eps = eps_of(self._plan, model)
        given: dict[str, Any] = {"cond": self._cond, "noise": self._places, "max_batch": self._max_batch}
        [solved] = run(program, model=eps, tally=tally, watch=watch, **given)
        return solved, tally, watch


class _Places:
    """Noise in fixed places, in the order in which a solve asks for it; the first solve makes them."""

    def __init__(self) -> None:
        self._made: list[tuple[Tensor, Any]] = []
        self.asked = 0

    def draw(self, like: Tensor, rows: Tensor | None = None, span: Any = None) -> Tensor:
        """The next place. On a fixed grid all samples are asked about together."""
        if self.asked == len(self._made):
            self._made.append((torch.zeros_like(like), span))
        self.asked += 1
        return self._made[self.asked - 1][0]

    def fill(self, noise: Noise) -> None:
        """What the solve would be told, drawn beforehand."""
        for place, span in self._made:
            place.copy_(noise.draw(place, None, span))


def recorded(solve: Callable[[], T], model: Model) -> Callable[[], T]:
    """`solve` as something to launch again and again: on a GPU a graph, with its results always in the same places.

    Raises:
        RuntimeError: Something in it cannot be recorded.
    """
    if model.device.type != "cuda":
        return solve
    with torch.cuda.device(model.device):
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM):
                solve()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                found = solve()
        except RuntimeError as error:
            raise RuntimeError(
                f"the solve of {model.name} could not be recorded; its network may read a value from the device, or "
                "copy one there, whenever it is asked"
            ) from error

    def launch() -> T:
        graph.replay()
        return found

    return launch


def _check_compiled(model: Model) -> None:
    """Raises: ValueError: the network brings CUDA graphs of its own."""
    options = model.compile if isinstance(model.compile, Mapping) else {}
    inner: Mapping[str, Any] = options.get("options") or {}
    if options.get("mode") in ("reduce-overhead", "max-autotune") or inner.get("triton.cudagraphs"):
        raise ValueError(f"a captured solve is one CUDA graph and holds no others: compile=True; got {model.compile!r}")
