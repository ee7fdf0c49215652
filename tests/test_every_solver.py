"""The contract of a solver, for every one that the package defines."""

from itertools import pairwise

import pytest
import torch

from odesampler.drive import Tally, run
from odesampler.integrate import OnGrid, back_along, on_grid, solve
from odesampler.noise import Streams
from odesampler.program import Course, Draw, Invertible, State, column
from odesampler.registry import SOLVERS as REGISTERED
from odesampler.solvers import RK4, Ancestral, Bosh3, Churn, Dopri5, Euler, FixedPoint, Heun, Multistep, Reversible
from tests.problems import (
    BOTH_WAYS,
    COURSE,
    DETERMINISTIC,
    HIGH,
    LOW,
    SOLVERS,
    SameNoise,
    Spy,
    by_hand,
    concrete_solvers,
    gaussian,
    geometric,
    mixture,
    mixture_ends,
    noise,
    slope,
    start,
    uniform,
)

STEPS = {1: [32, 64], 2: [64, 128], 3: [64, 128], 4: [32, 64], 5: [64, 128]}  # where the leading error term leads
EXACT_STEPS = {1: [64, 128], 2: [64, 128], 3: [64, 128], 4: [64, 128], 5: [64, 96]}
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
every_ode_solver = pytest.mark.parametrize("solver", DETERMINISTIC, ids=repr)
every_two_way_solver = pytest.mark.parametrize("solver", BOTH_WAYS, ids=repr)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def solved(solver, x, sigmas, eps=None, seeds=range(100, 200), **options):
    """The state at the end of a solve; sample i draws from stream i of `seeds`."""
    streams = Streams(list(seeds)[: len(x)])
    return run(on_grid(solver, x, sigmas), model=eps or mixture(), noise=streams, **options)[0]


def test_every_concrete_solver_has_a_name():
    named = [maker() for maker in REGISTERED.values()]
    assert {kind() for kind in concrete_solvers()} <= set(named)
    assert {kind(**arguments) for kind in concrete_solvers() for arguments in kind.names.values()} <= set(named)


def test_every_solver_equals_itself_and_cannot_be_changed():
    for kind in concrete_solvers():
        assert kind() == kind()
        with pytest.raises(AttributeError):
            kind().order = 7


@every_ode_solver
def test_converges_at_its_order_when_sigma_falls(solver):
    high, low = mixture_ends()
    errors = [(solved(solver, high, geometric(n)).x - low).norm().item() for n in STEPS[solver.order]]
    assert slope(errors, STEPS[solver.order]) == pytest.approx(solver.order, abs=0.35), errors


@every_two_way_solver
def test_converges_at_its_order_when_sigma_rises(solver):
    high, low = mixture_ends()
    errors = [(solved(solver, low, geometric(n)[::-1]).x - high).norm().item() for n in STEPS[solver.order]]
    assert slope(errors, STEPS[solver.order]) == pytest.approx(solver.order, abs=0.35), errors


@pytest.mark.parametrize("rising", [False, True], ids=["falling", "rising"])
@pytest.mark.parametrize("solver", [Euler(), Heun(), Bosh3(), RK4(), Dopri5()], ids=repr)
def test_converges_at_its_order_to_the_closed_form(solver, rising):
    problem, steps = gaussian(), EXACT_STEPS[solver.order]
    ends = {HIGH: noise(), LOW: problem.trajectory(noise(), HIGH, LOW)}
    first, last = (LOW, HIGH) if rising else (HIGH, LOW)
    grids = [uniform(n)[:: -1 if rising else 1] for n in steps]
    errors = [(solved(solver, ends[first], grid, problem).x - ends[last]).norm().item() for grid in grids]
    assert slope(errors, steps) == pytest.approx(solver.order, abs=0.35), errors


@every_two_way_solver
def test_goes_there_and_back_with_no_more_than_its_own_error(solver):
    high, low = mixture_ends()
    sigmas = geometric(64)
    there = solved(solver, high, sigmas)
    back = solved(solver, there.x, sigmas[::-1])
    stretch = ((0.2 + HIGH**2) / (0.2 + LOW**2)) ** 0.5  # of the narrowest component, on the way up
    down, up = (there.x - low).norm(), (solved(solver, low, sigmas[::-1]).x - high).norm()
    assert (back.x - high).norm() < 1.5 * (stretch * down + up)


@every_solver
def test_one_step_into_zero_returns_the_denoised_image(solver):
    x, eps = noise(), mixture()
    there = OnGrid(solver).prepared(Course(COURSE.clock, (1.5, 0.0)))
    [done] = run(solve(there, State(x), [1.5, 0.0]), model=eps)
    torch.testing.assert_close(done.state.x, x - 1.5 * eps(x, 1.5), rtol=0, atol=1e-14)


