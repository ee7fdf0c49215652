"""Error against evaluations: every deterministic scheduler of diffusers with every sigma setting of its own, and ours.

Error: as in `defaults`, but from latents of its own, the same for all. A scheduler that stops above sigma = 0 is
compared with the reference where it stops. Each takes as many steps as fit the budget of evaluations. The network hears
the exact t(sigma); the best are also run with the timesteps that a user gets, often rounded to whole numbers, and the
better of the two counts.

The state is float64 and the network float32, whose rounding (1e-6) is far below the errors. All settings are screened
on a few of the samples; those that did best there are measured on all, as ours are.
"""

import inspect
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

import odesampler as ods
from odesampler import defaults
from odesampler.registry import find_solver

from .diffusers_loop import denoised

BUDGETS = (6, 10, 20, 50)
MODELS = {"digits": (32, 8, 400), "emoji": (16, 3, 120)}  # samples, those that screen, steps of the reference
KEPT, SHOWN = 6, 5
MULTISTEP = {"DPM++": {}, "DPM": {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}}
ORDERS = ((2, "midpoint"), (2, "heun"), (3, "midpoint"))  # with order 3 the kind is that of the second step alone
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DDIM": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "Euler": (diffusers.EulerDiscreteScheduler, {}),
    "Heun": (diffusers.HeunDiscreteScheduler, {}),
    "KDPM2": (diffusers.KDPM2DiscreteScheduler, {}),
    "LMS": (diffusers.LMSDiscreteScheduler, {}),
    "PNDM": (diffusers.PNDMScheduler, {"set_alpha_to_one": True}),
    "PLMS": (diffusers.PNDMScheduler, {"set_alpha_to_one": True, "skip_prk_steps": True}),
}
for order in (2, 3):
    SCHEDULERS[f"DEIS {order}"] = (diffusers.DEISMultistepScheduler, {"solver_order": order})
    SCHEDULERS[f"DPM++ single {order}"] = (diffusers.DPMSolverSinglestepScheduler, {"solver_order": order})
for order, kind in itertools.product((2, 3), ("bh1", "bh2")):
    options = {"solver_order": order, "solver_type": kind}
    if kind == "bh1":  # into sigma = 0 it gives NaN
        options["final_sigmas_type"] = "sigma_min"
    SCHEDULERS[f"UniPC {order} {kind}"] = (diffusers.UniPCMultistepScheduler, options)
for (name, form), (order, kind) in itertools.product(MULTISTEP.items(), ORDERS):
    options = {"solver_order": order, "solver_type": kind, **form}
    SCHEDULERS[f"{name} {order} {kind}"] = (diffusers.DPMSolverMultistepScheduler, options)
