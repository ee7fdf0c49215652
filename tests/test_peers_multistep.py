"""diffusers' schedulers that solve the ODE as oracles: the same sigmas and the same exact model, step by step.

Their tables and coefficients are float32 by name: where a module says `torch.float32` it is given float64, so that what
is left is the rounding of float64. Where one of theirs differs from ours the test says how.
"""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from odesampler.drive import run
from odesampler.grid import make_grid
from odesampler.integrate import OnGrid, solve
from odesampler.program import Solver, State
from odesampler.registry import find_solver
from odesampler.schedule import VP
from odesampler.solvers import RK4, Multistep
from tests.problems import Float64, geometric, mixture, noise, slope, solved_by_scipy

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array:DeprecationWarning",  # their tensors, given to numpy
    "ignore:.*dpmsolver is deprecated:FutureWarning",
    "ignore:The `scale_model_input`:UserWarning",  # here the model is asked at x: there is nothing to scale
)
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
KARRAS = tuple(make_grid("karras", VP.linear(), 11, into_zero=False, sigma_min=0.05, sigma_max=20.0))
GRIDS = {"log_snr": tuple(geometric(12)), "karras": KARRAS}
every_grid = pytest.mark.parametrize("sigmas", GRIDS.values(), ids=GRIDS)


@pytest.fixture
def made(diffusers, monkeypatch):
    """Makes a scheduler that computes in float64."""

    def make(name, **options):
        kind = getattr(diffusers, name)
        monkeypatch.setattr(sys.modules[kind.__module__], "torch", Float64())
        return kind(**options)

    return make


def theirs(scheduler, x, sigmas, *, alpha=lambda s: 1.0, answer=lambda x, s, eps: eps, eps=None):
    """x after every step of their loop along `sigmas`; their state is alpha * x, the model's output `answer`."""
    eps = mixture() if eps is None else eps
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(sigmas) - 1, dtype=torch.float64)
    scheduler.set_begin_index(0)
    seen, state = [], x * alpha(sigmas[0])
    for t, (s0, s1) in zip(scheduler.timesteps, pairwise(sigmas), strict=True):
        x = state / alpha(s0)
        state = scheduler.step(answer(x, s0, eps(x, s0)), t, state).prev_sample
        seen.append(state / alpha(s1))
    return seen


def ours(solver, x, sigmas, eps=None):
    """x after every step of ours."""
    solver, seen = find_solver(solver) if isinstance(solver, str) else solver, []
    program = solve(OnGrid(solver), State(x), sigmas, lambda i, sigma, x, rows: seen.append(x))
    run(program, model=mixture() if eps is None else eps)
    return seen


def agree(got, want, **tolerance):
    for step, (a, b) in enumerate(zip(got, want, strict=True), 1):
        torch.testing.assert_close(a, b, **(tolerance or CLOSE), msg=lambda text, step=step: f"step {step}: {text}")


def vp(sigma):
    return (1 + sigma**2) ** -0.5


@every_grid
@pytest.mark.parametrize("end", [(), (0.0,)], ids=["above", "zero"])
def test_euler(made, sigmas, end):
    x, sigmas = noise(scale=sigmas[0]), sigmas + end
    agree(ours("euler", x, sigmas), theirs(made("EulerDiscreteScheduler"), x, sigmas))


@every_grid
def test_heun(made, sigmas):
    """They step half a step at a time, and take the last step, into zero, by Euler as we do."""
    scheduler, x, eps = made("HeunDiscreteScheduler"), noise(scale=sigmas[0]), mixture()
    sigmas = (*sigmas, 0.0)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor([sigmas[0], *np.repeat(sigmas[1:-1], 2), 0.0], dtype=torch.float64)
    scheduler.set_begin_index(0)
    state, want = x, []
    for i, sigma in enumerate(scheduler.sigmas[:-1].tolist()):
        state = scheduler.step(eps(state, sigma), torch.tensor(0.0), state).prev_sample
        want += [state] if i % 2 or i == len(scheduler.sigmas) - 2 else []
    agree(ours("heun", x, sigmas), want)