@every_solver
def test_a_grid_of_one_step_is_one_step(solver):
    x, eps = noise(), mixture()
    stepped = by_hand(solver.step(start(solver, x, 1.5, eps), 1.5, 0.7), eps, Streams(range(100, 106)))
    torch.testing.assert_close(solved(solver, x, [1.5, 0.7], eps).x, stepped.x, rtol=0, atol=1e-14)
    assert (stepped.x - x).abs().min() > 1e-3


@every_solver
@pytest.mark.parametrize(
    "sigmas", [geometric(7), [*geometric(7), 0.0], geometric(7)[::-1], [HIGH, 0.0]], ids=["down", "zero", "up", "one"]
)
def test_never_asks_at_zero_or_outside_the_range(solver, sigmas):
    if solver.stochastic and sigmas[0] < sigmas[-1]:
        with pytest.raises(ValueError, match=r"cannot go from sigma = 0\.2 up to"):
            run(solve(OnGrid(solver), State(noise()), sigmas), model=mixture())
        return
    spy = Spy(mixture())
    run(solve(OnGrid(solver), State(noise()), sigmas), model=spy, noise=Streams(range(6)))
    assert spy.calls > 0
    assert spy.asked_outside(min(s for s in sigmas if s), max(sigmas)) == []


@every_solver
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_takes_exactly_the_evaluations_it_promises(solver, num_steps):
    spy, tally = Spy(mixture()), Tally()
    solved(solver, noise(), geometric(num_steps), spy, tally=tally)
    promised = solver.cost(num_steps)
    assert spy.calls == tally.calls == promised
    assert tally.nfe.tolist() == [promised] * 6


@every_solver
def test_a_sample_does_not_depend_on_its_batch_mates(solver):
    x, sigmas = noise(), geometric(6)
    together = solved(solver, x, sigmas).x
    for i in (0, 3, 5):
        alone = solved(solver, x[i : i + 1], sigmas, seeds=[100 + i]).x
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


@every_solver
def test_side_by_side_with_all_others_it_is_as_alone(solver):
    x, sigmas = noise(), geometric(6)
    others = [on_grid(s, noise(seed=i), geometric(5)) for i, s in enumerate(SOLVERS) if s != solver]
    streams = Streams([*range(100, 106), *range(6 * len(others))])
    mine, *_ = run(on_grid(solver, x, sigmas), *others, model=mixture(), noise=streams)
    torch.testing.assert_close(mine.x, solved(solver, x, sigmas).x, rtol=1e-12, atol=1e-12)


@every_solver
@both_dtypes
def test_keeps_the_dtype_of_its_state(solver, dtype):
    spy = Spy(mixture())
    state = solved(solver, noise(dtype=dtype), geometric(3), spy)
    assert {state.x.dtype, *(m.dtype for m in state.memory if m.is_floating_point())} == spy.dtypes == {dtype}
    exact = solved(solver, noise(), geometric(3)).x
    torch.testing.assert_close(state.x.double(), exact, rtol=1e-4, atol=1e-4)


@every_solver
def test_never_reads_a_value_from_the_device(solver):
    """On the meta device tensors have no values: reading one raises, as it would wait on an accelerator."""
    devices = set()

    def unknown(x, sigma):
        devices.add(x.device.type)
        return torch.empty_like(x)

    x = torch.empty(4, 3, device="meta")
    end = by_hand(solve(OnGrid(solver), State(x), [*geometric(3), 0.0]), unknown, SameNoise())
    assert end.state.x.device.type == "meta"
    assert devices == {"meta"}


def test_every_solver_but_the_one_in_whole_numbers_can_be_differentiated():
    assert {type(s) for s in SOLVERS if not s.differentiable} == {FixedPoint}


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.differentiable], ids=repr)
def test_its_gradient_equals_finite_differences(solver):
    x = noise(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda point: solved(solver, point, geometric(2)).x, x)


@every_solver
def test_stepping_by_hand_equals_the_loop(solver):
    x, sigmas, eps = noise(), geometric(5), mixture()
    streams = Streams(range(100, 106))
    state = start(solver, x, sigmas[0], eps)
    for s0, s1 in pairwise(sigmas):
        state = by_hand(solver.step(state, s0, s1), eps, streams)
    assert torch.equal(state.x, solved(solver, x, sigmas, eps).x)


@every_solver
def test_a_step_may_begin_and_end_at_a_sigma_for_each_sample(solver):
    x, eps = noise(), mixture()
    s0 = torch.linspace(1.0, 2.5, 6, dtype=torch.float64)[:, None]
    s1 = s0 * 0.8
    state = by_hand(solver.step(by_hand(solver.init(x, s0), eps), s0, s1), eps, SameNoise())
    for i, (a, b) in enumerate(zip(s0.flatten().tolist(), s1.flatten().tolist(), strict=True)):
        alone = by_hand(solver.step(start(solver, x[i : i + 1], a, eps), a, b), eps, SameNoise())
        torch.testing.assert_close(state.x[i : i + 1], alone.x, rtol=1e-12, atol=1e-12)