IN_X = tuple(SCHEDULERS[name][0] for name in ("Euler", "Heun", "KDPM2", "LMS"))  # their state is x, not x_t
SIGMAS = {
    **{spacing: {"timestep_spacing": spacing} for spacing in ("leading", "linspace", "trailing")},
    **{kind: {f"use_{kind}": True} for kind in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")},
}
OURS = ("multistep", "ddim", "heun", "dpmpp_2m", "deis", "unipc", "lms", "adams_pc")


class Setting(NamedTuple):
    """A scheduler with one of its sigma settings."""

    name: str
    kind: Any
    options: dict[str, Any]

    def within(self, budget: int, prediction: str) -> Any:
        """It, with as many steps as take at most `budget` evaluations."""
        scheduler = self.kind(prediction_type=prediction, **self.options)
        for num_steps in range(budget, 0, -1):
            scheduler.set_timesteps(num_steps)
            if len(scheduler.timesteps) <= budget:
                return scheduler
        raise ValueError(f"{self.name} needs more than {budget} evaluations")


class Problem:
    """A model, latents, and where they lead."""

    def __init__(self, name: str, samples: int, steps: int, model: ods.Model | None = None) -> None:
        self.name, self.samples = name, samples
        self.model = ods.load(name, dtype=torch.float32) if model is None else model
        self.prediction = {"eps": "epsilon", "v": "v_prediction"}[self.model.prediction]
        classes = len(self.model.labels)
        self.cond = {"label": torch.arange(samples) % classes} if classes else {}
        generator = torch.Generator().manual_seed(0)
        self.x_t = torch.randn(samples, *self.model.data_shape, generator=generator, dtype=torch.float64)
        sigmas = ods.make_grid("log_snr", self.model.schedule, steps, into_zero=True).sigmas
        self.low = sigmas[-2]
        self.at_low = self.ours(samples, solver="rk4", grid=sigmas[:-1]).x
        self.at_zero = self.denoised(self.at_low)
        half = self.ours(samples // 4, solver="rk4", grid=(*sigmas[:-1:2], self.low)).x
        print(f"{name}: {samples} samples; reference: rk4, {steps} steps,", end=" ")
        print(f"half of them differ by {self.error(half, self.low):.1e}")

    def ours(self, count: int, **options: Any) -> ods.Solution:
        """`ods.sample` from the first `count` latents."""
        return ods.sample(self.model, x=self.x_t[:count], cond=self.first(count), state_dtype=torch.float64, **options)

    def first(self, count: int) -> dict[str, Tensor]:
        """The conditions of the first `count` samples."""
        return {k: v[:count] for k, v in self.cond.items()}

    def theirs(self, scheduler: Any, count: int, exact: bool) -> Tensor:
        """Their loop, as their pipelines have it; `exact`: the network hears t(sigma)."""
        sigmas, in_x = getattr(scheduler, "sigmas", None), isinstance(scheduler, IN_X)
        if sigmas is not None:
            scheduler.set_begin_index(0)  # or they skip a sigma where the first timestep comes twice
        x = self.x_t[:count] * ((1 + sigmas[0].item() ** 2) ** 0.5 if in_x else 1)

        def network(x_t: Tensor, t: Tensor, i: int) -> Tensor:
            if exact and sigmas is not None:
                between = hasattr(scheduler, "sigmas_interpol") and i % 2  # KDPM2 in the middle of a step
                t = self.model.schedule.t((scheduler.sigmas_interpol[i] if between else sigmas[i]).double())
            return self.model.network(x_t.float(), t.float().expand(count), **self.first(count)).double()

        return denoised(scheduler, network, x)

    def denoised(self, x_t: Tensor) -> Tensor:
        """The image that the model sees in `x_t` at its sigma_min."""
        x = self.model.schedule.from_model_scale(x_t, self.low)
        return x - self.low * self.model(x, self.low, **self.first(len(x)))

    def error(self, x: Tensor, end: float) -> float:
        """Median over samples, from the reference where it stops: at sigma_min or at 0."""
        truth = self.at_low if end > 0 else self.at_zero
        return (x - truth[: len(x)]).flatten(1).square().mean(1).sqrt().median().item()

    def measured(self, setting: Setting, budget: int, count: int, exact: bool) -> float:
        """Its error; infinite if it fails, or cannot be that short."""
        try:
            scheduler = setting.within(budget, self.prediction)
            end = float(scheduler.sigmas[-1]) if hasattr(scheduler, "sigmas") else 0.0
            found = self.error(self.theirs(scheduler, count, exact), end)
        except (ValueError, IndexError):  # too few steps to get under way
            return math.inf
        return math.inf if math.isnan(found) else found


def main() -> None:
    """Print a table for each embedded model."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # their tensors, given to numpy
    warnings.filterwarnings("ignore", category=FutureWarning)  # their "dpmsolver" is to go
    with torch.no_grad():
        for name, (samples, few, steps) in MODELS.items():
            problem = Problem(name, samples, steps)
            for budget in BUDGETS:
                table(problem, budget, few)


def settings() -> Iterator[Setting]:
    """Every scheduler with every sigma setting that it has."""
    for (name, (kind, options)), (form, sigmas) in itertools.product(SCHEDULERS.items(), SIGMAS.items()):
        if sigmas.keys() <= inspect.signature(kind).parameters.keys():
            yield Setting(f"{name}, {form}", kind, {**options, **sigmas})


def table(problem: Problem, budget: int, few: int) -> None:
    """Print the best of theirs, and ours with the ratio to the best of theirs."""
    theirs = best_of_theirs(problem, budget, few)
    print(f"{problem.name}, {budget} evaluations: diffusers, best of {len(list(settings()))} settings")
    for error, name in theirs[:SHOWN]:
        print(f"  {error:.2e}  {name}")
    for error, solver in best_of_ours(problem, budget):
        label = solver or f"default, {defaults.solver_for(budget, adaptive=False)}"
        print(f"  {error:.2e}  {error / theirs[0][0]:5.2f} x  odesampler: {label}", flush=True)


def best_of_theirs(problem: Problem, budget: int, few: int) -> list[tuple[float, str]]:
    """Errors and names of those that did best on a `few` samples, best first."""
    screened = [(problem.measured(s, budget, few, True), i, s) for i, s in enumerate(settings())]
    return sorted(
        min(
            (problem.measured(s, budget, problem.samples, exact), s.name + ("" if exact else ", t as it gives it"))
            for exact in (True, False)
        )
        for _, _, s in sorted(screened)[:KEPT]
    )


def best_of_ours(problem: Problem, budget: int) -> list[tuple[float, str | None]]:
    """Errors of the default (None) and of `OURS`, as many steps as the budget allows, the last of which asks once."""
    found: list[tuple[float, str | None]] = []
    for solver in (None, *OURS):
        num_steps = budget
        if solver is not None:
            num_steps = next(n for n in range(budget, 0, -1) if find_solver(solver).cost(n - 1) + 1 <= budget)
        found.append((problem.error(problem.ours(problem.samples, solver=solver, num_steps=num_steps).x, 0.0), solver))
    return found
