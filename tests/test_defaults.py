"""What a user gets who names neither solver nor grid."""

import math
from itertools import pairwise

import pytest
import torch

import odesampler as ods
from odesampler import defaults
from odesampler.plan import make_plan
from odesampler.registry import find_solver, spec_of

MODEL = ods.exact.GaussianMixture.ring().model()


def planned(solver=None, num_steps=None, model=MODEL, **options):
    how = {"grid": None, "rtol": None, "atol": None, "into_zero": True, **options}
    return make_plan(model, solver, num_steps=num_steps, **how)


@pytest.mark.parametrize("num_steps", [*range(1, 60), 250, 1000])
def test_every_number_of_steps_has_a_default_that_takes_one_evaluation_a_step(num_steps):
    solver = find_solver(defaults.solver_for(num_steps, adaptive=False))
    assert solver.cost(num_steps) == num_steps
    plan = planned(num_steps=num_steps)
    assert plan.grid.num_steps == num_steps
    assert plan.grid[0] == MODEL.schedule.sigma_max
    assert plan.grid[-1] == 0
    assert num_steps == 1 or plan.grid[-2] >= MODEL.schedule.sigma_min


def test_without_a_number_of_steps_there_are_20_and_with_tolerances_it_adapts():
    assert planned().grid.num_steps == 20
    assert spec_of(planned(rtol=1e-3).loop) == "adaptive:dopri5(rtol=0.001)"


@pytest.mark.parametrize("num_steps", [3, 5, 10, 27, 100])
def test_the_grid_of_ddim_is_even_in_the_square_root_of_the_clock_above_its_end(num_steps):
    grid = planned("ddim", num_steps).grid
    t = MODEL.schedule.t(torch.tensor(grid.sigmas[:-1], dtype=torch.float64))
    even = ((t - t[-1]) / (t[0] - t[-1])).clamp(min=0).sqrt()
    torch.testing.assert_close(even, torch.linspace(1, 0, num_steps, dtype=torch.float64), rtol=0, atol=1e-5)
    assert grid[-2] == pytest.approx(max(2.5 / num_steps**2, MODEL.schedule.sigma_min), abs=1e-4)


@pytest.mark.parametrize(("solver", "num_steps"), [("unipc", 28), ("heun", 5), ("rk4", 5), ("dpm_solver_3", 4)])
def test_many_evaluations_and_several_stages_get_a_grid_that_is_nearly_even_in_log_sigma(solver, num_steps):
    assert planned(solver, num_steps).grid.name == "polyexponential(rho=0.9)"


@pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        (ods.VP.cosine(), "power"),
        (ods.ContinuousVP(), "power"),
        (ods.VE(), "polyexponential"),
        (ods.RectifiedFlow(), "power(rho=1.5)"),
        (ods.VP.linear().with_zero_snr(), "power(rho=1.5)"),
    ],
    ids=repr,
)
def test_every_schedule_has_a_default_grid(schedule, grid):
    model = ods.exact.GaussianMixture.ring().model(schedule, "v")
    plan = planned(num_steps=8, model=model)
    assert plan.grid.name.startswith(grid)
    latents = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    latents *= model.schedule.latent_scale(plan.grid[0])
    how = {"x": latents, "state_dtype": torch.float64}
    truth = ods.sample(model, solver="rk45", rtol=1e-7, atol=1e-7, **how).x
    error = [(ods.sample(model, solver=s, num_steps=8, **how).x - truth).norm(dim=1).median() for s in (None, "ddim")]
    assert error[0] < min(0.05, error[1]), "the default is no better than DDIM"


@pytest.mark.parametrize(
    "schedule", [ods.VP.cosine(), ods.ContinuousVP(), ods.VE(), ods.RectifiedFlow()], ids=lambda s: type(s).__name__
)
def test_the_solver_that_encodes_has_a_grid_on_every_schedule_both_ways(schedule):
    """At 20 evaluations closer than DDIM to the solution, and the image comes back from what it was encoded to."""
    model = ods.exact.GaussianMixture.ring().model(schedule, "v")
    plan = planned("alf", 20, model=model)
    latents = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    latents *= model.schedule.latent_scale(plan.grid[0])
    how = {"x": latents, "state_dtype": torch.float64}
    truth = ods.sample(model, solver="rk45", rtol=1e-7, atol=1e-7, **how).x
    found = [ods.sample(model, solver=s, num_steps=20, **how) for s in ("alf", "ddim")]
    assert found[0].nfe.tolist() == [plan.loop.solver.cost(20)] * 20
    errors = [(f.x - truth).norm(dim=1).median() for f in found]
    assert errors[0] < errors[1] / 3
    latent = ods.encode(model, truth, num_steps=20)
    assert (ods.decode(model, latent).x - truth).abs().max() < 1e-9


def test_encode_takes_an_invertible_solver_unless_it_is_told_otherwise_or_adapts():
    for num_steps in (1, 6, 20, 60):
        assert spec_of(planned(num_steps=num_steps, into_zero=False).loop) == "alf"
    assert spec_of(planned(into_zero=False, rtol=1e-3).loop) == "adaptive:dopri5(rtol=0.001)"
    assert spec_of(planned("ddim", 5, into_zero=False).loop) == "euler"


