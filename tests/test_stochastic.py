"""Stochastic solvers: laws instead of trajectories.

On one Gaussian eps is affine in x, so a step maps x to a x + b + sum_i c_i z_i. The tests find a, b, c by stepping, and
follow mean and variance through a solve exactly: no sample is drawn.
"""

import pytest
import torch

from odesampler.drive import Tally, run
from odesampler.exact import Gaussian
from odesampler.integrate import OnGrid, on_grid, solve
from odesampler.noise import Streams
from odesampler.program import Draw, State
from odesampler.solvers import Ancestral, Euler
from tests.problems import DRAWING, HIGH, LOW, by_hand, geometric, mixture, noise, slope

MEAN, VARIANCE = 0.7, 0.5
PROBLEM = Gaussian(torch.tensor([MEAN], dtype=torch.float64), VARIANCE)


class OneDraw:
    """Answers the draw number `which` with ones, every other with zeros."""

    def __init__(self, which):
        self.which, self.draws = which, 0

    def draw(self, like, rows=None):
        self.draws += 1
        return torch.full_like(like, float(self.draws - 1 == self.which))


def affine(solver, s0, s1, problem=PROBLEM):
    """(a, b, [c_i]) of one step."""

    def stepped(x, which=-1):
        streams = OneDraw(which)
        state = State(torch.tensor([[x]], dtype=torch.float64))
        return by_hand(solver.step(state, s0, s1), problem, streams).x.item(), streams.draws

    b, draws = stepped(0.0)
    return stepped(1.0)[0] - b, b, [stepped(0.0, i)[0] - b for i in range(draws)]


class OneDrawARow:
    """In place of streams: row i + 2 gets 1 at the i-th draw and 0 at all others, rows 0 and 1 never anything."""

    def __init__(self):
        self.draws = 0

    def draw(self, like, rows=None):
        self.draws += 1
        return torch.zeros_like(like).index_fill_(0, torch.tensor([self.draws + 1]), 1.0)


def law_at_the_end(solver, sigmas):
    """Mean and variance at `sigmas[-1]` of what starts with the law of noisy data at `sigmas[0]`.

    On a Gaussian a whole solve is affine in its start and its draws: x1 = a x0 + b + sum_i c_i z_i.
    """
    problem = Gaussian(torch.tensor([MEAN], dtype=torch.float64), VARIANCE)
    x = torch.zeros(len(sigmas) + 1, 1, dtype=torch.float64)
    x[1] = 1.0
    b, a, *c = by_hand(on_grid(solver, x, sigmas), problem, OneDrawARow()).x.flatten().tolist()
    a, c = a - b, [ci - b for ci in c]
    return a * MEAN + b, a**2 * (VARIANCE + sigmas[0] ** 2) + sum(ci**2 for ci in c)


def test_some_solver_draws_noise():
    assert DRAWING


@pytest.mark.parametrize("solver", DRAWING, ids=repr)
def test_the_law_of_samples_converges_to_that_of_the_data_at_the_stated_order(solver):
    steps = [400, 1600]
    variances = [law_at_the_end(solver, geometric(n))[1] for n in steps]
    errors = [abs(v - VARIANCE - LOW**2) for v in variances]
    assert errors[-1] < 0.05 * VARIANCE
    assert slope(errors, steps) == pytest.approx(solver.order, abs=0.35), errors


@pytest.mark.parametrize("solver", DRAWING, ids=repr)
def test_the_mean_of_samples_is_that_of_the_data(solver):
    assert law_at_the_end(solver, geometric(50))[0] == pytest.approx(MEAN, abs=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_eta_keeps_the_law_of_a_single_data_point_exactly(eta):
    a, _, c = affine(Ancestral(eta=eta), 2.0, 0.5, Gaussian(torch.tensor([MEAN], dtype=torch.float64), 0.0))
    assert a**2 * 2.0**2 + sum(ci**2 for ci in c) == pytest.approx(0.5**2, rel=1e-12)


def test_eta_1_draws_from_the_posterior_that_bayes_gives():
    """x1 ~ N(x0, s1^2) seen through x = x1 + N(0, s0^2 - s1^2)."""
    s0, s1 = 2.0, 0.5
    precision = 1 / s1**2 + 1 / (s0**2 - s1**2)
    a, b, (c,) = affine(Ancestral(eta=1.0), s0, s1, Gaussian(torch.tensor([MEAN], dtype=torch.float64), 0.0))
    assert c**2 == pytest.approx(1 / precision, rel=1e-12)
    assert a == pytest.approx(1 / (s0**2 - s1**2) / precision, rel=1e-12)
    assert b == pytest.approx(MEAN / s1**2 / precision, rel=1e-12)


def test_sigma_hat_draws_noise_of_variance_beta_in_the_scale_of_the_model():
    s0, s1 = 2.0, 0.5
    alpha_bar0, alpha_bar1 = 1 / (1 + s0**2), 1 / (1 + s1**2)
    _, _, (c,) = affine(Ancestral(sigma_hat=True), s0, s1)
    assert alpha_bar1 * c**2 == pytest.approx(1 - alpha_bar0 / alpha_bar1, rel=1e-12)
    assert affine(Ancestral(sigma_hat=True), s0, s1)[:2] == affine(Ancestral(), s0, s1)[:2]


def test_eta_0_is_euler():
    [drawn, euler] = run(*(on_grid(s, noise(), geometric(9)) for s in (Ancestral(eta=0.0), Euler())), model=mixture())
    torch.testing.assert_close(drawn.x, euler.x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("solver", [*DRAWING, Ancestral(eta=0.0)], ids=repr)
def test_a_rising_grid_is_refused_before_any_evaluation(solver):
    tally = Tally()
    with pytest.raises(ValueError, match=r"cannot go from sigma = 0\.2 up to"):
        run(solve(OnGrid(solver), State(noise()), geometric(5)[::-1]), model=mixture(), tally=tally)
    assert tally.calls == 0


@pytest.mark.parametrize("solver", DRAWING, ids=repr)
def test_drawing_without_streams_is_refused(solver):
    with pytest.raises(ValueError, match="no streams were given"):
        run(on_grid(solver, noise(), geometric(5)), model=mixture())


def test_other_noise_gives_another_sample_and_the_same_noise_the_same():
    def sampled(seeds):
        return run(on_grid(Ancestral(), noise(), geometric(5)), model=mixture(), noise=Streams(seeds))[0].x

    first, again, other = sampled(range(6)), sampled(range(6)), sampled([0, 1, 2, 3, 4, 99])
    assert torch.equal(first, again)
    assert torch.equal(first[:5], other[:5])
    assert (first[5] - other[5]).norm() > 1e-3


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match="eta must be from 0"):
        Ancestral(eta=eta)


def test_noise_is_asked_for_in_the_shape_and_dtype_of_the_state():
    step = Ancestral().step(State(noise(dtype=torch.float32)), HIGH, LOW)
    step.send(None)
    asked = step.send(torch.zeros(6, 2))
    assert isinstance(asked, Draw)
    assert (asked.like.shape, asked.like.dtype) == ((6, 2), torch.float32)
