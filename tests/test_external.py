"""Solvers of other libraries under our loops: right, inside the range, one sample at a time, and equal to ours."""

import pytest
import torch
from scipy.integrate import RK23, RK45

from odesampler.adaptive import Adaptive
from odesampler.combine import within
from odesampler.drive import Tally, run
from odesampler.exact import Gaussian, GaussianMixture
from odesampler.integrate import OnGrid, on_grid, solve
from odesampler.program import State
from odesampler.solvers import RK4, Bosh3, Dopri5, Euler, Heun, Midpoint, Scipy, Torchdiffeq
from odesampler.solvers.external import SCIPY_METHODS, torchdiffeq_methods
from tests.problems import HIGH, LOW, Spy, gaussian, geometric, mixture, noise, uniform

EVERY = [Torchdiffeq(m) for m in torchdiffeq_methods()] + [Scipy(m) for m in SCIPY_METHODS]
FIXED = [loop for loop in EVERY if loop.takes_steps]
ADAPTIVE = [loop for loop in EVERY if not loop.takes_steps]
ON_40_STEPS = {  # error reached on the Gaussian; adaptive methods: ten times their tolerance of 1e-5
    "euler": 3e-2,
    "midpoint": 1e-5,
    "heun2": 1e-3,
    "heun3": 5e-6,
    "rk4": 2e-7,
    "explicit_adams": 5e-4,
    "implicit_adams": 2e-6,
    "fixed_adams": 2e-6,
    "BDF": 3e-4,  # whose error control is known to be loose
}
every_method = pytest.mark.parametrize("loop", EVERY, ids=lambda loop: f"{type(loop).__name__}-{loop.method}")
every_adaptive_method = pytest.mark.parametrize(
    "loop", ADAPTIVE, ids=lambda loop: f"{type(loop).__name__}-{loop.method}"
)
few_steps_on_purpose = pytest.mark.filterwarnings("ignore:Functional iteration did not converge")  # torchdiffeq's Adams
both_directions = pytest.mark.parametrize(("first", "last"), [(HIGH, LOW), (LOW, HIGH)], ids=["falling", "rising"])


def solved(loop, x, sigmas, model, **options):
    return run(solve(loop, State(x), sigmas), model=model, **options)[0].state.x


def grid(first, last, n=40):
    return geometric(n) if first > last else geometric(n)[::-1]


def relative(got, want):
    return ((got - want).abs() / (1 + want.abs())).max().item()


def test_the_lists_of_methods_are_not_empty():
    assert {"dopri5", "dopri8", "bosh3", "euler", "midpoint", "rk4"} <= set(torchdiffeq_methods())
    assert len(FIXED) >= 5
    assert len(ADAPTIVE) >= 10


@every_method
@both_directions
def test_arrives_at_the_closed_form(loop, first, last):
    x = noise(3, scale=first)
    error = relative(solved(loop, x, grid(first, last), gaussian()), gaussian().trajectory(x, first, last))
    assert error < ON_40_STEPS.get(loop.method, 1e-4)
    assert error > 0, "too good to be a number"


@every_method
@both_directions
def test_float32_goes_in_is_asked_and_comes_out(loop, first, last):
    spy, x = Spy(gaussian()), noise(3, scale=first, dtype=torch.float32)
    got = solved(loop, x, grid(first, last), spy)
    assert (got.dtype, spy.dtypes) == (torch.float32, {torch.float32})
    tolerance = 10 * ON_40_STEPS.get(loop.method, 1e-4) + 1e-5  # rounding moves the steps, hence the errors
    assert relative(got, gaussian().trajectory(x, first, last)) < tolerance


@few_steps_on_purpose
@every_method
@pytest.mark.parametrize("last", [1e-2, 1.0], ids=["far", "near"])
@pytest.mark.parametrize("rising", [False, True], ids=["falling", "rising"])
def test_never_asks_outside_the_range(loop, last, rising):
    """torchdiffeq's dopri5 from 80 to 0.002 asks at sigma = -144, left to itself."""
    sigmas = geometric(10, 80.0, last)[:: -1 if rising else 1]
    spy = Spy(GaussianMixture.ring())
    program = solve(loop, State(noise(2, scale=sigmas[0])), sigmas)
    run(within(last, 80.0, repr(loop), program), model=spy)
    assert spy.asked_outside(last, 80.0) == []
    assert spy.calls > 10 - 1


@every_adaptive_method
@both_directions
def test_not_even_the_probe_for_a_first_step_leaves_the_range_where_eps_is_small_beside_x(loop, first, last):
    """It is as long as |x| / |eps| suggests, which far from the origin is longer than the range."""
    spy = Spy(Gaussian(torch.tensor([1000.0, 1000.0]), 0.5))
    solved(loop, 1000 + noise(2, scale=first), [first, last], spy)
    assert spy.asked_outside(LOW * (1 - 1e-6), HIGH * (1 + 1e-6)) == []


@every_method
def test_into_zero_it_takes_one_euler_step(loop):
    spy, x = Spy(gaussian()), noise(2)
    at_low = solved(loop, x, grid(HIGH, LOW), gaussian())
    want = at_low - LOW * gaussian().eps(at_low, LOW)
    torch.testing.assert_close(solved(loop, x, [*grid(HIGH, LOW), 0.0], spy), want, rtol=1e-12, atol=1e-12)
    assert min(spy.sigmas) == pytest.approx(LOW, rel=1e-6)


