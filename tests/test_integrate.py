"""Loops over a fixed grid, and those who watch them."""

import math
from itertools import pairwise

import pytest
import torch

from odesampler.adaptive import Adaptive, adaptive
from odesampler.drive import Tally, run
from odesampler.integrate import BackAlong, OnGrid, back_along, on_grid, solve
from odesampler.observe import Progress, Recorder, tell_all
from odesampler.program import Solver, State
from odesampler.schedule import VP, RectifiedFlow
from odesampler.solvers import Dopri5, Euler, Heun, Reversible
from tests.problems import HIGH, LOW, gaussian, geometric, mixture, noise, start


@pytest.mark.parametrize("solver", [Euler(), Dopri5(), Reversible()], ids=repr)
def test_a_solve_goes_on_from_the_state_in_which_another_ended(solver):
    sigmas, first, second, whole = geometric(8), Tally(), Tally(), Tally()
    [halfway] = run(on_grid(solver, noise(), sigmas[:4]), model=mixture(), tally=first)
    [there] = run(on_grid(solver, halfway, sigmas[3:]), model=mixture(), tally=second)
    [straight] = run(on_grid(solver, noise(), sigmas), model=mixture(), tally=whole)
    assert torch.equal(there.x, straight.x)
    assert first.calls + second.calls == whole.calls, "what is in the state need not be asked again"


def test_back_along_is_told_of_the_sigmas_it_reaches_in_its_own_order():
    seen = []
    watch = lambda step, sigma, x, rows: seen.append((step, sigma))  # noqa: E731
    sigmas = geometric(4)
    [end] = run(on_grid(Reversible(), noise(), sigmas), model=mixture())
    run(back_along(Reversible(), end, sigmas[::-1], watch), model=mixture())
    assert seen == list(enumerate(sigmas[::-1][1:], 1))


def test_back_along_as_a_loop_undoes_the_loop_on_the_grid():
    grid = geometric(6)
    [there] = run(solve(OnGrid(Reversible()), State(noise()), grid), model=mixture())
    [back] = run(solve(BackAlong(Reversible()), there.state, grid[::-1]), model=mixture())
    assert (back.state.x - noise()).abs().max() < 1e-12


def test_a_loop_makes_the_first_memory_of_a_bare_point_and_takes_one_that_is_given():
    given = start(Dopri5(), noise(), HIGH, mixture())
    assert len(given.memory) == 1
    bare_cost, given_cost = Tally(), Tally()
    [bare] = run(OnGrid(Dopri5()).across(State(noise()), geometric(3)), model=mixture(), tally=bare_cost)
    [carried] = run(OnGrid(Dopri5()).across(given, geometric(3)), model=mixture(), tally=given_cost)
    assert torch.equal(bare.state.x, carried.state.x)
    assert bare_cost.calls == given_cost.calls + 1


def test_the_recorder_keeps_every_point_of_a_grid_in_the_scale_of_the_model():
    problem, schedule = gaussian(), VP.linear()
    sigmas, x = geometric(5), noise()
    recorder = Recorder(x, sigmas[0])
    run(on_grid(Heun(), x, sigmas, recorder), model=problem)
    trajectory = recorder.trajectory(schedule)
    assert trajectory.sigmas == tuple(sigmas)
    assert (len(trajectory), trajectory.x_t.shape) == (6, (6, 6, 2))
    for i, (s0, s1) in enumerate(pairwise(sigmas)):
        [one] = run(on_grid(Heun(), schedule.from_model_scale(trajectory.x_t[i], s0), [s0, s1]), model=problem)
        torch.testing.assert_close(trajectory.x_t[i + 1], schedule.to_model_scale(one.x, s1), rtol=1e-12, atol=1e-12)


def test_the_recorder_knows_both_ends_of_the_equation():
    x, sigmas, schedule = noise(scale=1.0), [math.inf, 2.0, 1.0, 0.0], RectifiedFlow()
    recorder = Recorder(x, sigmas[0])
    [done] = run(solve(OnGrid(Euler()), State(x), sigmas, recorder), model=gaussian().model(schedule, "flow"))
    trajectory = recorder.trajectory(schedule)
    assert trajectory.sigmas == tuple(sigmas)
    assert torch.equal(trajectory.x_t[0], x)
    assert torch.equal(trajectory.x_t[-1], done.state.x)


def test_observers_change_nothing_and_all_are_told():
    seen = [[], []]
    both = tell_all([lambda *told, to=to: to.append(told[:2]) for to in seen])
    [watched] = run(on_grid(Heun(), noise(), geometric(4), both), model=mixture())
    [alone] = run(on_grid(Heun(), noise(), geometric(4)), model=mixture())
    assert torch.equal(watched.x, alone.x)
    assert seen[0] == seen[1] == list(enumerate(geometric(4)[1:], 1))
    assert tell_all([]) is None


class Bar:
    """In place of tqdm."""

    def __init__(self, total, **options):
        self.total, self.n, self.closed = total, 0, False

    def update(self, by):
        assert by >= 0
        self.n += by

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    made = []
    monkeypatch.setattr("tqdm.auto.tqdm", lambda total, **options: made.append(Bar(total, **options)) or made[-1])
    return made


def test_the_bar_counts_steps_on_a_grid(bars):
    with Progress(5, show=True) as progress:
        run(on_grid(Euler(), noise(), geometric(5), progress), model=mixture())
    [bar] = bars
    assert (bar.n, bar.total, bar.closed) == (5, 5, True)


def test_the_bar_counts_samples_that_arrived_in_an_adaptive_solve(bars):
    counts = []
    with Progress(6, show=True, counts_samples=True) as progress:
        watch = tell_all([progress, lambda *told: counts.append(bars[0].n)])
        run(adaptive(Adaptive(Heun()), noise(), HIGH, LOW, watch), model=mixture())
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert bars[0].closed


def test_a_silent_bar_makes_none_and_an_error_closes_it(bars):
    with Progress(5, show=False) as progress:
        run(on_grid(Euler(), noise(), geometric(5), progress), model=mixture())
    assert bars == []
    with pytest.raises(ZeroDivisionError), Progress(5, show=True):
        raise ZeroDivisionError
    assert bars[0].closed


def test_a_step_that_forgets_to_ask_is_refused_where_it_is_defined():
    with pytest.raises(TypeError, match=r"Wrong\.step must be a program: ask for eps with"):

        class Wrong(Solver):
            def step(self, state, s0, s1):
                return state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reversible(Dopri5()), "without memory"),
        (lambda: Reversible(Reversible()), "without memory"),
        (lambda: Reversible(coupling=0.0), r"coupling must be in \(0, 1\]"),
        (lambda: Reversible(coupling=1.1), r"coupling must be in \(0, 1\]"),
    ],
)
def test_what_cannot_be_made_reversible_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_state_merges_only_with_states_of_as_much_memory():
    x = noise()
    with pytest.raises(ValueError, match="argument"):
        State.merge([State(x, (x,)), State(x)])
