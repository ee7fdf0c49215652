"""The two ends of the equation where no solver goes: sigma = infinity and sigma = 0."""

import math
from itertools import pairwise

import pytest
import torch

from odesampler.adaptive import Adaptive
from odesampler.drive import Tally, run
from odesampler.integrate import BackAlong, OnGrid, solve
from odesampler.model import Model
from odesampler.prediction import PREDICTIONS
from odesampler.program import Course, Solved, State
from odesampler.sampling import sample
from odesampler.schedule import VE, VP, RectifiedFlow
from odesampler.solvers import RK4, Dopri5, Euler, Heun, Multistep, Reversible
from tests.problems import BOTH_WAYS, DETERMINISTIC, Spy, gaussian, geometric, labelled, mixture, noise, slope

INF = math.inf
ENDLESS = {"flow": RectifiedFlow(1000.0), "zero SNR": VP.scaled_linear().with_zero_snr()}
every_schedule = pytest.mark.parametrize("schedule", ENDLESS.values(), ids=ENDLESS.keys())
every_prediction = pytest.mark.parametrize("prediction", ["denoised", "v", "flow"])


def solved_from(loop, start, sigmas, model, **options):
    return run(solve(loop, start, sigmas, **options), model=model)[0].state.x


def solved(loop, x, sigmas, model, **options):
    return solved_from(loop, State(x), sigmas, model, **options)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


@every_schedule
@every_prediction
def test_the_first_step_out_of_infinity_is_eulers_in_the_scale_of_the_model(schedule, prediction):
    """x_s = alpha_s x0 + std_s eps, from what the raw network says at its last time."""
    model, x_t, s = gaussian().model(schedule, prediction), noise(scale=1.0), 2.5
    out = model.network(x_t, schedule.t(number(INF)).expand(6))
    x0 = {"denoised": out, "v": -out, "flow": x_t - out}[prediction]  # at alpha = 0, std = 1
    by_hand = schedule.alpha(number(s)) * x0 + schedule.std(number(s)) * x_t
    ours = schedule.to_model_scale(solved(OnGrid(Heun()), x_t, [INF, s], model), s)
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-7)


@every_schedule
def test_two_steps_out_of_infinity_equal_a_flow_sampler_written_by_hand(schedule):
    """In the model's scale, u from 1 to 0: x_t += du (noise - x0). Euler is the same map in every chart."""
    problem, x_t = mixture(), noise(scale=1.0)
    sigmas = [INF, 3.0, 1.0, 0.3, 0.0]
    ours = solved(OnGrid(Euler()), x_t, sigmas, problem.model(schedule, "v"))
    flow = RectifiedFlow()
    network = problem.model(flow, "flow").network
    us = [flow.std(number(s)).item() if 0 < s < INF else float(s > 0) for s in sigmas]
    for u0, u1 in pairwise(us):
        x_t = x_t + (u1 - u0) * network(x_t, torch.full((6,), u0, dtype=torch.float64))
    torch.testing.assert_close(ours, x_t, rtol=0, atol=1e-7)


@every_schedule
@pytest.mark.parametrize("solver", [RK4(), Dopri5()], ids=repr)
def test_samples_from_infinity_have_the_law_of_the_data(schedule, solver):
    """The flow from N(0, 1) to N(m, v) is x = m + sqrt(v) noise; the first step misses it by v / (2 sigma^2)."""
    problem, x_t = gaussian(), noise(scale=1.0)
    want, low, firsts = problem.means + 0.5**0.5 * x_t, 1e-3, [5, 20, 80]
    model = problem.model(schedule, "v", sigma_min=low)
    grids = [[INF, *geometric(150, first, low), 0.0] for first in firsts]
    errors = [(solved(OnGrid(solver), x_t, grid, model) - want).norm().item() for grid in grids]
    assert slope(errors, firsts) == pytest.approx(2, abs=0.35), errors


@every_schedule
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=repr)
def test_every_solver_starts_at_infinity_and_arrives_where_the_flow_leads(schedule, solver):
    problem, x_t, low = gaussian(), noise(scale=1.0), 1e-2
    model = problem.model(schedule, "v", sigma_min=low)
    grid = (INF, *geometric(100, 40.0, low), 0.0)
    prepared = solver.prepared(Course(schedule.t, grid))
    end = solved(OnGrid(prepared), x_t, grid, model)
    want = problem.means + 0.5**0.5 * x_t
    assert (end - want).abs().max() < (0.3 if solver.order == 1 else 5e-3)


