"""The adaptive loop: each sample takes its own steps, meets its own tolerance, and minds no other."""

import math
from itertools import pairwise

import pytest
import torch

from odesampler.adaptive import Adaptive, Status, _Clock, adaptive
from odesampler.coordinates import COORDINATES, coordinate
from odesampler.drive import Tally, run
from odesampler.exact import Gaussian, GaussianMixture
from odesampler.integrate import on_grid, solve
from odesampler.noise import Streams
from odesampler.program import Draw, Request, Solver, State, column
from odesampler.registry import find_solver, spec_of
from odesampler.solvers import Bosh3, Dopri5, Euler, Heun, Singlestep
from odesampler.trial import reads_sigma
from tests.problems import DETERMINISTIC, HIGH, LOW, Spy, gaussian, mixture, noise

ADAPTIVE = [s for s in DETERMINISTIC if s.error_order is not None]
every_adaptive_solver = pytest.mark.parametrize("solver", ADAPTIVE, ids=repr)
both_directions = pytest.mark.parametrize(("first", "last"), [(HIGH, LOW), (LOW, HIGH)], ids=["falling", "rising"])
TOLERANCES = {1: 1e-3, 2: 1e-6, 4: 1e-8}  # that each order of an estimate reaches at a reasonable cost


def crossed(control, x, first, last, model, **options):
    """(x, status, tally) at the end of an adaptive solve."""
    tally = Tally()
    [solved] = run(adaptive(control, x, first, last), model=model, tally=tally, **options)
    return solved.state.x, solved.status, tally


def control(solver, tolerance=None, **options):
    tolerance = TOLERANCES[solver.error_order] if tolerance is None else tolerance
    return Adaptive(solver, rtol=tolerance, atol=tolerance, **options)


def stiff_and_soft(batch):
    """Narrow components near some samples and wide ones near others: their steps differ by far."""
    means = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    problem = GaussianMixture(means, torch.tensor([1e-4, 1.0, 0.05]))
    return problem, noise(batch, scale=20.0)


@every_adaptive_solver
@both_directions
@pytest.mark.parametrize("loosened", [1, 10, 100])
def test_every_sample_meets_its_tolerance(solver, first, last, loosened):
    problem, x = gaussian(), noise(16, scale=first)
    tolerance = loosened * TOLERANCES[solver.error_order]
    got, status, _ = crossed(control(solver, tolerance), x, first, last, problem)
    want = problem.trajectory(x, first, last)
    errors = ((got - want) / (1 + want.abs())).square().mean(1).sqrt()
    assert status.tolist() == [Status.ARRIVED] * 16
    assert errors.max() < 10 * tolerance, "local errors add up, but not to ten tolerances here"
    assert errors.max() > 1e-3 * tolerance, "much too good: it takes more steps than it needs"


@every_adaptive_solver
def test_one_sample_is_the_same_alone_and_among_63_others(solver):
    problem, x = stiff_and_soft(64)
    together, _, tally = crossed(control(solver, 1e-4), x, 20.0, 0.01, problem)
    assert tally.nfe.max() > 1.5 * tally.nfe.min(), "the batch is not mixed enough to show anything"
    for i in (0, 17, int(tally.nfe.argmin()), int(tally.nfe.argmax())):
        alone, _, cost = crossed(control(solver, 1e-4), x[i : i + 1], 20.0, 0.01, problem)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-9, atol=1e-9)
        assert cost.nfe.item() == tally.nfe[i], "it took other steps"


@every_adaptive_solver
def test_the_start_is_asked_about_once(solver):
    """To find the first step: a step that begins there has the answer."""
    x, at_start = noise(8, scale=20.0), []

    def eps(x, sigma):
        at_start.append(isinstance(sigma, torch.Tensor) and bool((sigma == 20.0).any()))
        return mixture().eps(x, sigma)

    crossed(control(solver, 1e-2), x, 20.0, 1.0, eps)
    assert sum(at_start) == 1


@every_adaptive_solver
def test_asks_only_for_samples_under_way(solver):
    problem, x = stiff_and_soft(64)
    spy = Spy(problem)
    _, _, tally = crossed(control(solver, 1e-4), x, 20.0, 0.01, spy)
    assert sum(spy.rows) == tally.nfe.sum() < spy.calls * 64
    assert spy.rows == sorted(spy.rows, reverse=True)
    assert spy.rows[-1] < 64


