"""Predictions: four ways to say the same thing, in every family of models."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odesampler import prediction as predictions
from odesampler.drive import run
from odesampler.integrate import on_grid
from odesampler.model import Model
from odesampler.prediction import PREDICTIONS
from odesampler.schedule import VE, VP, ContinuousVP, RectifiedFlow
from odesampler.solvers import Heun
from tests.problems import Spy, gaussian, geometric, mixture, noise

SCHEDULES = {
    "table": VP.linear(),
    "zero SNR": VP.scaled_linear().with_zero_snr(),
    "continuous": ContinuousVP(),
    "edm": VE(),
    "flow": RectifiedFlow(1000.0),
}
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
numbers = st.lists(st.floats(-10, 10), min_size=4, max_size=4)


def row(values):
    return torch.tensor([values], dtype=torch.float64)


@every_prediction
@every_schedule
@given(denoised=numbers, eps=numbers, log_sigma=st.floats(math.log(0.02), math.log(50)))
def test_noise_and_image_are_found_again_in_what_a_network_puts_out(schedule, prediction, denoised, eps, log_sigma):
    x0, noise = row(denoised), row(eps)
    sigma = torch.tensor(math.exp(log_sigma), dtype=torch.float64)
    alpha, std = schedule.alpha(sigma).item(), schedule.std(sigma).item()
    x_t = alpha * x0 + std * noise
    out = predictions.from_eps(prediction, noise, x0, alpha, std)
    torch.testing.assert_close(predictions.to_eps(prediction, out, x_t, alpha, std), noise, rtol=0, atol=1e-11)
    torch.testing.assert_close(predictions.to_denoised(prediction, out, x_t, alpha, std), x0, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction", ["denoised", "v", "flow"])
@given(denoised=numbers, eps=numbers)
def test_they_are_found_where_alpha_is_0_too(prediction, denoised, eps):
    x0, noise = row(denoised), row(eps)
    out = predictions.from_eps(prediction, noise, x0, 0.0, 1.0)
    assert torch.equal(predictions.to_eps(prediction, out, noise, 0.0, 1.0), noise)
    torch.testing.assert_close(predictions.to_denoised(prediction, out, noise, 0.0, 1.0), x0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@given(denoised=numbers, eps=numbers)
def test_they_are_found_where_std_is_0_too(prediction, denoised, eps):
    x0, noise = row(denoised), row(eps)
    out = predictions.from_eps(prediction, noise, x0, 1.0, 0.0)
    torch.testing.assert_close(predictions.to_eps(prediction, out, x0, 1.0, 0.0), noise, rtol=0, atol=1e-14)
    torch.testing.assert_close(predictions.to_denoised(prediction, out, x0, 1.0, 0.0), x0, rtol=0, atol=1e-14)


def test_v_and_flow_are_what_their_papers_say():
    """v = alpha noise - std x0 (arXiv:2202.00512); the velocity of (1 - u) x0 + u noise is noise - x0."""
    x0, noise, u = row([1.0, -2.0]), row([0.5, 3.0]), 0.3
    assert torch.equal(predictions.from_eps("v", noise, x0, 0.8, 0.6), 0.8 * noise - 0.6 * x0)
    velocity = (((1 - u - 1e-6) * x0 + (u + 1e-6) * noise) - ((1 - u) * x0 + u * noise)) / 1e-6
    torch.testing.assert_close(predictions.from_eps("flow", noise, x0, 1 - u, u), velocity, rtol=0, atol=1e-8)


@every_schedule
@every_prediction
def test_every_family_and_prediction_follows_the_same_trajectory(schedule, prediction):
    problem, sigmas = mixture(), geometric(6)
    model = problem.model(schedule, prediction, sigma_max=50.0)
    [got] = run(on_grid(Heun(), noise(), sigmas), model=model)
    [want] = run(on_grid(Heun(), noise(), sigmas), model=problem)
    torch.testing.assert_close(got.x, want.x, rtol=0, atol=1e-9)


@every_schedule
@every_prediction
@given(sigma=st.floats(0.05, 50), seed=st.integers(0, 1000))
def test_the_model_answers_with_the_exact_noise_at_one_sigma_and_at_one_for_each_sample(
    schedule, prediction, sigma, seed
):
    problem, x = mixture(), noise(3, seed=seed)
    model = problem.model(schedule, prediction, sigma_max=50.0)
    torch.testing.assert_close(model(x, sigma), problem.eps(x, sigma), rtol=0, atol=1e-7)
    sigmas = torch.tensor([sigma, 0.05, 50.0], dtype=torch.float64)
    torch.testing.assert_close(model(x, sigmas), problem.eps(x, sigmas), rtol=0, atol=1e-7)


def test_an_unknown_prediction_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="one of eps, denoised, v, flow; got 'epsilon'"):
        gaussian().model(VP.linear(), "epsilon")


class Clocked:
    """A network that remembers the clock it was shown."""

    def __init__(self, network):
        self.network, self.seen = network, []

    def __call__(self, x_t, t, **cond):
        self.seen.append(t)
        return self.network(x_t, t)


def clocked(round_t):
    network = Clocked(mixture().model(VP.linear()).network)
    return network, Model(network, VP.linear(), round_t=round_t)


def sigma_at(t):
    return VP.linear().sigma(torch.tensor(t, dtype=torch.float64)).item()


@pytest.mark.parametrize(("round_t", "dtype"), [(True, torch.int64), (False, torch.float64)])
def test_at_whole_times_a_rounded_clock_changes_nothing_but_the_dtype_that_the_network_sees(round_t, dtype):
    network, model = clocked(round_t)
    x, times = noise(3), [10.0, 500.0, 999.0]
    for t in times:
        torch.testing.assert_close(model(x, sigma_at(t)), mixture().eps(x, sigma_at(t)), rtol=0, atol=1e-8)
    sigmas = torch.tensor([sigma_at(t) for t in times], dtype=torch.float64)
    torch.testing.assert_close(model(x, sigmas), mixture().eps(x, sigmas), rtol=0, atol=1e-8)
    assert [t.dtype for t in network.seen] == [dtype] * 4
    shown = torch.stack(network.seen).double()
    want = torch.tensor([[10] * 3, [500] * 3, [999] * 3, [10, 500, 999]]).double()
    torch.testing.assert_close(shown, want, rtol=0, atol=0 if round_t else 1e-9)


@pytest.mark.parametrize(("t", "nearest"), [(500.3, 500), (500.7, 501)])
def test_between_whole_times_a_rounded_clock_shows_the_nearest_one(t, nearest):
    x, sigma = noise(3), sigma_at(t)
    network, rounded = clocked(True)
    _, continuous = clocked(False)
    answer = rounded(x, sigma)
    assert network.seen[0].tolist() == [nearest] * 3
    x_t = VP.linear().to_model_scale(x, sigma)
    assert torch.equal(answer, network.network(x_t, torch.full((3,), nearest)))
    assert (answer - continuous(x, sigma)).abs().max() > 1e-5


def test_the_network_sees_its_own_dtype_and_the_state_keeps_its_own():
    network = Clocked(mixture().model(VP.linear()).network)
    seen = []
    model = Model(lambda x_t, t: (seen.append((x_t.dtype, t.dtype)), network(x_t, t))[1], VP.linear(), dtype=torch.half)
    answer = model(noise(3), 1.0)
    assert seen == [(torch.half, torch.float32)], "a clock in half precision could not tell 999 from 1000"
    assert answer.dtype == torch.float64
    assert Spy(model)(noise(3, dtype=torch.float32), 1.0).dtype == torch.float32