@every_grid
@pytest.mark.parametrize("end", [(), (0.0,)], ids=["above", "zero"])
@pytest.mark.parametrize(
    ("order", "kind", "solver"),
    [
        (1, "midpoint", Multistep("data", predictor=1, corrector=0)),
        (2, "midpoint", "dpmpp_2m"),
        (2, "heun", Multistep("data", predictor=2, corrector=0)),
    ],
)
def test_dpm_solver_pp(made, sigmas, end, order, kind, solver):
    """What they call heun is the exact integral of the line."""
    x, sigmas = noise(scale=sigmas[0]), sigmas + end
    scheduler = made(
        "DPMSolverMultistepScheduler",
        solver_order=order,
        solver_type=kind,
        lower_order_final=False,
        final_sigmas_type="zero" if end else "sigma_min",
    )
    agree(ours(solver, x, sigmas), theirs(scheduler, x, sigmas, alpha=vp))


@every_grid
@pytest.mark.parametrize(
    ("order", "kind", "solver"),
    [
        (1, "midpoint", "euler"),
        (2, "midpoint", "dpm_solver_2m"),
        (2, "heun", Multistep("noise", predictor=2, corrector=0)),
        (3, "midpoint", "dpm_solver_3m"),
    ],
)
def test_dpm_solver(made, sigmas, order, kind, solver):
    x = noise(scale=sigmas[0])
    scheduler = made(
        "DPMSolverMultistepScheduler",
        algorithm_type="dpmsolver",
        solver_order=order,
        solver_type=kind,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    agree(ours(solver, x, sigmas), theirs(scheduler, x, sigmas, alpha=vp))


def third_order(made, **options):
    options = {"lower_order_final": False, "final_sigmas_type": "sigma_min", **options}
    return made("DPMSolverMultistepScheduler", solver_order=3, **options)


@every_grid
def test_dpm_solver_pp_of_order_3(made, sigmas):
    x = noise(scale=sigmas[0])
    agree(ours("dpmpp_3m", x, sigmas), theirs(third_order(made), x, sigmas, alpha=vp))


def test_that_formula_is_of_order_2_because_it_counts_half_of_the_curvature():
    """It is theirs, as the test above shows; all of the curvature, from the same start, gives order 3."""
    x, steps = noise(), [32, 64, 128]
    truth = solved_by_scipy(mixture(), x, 3.0, 0.2)

    def measured(rule):
        solver = Multistep("data", predictor=3, corrector=0, rule=rule, starter=RK4())
        return slope([(ours(solver, x, geometric(n))[-1] - truth).norm().item() for n in steps], steps)

    assert measured("dpm") == pytest.approx(2, abs=0.3)
    assert measured("exact") == pytest.approx(3, abs=0.3)


def test_into_zero_they_lower_the_order_of_two_steps_where_we_lower_one(made):
    """With lower_order_final and fewer than 15 steps the step before the last is of order 2, ours of order 3."""
    x, sigmas = noise(), (*geometric(9), 0.0)
    scheduler = third_order(made, lower_order_final=True, final_sigmas_type="zero")
    want, got = theirs(scheduler, x, sigmas, alpha=vp), ours("dpmpp_3m", x, sigmas)
    agree(got[:-2], want[:-2])
    assert (got[-2] - want[-2]).abs().max() > 1e-4
    scheduler = third_order(made, final_sigmas_type="zero")
    agree(got, theirs(scheduler, x, sigmas, alpha=vp))


@every_grid
@pytest.mark.parametrize(
    ("order", "kind", "solver"),
    [
        (1, "bh2", Multistep("data", predictor=1, corrector=2, rule="bh2")),
        (1, "bh1", Multistep("data", predictor=1, corrector=2, rule="bh1")),
        (2, "bh2", "unipc"),
        (2, "bh1", "unipc_bh1"),
        (3, "bh2", "unipc_3"),
        (3, "bh1", Multistep("data", predictor=3, corrector=4, rule="bh1")),
    ],
)
@pytest.mark.parametrize("frame", ["data", "noise"])
def test_unipc(made, sigmas, order, kind, solver, frame):
    x = noise(scale=sigmas[0])
    solver = find_solver(solver) if isinstance(solver, str) else solver
    solver = Multistep(**{**vars(solver), "frame": frame})
    scheduler = made(
        "UniPCMultistepScheduler",
        solver_order=order,
        solver_type=kind,
        predict_x0=frame == "data",
        lower_order_final=False,
    )
    agree(ours(solver, x, sigmas), theirs(scheduler, x, sigmas, alpha=vp))


def test_unipc_into_zero(made):
    x, sigmas = noise(), (*geometric(9), 0.0)
    agree(ours("unipc", x, sigmas), theirs(made("UniPCMultistepScheduler"), x, sigmas, alpha=vp))


def test_their_unipc_bh1_gives_nan_into_zero_and_ours_the_denoised_image(made):
    x, sigmas = noise(), (*geometric(9), 0.0)
    want = theirs(made("UniPCMultistepScheduler", solver_type="bh1"), x, sigmas, alpha=vp)
    got = ours("unipc_bh1", x, sigmas)
    assert want[-1].isnan().all()
    torch.testing.assert_close(got[-1], got[-2] - sigmas[-2] * mixture()(got[-2], sigmas[-2]), **CLOSE)


@every_grid
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(made, sigmas, order):
    """Theirs is the one of the paper's variants that interpolates in log sigma."""
    x = noise(scale=sigmas[0])
    scheduler = made("DEISMultistepScheduler", solver_order=order, lower_order_final=False)
    agree(ours(Multistep("noise", predictor=order, corrector=0), x, sigmas), theirs(scheduler, x, sigmas, alpha=vp))
    if order == 3:
        assert find_solver("deis") == Multistep("noise", predictor=3, corrector=0)


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_their_deis_wastes_its_last_evaluation_on_a_step_of_no_length(made, spacing):
    scheduler = made("DEISMultistepScheduler", **{f"use_{spacing}_sigmas": True})
    scheduler.set_timesteps(10)
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2]