@every_solver
def test_rows_may_be_selected_and_merged_in_the_middle_of_a_solve(solver):
    x, sigmas, eps = noise(), geometric(6), mixture()

    def advance(state, part):
        for s0, s1 in pairwise(part):
            state = by_hand(solver.step(state, s0, s1), eps, SameNoise())
        return state

    halfway = advance(start(solver, x, sigmas[0], eps), sigmas[:4])
    parts = [halfway.select(torch.tensor(rows)) for rows in ([4, 0], [5], [2, 1, 3])]
    shuffled = advance(State.merge(parts), sigmas[3:])
    straight = advance(halfway, sigmas[3:])
    for a, b in zip([shuffled.x, *shuffled.memory], [straight.x, *straight.memory], strict=True):
        torch.testing.assert_close(a, b[[4, 0, 5, 2, 1, 3]], rtol=1e-12, atol=1e-12)


@every_solver
def test_where_keeps_each_sample_whole(solver):
    x, eps = noise(), mixture()
    accept = torch.tensor([True, False] * 3)[:, None]
    before = start(solver, x, HIGH, eps)
    for s0, s1 in pairwise(geometric(8)[:7]):  # by then a multistep method remembers as much as it ever will
        before = by_hand(solver.step(before, s0, s1), eps, SameNoise())
    after = by_hand(solver.step(before, *geometric(8)[6:8]), eps, SameNoise())
    mixed = after.where(accept, before)
    olds = [before.x, *before.memory, *(column(s, x) for s in before.sigmas)]
    news = [after.x, *after.memory, *(column(s, x) for s in after.sigmas)]
    gots = [mixed.x, *mixed.memory, *(column(s, x) for s in mixed.sigmas)]
    for got, new, old in zip(gots, news, olds, strict=True):
        assert torch.equal(got[::2], new[::2])
        assert torch.equal(got[1::2], old[1::2])


@pytest.mark.parametrize("solver", [s for s in DETERMINISTIC if s.error_order is not None], ids=repr)
def test_its_error_estimate_is_the_local_error_of_a_method_of_the_stated_order(solver):
    high, _ = mixture_ends()
    sizes = [8, 16, 32]
    estimates, embedded = [], []
    for n in sizes:
        s1 = HIGH * (LOW / HIGH) ** (1 / n)
        state = solved(solver, high, [HIGH, s1])
        exact = solved(Dopri5(), high, geometric(8, HIGH, s1))
        estimates.append(state.error.norm().item())
        embedded.append((state.x - state.error - exact.x).norm().item())
    assert slope(estimates, sizes) == pytest.approx(solver.error_order + 1, abs=0.35), estimates
    assert slope(embedded, sizes) == pytest.approx(solver.error_order + 1, abs=0.35), embedded


def test_the_error_estimate_of_heun_is_its_distance_from_euler():
    heun, euler = (solved(s, noise(), [HIGH, LOW]) for s in (Heun(), Euler()))
    torch.testing.assert_close(heun.error, heun.x - euler.x, rtol=1e-12, atol=1e-12)


@every_solver
def test_it_estimates_an_error_if_and_only_if_it_says_so(solver):
    state = solved(solver, noise(), geometric(2))
    assert (state.error is not None) == (solver.error_order is not None)


@every_solver
def test_it_draws_noise_only_if_it_says_so(solver):
    asked = []

    class Listening(SameNoise):
        def draw(self, like, rows=None, span=None):
            asked.append(Draw(like, rows, span))
            return super().draw(like, rows)

    run(on_grid(solver, noise(), geometric(2)), model=mixture(), noise=Listening())
    assert solver.stochastic or not asked


@pytest.mark.parametrize("solver", [s for s in SOLVERS if isinstance(s, Invertible)], ids=repr)
@pytest.mark.parametrize("rising", [False, True], ids=["falling", "rising"])
def test_an_invertible_solver_undoes_its_steps_exactly_at_no_higher_cost(solver, rising):
    high, low = mixture_ends()
    x, sigmas = (low, geometric(20)[::-1]) if rising else (high, geometric(20))
    there, tally = Tally(), Tally()
    end = solved(solver, x, sigmas, tally=there)
    [back] = run(back_along(solver, end, sigmas[::-1]), model=mixture(), tally=tally)
    assert (back.x - x).abs().max() < (1e-11 if solver.differentiable else 1e-10)  # whole numbers have a spacing
    assert 0 < there.calls - tally.calls + 1 <= 1 + solver.start_evaluations
    [without] = run(back_along(solver, end.x, sigmas[::-1]), model=mixture())
    assert (without.x - x).abs().max() > 1e-9, "its memory is not what makes it exact"


@pytest.mark.parametrize("wrap", [Reversible, Churn, lambda base: Multistep(starter=base)], ids=["r", "c", "m"])
@pytest.mark.parametrize("base", [Multistep(), Ancestral(), Bosh3(), Reversible()], ids=repr)
def test_a_wrapper_refuses_a_base_that_remembers_or_draws_noise(wrap, base):
    with pytest.raises(ValueError, match="needs a deterministic one-step solver without memory"):
        wrap(base)