@pytest.mark.parametrize("num_steps", [2, 10, 20, 50])
@pytest.mark.parametrize("into_zero", [True, False])
def test_the_grid_of_alf_is_even_in_asinh_above_a_last_sigma_that_shrinks_with_the_steps(num_steps, into_zero):
    grid = planned("alf", num_steps, into_zero=into_zero).grid
    above = [math.asinh(s / 0.02) for s in grid.sigmas[:-1]]
    if not into_zero and 2 / num_steps**2 < MODEL.schedule.sigma_min:
        above.append(math.asinh(grid[-1] / 0.02))
    assert grid[0] == MODEL.schedule.sigma_max
    assert [a - b for a, b in pairwise(above)] == pytest.approx(
        [(above[0] - above[-1]) / (len(above) - 1)] * (len(above) - 1)
    )
    least = max(2 / num_steps**2, MODEL.schedule.sigma_min)
    assert math.sinh(above[-1]) * 0.02 == pytest.approx(least, abs=1e-4)


def test_as_a_sampler_the_reversible_default_is_closer_than_dpm_solver_pp_2m_on_its_best_grid():
    """docs/inversion.md: 2.7e-3 and 4.0e-3 at 20 evaluations on digits, on 32 samples."""
    model = ods.load("digits")
    how = {"cond": {"label": torch.arange(8)}, "state_dtype": torch.float64, "seed": 90}
    truth = ods.sample(model, 8, solver="rk4", num_steps=100, grid="log_snr", **how).x

    def error(solver, grid=None):
        found = ods.sample(model, 8, solver=solver, num_steps=20, grid=grid, **how)
        assert found.nfe.tolist() == [20] * 8
        return (found.x - truth).flatten(1).square().mean(1).sqrt().median().item()

    theirs = {g: error("dpmpp_2m", g) for g in ("log_snr", "karras", "power(rho=2.5, variable='t', last=0.02)", None)}
    assert error("alf") < min(theirs.values()), theirs


def test_the_first_slope_of_alf_is_asked_for_only_below_the_noise_and_costs_no_accuracy_above():
    latents = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    how = {"x": latents, "solver": "alf", "num_steps": 20, "state_dtype": torch.float64}
    truth = ods.sample(MODEL, x=latents, solver="rk45", rtol=1e-8, atol=1e-8, state_dtype=torch.float64).x
    spared = ods.sample(MODEL, **how)
    asked = ods.sample(MODEL, **{**how, "solver": AskingALF()})
    assert (spared.nfe.tolist()[0], asked.nfe.tolist()[0]) == (20, 21)
    error, other = ((f.x - truth).norm(dim=1).median() for f in (spared, asked))
    assert error < 1.1 * other
    low = ods.exact.GaussianMixture.ring().model(sigma_max=9.0)
    assert ods.sample(low, 1, solver="alf", num_steps=5).nfe.tolist() == [6]
    assert ods.sample(MODEL, 1, solver="alf(coordinate='angle')", num_steps=5).nfe.tolist() == [6]


class AskingALF(ods.ALF):
    """Asks for the first slope wherever it starts."""

    def _knows_slope(self, sigma):
        return False


def test_a_narrow_range_still_has_a_grid():
    model = ods.exact.GaussianMixture.ring().model(sigma_min=0.5, sigma_max=2.0)
    for num_steps in (1, 2, 3, 10):
        grid = planned(num_steps=num_steps, model=model).grid
        assert max(grid) == 2.0
        assert min(s for s in grid if s) >= 0.5


@pytest.mark.parametrize(("num_steps", "bound"), [(6, 0.06), (10, 0.012), (20, 0.003), (50, 0.0002)])
def test_the_default_is_far_closer_to_the_solution_than_ddim(num_steps, bound):
    """Twice what was measured on digits, docs/defaults.md; DDIM has 0.10, 0.053, 0.026, 0.015."""
    model = ods.load("digits", dtype=torch.float64)
    how = {"cond": {"label": torch.arange(8)}, "state_dtype": torch.float64}
    truth = ods.sample(model, 8, solver="rk4", num_steps=150, grid="log_snr", **how).x
    found = ods.sample(model, 8, num_steps=num_steps, **how)
    assert found.nfe.tolist() == [num_steps] * 8
    error = (found.x - truth).flatten(1).square().mean(1).sqrt().median().item()
    assert error < bound
    assert math.isfinite(error)


def test_a_verb_tells_solvers_the_clock_and_the_grid():
    """deis_tab interpolates in the model's clock, and EDM's churn is a share of all steps."""
    how = {"num_steps": 6, "state_dtype": torch.float64}
    clocked, logarithmic = (ods.sample(MODEL, 3, solver=s, **how).x for s in ("deis_tab", "deis"))
    assert clocked.isfinite().all()
    assert (clocked - logarithmic).abs().max() > 1e-4
    churned, more = (ods.sample(MODEL, 3, solver=f"churn(s_churn={s})", **how).x for s in (1.0, 2.0))
    assert (churned - more).abs().max() > 1e-4