@every_adaptive_solver
def test_conditions_follow_their_samples(solver):
    problem, x = stiff_and_soft(12)
    label = torch.linspace(0, 0.3, 12, dtype=torch.float64)

    def guided(x, sigma, label):
        return problem.eps(x, sigma) * (1 + label[:, None])

    together, _, _ = crossed(control(solver, 1e-4), x, 20.0, 0.01, guided, cond={"label": label})
    for i in range(12):
        alone, _, _ = crossed(control(solver, 1e-4), x[i : i + 1], 20.0, 0.01, guided, cond={"label": label[i : i + 1]})
        torch.testing.assert_close(together[i], alone[0], rtol=1e-9, atol=1e-9)


@every_adaptive_solver
@both_directions
def test_never_asks_outside_the_range(solver, first, last):
    spy, once, x = Spy(mixture()), Spy(mixture()), noise(scale=first)
    [solved] = run(solve(control(solver, 1e-4), State(x), [first, last]), model=spy)
    run(on_grid(solver, x, [first, last]), model=once)
    assert spy.asked_outside(LOW, HIGH) == []
    ends = {first, last} & set(once.sigmas)  # not the last, of a solver without a stage at the end of its step
    assert {first, last} & set(spy.sigmas) == ends, "it reaches both ends exactly"
    assert solved.status.tolist() == [Status.ARRIVED] * 6


@every_adaptive_solver
@both_directions
def test_not_even_the_probe_for_a_first_step_leaves_the_range_where_eps_is_small_beside_x(solver, first, last):
    spy = Spy(Gaussian(torch.tensor([1000.0, 1000.0]), 0.5))
    crossed(control(solver, 1e-4), 1000 + noise(2, scale=first), first, last, spy)
    assert spy.asked_outside(LOW, HIGH) == []


@every_adaptive_solver
def test_into_zero_it_stops_at_the_last_sigma_and_takes_one_euler_step(solver):
    spy, x, problem = Spy(gaussian()), noise(), gaussian()
    [solved] = run(solve(control(solver), State(x), [HIGH, LOW, 0.0]), model=spy)
    there = problem.trajectory(x, HIGH, LOW)
    want = there - LOW * problem.eps(there, LOW)
    assert min(spy.sigmas) == LOW
    torch.testing.assert_close(solved.state.x, want, rtol=0, atol=30 * TOLERANCES[solver.error_order])


@every_adaptive_solver
def test_float32_goes_in_and_out(solver):
    spy = Spy(gaussian())
    x = noise(dtype=torch.float32)
    got, status, _ = crossed(control(solver, 1e-4), x, HIGH, LOW, spy)
    assert (spy.dtypes, got.dtype) == ({torch.float32}, torch.float32)
    assert status.tolist() == [Status.ARRIVED] * 6
    torch.testing.assert_close(got, gaussian().trajectory(x, HIGH, LOW), rtol=0, atol=1e-3)


def test_a_sample_at_its_step_limit_says_so_and_the_others_arrive():
    problem, x = stiff_and_soft(32)
    _, _, free = crossed(control(Bosh3(), 1e-6), x, 20.0, 0.01, problem)
    limit = int(free.nfe.double().median() / 3)  # three evaluations a step
    limited, status, tally = crossed(control(Bosh3(), 1e-6, max_steps=limit), x, 20.0, 0.01, problem)
    arrived = status == Status.ARRIVED
    assert set(status.tolist()) == {Status.ARRIVED, Status.STEP_LIMIT}
    assert torch.equal(arrived, free.nfe <= tally.nfe.max())
    whole, _, _ = crossed(control(Bosh3(), 1e-6), x, 20.0, 0.01, problem)
    assert torch.equal(limited[arrived], whole[arrived])
    assert (limited[~arrived] - whole[~arrived]).abs().max(1).values.min() > 1e-6, "returned where they got to"


def test_a_sample_that_needs_steps_below_its_floor_says_so_and_the_others_arrive():
    broken = torch.tensor([0, 0, 1, 0, 0, 0])

    def singular(x, sigma, broken):  # at sigma = 1 for the broken sample, which can so never get across
        level = sigma[:, None] if isinstance(sigma, torch.Tensor) else sigma
        return torch.where(broken[:, None] > 0, (1 - level) ** -3.0, gaussian().eps(x, sigma))

    got, status, tally = crossed(control(Dopri5(), 1e-6), noise(), HIGH, LOW, singular, cond={"broken": broken})
    assert status.tolist() == [0, 0, Status.FLOOR, 0, 0, 0]
    want = gaussian().trajectory(noise(), HIGH, LOW)
    fine = broken == 0
    torch.testing.assert_close(got[fine], want[fine], rtol=0, atol=1e-5)
    assert tally.nfe[2] < 10_000


