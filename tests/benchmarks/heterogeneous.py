"""Adaptive steps for each sample, where samples need very different ones: evaluations and time.

Beside Dormand-Prince of torchdiffeq, whose step is that of the whole batch, and of torchode, where every sample has its
own but all are asked about until the last has arrived; torchode's other method, and both of its controllers, too. Each
peer is run at some tolerances; ours is then the cheapest of its own tolerances whose worst sample is as good or better.
An evaluation is one row: eps of one sample. The error is the root mean square difference from a tight solution.

torchode is no dependency: `pip install torchode "typeguard<3"` adds it here, and without it its rows are missing.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torchdiffeq
from torch import Tensor

import odesampler as ods
from odesampler import drive
from odesampler.integrate import solve
from odesampler.program import State

from .side_by_side import facts

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
OURS = tuple(10 ** (-k / 4) for k in range(4, 25))
Eps = Callable[..., Tensor]  # eps(x, sigma, **cond): x (n, features), sigma (n,)


class Problem(NamedTuple):
    """dx/dsigma = eps(x, sigma, **cond) from `x` (batch, features) at `high` to `low`."""

    eps: Eps
    x: Tensor
    cond: Mapping[str, Tensor]
    high: float
    low: float


class Found(NamedTuple):
    """What a solver made of a problem."""

    x: Tensor
    rows: int  # evaluations, of one sample each
    seconds: float  # of the processor


def mixtures(batch: int = 64) -> Problem:
    """Each sample in a mixture of its own: 8 Gaussians on the unit circle, from wide to narrow."""
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = torch.stack([angles.cos(), angles.sin()], 1)

    def eps(x: Tensor, sigma: Tensor, std: Tensor) -> Tensor:
        """sum_k p_k sigma (x - m_k) / (std^2 + sigma^2), p_k the posterior weights."""
        total = (std**2 + sigma**2)[:, None]
        away = x[:, None] - means
        weights = (-0.5 * away.square().sum(2) / total).softmax(1)
        return sigma[:, None] * (weights[..., None] * away).sum(1) / total

    generator = torch.Generator().manual_seed(0)
    x = 80 * torch.randn(batch, 2, generator=generator, dtype=torch.float64)
    return Problem(eps, x, {"std": torch.logspace(0, -2.5, batch, dtype=torch.float64)}, 80.0, 0.002)


def digits(batch: int = 16, guided: int = 1) -> Problem:
    """The embedded model; `guided` of the samples at guidance scale 7.5, the others without."""
    model = ods.load("digits", dtype=torch.float64)
    null = int(model.null_cond["label"])

    def eps(x: Tensor, sigma: Tensor, label: Tensor, scale: Tensor) -> Tensor:
        images = x.reshape(-1, *model.data_shape)
        both = model(
            torch.cat([images] * 2), torch.cat([sigma] * 2), label=torch.cat([label, torch.full_like(label, null)])
        )
        with_label, without = both.flatten(1).chunk(2)
        return without + scale[:, None] * (with_label - without)

    low, high = model.range
    generator = torch.Generator().manual_seed(0)
    x = high * torch.randn(batch, math.prod(model.data_shape), generator=generator, dtype=torch.float64)
    scale = torch.where(torch.arange(batch) < guided, 7.5, 1.0).double()
    return Problem(eps, x, {"label": torch.arange(batch) % 10, "scale": scale}, high, low)


def ours(problem: Problem, tolerance: float) -> Found:
    """`ods.Adaptive(ods.Dopri5())`."""
    loop = ods.Adaptive(ods.Dopri5(), tolerance, tolerance)
    tally = drive.Tally()

    def run() -> Tensor:
        program = solve(loop, State(problem.x), (problem.high, problem.low))
        return drive.run(program, model=problem.eps, cond=problem.cond, tally=tally)[0].state.x

    x, seconds = timed(run)
    assert tally.nfe is not None
    return Found(x, int(tally.nfe.sum()), seconds)


def of_torchdiffeq(problem: Problem, tolerance: float) -> Found:
    """One step for all; asked about no sigma below the end."""
    rows = 0

    def func(sigma: Tensor, x: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        return problem.eps(x, sigma.expand(len(x)), **problem.cond)

    ends = torch.tensor([problem.high, problem.low], dtype=problem.x.dtype)
    options = {"step_t": ends[1:]}
    x, seconds = timed(
        lambda: torchdiffeq.odeint(func, problem.x, ends, rtol=tolerance, atol=tolerance, options=options)[-1]
    )
    return Found(x, rows, seconds)


def of_torchode(torchode: Any, method: str, pid: bool) -> Callable[[Problem, float], Found]:
    """Its `method`, with an integral controller or the PID one of its own default."""

    def solver(problem: Problem, tolerance: float) -> Found:
        rows = 0

        def f(sigma: Tensor, x: Tensor) -> Tensor:
            nonlocal rows
            rows += len(x)
            return problem.eps(x, sigma, **problem.cond)

        term = torchode.ODETerm(f)
        how = {"atol": tolerance, "rtol": tolerance, "term": term}
        controller = (
            torchode.PIDController(**how, pcoeff=0.2, icoeff=0.5, dcoeff=0.0)
            if pid
            else torchode.IntegralController(**how)
        )
        step = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[method](term=term)
        ends = torch.tensor([[problem.high, problem.low]], dtype=problem.x.dtype).expand(len(problem.x), 2)
        adjoint = torchode.AutoDiffAdjoint(step, controller.to(problem.x.dtype))
        ivp = torchode.InitialValueProblem(problem.x, ends[:, 0], ends[:, 1], ends)
        x, seconds = timed(lambda: adjoint.solve(ivp, term).ys[:, -1])
        return Found(x, rows, seconds)

    return solver


def peers() -> dict[str, Callable[[Problem, float], Found]]:
    """Those that are installed."""
    found: dict[str, Callable[[Problem, float], Found]] = {"torchdiffeq dopri5": of_torchdiffeq}
    try:
        import torchode
    except ImportError as error:
        print(f"torchode is left out: {error}")
        return found
    for method in ("dopri5", "tsit5"):
        for pid in (False, True):
            found[f"torchode {method}, {'PID' if pid else 'integral'}"] = of_torchode(torchode, method, pid)
    return found


def main() -> None:
    """Print a table for each problem."""
    torch.set_num_threads(1)
    print(facts())
    with torch.no_grad():
        table("64 mixtures from wide to narrow", mixtures())
        table("16 digits, one of them guided", digits(), TOLERANCES[1:-1])
        table("16 digits, none guided", digits(guided=0), TOLERANCES[1:-1])


def table(name: str, problem: Problem, tolerances: tuple[float, ...] = TOLERANCES) -> None:
    """Print what peers cost, and ours at equal or better worst error."""
    truth = of_torchdiffeq(problem, 1e-9).x
    ours(problem, OURS[0])  # warms up, as that was for theirs
    known = [(worst(found, truth), found) for found in (ours(problem, tolerance) for tolerance in OURS)]
    print(f"{name}")
    print(f"  {'':28}{'tolerance':>10}{'worst error':>13}{'rows':>8}{'ours':>8}{'ratio':>7}{'of the time':>13}")
    for label, peer in peers().items():
        for tolerance in tolerances:
            found = peer(problem, tolerance)
            error = worst(found, truth)
            good = [one for e, one in known if e <= error]
            if not good:
                print(f"  {label:28}{tolerance:10.0e}{error:13.1e}{found.rows:8}  better than ours was asked to be")
                continue
            best = min(good, key=lambda one: one.rows)
            cells = f"{best.rows:8}{best.rows / found.rows:7.2f}{best.seconds / found.seconds:13.2f}"
            print(f"  {label:28}{tolerance:10.0e}{error:13.1e}{found.rows:8}{cells}", flush=True)


def worst(found: Found, truth: Tensor) -> float:
    """Error of the worst sample."""
    return (found.x - truth).square().mean(1).sqrt().max().item()


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What it returns, and processor seconds."""
    began = time.process_time()
    x = run()
    return x, time.process_time() - began
