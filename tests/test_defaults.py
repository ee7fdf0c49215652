"""What a user gets who names neither solver nor grid."""

import math

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
