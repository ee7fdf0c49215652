"""What decoding will miss, told before decoding, against what it does miss."""

import math

import numpy as np
import pytest
import torch

import odesampler as ods
from odesampler.analysis import defects
from odesampler.analysis.defects import accumulated
from odesampler.analysis.windows import Windows, width_of
from odesampler.combine import within
from odesampler.drive import Tally, run
from odesampler.integrate import OnGrid, solve
from odesampler.program import State
from odesampler.registry import find_solver
from tests.problems import HIGH, LOW, gaussian, geometric, mixture, noise

DIGITS, HELD = ods.load("digits"), ods.held_out("digits")
SOLVERS = ("ddim", "heun", "rk4", "dpmpp_2m")
CASES = [(s, n) for s in SOLVERS for n in (10, 20, 50)]
with_memory = pytest.mark.parametrize(
    ("name", "width"),
    [("ddim", 1), ("rk4", 1), ("dopri5", 1), ("dpmpp_2m", 2), ("unipc", 3), ("plms", 4), ("adams_pc", 5)],
)


@pytest.fixture
def to_the_end(monkeypatch):
    """Sweeps go on however little they change."""
    monkeypatch.setattr(defects, "SETTLED", -1.0)


def truth(model, x, solver, n):
    return ods.decode(model, ods.encode(model, x, solver=solver, num_steps=n)).x - x


def effectivity(found, error):
    return found.rmse / error.double().flatten(1).square().mean(1).sqrt()


def within_bounds(ratio):
    assert 0.3 < ratio.median().item() < 3
    assert ((ratio > 0.3) & (ratio < 3)).double().mean().item() >= 0.9


@pytest.mark.parametrize(("solver", "n"), CASES)
@pytest.mark.parametrize(
    "problem", [gaussian(), ods.exact.GaussianMixture.ring(), mixture()], ids=["one", "ring", "three"]
)
def test_the_estimate_is_the_error_within_a_factor_of_3_where_eps_is_exact(problem, solver, n):
    x = problem.sample(20, seed=3)
    within_bounds(
        effectivity(ods.estimate_round_trip(problem.model(), x, solver, n), truth(problem.model(), x, solver, n))
    )


@pytest.mark.parametrize(("solver", "n"), CASES)
def test_the_estimate_is_the_error_within_a_factor_of_3_on_digits(solver, n):
    x, cond = HELD.images[40:43], {"label": HELD.labels[40:43]}
    found = ods.estimate_round_trip(DIGITS, x, solver, n, cond=cond)
    within_bounds(effectivity(found, ods.decode(DIGITS, found.latent).x - x))


@pytest.mark.parametrize(("solver", "n"), [("ddim", 10), ("heun", 3), ("plms", 10)])
def test_the_estimate_is_the_error_on_digits_without_labels_where_it_is_not_called_unsettled(solver, n):
    x = HELD.images[:16]
    found = ods.estimate_round_trip(DIGITS, x, solver, n)
    ratio = effectivity(found, ods.decode(DIGITS, found.latent).x - x)
    assert ((ratio > 0.5) & (ratio < 2))[found.settled].all()
    assert found.settled.sum() >= (0 if solver == "plms" else 14)


def test_a_sample_that_has_not_settled_is_marked_in_records_and_words():
    found = ods.estimate_round_trip(DIGITS, HELD.images[:4], "ddim", 10, sweeps=4)
    assert found.settled.tolist() == [r["settled"] for r in found.records()] == (found.changed < 0.2).tolist()
    lost = int((~found.settled).sum())
    assert 0 < lost < 4
    assert sum("not settled" in row[3] for row in found.rows()) == lost
    assert f"not settled, {lost} of 4: the last sweep changed it by 20% or more" in found.table()
    guessed = ods.estimate_round_trip(DIGITS, HELD.images[:2], "ddim", 4, sweeps=0)
    assert [row[3] for row in guessed.rows()] == ["-, not settled"] * 2


