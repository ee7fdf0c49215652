"""Captured solves: all evaluations and all steps of a fixed grid as one CUDA graph, launched at once.

    once:        places for latents, conditions and noise;     their solve, recorded
    each time:   fill the places,  launch,  copy the end

Small networks and small batches keep a GPU waiting for Python, which launches kernels one by one. A graph is launched
as a whole. What it does is fixed: the solver, the grid, the guidance, the number of samples, and where everything lies
in memory. On other devices nothing is recorded, and each solve is made step by step, with the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from odesampler import networks
from odesampler.drive import Eps, Tally, Watch, run
from odesampler.fused import fused
from odesampler.guidance import AnyGuidance, rows_a_sample, usual_guidance, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_cond, checked_count, checked_shape
from odesampler.integrate import OnGrid
from odesampler.model import Model
from odesampler.noise import AnySeed, Noise, noise_for, seeds_for
from odesampler.plan import AnyGrid, AnySolver, Outcome, Plan, check_guided, eps_of, make_plan, program_of
from odesampler.program import Solved, State
from odesampler.registry import spec_of
from odesampler.room import check_max_batch
from odesampler.sampling import Solution, first_x, to_solution
from odesampler.threshold import AnyThreshold

T = TypeVar("T")
WARM = 2  # solves before the one that is recorded, in which libraries choose their kernels
_ALONE = Lock()  # torch records one graph at a time


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
        model: The model. Compiled, if at all, without CUDA graphs of its own: compile=True. Its weights may change in
            place, and are then the new ones here too; where they are moved or replaced it has to be captured again.
        num_samples: How many are drawn at once, always.
        solver: As for `sample`, one of ours.
        num_steps: As for `sample`.
        grid: As for `sample`.
        noise: As for `sample`. It is drawn before the launch: a stochastic solver's of all its steps is in memory.
        cond: As for `sample`; what is taken where a call gives no conditions at all.
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
    noise_for(noise, [0])
    shape = (checked_count(num_samples, None), *checked_shape(model))
    usual = checked_cond(model, cond, shape[0])
    given = {key: usual[key].clone() for key in cond or {}}  # the user's own tensors may change
    check_guided(plan, model, usual)
    _check_compiled(model)
    return Captured(model, plan, shape, usual | given, bool(given), noise, max_batch, fuse)


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
        told: bool,  # whether the user gave any of `cond`
        noise: str,
        max_batch: int | None,
        fuse: bool,
    ) -> None:
        self._model, self._plan, self._noise, self._max_batch = model, plan, noise, max_batch
        self._usual, self._told = cond, told
        self._turn, self._places = Lock(), _Places()
        with torch.inference_mode(False), torch.no_grad():  # places made in that mode could not be filled outside it
            self._cond = {key: value.clone() for key, value in cond.items()}
            self._x = torch.zeros(shape, dtype=plan.state_dtype, device=model.device)
            if plan.stochastic:
                self._solve(lambda x, sigma, **_: torch.zeros_like(x))  # makes the places of its noise
            self._fused = fused(lambda model: self._solve(eps_of(plan, model)), model) if fuse else None
            self._launch = recorded(self._fused or self._solve, model)

    def __repr__(self) -> str:
        grid = self._plan.grid
        return (
            f"Captured({self._model.name}, {len(self._x)} samples, {spec_of(self._plan.loop)}, {grid.num_steps} steps)"
        )

    def __call__(
        self, *, seed: AnySeed = 0, x: Tensor | None = None, cond: Mapping[str, Any] | None = None
    ) -> Solution:
        """Draw images; arguments and errors as for `sample`. Of several threads one draws at a time.

        Raises:
            ValueError: Also other conditions, or of other shapes and kinds, than those of `capture`.
            RuntimeError: The model is no longer where it was captured.
        """
        model, plan, count = self._model, self._plan, len(self._x)
        if model.device != self._x.device:
            raise RuntimeError(f"{model.name} was captured on {self._x.device} and is on {model.device}: capture again")
        warn_of_nothing_to_guide_to(model, self._usual if cond is None and self._told else cond, plan.guidance_scale)
        drawn = noise_for(self._noise, seeds_for(seed, checked_count(count, x)))
        first = first_x(model, plan, count, drawn, x)
        given = self._usual if cond is None else self._same(checked_cond(model, cond, count))
        began = time.perf_counter()
        with self._turn, torch.no_grad():
            self._x.copy_(first)
            for key, value in given.items():
                self._cond[key].copy_(value)
            self._places.fill(drawn)
            solved, tally, watch = (self._launch or self._fused or self._solve)()
            end = State(solved.state.x.clone())  # the next launch writes to the same place
            watch.check()  # which waits for the device: after it nobody reads the places
            nfe = torch.zeros(count, dtype=torch.int64) if tally.nfe is None else tally.nfe.cpu()
        outcome = Outcome(solved._replace(state=end), nfe, tally.calls, time.perf_counter() - began, None)
        with torch.no_grad():
            return to_solution(model, plan, outcome)

    def _same(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        """Raises: ValueError: conditions that have no place here."""
        places, given = ({k: tuple(v.shape) for k, v in each.items()} for each in (self._cond, cond))
        if places != given:
            raise ValueError(f"conditions have the shapes that were captured, {places}; got {given}")
        for key, value in cond.items():
            place = self._cond[key].dtype
            if not torch.can_cast(value.dtype, place):
                raise ValueError(f"cond[{key!r}] was captured as {place}, which cannot hold {value.dtype}")
        return cond

    def _solve(self, eps: Eps | None = None) -> tuple[Solved, Tally, Watch]:
        """From fixed places; nothing is read from the device. `eps` is asked instead of the model, if given."""
        tally, watch = Tally(), Watch(reads=False)
        self._places.asked = 0
        program = program_of(self._plan, self._model, State(self._x), self._plan.grid.down())
        eps = eps_of(self._plan, self._model) if eps is None else eps
        given: dict[str, Any] = {"cond": self._cond, "noise": self._places, "max_batch": self._max_batch}
        [solved] = run(program, model=eps, tally=tally, watch=watch, **given)
        return solved, tally, watch


class _Places:
    """Noise in fixed places, in the order in which a solve asks for it; the first solve makes them."""

    def __init__(self) -> None:
        self._made: list[tuple[Tensor, Tensor | None, Any]] = []
        self.asked = 0

    def draw(self, like: Tensor, rows: Tensor | None = None, span: Any = None) -> Tensor:
        """The next place."""
        if self.asked == len(self._made):
            self._made.append((torch.zeros_like(like), rows, span))
        self.asked += 1
        return self._made[self.asked - 1][0]

    def fill(self, noise: Noise) -> None:
        """What the solve would be told, drawn beforehand."""
        for place, rows, span in self._made:
            place.copy_(noise.draw(place, rows, span))


def recorded(solve: Callable[[], T], model: Model) -> Callable[[], T] | None:
    """`solve` as a graph to launch again and again, its results always in the same places; None: not on a GPU.

    Raises:
        RuntimeError: Something in it cannot be recorded.
        torch.cuda.OutOfMemoryError: There is no memory for it.
    """
    if model.device.type != "cuda":
        return None
    with _ALONE, _casting_anew(), torch.cuda.device(model.device):
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        graph, own = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(here)
        with torch.cuda.stream(beside):  # a recording that fails does not bring back the stream that it was made in
            for _ in range(WARM):
                solve()
            try:
                # On a stream of this device: torch's own is that of the first recording. Other threads may go on.
                with torch.cuda.graph(graph, stream=own, capture_error_mode="thread_local"):
                    found = solve()
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise RuntimeError(
                    f"the solve of {model.name} could not be recorded; its network may read a value from the device, "
                    "or copy one there, whenever it is asked"
                ) from error
        here.wait_stream(beside)
    addresses = networks.addresses(model.network)

    def launch() -> T:
        if networks.addresses(model.network) != addresses:
            raise RuntimeError(
                f"weights of {model.name} were moved or replaced since it was captured, and a graph reads them where "
                "they were: capture again, or change them in place"
            )
        graph.replay()
        return found

    return launch


@contextmanager
def _casting_anew() -> Iterator[None]:
    """Under autocast weights are cast at every call: those it keeps for its block are freed while the graph lives."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _check_compiled(model: Model) -> None:
    """Raises: ValueError: the network brings CUDA graphs of its own."""
    options = model.compile if isinstance(model.compile, Mapping) else {}
    inner: Mapping[str, Any] = options.get("options") or {}
    brings = options.get("mode") in ("reduce-overhead", "max-autotune") or options.get("backend") == "cudagraphs"
    if brings or inner.get("triton.cudagraphs"):
        raise ValueError(f"a captured solve is one CUDA graph and holds no others: compile=True; got {model.compile!r}")