@every_grid
@pytest.mark.parametrize("end", [(), (0.0,)], ids=["above", "zero"])
def test_lms(made, sigmas, end):
    """They integrate by quad to 1e-4, but a polynomial of degree 3 comes out exact all the same."""
    x, sigmas = noise(scale=sigmas[0]), sigmas + end
    agree(ours("lms", x, sigmas), theirs(made("LMSDiscreteScheduler"), x, sigmas))


@every_grid
@pytest.mark.parametrize("end", [(), (0.0,)], ids=["above", "zero"])
def test_ipndm(made, sigmas, end):
    """Their own grid begins at sigma = infinity, which they clamp to 1e8: here they get ours. Their model says v."""
    x, sigmas = noise(scale=sigmas[0]), sigmas + end
    stds = [s * vp(s) for s in sigmas]
    scheduler = made("IPNDMScheduler", trained_betas=stds)
    want = theirs(scheduler, x, sigmas, alpha=vp, answer=lambda x, s, eps: vp(s) * (eps - s * (x - s * eps)))
    agree(ours("ipndm", x, sigmas), want)


def test_their_own_ipndm_grid_begins_at_infinity(made):
    scheduler = made("IPNDMScheduler")
    scheduler.set_timesteps(10)
    assert scheduler.alphas[0] == 0


def edm(x, sigma, eps, sigma_data=0.5):
    """What EDM's network, of unit variance, would put out."""
    total = sigma**2 + sigma_data**2
    return (x - sigma * eps - sigma_data**2 / total * x) / (sigma * sigma_data / total**0.5)


