"""The closed forms against their definitions: derivatives, densities, samples."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odesampler.exact import Empirical, Gaussian, GaussianMixture
from odesampler.prediction import PREDICTIONS
from odesampler.schedule import VE, VP, ContinuousVP, RectifiedFlow
from tests.problems import gaussian, mixture, noise, solved_by_scipy

sigmas = st.floats(0.01, 100)


def log_density(problem, x, sigma):
    """log p of data blurred by N(0, sigma^2), from the components one by one."""
    total = problem.variances + sigma**2
    away = (x.flatten(1)[:, None] - problem.means.flatten(1)).square().sum(-1)
    d = x[0].numel()
    return torch.logsumexp(problem.log_weights - away / total / 2 - d / 2 * (2 * math.pi * total).log(), 1)


PROBLEMS = {
    "mixture": mixture(),
    "gaussian": gaussian(),
    "ring": GaussianMixture.ring(),
    "images": GaussianMixture(torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)), 0.1),
    "data": Empirical(torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), 0.2),
    "points": Empirical(torch.randn(5, 2, generator=torch.Generator().manual_seed(1))),
}
FAMILIES = [VP.linear(), VE(), ContinuousVP(), RectifiedFlow(1000.0), VP.cosine().with_zero_snr()]
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())


@every_problem
@given(sigma=sigmas, seed=st.integers(0, 1000))
def test_eps_is_minus_sigma_times_the_score(problem, sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    spread = 2 + sigma
    x = (spread * torch.randn(3, *problem.shape, generator=generator, dtype=torch.float64)).requires_grad_()
    [score] = torch.autograd.grad(log_density(problem, x, sigma).sum(), x)
    torch.testing.assert_close(problem.eps(x, sigma), -sigma * score, rtol=1e-9, atol=1e-9)


@given(s0=sigmas, s1=sigmas, s2=sigmas)
def test_a_trajectory_of_the_gaussian_starts_where_it_is_and_goes_on_where_it_was(s0, s1, s2):
    problem, x = gaussian(), noise()
    torch.testing.assert_close(problem.trajectory(x, s0, s0), x, rtol=1e-14, atol=1e-14)
    halfway = problem.trajectory(x, s0, s1)
    torch.testing.assert_close(
        problem.trajectory(halfway, s1, s2), problem.trajectory(x, s0, s2), rtol=1e-11, atol=1e-11
    )


@given(sigma=sigmas)
def test_eps_of_the_gaussian_is_the_derivative_of_its_trajectory(sigma):
    problem, x, h = gaussian(), noise(), 1e-4 * sigma
    slope = (problem.trajectory(x, sigma, sigma + h) - problem.trajectory(x, sigma, sigma - h)) / (2 * h)
    torch.testing.assert_close(problem.eps(x, sigma), slope, rtol=1e-5, atol=1e-7)


def test_the_trajectory_of_the_gaussian_is_what_scipy_finds():
    problem, x = gaussian(0.1), noise(scale=5.0)
    torch.testing.assert_close(
        problem.trajectory(x, 5.0, 0.01), solved_by_scipy(problem, x, 5.0, 0.01), rtol=0, atol=1e-11
    )


def test_a_gaussian_keeps_its_variance_to_the_last_digit():
    assert Gaussian(torch.zeros(2), 0.1).variances.item() == 0.1
    assert GaussianMixture(torch.zeros(2, 3), torch.tensor([0.1, 0.2])).variances.dtype == torch.float64


@every_problem
def test_samples_are_repeatable_and_their_mean_is_that_of_the_data(problem):
    samples = problem.sample(4000, seed=3)
    assert (samples.shape, samples.dtype) == ((4000, *problem.shape), torch.float64)
    assert torch.equal(samples, problem.sample(4000, seed=3))
    assert not torch.equal(samples, problem.sample(4000, seed=4))
    mean = torch.einsum("k,k...->...", problem.log_weights.exp(), problem.means)
    error = samples.std(0) / 4000**0.5
    assert ((samples.mean(0) - mean) / error).abs().max() < 5


@every_problem
def test_one_sigma_for_all_is_one_sigma_for_each(problem):
    x = torch.randn(3, *problem.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = problem.eps(x, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    for i, sigma in enumerate([0.5, 1.0, 2.0]):
        torch.testing.assert_close(each[i : i + 1], problem.eps(x[i : i + 1], sigma), rtol=1e-12, atol=1e-12)
    assert problem.eps(x.float(), 0.5).dtype == torch.float32


def test_far_from_all_data_and_near_a_point_nothing_overflows():
    problem = Empirical(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert problem.eps(torch.full((1, 2), 1e6), 0.01).isfinite().all()
    near = problem.eps(torch.tensor([[1e-9, 0.0]], dtype=torch.float64), 1e-6)
    torch.testing.assert_close(near, torch.tensor([[1e-3, 0.0]], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_the_data_themselves_are_where_an_empirical_model_leads():
    data = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    problem, x = Empirical(data), noise(20, scale=1.0)
    denoised = x - 0.01 * problem.eps(x, 0.01)
    assert torch.cdist(denoised, data).min(1).values.max() < 1e-6


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", FAMILIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
def test_it_is_a_model_in_every_prediction_family_and_shape(prediction, schedule, shape):
    means = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    problem = GaussianMixture(means, 0.2)
    model = problem.model(schedule, prediction, sigma_max=60.0)
    assert model.data_shape == shape
    x = 3 * torch.randn(4, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sigma in (0.05, 1.0, 59.0):
        torch.testing.assert_close(model(x, sigma), problem.eps(x, sigma), rtol=0, atol=1e-8)


def test_its_weights_count():
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    one_sided = GaussianMixture(means, 0.1, torch.tensor([1e-9, 1.0]))
    alone = Gaussian(means[1], 0.1)
    x = noise(scale=1.0)
    torch.testing.assert_close(one_sided.eps(x, 2.0), alone.eps(x, 2.0), rtol=0, atol=1e-6)
    assert one_sided.log_weights.exp().sum().item() == pytest.approx(1, abs=1e-12)