@every_schedule
@every_prediction
def test_the_model_answers_at_infinity_with_the_denoised_image(schedule, prediction):
    model = mixture().model(schedule, prediction)
    mean = (mixture().means * mixture().log_weights.exp()[:, None]).sum(0)
    torch.testing.assert_close(model(noise(), INF), mean.expand(6, 2), rtol=0, atol=1e-7)


@every_schedule
@every_prediction
def test_at_infinity_for_some_samples_only_each_is_answered_as_alone(schedule, prediction):
    model, x = mixture().model(schedule, prediction), noise()
    mixed = model(x, torch.tensor([INF, 1.0, INF, 0.5, 2.0, INF], dtype=torch.float64))
    for i, sigma in enumerate([INF, 1.0, INF, 0.5, 2.0, INF]):
        torch.testing.assert_close(mixed[i : i + 1], model(x[i : i + 1], sigma), rtol=0, atol=1e-12)


@every_schedule
def test_side_by_side_one_at_infinity_and_one_not_both_are_as_alone(schedule):
    model = mixture().model(schedule, "v")
    grids = [[INF, 3.0, 1.0, 0.0], [3.0, 1.0, 0.5], [0.5, 2.0, INF]]
    programs = [solve(OnGrid(Euler()), State(noise(seed=i)), grid) for i, grid in enumerate(grids)]
    for i, (together, grid) in enumerate(zip(run(*programs, model=model), grids, strict=True)):
        alone = solved(OnGrid(Euler()), noise(seed=i), grid, model)
        torch.testing.assert_close(together.state.x, alone, rtol=0, atol=1e-12)


@every_schedule
def test_into_infinity_is_the_reverse_of_the_step_out_of_it(schedule):
    problem, x = gaussian(), noise()
    model = problem.model(schedule, "v")
    into = solved(OnGrid(Heun()), x, [2.5, INF], model)
    torch.testing.assert_close(into, problem.eps(x, 2.5), rtol=0, atol=1e-7)
    far = 1e5
    there = solved(OnGrid(Heun()), problem.trajectory(x, 2.5, far), [far, INF], model)
    back = solved(OnGrid(Heun()), there, [INF, far], model)
    torch.testing.assert_close(back / far, problem.trajectory(x, 2.5, far) / far, rtol=0, atol=1e-7)
    assert (there - x).abs().max() > 0.1


@pytest.mark.parametrize("make", [RectifiedFlow, lambda: VP.linear().with_zero_snr()], ids=["flow", "zero SNR"])
def test_an_invertible_solver_comes_back_exactly_from_infinity_with_its_memory_and_not_without(make):
    model, grid = mixture().model(make(), "v"), [0.2, 1.0, 5.0, 20.0, INF]
    [there] = run(solve(OnGrid(Reversible()), State(noise()), grid), model=model)
    back = solved_from(BackAlong(Reversible()), there.state, grid[::-1], model)
    assert (back - noise()).abs().max() < 1e-10
    without = solved_from(BackAlong(Reversible()), State(there.state.x), grid[::-1], model)
    assert (without - noise()).abs().max() > 1e-4


@pytest.mark.parametrize("loop", [OnGrid(Heun()), Adaptive(Dopri5())], ids=["grid", "adaptive"])
def test_both_ends_in_one_solve_ask_at_infinity_once_and_at_zero_never(loop):
    spy = Spy(gaussian().model(RectifiedFlow(), "flow"))
    run(solve(loop, State(noise()), [INF, 20.0, 0.5, 0.01, 0.0]), model=spy)
    assert spy.sigmas.count(INF) == 6
    assert min(spy.sigmas) == 0.01
    assert set(spy.sigmas[:6]) == {INF}


def test_from_infinity_straight_to_zero_is_the_mean_of_the_data():
    tally = Tally()
    [done] = run(
        solve(OnGrid(Heun()), State(noise()), [INF, 0.0]), model=gaussian().model(RectifiedFlow(), "flow"), tally=tally
    )
    torch.testing.assert_close(done.state.x, gaussian().means.expand(6, 2), rtol=0, atol=1e-7)
    assert tally.calls == 1


