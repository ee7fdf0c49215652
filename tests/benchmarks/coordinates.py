"""In which coordinate Runge-Kutta methods should take their steps: rows and errors, down and up.

Adaptive: the fewest rows a sample with which the worst and the median sample come as near as asked, of tolerances a
quarter of a decade apart; and the errors at a tolerance of 1e-3. Upward the error is that of the latent divided by
sigma, which is of order 1. On a grid: the median error for some 20 evaluations.

The coordinate of `ods.Adaptive` was chosen on the mixtures and on digits; the others tell whether the choice holds.
"""

import math
import sys

import torch
from torch import Tensor

import odesampler as ods
from odesampler import drive
from odesampler.integrate import OnGrid, solve
from odesampler.program import Loop, Solver, State

from .exact_problems import problems as exact
from .heterogeneous import Problem, digits, mixtures
from .side_by_side import facts

CHOICES: tuple[tuple[str, float], ...] = (
    ("sigma", 0.1),
    ("angle", 0.1),
    ("flow", 0.1),
    ("asinh", 0.1),
    ("angle_asinh", 0.1),
    ("angle_asinh", 0.3),
    ("flow_asinh", 0.1),
    ("flow_asinh", 0.3),
)
TOLERANCES = tuple(10 ** (-k / 4) for k in range(3, 24))
WANTED = (1e-1, 1e-2, 1e-3)
TYPICAL = 9  # of the tolerances, 1e-3
BASES = ("heun", "rk4", "bosh3", "dopri5")


def of(model: ods.Model, batch: int, label: bool) -> Problem:
    """A model's problem, from noise."""
    assert model.data_shape is not None
    shape = model.data_shape

    def eps(x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        return model(x.reshape(-1, *shape), sigma, **cond).flatten(1)

    low, high = model.range
    generator = torch.Generator().manual_seed(0)
    x = high * torch.randn(batch, math.prod(shape), generator=generator, dtype=torch.float64)
    return Problem(eps, x, {"label": torch.arange(batch)} if label else {}, high, low)


def problems(small: bool = False) -> dict[str, Problem]:
    """By name; the small ones are for a test."""
    if small:
        return {"mixtures": mixtures(4)}
    found = {"mixtures": mixtures(32), "digits": digits(8, guided=0), "digits, one guided": digits(8)}
    found |= {name: of(problem.model(), 32, label=False) for name, problem in exact().items()}
    return found | {"emoji": of(ods.load("emoji", dtype=torch.float64), 4, label=True)}


def solved(problem: Problem, loop: Loop, x: Tensor, sigmas: tuple[float, ...]) -> tuple[Tensor, float]:
    """Where `loop` brings `x`, and evaluations a sample."""
    tally = drive.Tally()
    program = solve(loop, State(x), sigmas)
    [found] = drive.run(
        program, model=lambda x, s, **c: problem.eps(x, _each(s, x), **c), cond=problem.cond, tally=tally
    )
    assert tally.nfe is not None
    return found.state.x, tally.nfe.double().mean().item()


def _each(sigma: float | Tensor, x: Tensor) -> Tensor:
    return sigma if isinstance(sigma, Tensor) else x.new_full((len(x),), sigma)


def errors(found: Tensor, truth: Tensor, scale: float) -> tuple[float, float]:
    """Of the worst sample and the median one."""
    each = (found - truth).square().mean(1).sqrt() / scale
    return each.max().item(), each.median().item()


def main(small: bool = False) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    print(facts())
    wanted = [word for word in sys.argv[1:] if word in ("up", "down", "grid")] or ["down", "up", "grid"]
    with torch.no_grad():
        for name, problem in problems(small).items():
            tight = ods.Adaptive(ods.Dopri5(), 1e-9, 1e-9)
            down, _ = solved(problem, tight, problem.x, (problem.high, problem.low))
            if "down" in wanted:
                adaptive(f"{name}, down", problem, problem.x, down, (problem.high, problem.low))
            if "up" in wanted:
                up, _ = solved(problem, tight, down, (problem.low, problem.high))
                adaptive(f"{name}, up", problem, down, up, (problem.low, problem.high))
            if "grid" in wanted:
                on_grid(name, problem, down)


def adaptive(name: str, problem: Problem, x: Tensor, truth: Tensor, ends: tuple[float, float]) -> None:
    """Print evaluations a sample for each coordinate and error; Dormand-Prince."""
    heads = "".join(f"{f'{which} {error:g}':>14}" for which in ("worst", "median") for error in WANTED)
    heads += f"{'rows, worst, median':>28}"
    print(f"{name}: evaluations a sample, to an error of; and at a tolerance of 1e-3\n  {'':20}{heads}")
    for coordinate, delta in CHOICES:
        curve: list[tuple[float, float, float]] = []
        for tolerance in TOLERANCES:
            loop = ods.Adaptive(ods.Dopri5(), tolerance, tolerance, coordinate=coordinate, delta=delta)
            found, rows = solved(problem, loop, x, ends)
            curve.append((*errors(found, truth, max(ends[1], 1.0)), rows))
            if curve[-1][0] < WANTED[-1] and len(curve) > TYPICAL:
                break
        best = [min((c[2] for c in curve if c[i] <= error), default=math.nan) for i in (0, 1) for error in WANTED]
        label = coordinate if "asinh" not in coordinate else f"{coordinate}, {delta:g}"
        worst, median, rows = curve[TYPICAL]
        typical = f"{f'{rows:.0f}, {worst:.1e}, {median:.1e}':>28}"
        print(f"  {label:20}" + "".join(f"{rows:14.0f}" for rows in best) + typical, flush=True)


def on_grid(name: str, problem: Problem, truth: Tensor) -> None:
    """Print the median error of some 20 evaluations for each method and coordinate, nearly even in log sigma."""
    print(f"{name}: median error on a grid\n  {'':20}" + "".join(f"{c:>13}" for c, d in CHOICES if d == 0.1))
    for base in BASES:
        method: Solver = {"heun": ods.Heun(), "rk4": ods.RK4(), "bosh3": ods.Bosh3(), "dopri5": ods.Dopri5()}[base]
        steps = round(20 / method.evaluations)
        grid = ods.make_grid("polyexponential(rho=0.9)", ods.VE(problem.low, problem.high), steps, into_zero=False)
        row = []
        for coordinate, delta in CHOICES:
            if delta == 0.1:
                found, rows = solved(problem, OnGrid(ods.Charted(method, coordinate)), problem.x, grid.sigmas)
                row.append(errors(found, truth, 1.0)[1])
        print(f"  {f'{base}, {rows:.0f}':20}" + "".join(f"{error:13.1e}" for error in row), flush=True)