def test_a_sweep_whose_answers_are_infinite_is_not_taken():
    def network(x_t, t):
        calls.append(1)
        return model.network(x_t, t) / (len(calls) < 6)  # 4 up, 1 for the defects

    calls, model, x = [], mixture().model(), mixture().sample(3)
    watched = ods.Model(network, model.schedule, data_shape=(2,), sigma_min=model.range[0], sigma_max=model.range[1])
    found = ods.estimate_round_trip(watched, x, "ddim", 4)
    assert torch.equal(found.error, ods.estimate_round_trip(model, x, "ddim", 4, sweeps=0).error)
    assert (found.sweeps, found.settled.any().item(), len(calls)) == (0, False, 6)


def test_the_latent_that_comes_with_it_is_that_of_encode():
    x, cond = HELD.images[:2], {"label": HELD.labels[:2]}
    found = ods.estimate_round_trip(DIGITS, x, "heun", 4, cond=cond, convention="target", guidance_scale=2.0, sweeps=0)
    latent = ods.encode(DIGITS, x, solver="heun", num_steps=4, cond=cond, convention="target", guidance_scale=2.0)
    assert torch.equal(found.latent.x, latent.x)
    assert found.latent.recipe == latent.recipe
    assert torch.equal(ods.decode(DIGITS, found.latent).x, ods.decode(DIGITS, latent).x)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
def test_where_eps_is_linear_it_is_the_very_error_whatever_the_convention(solver, to_the_end):
    x, model = gaussian().sample(4), gaussian().model()
    for convention in ("source", "target"):
        found = ods.estimate_round_trip(model, x, solver, 12, convention=convention, sweeps=12)
        latent = ods.encode(model, x, solver=solver, num_steps=12, convention=convention)
        error = ods.decode(model, latent).x - x
        assert torch.allclose(found.error, error, rtol=1e-9, atol=1e-13)
        assert found.latent.recipe.convention == convention