@every_grid
def test_edm_euler(made, sigmas):
    x, sigmas = noise(scale=sigmas[0]), (*sigmas, 0.0)
    agree(ours("euler", x, sigmas), theirs(made("EDMEulerScheduler"), x, sigmas, answer=edm))


@every_grid
@pytest.mark.parametrize(
    ("order", "kind", "solver"),
    [
        (1, "midpoint", "euler"),
        (2, "midpoint", "dpmpp_2m"),
        (2, "heun", Multistep("data", predictor=2, corrector=0)),
        (3, "midpoint", "dpmpp_3m"),
    ],
)
def test_edm_dpm_solver(made, sigmas, order, kind, solver):
    x = noise(scale=sigmas[0])
    scheduler = made(
        "EDMDPMSolverMultistepScheduler",
        solver_order=order,
        solver_type=kind,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    agree(ours(solver, x, sigmas), theirs(scheduler, x, sigmas, answer=edm))


def by_pndm(made, num_steps, skip_prk_steps):
    """x after each of their calls, the sigmas at the whole steps, the schedule and x at the first."""
    schedule = VP.linear()
    scheduler = made("PNDMScheduler", skip_prk_steps=skip_prk_steps, set_alpha_to_one=True)
    scheduler.set_timesteps(num_steps)
    times = torch.tensor(scheduler._timesteps[::-1].copy(), dtype=torch.float64)
    sigmas = (*schedule.sigma(times).tolist(), 0.0)
    x, eps = noise(scale=sigmas[0]), mixture()
    state, seen = x * vp(sigmas[0]), []
    for t in scheduler.timesteps.tolist():
        sigma = schedule.sigma(torch.tensor(float(t), dtype=torch.float64)).item()
        state = scheduler.step(eps(state / vp(sigma), sigma), t, state).prev_sample
        seen.append(state)
    return [s / vp(sigma) for s, sigma in zip(seen[-(num_steps - 3) :], sigmas[4:], strict=True)], sigmas, schedule, x


class RungeKuttaOnClock(Solver):
    """The classical method with its middle half-way in t, as PNDM's authors have it; every transfer is Euler's."""

    order, evaluations = 4, 4

    def __init__(self, schedule):
        self.schedule = schedule

    def step(self, state, s0, s1):
        t = self.schedule.t(torch.tensor([s0, s1], dtype=torch.float64)).mean()
        middle = self.schedule.sigma(t).item()
        k0 = yield state.x, s0
        k1 = yield state.x + (middle - s0) * k0, middle
        k2 = yield state.x + (middle - s0) * k1, middle
        k3 = yield state.x + (s1 - s0) * k2, s1
        return State(state.x + (s1 - s0) * (k0 + 2 * k1 + 2 * k2 + k3) / 6)


@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_plms_is_pndm_without_its_runge_kutta_steps(made, num_steps):
    want, sigmas, _, x = by_pndm(made, num_steps, True)
    agree(ours("plms", x, sigmas)[3:], want)


@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_pndm_is_the_same_formula_started_by_a_runge_kutta_whose_middle_lies_in_t_not_in_sigma(made, num_steps):
    want, sigmas, schedule, x = by_pndm(made, num_steps, False)

    def started_by(starter):
        solver = Multistep("noise", predictor=4, corrector=0, rule="equal", starter=starter, full_end=True)
        return ours(solver, x, sigmas)[3:]

    agree(started_by(RungeKuttaOnClock(schedule)), want)
    assert (started_by(RK4())[-1] - want[-1]).abs().max() > 1e-8


def test_with_karras_sigmas_their_network_is_told_a_rounded_time(made):
    """Off by up to half a timestep of 1000; which is why the tests above ask at sigma itself."""
    schedule = VP.linear()
    scheduler = made("DPMSolverMultistepScheduler", use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    exact = schedule.t(scheduler.sigmas[:-1].double())
    off = (scheduler.timesteps - exact).abs()
    assert 0.1 < off.max() <= 0.51