def test_a_model_that_answers_nan_is_named_with_its_sigma():
    def broken_below_1(x, sigma):
        level = sigma[:, None] if isinstance(sigma, torch.Tensor) else torch.tensor(sigma)
        return torch.where(level < 1, math.nan, gaussian().eps(x, sigma))

    with pytest.raises(FloatingPointError, match=r"NaN or infinity at a sigma in \[(0|1)\.\d+, ") as raised:
        crossed(control(Bosh3()), noise(), HIGH, LOW, broken_below_1)
    assert float(str(raised.value).split("[")[1].split(",")[0]) < 1


@pytest.mark.parametrize("tolerances", [(-1e-3, 1e-3), (1e-3, -1e-3), (0.0, 0.0), (math.nan, 1e-3), (math.inf, 0.0)])
def test_tolerances_that_cannot_be_met_are_refused(tolerances):
    with pytest.raises(ValueError, match="rtol and atol must be finite, 0 or more, not both 0"):
        Adaptive(Dopri5(), *tolerances)


@pytest.mark.parametrize(("rtol", "atol"), [(1e-5, 0.0), (0.0, 1e-5)])
def test_either_tolerance_may_be_zero_even_for_pixels_of_exactly_zero(rtol, atol):
    x = noise()
    x[0], x[1, 0] = 0, 0
    got, status, _ = crossed(Adaptive(Dopri5(), rtol, atol), x, HIGH, LOW, gaussian())
    assert status.tolist() == [Status.ARRIVED] * 6
    torch.testing.assert_close(got, gaussian().trajectory(x, HIGH, LOW), rtol=0, atol=1e-3)


class Doubtful(Solver):
    """Euler's method that claims an error of 10^4 times its step squared."""

    order = evaluations = error_order = 1

    def step(self, state, s0, s1):
        k0 = yield state.x, s0
        return State(state.x + (s1 - s0) * k0, error=1e4 * (s1 - s0) ** 2 * torch.ones_like(state.x))


@both_directions
@pytest.mark.parametrize(
    ("given", "clock"), [({"coordinate": "sigma"}, float), ({}, lambda sigma: math.asinh(sigma / 0.1))]
)
def test_a_step_is_accepted_only_if_its_estimated_error_is_within_the_tolerance(given, clock, first, last):
    reached = [first]
    watch = lambda step, sigma, x, rows: reached.append(sigma.item())  # noqa: E731
    run(adaptive(Adaptive(Doubtful(), rtol=0.0, atol=1.0, **given), noise(1), first, last, watch), model=gaussian())
    sizes = [abs(clock(b) - clock(a)) for a, b in pairwise(reached)]
    assert sizes[0] == 0, "the first step, much too long, was not rejected"
    assert 0.005 < max(sizes) <= 0.01 * (1 + 1e-9)
    assert reached[-1] == last


def test_a_solver_without_an_error_estimate_is_refused():
    with pytest.raises(ValueError, match=r"Euler estimates no error"):
        Adaptive(Euler())


def test_a_step_limit_below_1_is_refused():
    with pytest.raises(ValueError, match="max_steps must be 1 or more"):
        Adaptive(Dopri5(), max_steps=0)


def test_a_tighter_tolerance_costs_more_and_errs_less():
    problem, x = gaussian(), noise(8)
    want, costs, errors = problem.trajectory(x, HIGH, LOW), [], []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        got, _, tally = crossed(control(Dopri5(), tolerance), x, HIGH, LOW, problem)
        costs.append(tally.nfe.sum().item())
        errors.append((got - want).abs().max().item())
    assert costs == sorted(costs)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5 * errors[0]


def test_observers_are_told_which_samples_are_under_way_and_where():
    seen = []
    problem, x = stiff_and_soft(8)
    watch = lambda step, sigma, at, rows: seen.append((step, sigma.flatten(), at, rows))  # noqa: E731
    [solved] = run(adaptive(control(Heun()), x, 20.0, 0.01, watch), model=problem)
    assert [step for step, *_ in seen] == list(range(1, len(seen) + 1))
    for i in range(8):
        last = [(sigma[rows == i], at[rows == i]) for _, sigma, at, rows in seen if i in rows][-1]
        assert last[0].item() == 0.01
        assert torch.equal(last[1][0], solved.state.x[i])