@few_steps_on_purpose
@every_method
def test_a_sample_is_the_same_alone_and_in_company(loop):
    x = noise(4, scale=10.0)
    problem = GaussianMixture(torch.tensor([[-3.0, 0.0], [3.0, 0.0]]), torch.tensor([1e-2, 1.0]))
    tally, sigmas = Tally(), geometric(20, 10.0, 0.05)
    together = solved(loop, x, sigmas, problem, tally=tally)
    for i in (0, 3):
        cost = Tally()
        alone = solved(loop, x[i : i + 1], sigmas, problem, tally=cost)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-8, atol=1e-8)
        if not loop.takes_steps:
            assert cost.nfe.item() == tally.nfe[i]


@every_adaptive_method
def test_samples_that_step_alone_share_their_model_calls(loop):
    spy, tally = Spy(mixture()), Tally()
    solved(loop, noise(5), [HIGH, LOW], spy, tally=tally)
    assert spy.rows[0] == 5
    assert sum(spy.rows) == tally.nfe.sum()
    assert spy.calls < tally.nfe.sum() / 3


@every_adaptive_method
def test_a_tighter_tolerance_costs_more_and_errs_less(loop):
    def outcome(tolerance):
        tally = Tally()
        sharp = type(loop)(loop.method, rtol=tolerance, atol=tolerance)
        got = solved(sharp, noise(1), [HIGH, LOW], gaussian(), tally=tally)
        return relative(got, gaussian().trajectory(noise(1), HIGH, LOW)), tally.nfe.item()

    (rough, cheap), (fine, dear) = outcome(1e-2), outcome(1e-5)
    assert fine < rough / 10
    assert cheap < dear


def test_three_implementations_of_dormand_and_prince_agree_to_the_tolerance():
    tolerance = 1e-8
    loops = [
        Adaptive(Dopri5(), tolerance, tolerance),
        Torchdiffeq("dopri5", tolerance, tolerance),
        Scipy("RK45", tolerance, tolerance),
    ]
    for first, last in ((HIGH, LOW), (LOW, HIGH)):
        ends = [solved(loop, noise(3, scale=first), [first, last], mixture()) for loop in loops]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert relative(ends[a], ends[b]) < 50 * tolerance


@pytest.mark.parametrize(("ours", "theirs"), [(Euler(), "euler"), (Midpoint(), "midpoint"), (Heun(), "heun2")], ids=str)
@pytest.mark.parametrize("make", [geometric, uniform], ids=["geometric", "uniform"])
@both_directions
def test_the_same_method_on_the_same_grid_gives_the_same_answer(ours, theirs, make, first, last):
    if theirs not in torchdiffeq_methods():
        pytest.skip(f"this torchdiffeq has no {theirs}")
    x, sigmas = noise(3, scale=first), make(12) if first > last else make(12)[::-1]
    mine, other = (solved(loop, x, sigmas, mixture()) for loop in (OnGrid(ours), Torchdiffeq(theirs)))
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_their_rk4_is_another_method_than_ours_as_the_docstring_says():
    mine, other = (solved(loop, noise(), geometric(6), mixture()) for loop in (OnGrid(RK4()), Torchdiffeq("rk4")))
    assert 1e-7 < (mine - other).abs().max() < 1e-1


@pytest.mark.parametrize(("solver", "pair"), [(Dopri5(), RK45), (Bosh3(), RK23)], ids=["Dopri5", "Bosh3"])
def test_one_step_has_the_stages_and_the_error_estimate_of_scipys_pair(solver, pair):
    x, h, stages = noise(), LOW - HIGH, []

    def eps(point, sigma):
        stages.append((sigma, mixture()(point, sigma)))
        return stages[-1][1]

    [state] = run(on_grid(solver, x, [HIGH, LOW]), model=eps)
    sigmas, ks = zip(*stages, strict=True)
    assert list(sigmas) == pytest.approx([*(HIGH + c * h for c in pair.C), LOW], rel=1e-14)
    k = torch.stack(ks)
    error = h * torch.einsum("i,i...->...", torch.from_numpy(pair.E), k)  # theirs is embedded - solution
    torch.testing.assert_close(state.error, -error, rtol=1e-11, atol=1e-14)
    solution = x + h * torch.einsum("i,i...->...", torch.from_numpy(pair.B), k[:-1])
    torch.testing.assert_close(state.x, solution, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("loop", [Torchdiffeq("rk4"), Torchdiffeq("midpoint")], ids=["rk4", "midpoint"])
def test_gradients_flow_through_the_fixed_methods_of_torchdiffeq(loop):
    x = noise(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda point: solved(loop, point, geometric(2), mixture()), x)


@pytest.mark.parametrize("loop", [Torchdiffeq("dopri5"), Scipy("RK45")], ids=["torchdiffeq", "scipy"])
def test_an_error_of_the_model_comes_out_of_the_other_library(loop):
    def broken(x, sigma):
        raise ZeroDivisionError("in the model")

    with pytest.raises(ZeroDivisionError, match="in the model"):
        solved(loop, noise(2), [HIGH, LOW], broken)


@pytest.mark.parametrize(("library", "message"), [(Torchdiffeq, "dopri5, bosh3"), (Scipy, "RK23, RK45, DOP853")])
def test_an_unknown_method_is_refused_with_the_known_ones(library, message):
    with pytest.raises(ValueError, match=message):
        library("tsit6")