def test_a_clamp_at_infinity_would_not_do():
    """Why infinity is infinity: with 10 Euler steps a start at sigma = 1000 moves samples by far more than rounding."""
    model, x_t = mixture().model(RectifiedFlow(), "flow"), noise(scale=1.0)
    us = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    inner = [u / (1 - u) for u in us]
    exact = solved(OnGrid(Euler()), x_t, [INF, *inner, 0.0], model)
    clamped = solved(OnGrid(Euler()), x_t * 1001, [1000.0, *inner, 0.0], model)
    assert (exact - clamped).abs().max() > 1e-3


@every_schedule
def test_an_eps_network_is_refused_at_infinity_and_taken_below(schedule):
    with pytest.raises(ValueError, match="an eps-network says nothing about the image at sigma = infinity"):
        gaussian().model(schedule, "eps")
    assert gaussian().model(schedule, "eps", sigma_max=100.0).range[1] == 100.0


# A corrector moves the point once more with the last answer, and `full_end` is another formula: test_multistep.
EULER_LAST = [s for s in BOTH_WAYS if not (isinstance(s, Multistep) and (s.corrector or s.full_end))]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("loop", [OnGrid(s) for s in EULER_LAST] + [Adaptive(Heun())], ids=repr)
def test_into_zero_is_one_euler_step_which_returns_the_denoised_image(loop, prediction):
    problem = mixture()
    model = problem.model(VE(), prediction)
    at_low = solved(loop, noise(), [3.0, 1.0, 0.5], model)
    want = at_low - 0.5 * problem.eps(at_low, 0.5)
    torch.testing.assert_close(solved(loop, noise(), [3.0, 1.0, 0.5, 0.0], model), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("last", [1.0, INF])
def test_a_solve_cannot_start_at_zero(last):
    tally = Tally()
    with pytest.raises(ValueError, match="encoded from sigma_min upward"):
        run(solve(OnGrid(Euler()), State(noise()), [0.0, 0.5, last]), model=mixture(), tally=tally)
    assert tally.calls == 0


def test_observers_count_the_steps_at_both_ends():
    seen = []
    watch = lambda step, sigma, x, rows: seen.append((step, sigma, rows))  # noqa: E731
    sigmas = [INF, 4.0, 2.0, 1.0, 0.0]
    last = solved(OnGrid(Heun()), noise(), sigmas, gaussian().model(RectifiedFlow(), "flow"), observe=watch)
    assert seen == [(i, s, None) for i, s in enumerate(sigmas) if i]
    assert last.isfinite().all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (0.1, 81.0), (0.1, INF)])
def test_a_range_that_the_schedule_does_not_cover_is_refused(low, high):
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max <= 80"):
        Model(lambda x, t: x, VE(), sigma_min=low, sigma_max=high)


def test_the_last_step_of_those_that_arrived_keeps_each_its_own_conditions():
    """One sample is given no steps enough to arrive; the conditions of the others must not move up into its row."""
    model = labelled()
    label = torch.tensor([0.0, 5.0, 1.0], dtype=torch.float64)
    loop = Adaptive(Heun(), rtol=1e-4, atol=1e-4)
    at_low = noise(3)

    class FirstStays(type(loop)):
        def across(self, state, sigmas, observe=None):
            yield state.x, sigmas[0]  # a program's first question is about its whole batch
            return Solved(state, torch.tensor([1, 0, 0]))

    [done] = run(solve(FirstStays(Heun()), State(at_low), [2.0, 0.5, 0.0]), model=model, cond={"label": label})
    want = at_low - 0.5 * model(at_low, 0.5, label=label)
    torch.testing.assert_close(done.state.x[1:], want[1:], rtol=0, atol=1e-12)
    assert torch.equal(done.state.x[0], at_low[0])


@every_schedule
def test_either_tolerance_tells_how_far_from_infinity_the_first_step_may_lead(schedule):
    model = gaussian().model(schedule, "v")
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    how = {"x": x, "solver": "dopri5", "state_dtype": torch.float64}
    fine = sample(model, rtol=1e-8, atol=1e-8, **how).x
    for tolerances in ({"rtol": 1e-4, "atol": 0.0}, {"rtol": 0.0, "atol": 1e-4}):
        torch.testing.assert_close(sample(model, **tolerances, **how).x, fine, rtol=0, atol=1e-3)