@every_adaptive_solver
def test_gradients_flow_through_a_solve_whose_steps_depend_on_where_it_starts(solver):
    x = noise(3).requires_grad_()
    got, _, _ = crossed(control(solver, 1e-4), x, HIGH, LOW, gaussian())
    [gradient] = torch.autograd.grad(got.sum(), x)
    growth = ((0.5 + LOW**2) / (0.5 + HIGH**2)) ** 0.5
    torch.testing.assert_close(gradient, torch.full_like(x, growth), rtol=1e-2, atol=0)


def test_gradients_are_numbers_where_a_step_errs_by_nothing_at_all():
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    got, _, _ = crossed(control(Heun(), 1e-4, coordinate="sigma"), x, HIGH, LOW, lambda x, sigma: 0 * x)
    [gradient] = torch.autograd.grad(got.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


@both_directions
@pytest.mark.parametrize("name", COORDINATES)
@pytest.mark.parametrize("solver", [Dopri5(), Singlestep()], ids=repr)
def test_in_every_coordinate_it_arrives_inside_the_range_at_the_same_place(solver, name, first, last):
    spy, x = Spy(gaussian()), noise(8, scale=first)
    got, status, _ = crossed(control(solver, 1e-6, coordinate=name), x, first, last, spy)
    assert status.tolist() == [Status.ARRIVED] * 8
    assert spy.asked_outside(LOW, HIGH) == []
    torch.testing.assert_close(got, gaussian().trajectory(x, first, last), rtol=1e-4, atol=1e-4)


def test_half_the_evaluations_of_steps_in_x_and_sigma():
    """At an equal error of the worst sample, from sigma = 80 to 0.002."""
    problem, x = stiff_and_soft(16)[0], noise(16, scale=80.0)
    want, _, _ = crossed(control(Dopri5(), 1e-10), x, 80.0, 0.002, problem)

    def rows(name, worst):
        for tolerance in (10 ** (-k / 2) for k in range(2, 20)):
            got, _, tally = crossed(control(Dopri5(), tolerance, coordinate=name), x, 80.0, 0.002, problem)
            if (got - want).square().mean(1).sqrt().max() < worst:
                return int(tally.nfe.sum())
        raise AssertionError("no tolerance was tight enough")

    for worst in (1e-2, 1e-3):
        assert rows("angle_asinh", worst) < 0.6 * rows("sigma", worst)


def test_a_solver_made_for_sigma_itself_takes_its_steps_there():
    """Its middle stage lies in the middle in log sigma, whatever the clock."""
    solver, seen = find_solver("dpm_solver_2"), []

    def eps(x, sigma):
        seen.append(sigma if isinstance(sigma, float) else sigma.flatten()[0].item())
        return gaussian().eps(x, sigma)

    crossed(control(solver, 1e-2), noise(1), HIGH, LOW, eps)
    s0, probe, middle, s1 = seen[:4]  # the start, which is asked about once; Hairer's probe
    assert s0 > probe
    assert middle == pytest.approx((s0 * s1) ** 0.5)


class Demanding(Solver):
    """Heun's method with `demands` on what a step is given."""

    order, evaluations, error_order = 2, 2, 1

    def __init__(self, demands):
        self.demands = demands

    def step(self, state, s0, s1):
        assert self.demands(state.x, s0)
        h = s1 - s0
        k0 = yield state.x, s0
        k1 = yield state.x + h * k0, s1
        return State(state.x + h / 2 * (k0 + k1), error=h / 2 * (k1 - k0))


@pytest.mark.parametrize(
    "demands",
    [lambda x, s: x.shape[1:] == (2,), lambda x, s: s.ndim == x.ndim, lambda x, s: (s >= 4).all()],
    ids=["shape", "tensor", "range"],
)
def test_a_solver_that_cannot_be_tried_takes_its_steps_in_sigma(demands):
    """There it is given what it asks for; the start is at 20, where in the clock it would be at 6."""
    x = noise(4, scale=20.0)
    got, status, _ = crossed(control(Demanding(demands), 1e-4), x, 20.0, 5.0, gaussian())
    assert status.tolist() == [Status.ARRIVED] * 4
    torch.testing.assert_close(got, gaussian().trajectory(x, 20.0, 5.0), rtol=1e-3, atol=1e-3)


class LikeDPMSolverPP2M(Solver):
    """Its first step is Euler's; only the later ones tell that it goes by log sigma."""

    order, evaluations, error_order = 2, 1, 1

    def step(self, state, s0, s1):
        k0 = yield state.x, s0
        denoised, h = state.x - s0 * k0, torch.log(torch.as_tensor(s0 / s1))
        before, h_before = state.memory or (denoised, torch.ones_like(denoised))
        guess = denoised + h / (2 * h_before) * (denoised - before)
        kept = (denoised, h * torch.ones_like(denoised))
        return State(s1 / s0 * state.x + (1 - s1 / s0) * guess, kept, error=guess - denoised)


class ErrorInUnitsOfSigma(Solver):
    order, evaluations, error_order = 1, 1, 1

    def step(self, state, s0, s1):
        k0 = yield state.x, s0
        return State(state.x + (s1 - s0) * k0, error=(s1 - s0) ** 2 * k0 / s0)


@pytest.mark.parametrize("solver", [LikeDPMSolverPP2M(), ErrorInUnitsOfSigma()], ids=lambda s: type(s).__name__)
def test_what_only_later_steps_or_only_errors_read_from_sigma_is_found_out(solver):
    assert reads_sigma(solver)


@pytest.mark.parametrize("solver", [Euler(), Heun(), Bosh3(), Dopri5()], ids=repr)
def test_methods_for_any_equation_read_differences_only(solver):
    assert not reads_sigma(solver)


class Diffusing(Solver):
    """Euler's method, and noise of the size of the step."""

    order, evaluations, error_order, stochastic = 1, 2, 1, True

    def step(self, state, s0, s1):
        h = s1 - s0
        k0 = yield state.x, s0
        k1 = yield state.x + h * k0, s1
        z = yield Draw(state.x)
        return State(state.x + h * k0 + 1e-3 * h.abs() * z, error=h / 2 * (k1 - k0))


def test_a_solver_that_draws_noise_takes_its_steps_in_sigma():
    x = noise(4)
    got, status, _ = crossed(control(Diffusing(), 1e-2), x, HIGH, LOW, gaussian(), noise=Streams([0, 1, 2, 3]))
    assert status.tolist() == [Status.ARRIVED] * 4
    torch.testing.assert_close(got, gaussian().trajectory(x, HIGH, LOW), rtol=0, atol=0.3)


class AsksAboutOne(Solver):
    """Heun's method for the first sample, Euler's for the others."""

    order, evaluations, error_order = 1, 2, 1

    def step(self, state, s0, s1):
        h, one = s1 - s0, torch.arange(1)
        k0 = yield state.x, s0
        k1 = yield Request((state.x + h * k0)[one], column(s1, state.x)[one], one)
        slope = torch.cat([(k0[:1] + k1) / 2, k0[1:]])
        return State(state.x + h * slope, error=h * (slope - k0))


def test_a_solver_may_ask_about_some_samples_only():
    spy = Spy(gaussian())
    assert not reads_sigma(AsksAboutOne()), "it is stepped in the coordinate"
    _, status, tally = crossed(control(AsksAboutOne(), 1e-2), noise(3), HIGH, LOW, spy)
    assert status.tolist() == [Status.ARRIVED] * 3
    assert sum(spy.rows) == tally.nfe.sum()
    assert spy.rows.count(1) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinate": "log"}, "coordinate must be one of .*; got 'log'"),
        ({"coordinate": ["angle"]}, r"coordinate must be one of .*; got \['angle'\]"),
        ({"delta": 0}, "delta must be above 0 and finite; got 0"),
        ({"delta": "0.1"}, "delta must be above 0 and finite; got '0.1'"),
        ({"delta": None}, "delta must be above 0 and finite; got None"),
    ],
)
def test_what_is_no_coordinate_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(Dopri5(), **given)


def test_its_name_says_the_coordinate():
    loop = find_solver("adaptive:bosh3(rtol=0.01, coordinate='angle', delta=0.3)")
    assert loop == Adaptive(Bosh3(), rtol=0.01, coordinate="angle", delta=0.3)
    assert find_solver(spec_of(loop)) == loop
    assert spec_of(Adaptive(Bosh3())) == "adaptive:bosh3"


@pytest.mark.parametrize("name", COORDINATES)
def test_no_rounding_of_the_clock_leads_outside_the_range(name):
    """Just before either end, in float32, where a model must not be asked beyond it."""
    for low, high in ((LOW, HIGH), (0.002, 80.0), (0.0292, 157.4), (1e-5, 999.0)):
        for start, stop in ((high, low), (low, high)):
            clock = _Clock(coordinate(name, 0.1), start, stop)
            ends = torch.tensor([clock.first, clock.last])
            just_inside = torch.nextafter(ends, ends.flip(0))
            sigma = clock.sigma(torch.cat([ends, just_inside, torch.nextafter(just_inside, ends.flip(0))]))
            assert torch.tensor(low) <= sigma.min()
            assert sigma.max() <= torch.tensor(high)
            assert sigma[1] == torch.tensor(stop)
