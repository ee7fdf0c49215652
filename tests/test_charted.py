"""Charted: a method for any equation, stepped in a coordinate."""

import pytest
import torch

import odesampler as ods
from odesampler.drive import run
from odesampler.integrate import on_grid
from odesampler.solvers import RK4, Charted, Churn, Dopri5, Heun, Midpoint, Multistep, Singlestep
from tests.problems import HIGH, LOW, Spy, by_hand, gaussian, geometric, mixture, noise

BASES = [Midpoint(), Heun(), RK4(), Dopri5()]


@pytest.mark.parametrize("base", BASES, ids=repr)
def test_in_sigma_it_is_the_base(base):
    charted, plain = (
        run(on_grid(solver, noise(), geometric(5)), model=mixture())[0].x for solver in (Charted(base, "sigma"), base)
    )
    assert torch.equal(charted, plain)


def test_a_step_is_the_bases_step_of_the_equation_in_y_and_tau():
    """The flow coordinate by hand: y = x / (1 + s), tau = s / (1 + s), dy/dtau = eps - denoised."""
    x, s0, s1 = noise(), 2.0, 0.5

    def slope(y, tau):
        s = tau / (1 - tau)
        eps = mixture().eps(y * (1 + s), s)
        return eps - (y * (1 + s) - s * eps)

    y, t0, t1 = x / (1 + s0), s0 / (1 + s0), s1 / (1 + s1)
    k0 = slope(y, t0)
    want = y + (t1 - t0) / 2 * (k0 + slope(y + (t1 - t0) * k0, t1))
    got = by_hand(Charted(Heun()).step(ods.State(x), s0, s1), mixture().eps)
    torch.testing.assert_close(got.x, want * (1 + s1), rtol=1e-12, atol=1e-12)
    assert got.error is None, "Adaptive has a coordinate of its own"


@pytest.mark.parametrize("base", BASES, ids=repr)
def test_it_costs_what_the_base_costs_and_asks_about_the_very_start(base):
    x, spies = noise(), (Spy(gaussian()), Spy(gaussian()))
    for solver, spy in zip((Charted(base, "angle_asinh"), base), spies, strict=True):
        run(on_grid(solver, x, [HIGH, 1.0, LOW]), model=spy)
    assert spies[0].calls == spies[1].calls
    assert {HIGH, LOW} & set(spies[0].sigmas) == {HIGH, LOW} & set(spies[1].sigmas)
    asked = []
    by_hand(Charted(base).init(x, HIGH), lambda x, sigma: (asked.append(x), gaussian().eps(x, sigma))[1])
    assert all(at is x for at in asked)


@pytest.mark.parametrize("base", BASES, ids=repr)
def test_on_a_trained_model_it_errs_less_than_the_base_at_equal_evaluations(base):
    model, steps = ods.load("digits"), round(20 / base.evaluations)
    how = {"seed": 1, "grid": "polyexponential(rho=0.9)"}
    exact = ods.sample(model, 8, solver="rk4", num_steps=100, state_dtype=torch.float64, **how).x

    def error(solver):
        found = ods.sample(model, 8, solver=solver, num_steps=steps, **how).x
        return (found - exact).square().flatten(1).mean(1).sqrt().median()

    assert error(Charted(base)) < 0.9 * error(base)


class OfPictures(ods.Solver):
    order = evaluations = 1
    differentiable = False

    def step(self, state, s0, s1):
        assert state.x.shape[1:] == (1, 8, 8)
        k0 = yield state.x, s0
        return ods.State(state.x + (s1 - s0) * k0)


class AnotherEuler(OfPictures):
    def step(self, state, s0, s1):
        k0 = yield state.x, s0
        return ods.State(state.x + (s1 - s0) * k0)


def test_it_is_as_differentiable_as_its_base():
    assert Charted(Heun()).differentiable
    assert not Charted(AnotherEuler()).differentiable


@pytest.mark.parametrize(
    "base", [Multistep(), Singlestep(), Churn(), OfPictures()], ids=["multistep", "singlestep", "churn", "of pictures"]
)
def test_a_base_that_is_made_for_sigma_or_draws_noise_is_refused(base):
    with pytest.raises(ValueError, match="Charted needs a deterministic solver for any equation"):
        Charted(base)


def test_what_is_no_solver_or_no_coordinate_is_refused():
    with pytest.raises(TypeError, match="Charted takes a solver"):
        Charted("rk4")
    with pytest.raises(ValueError, match="coordinate must be one of sigma, data"):
        Charted(RK4(), "log")


def test_a_latent_knows_it_by_name():
    model, solver = ods.load("digits"), ods.Charted(ods.Heun(), "angle")
    latent = ods.encode(model, ods.held_out("digits").images[:2], solver=solver, num_steps=10)
    assert latent.recipe.solver == "charted(base='heun', coordinate='angle')"
    back = ods.decode(model, latent)
    assert back.x.shape == (2, 1, 8, 8)
