"""Stochastic solvers: laws instead of trajectories.

On one Gaussian eps is affine in x, so a step maps x to a x + b + sum_i c_i z_i. The tests find a, b, c by stepping, and
follow mean and variance through a solve exactly: no sample is drawn.
"""

from dataclasses import dataclass, replace

import pytest
import torch

from odesampler.drive import Tally, run
from odesampler.exact import Gaussian
from odesampler.integrate import OnGrid, on_grid, solve
from odesampler.noise import Streams
from odesampler.program import Course, Draw, Solver, State
from odesampler.schedule import ContinuousVP
from odesampler.solvers import (
    RK4,
    Ancestral,
    Churn,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    Multistep,
    Reversible,
    StochasticMidpoint,
)
from tests.problems import DRAWING, HIGH, LOW, Spy, by_hand, geometric, mixture, noise, slope

MEAN, VARIANCE = 0.7, 0.5
PROBLEM = Gaussian(torch.tensor([MEAN], dtype=torch.float64), VARIANCE)


class OneDraw:
    """Answers the draw number `which` with ones, every other with zeros."""

    def __init__(self, which):
        self.which, self.draws = which, 0

    def draw(self, like, rows=None, span=None):
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

    def draw(self, like, rows=None, span=None):
        self.draws += 1
        return torch.zeros_like(like).index_fill_(0, torch.tensor([self.draws + 1]), 1.0)


def law_at_the_end(solver, sigmas):
    """Mean and variance at `sigmas[-1]` of what starts with the law of noisy data at `sigmas[0]`.

    On a Gaussian a whole solve is affine in its start and its draws: x1 = a x0 + b + sum_i c_i z_i.
    """
    problem, solver = PROBLEM, solver.prepared(Course(ContinuousVP().t, tuple(sigmas)))
    x = torch.zeros(2 * len(sigmas), 1, dtype=torch.float64)  # at most two draws a step
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
    order = solver.order + (isinstance(solver, Ancestral) and solver.base == Midpoint())  # more, on one Gaussian
    assert slope(errors, steps) == pytest.approx(order, abs=0.35), errors


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


@dataclass(frozen=True)
class MidpointInLog(Solver):
    """DPM-Solver-2: the midpoint rule with its middle in log sigma, which for eta = 1 is the end of the step."""

    order = 2
    evaluations = 2

    def step(self, state, s0, s1):
        middle = (s0 * s1) ** 0.5
        k0 = yield state.x, s0
        k1 = yield state.x + (middle - s0) * k0, middle
        return State(state.x + (s1 - s0) * k1)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_an_ancestral_solver_is_in_law_as_good_as_its_base(eta):
    steps = [100, 400]
    solver = Ancestral(eta=eta, base=MidpointInLog())
    errors = [abs(law_at_the_end(solver, geometric(n))[1] - VARIANCE - LOW**2) for n in steps]
    assert slope(errors, steps) == pytest.approx(2, abs=0.35), errors


def test_an_ancestral_step_asks_nowhere_below_its_end_not_even_by_rounding():
    spy, sigmas = Spy(mixture()), geometric(37)
    run(on_grid(Ancestral(base=MidpointInLog()), noise(), sigmas), model=spy, noise=Streams(range(6)))
    assert spy.asked_outside(LOW, HIGH) == []
    assert spy.calls == 74


@pytest.mark.parametrize("base", [Heun(), RK4()], ids=repr)
def test_a_base_that_would_ask_below_the_range_is_refused_by_ancestral(base):
    with pytest.raises(ValueError, match=r"must not ask there, as .* would"):
        Ancestral(base=base)


@pytest.mark.parametrize("wrapper", [Ancestral, Churn])
@pytest.mark.parametrize("base", [Ancestral(), Dopri5(), Multistep(), Multistep(variable="t"), Reversible()], ids=repr)
def test_a_base_with_memory_or_noise_of_its_own_is_refused(wrapper, base):
    with pytest.raises(ValueError, match="needs a deterministic one-step solver without memory"):
        wrapper(base=base)
    with pytest.raises(TypeError, match="takes a solver such as"):
        wrapper(base="heun")


def test_churn_of_0_is_its_base_to_the_last_bit():
    x, sigmas = noise(), (*geometric(5), 0.0)
    loop = OnGrid(Churn(s_churn=0.0)).prepared(Course(torch.log, sigmas))
    [a, b] = (run(solve(one, State(x), sigmas), model=mixture())[0].state.x for one in (loop, OnGrid(Heun())))
    assert torch.equal(a, b)


def churned_to(solver, sigmas):
    """Where the model is first asked in each step, the last of which goes into zero."""
    spy = Spy(mixture())
    loop = OnGrid(solver).prepared(Course(torch.log, tuple(sigmas)))
    run(solve(loop, State(noise(1)), sigmas), model=spy, noise=Streams([0]))
    return spy.sigmas


def test_churn_goes_up_by_a_share_that_depends_on_the_number_of_steps_but_never_above_the_top():
    sigmas = [3.0, 2.9, 2.0, 1.0, 0.5, 0.0]
    assert churned_to(Churn(Euler(), s_churn=0.5), sigmas) == pytest.approx([3.0, 3.0, 2.2, 1.1, 0.55])
    most = 2**0.5
    assert churned_to(Churn(Euler(), s_churn=99.0), sigmas) == pytest.approx([3, 3, 2 * most, most, 0.5 * most])
    limited = Churn(Euler(), s_churn=0.5, s_tmin=0.8, s_tmax=2.5)
    assert churned_to(limited, sigmas) == pytest.approx([3.0, 2.9, 2.2, 1.1, 0.5])


def test_churn_adds_what_makes_a_sample_one_at_the_larger_sigma():
    """The law of one data point, where the base is exact: variance s1^2 after the step, s_noise or not."""
    point = Gaussian(torch.tensor([MEAN], dtype=torch.float64), 0.0)
    solver = Churn(Euler(), s_churn=0.6, s_noise=1.0).prepared(Course(torch.log, (3.0, 2.0, 0.5)))
    a, _, (c,) = affine(solver, 2.0, 0.5, point)
    assert a**2 * 2.0**2 + c**2 == pytest.approx(0.5**2, rel=1e-12)
    _, _, (louder,) = affine(replace(solver, s_noise=1.1), 2.0, 0.5, point)
    assert louder == pytest.approx(1.1 * c, rel=1e-12)


def test_churn_that_was_told_no_grid_says_what_it_needs():
    with pytest.raises(ValueError, match="Churn needs the grid"):
        run(on_grid(Churn(), noise(), geometric(3)), model=mixture(), noise=Streams(range(6)))


@pytest.mark.parametrize("what", ["s_churn", "s_tmin", "s_tmax", "s_noise"])
def test_negative_churn_is_refused(what):
    with pytest.raises(ValueError, match=f"{what} must be from 0 to"):
        Churn(**{what: -0.1})


@pytest.mark.parametrize("eta", [0.0, -1.0, float("inf"), float("nan")])
def test_stochastic_midpoint_needs_noise(eta):
    with pytest.raises(ValueError, match="eta must be above 0"):
        StochasticMidpoint(eta)