def test_out_of_infinity_it_is_the_error_too(to_the_end):
    x, model = gaussian().sample(4), gaussian().model(ods.RectifiedFlow(), "flow", sigma_min=0.05)
    assert math.isinf(model.range[1])
    for solver in ("heun", "dpmpp_2m"):
        found = ods.estimate_round_trip(model, x, solver, 10, sweeps=10)
        assert torch.allclose(found.error, truth(model, x, solver, 10), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("solver", ["ddim", "rk4", "dpmpp_2m", "plms"])
def test_as_many_sweeps_as_steps_are_decoding_itself_however_large_its_error(solver, to_the_end):
    x, model = mixture().sample(6), mixture().model()
    found = ods.estimate_round_trip(model, x, solver, 5, sweeps=5)
    error = truth(model, x, solver, 5)
    assert error.abs().max() > 0.01
    assert torch.allclose(found.error, error, rtol=1e-8, atol=1e-12)
    assert found.sweeps == 5


def test_sweeps_end_when_they_change_little_and_say_how_little():
    x, model = mixture().sample(6), mixture().model()
    found = ods.estimate_round_trip(model, x, "heun", 30, sweeps=30)
    assert 1 < found.sweeps < 10
    assert (found.changed < 0.2).all()
    assert found.settled.all()
    before = ods.estimate_round_trip(model, x, "heun", 30, sweeps=found.sweeps - 1)
    difference = (found.error - before.error).norm(dim=1) / found.error.norm(dim=1)
    assert torch.allclose(found.changed, difference, rtol=1e-6)


def test_what_the_steps_add_is_the_whole_where_all_errors_point_one_way():
    x, model = gaussian().sample(3), gaussian().model()
    found = ods.estimate_round_trip(model, x, "ddim", 20)
    assert torch.allclose(found.arriving.sum(0), found.rmse, rtol=1e-6)  # of one Gaussian: along x - mean
    assert found.arriving.shape == found.defects.shape == (20, 3)


def path(name, n=12):
    """The points that decoding goes through, and the windows along them."""
    solver, x, seen = find_solver(name), noise(3), []
    sigmas = tuple(geometric(n))
    program = solve(OnGrid(solver), State(x), sigmas, lambda i, s, x, rows: seen.append(x))
    run(within(LOW, HIGH, name, program), model=mixture())
    return Windows(solver, width_of(solver), sigmas[::-1], (*seen[::-1], x), mixture(), {}, (LOW, HIGH))


@with_memory
def test_along_the_path_of_decoding_itself_no_step_misses_anything(name, width):
    windows = path(name)
    assert windows.width == width
    for landed, point in zip(windows.landed(), windows.x, strict=False):
        assert torch.allclose(landed, point, rtol=1e-12, atol=1e-13)


def test_it_takes_few_calls_where_decoding_takes_one_after_another():
    calls = []

    def network(x_t, t):
        calls.append(len(x_t))
        return model.network(x_t, t)

    model = gaussian().model()
    watched = ods.Model(network, model.schedule, data_shape=(2,))
    found = ods.estimate_round_trip(watched, gaussian().sample(5), "heun", 40, sweeps=3)
    after = calls[80:]
    assert len(after) == found.calls == 2 * (1 + found.sweeps)
    assert set(after) == {40 * 5}
    assert found.evaluations == 80 * (1 + found.sweeps)


def test_without_sweeps_errors_are_taken_to_shrink_as_noise_does():
    sigmas = tuple(geometric(5))[::-1]
    points = tuple(noise(2, seed=i) for i in range(6))
    found = accumulated(Windows(ods.Euler(), 1, sigmas, points, mixture(), {}, (LOW, HIGH)), 0, Tally())
    shrunk = [math.hypot(1, sigmas[0]) / math.hypot(1, s) for s in sigmas]
    assert torch.allclose(found.error, sum(r * d for r, d in zip(shrunk, found.defects, strict=False)))
    assert found.changed.isnan().all()


def test_the_report_has_a_row_and_a_record_for_each_sample_and_says_what_it_cost():
    found = ods.estimate_round_trip(gaussian().model(), gaussian().sample(3), "ddim", 10)
    records = found.records()
    assert [r["sample"] for r in records] == [0, 1, 2]
    assert [r["rmse"] for r in records] == found.rmse.tolist()
    assert records[0]["sigma"] == found.sigmas[int(found.arriving[:, 0].argmax())]
    assert f"{10 * (1 + found.sweeps)} evaluations a sample" in found.table()
    assert "not settled" not in found.table()
    [axis] = found.plot().axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert "rmse" in axis.get_ylabel()
    assert axis.lines[0].get_ydata() == pytest.approx(found.defects.median(1).values.tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "alf"}, "undoes its own steps exactly"),
        ({"solver": "adaptive:dopri5", "num_steps": None}, "chooses its own steps"),
        ({"solver": "dpmpp_2m", "convention": "implicit"}, "see Latent.defect"),
        ({"solver": "ddpm"}, "draws noise"),
        ({"sweeps": -1}, "sweeps must be a whole number"),
        ({"images": torch.zeros(1, 5)}, "must have shape"),
    ],
)
def test_what_has_no_estimate_is_refused_before_the_model_is_asked(arguments, message):
    def never(x_t, t):
        raise AssertionError("the model was called")

    model = ods.Model(never, ods.VP.linear(), data_shape=(2,))
    with pytest.raises(ValueError, match=message):
        ods.estimate_round_trip(model, **{"images": torch.zeros(2, 2), "num_steps": 5, **arguments})


def test_sweeps_may_be_a_whole_number_of_numpy_and_no_truth():
    how = (DIGITS, HELD.images[:1], "ddim", 2)
    assert torch.equal(*(ods.estimate_round_trip(*how, sweeps=n).error for n in (1, np.int64(1))))
    with pytest.raises(ValueError, match="sweeps must be a whole number"):
        ods.estimate_round_trip(*how, sweeps=True)
