"""Frames, weights and the loop of the multistep family, against integrals, published formulas and loops by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from odesampler.drive import run
from odesampler.frames import VARIABLES, DataFrame, FlowFrame, NoiseFrame, VFrame
from odesampler.integrate import OnGrid, on_grid, solve
from odesampler.program import Course, State
from odesampler.solvers import RK4, Ancestral, Euler, Multistep, Reversible
from odesampler.solvers.weights import RULES, combined
from tests.problems import Spy, by_hand, gaussian, geometric, mixture, mixture_ends, noise, slope, start

FRAMES = [NoiseFrame(), DataFrame(), DataFrame(0.5), DataFrame(1.0), VFrame(), VFrame(0.5), FlowFrame(), FlowFrame(3.0)]
every_frame = pytest.mark.parametrize("frame", FRAMES, ids=repr)
U = VARIABLES["log_sigma"]


def integral(f, s0, s1):
    """By scipy, in log sigma, where what is integrated here is smooth."""
    found, _ = quad(lambda v: f(math.exp(v)) * math.exp(v), math.log(s0), math.log(s1), epsabs=0, epsrel=1e-13)
    return found


@every_frame
@pytest.mark.parametrize(("s0", "s1"), [(3.0, 1.0), (0.2, 0.9), (100.0, 0.01)])
def test_total_is_the_integral_of_the_density(frame, s0, s1):
    want = frame.scale(s1) * integral(frame.density, s0, s1)
    assert frame.total(s0, s1) == pytest.approx(want, rel=1e-10)
    assert frame.carried(s0, s1) == pytest.approx(frame.scale(s1) / frame.scale(s0), rel=1e-14)


@pytest.mark.parametrize("frame", [f for f in FRAMES if not getattr(f, "eta", 0)], ids=repr)
def test_a_frame_without_noise_keeps_the_exact_trajectory(frame):
    """dz / dsigma = density * g, by finite differences along a trajectory in closed form."""
    problem, x, sigma, h = gaussian(), noise(), 1.3, 1e-4
    before, after = (problem.trajectory(x, 3.0, s) / frame.scale(s) for s in (sigma - h, sigma + h))
    here = problem.trajectory(x, 3.0, sigma)
    g = frame.seen(problem(here, sigma), here, sigma)
    torch.testing.assert_close((after - before) / (2 * h), frame.density(sigma) * g, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_with_noise_a_step_keeps_the_variance_of_pure_noise(eta):
    """Where the image is known, x = denoised + sigma z stays of that law: carried^2 s0^2 + drawn^2 = s1^2."""
    frame = DataFrame(eta)
    s0, s1 = 2.0, 0.7
    assert (frame.carried(s0, s1) * s0) ** 2 + frame.drawn(s0, s1) ** 2 == pytest.approx(s1**2, rel=1e-14)
    assert frame.carried(s0, s1) + frame.total(s0, s1) == pytest.approx(1, rel=1e-14)


def test_the_frames_say_what_they_are_called():
    x, eps, sigma = noise(), noise(seed=1), 1.7
    denoised = x - sigma * eps
    said = [frame.seen(eps, x, sigma) for frame in (NoiseFrame(), DataFrame(), VFrame(), FlowFrame())]
    root = (1 + sigma**2) ** 0.5
    want = [eps, denoised, (eps - sigma * denoised) / root, denoised - eps]
    for got, one in zip(said, want, strict=True):
        torch.testing.assert_close(got, one)


@st.composite
def steps(draw):
    """(s0, s1, points): a step and sigmas already seen, on either side of which it may go."""
    ratios = draw(st.lists(st.floats(1.1, 3.0), min_size=5, max_size=5))
    sigmas = [draw(st.floats(0.02, 2.0))]
    for ratio in ratios:
        sigmas.append(sigmas[-1] * ratio)
    if draw(st.booleans()):
        sigmas.reverse()
    s0, s1 = sigmas[-2:]
    count = draw(st.integers(1, 4))
    known = sigmas[-2 : -2 - count : -1]
    return (s0, s1, [s1, *known]) if draw(st.booleans()) else (s0, s1, known)


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")  # the oracle at the end of its digits
@given(steps(), st.sampled_from(FRAMES), st.sampled_from(sorted(VARIABLES)), st.data())
def test_exact_weights_integrate_every_polynomial_through_their_points(step, frame, variable, data):
    s0, s1, points = step
    u = VARIABLES[variable]
    c = data.draw(st.lists(st.floats(-2, 2), min_size=len(points), max_size=len(points)))
    place, size = u(s0), abs(u(s1) - u(s0))  # or the monomials would be all alike

    def g(sigma):
        return np.polynomial.polynomial.polyval((u(sigma) - place) / size, c)

    weights = RULES["exact"](frame, u, s0, s1, points)
    want = frame.scale(s1) * integral(lambda sigma: frame.density(sigma) * g(sigma), s0, s1)
    terms = [w * g(p) for w, p in zip(weights, points, strict=True)]
    assert sum(terms) == pytest.approx(want, rel=1e-9, abs=1e-11 * (1 + max(map(abs, terms))))


@given(steps(), st.sampled_from([NoiseFrame(), DataFrame(), DataFrame(1.0)]), st.sampled_from(sorted(RULES)))
def test_the_weights_of_every_rule_add_up_to_the_whole(step, frame, rule):
    s0, s1, points = step
    weights = RULES[rule](frame, U, s0, s1, points)
    size = max(abs(w) for w in weights)
    assert sum(weights) == pytest.approx(frame.total(s0, s1), rel=1e-10, abs=1e-12 * size)


@given(steps(), st.sampled_from([NoiseFrame(), DataFrame()]), st.sampled_from(sorted(RULES)))
def test_weights_of_tensors_equal_those_of_numbers(step, frame, rule):
    s0, s1, points = step
    known = {s: torch.full((2, 1), s, dtype=torch.float64) for s in (s0, s1, *points)}  # as a state keeps them
    got = RULES[rule](frame, U, known[s0], known[s1], [known[p] for p in points])
    want = RULES[rule](frame, U, s0, s1, points)
    for a, b in zip(got, want, strict=True):
        value = torch.as_tensor(a, dtype=torch.float64).expand(2, 1)
        torch.testing.assert_close(value, torch.full((2, 1), float(b), dtype=torch.float64), rtol=1e-9, atol=1e-10)


S2, S1, S0, END = 2.1, 1.4, 1.0, 0.6  # sigmas of the formulas below, newest last
H, H0, H1 = math.log(S0 / END), math.log(S1 / S0), math.log(S2 / S1)  # steps in lambda = -log sigma


def close(got, want):
    assert [float(w) for w in got] == pytest.approx(want, rel=1e-12)


def test_dpm_with_two_points_is_the_published_formula():
    """DPM-Solver++, Algorithm 2, eq. 9 in the scale of x: (1 - e^-h) ((1 + 1 / 2r) D_0 - 1 / 2r D_1)."""
    r = H0 / H
    whole = 1 - math.exp(-H)
    close(RULES["dpm"](DataFrame(), U, S0, END, [S0, S1]), [whole * (1 + 0.5 / r), -whole * 0.5 / r])
    whole = END - S0
    close(RULES["dpm"](NoiseFrame(), U, S0, END, [S0, S1]), [whole * (1 + 0.5 / r), -whole * 0.5 / r])


def test_dpm_with_three_points_is_their_code_written_out():
    r0, r1 = H0 / H, H1 / H
    phi_1 = math.expm1(-H)
    phi_2, phi_3 = phi_1 / H + 1, (phi_1 + H) / H**2 - 0.5
    d0, d10, d11 = np.eye(3)[0], np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
    d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
    close(RULES["dpm"](DataFrame(), U, S0, END, [S0, S1, S2]), (-phi_1 * d0 + phi_2 * d1 - phi_3 * d2).tolist())


@pytest.mark.parametrize(("rule", "b"), [("bh1", -H), ("bh2", math.expm1(-H))])
def test_bh_is_the_published_formula(rule, b):
    """UniPC, Algorithms 1 and 2 with one difference, D / r, and its coefficient 1 / 2: B(h) is h, or e^h - 1."""
    whole = -math.expm1(-H)
    r = -H0 / H
    close(RULES[rule](DataFrame(), U, S0, END, [S0, S1]), [whole + b * 0.5 / r, -b * 0.5 / r])
    close(RULES[rule](DataFrame(), U, S0, END, [END, S0]), [-b * 0.5, whole + b * 0.5])  # the corrector, r = 1


def test_equal_gives_the_classical_weights():
    bashforth = RULES["equal"](NoiseFrame(), U, 1.0, 2.0, [1.0, 1.1, 1.2, 1.3])
    close(bashforth, [55 / 24, -59 / 24, 37 / 24, -9 / 24])
    end = 2.0
    moulton = RULES["equal"](NoiseFrame(), U, 1.0, end, [end, 1.0, 1.1, 1.2])
    close(moulton, [9 / 24, 19 / 24, -5 / 24, 1 / 24])


def test_two_points_in_sigma_are_adams_bashforth_with_variable_steps():
    """Hairer, Norsett, Wanner, III.5: h (1 + w / 2), -h w / 2 with w = h over the step before."""
    h, w = END - S0, (END - S0) / (S0 - S1)
    close(RULES["exact"](NoiseFrame(), VARIABLES["sigma"], S0, END, [S0, S1]), [h * (1 + w / 2), -h * w / 2])


@pytest.mark.parametrize("frame", [NoiseFrame(), VFrame(), FlowFrame()], ids=repr)
@pytest.mark.parametrize("variable", ["sigma", "phi", "flow"])
def test_exact_weights_into_zero(frame, variable):
    u, points = VARIABLES[variable], [0.3, 0.5, 0.9]

    def g(sigma):
        return 1 + u(sigma) - 2 * u(sigma) ** 2

    weights = RULES["exact"](frame, u, 0.3, 0.0, points)
    want, _ = quad(lambda sigma: frame.density(sigma) * g(sigma), 0.3, 0.0, epsabs=0, epsrel=1e-13)
    assert sum(w * g(p) for w, p in zip(weights, points, strict=True)) == pytest.approx(
        frame.scale(0.0) * want, rel=1e-11
    )


def solved(solver, x, sigmas, eps=None):
    return run(on_grid(solver, x, sigmas), model=eps or mixture())[0].x


def predicted_and_corrected(x, sigmas, eps, frame, u, p, c):
    """Predict, evaluate, correct: written out, with the weights of `exact`."""
    at, g, before = [], [], None

    def combined(weights, base, values):
        return base + sum(w * v for w, v in zip(weights, values, strict=False))

    for s0, s1 in pairwise(sigmas):
        g.insert(0, frame.seen(eps(x, s0), x, s0))
        at.insert(0, s0)
        if before is not None:
            weights = RULES["exact"](frame, u, at[1], s0, at[:c])
            x = combined(weights, frame.carried(at[1], s0) * before, g)
        before = x
        weights = RULES["exact"](frame, u, s0, s1, at[:p])
        x = combined(weights, frame.carried(s0, s1) * x, g)
    return x


@pytest.mark.parametrize(("p", "c"), [(1, 1), (1, 2), (2, 3), (3, 3), (4, 5), (3, 2)])
@pytest.mark.parametrize(("name", "frame"), [("data", DataFrame()), ("flow", FlowFrame()), ("v", VFrame())])
def test_a_corrector_equals_the_loop_written_out(name, frame, p, c):
    x, sigmas, eps = noise(), geometric(9), mixture()
    want = predicted_and_corrected(x, sigmas, eps, frame, U, p, c)
    torch.testing.assert_close(solved(Multistep(name, "log_sigma", p, c), x, sigmas), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (Multistep("noise", "log_sigma", 4, 0, starter=RK4()), 4),
        (Multistep("v", "phi", 4, 0, starter=RK4()), 4),
        (Multistep("v", "phi", 4, 5, starter=RK4()), 5),
        (Multistep("flow", "log_sigma", 4, 5, starter=RK4()), 5),
    ],
    ids=repr,
)
def test_a_starter_lets_it_reach_its_order(solver, order):
    high, low = mixture_ends()
    counts = [64, 128]
    errors = [(solved(solver, high, geometric(n)) - low).norm().item() for n in counts]
    assert solver.order == order
    assert slope(errors, counts) == pytest.approx(order, abs=0.35), errors


def test_without_a_starter_the_first_step_costs_the_order():
    high, low = mixture_ends()
    counts, bare = [64, 128], Multistep("noise", "log_sigma", 4, 0)
    errors = [(solved(bare, high, geometric(n)) - low).norm().item() for n in counts]
    assert bare.order == 2
    assert slope(errors, counts) == pytest.approx(2, abs=0.35), errors


def test_a_starter_takes_as_many_steps_as_the_formula_needs_and_no_more():
    solver, spy = Multistep("noise", "log_sigma", 4, 0, starter=RK4()), Spy(mixture())
    sigmas = geometric(6)
    first = solved(RK4(), noise(), sigmas[:4])
    torch.testing.assert_close(solved(solver, noise(), sigmas[:4]), first, rtol=0, atol=1e-13)
    solved(solver, noise(), sigmas, spy)
    assert spy.calls == solver.cost(6) == 3 * 4 + 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"frame": "image"}, "frame must be one of data, flow, noise, v; got 'image'"),
        ({"variable": "lambda"}, "variable must be one of .*log_sigma.*; got 'lambda'"),
        ({"rule": "bh3"}, "rule must be one of .*bh2.*; got 'bh3'"),
        ({"predictor": 0}, "predictor must be a whole number from 1 to 4; got 0"),
        ({"predictor": 2.5}, "predictor must be a whole number from 1 to 4; got 2.5"),
        ({"corrector": 6}, "corrector must be a whole number from 0 to 5; got 6"),
        ({"rule": "bh2"}, "the rule 'bh2' belongs to the frames"),
        ({"frame": "data", "variable": "sigma", "rule": "dpm"}, "the rule 'dpm' belongs to the frames"),
        ({"frame": "data", "variable": "sigma", "full_end": True}, "have no end at sigma = 0"),
        ({"variable": "t", "full_end": True}, "have no end at sigma = 0"),
        ({"eta": 0.5}, "noise is drawn in the frame \"data\" only; got eta=0.5 in 'flow'"),
        ({"frame": "data", "eta": -0.5}, "eta must be from 0"),
        ({"frame": "data", "eta": math.nan}, "eta must be from 0"),
        ({"frame": "data", "eta": 1e9}, "eta must be from 0"),
        ({"predictor": 2.0}, "predictor must be a whole number"),
        ({"corrector": True}, "corrector must be a whole number"),
        ({"frame": ["data"]}, "frame must be one of"),
        ({"frame": "v", "data_scale": math.inf}, "data_scale must be above 0 and finite"),
        ({"frame": "v", "data_scale": 0.0}, "data_scale must be above 0"),
        ({"starter": Ancestral()}, "starter needs a deterministic one-step solver"),
        ({"starter": Multistep(starter=RK4())}, "starter needs a deterministic one-step solver"),
        ({"starter": Multistep()}, "starter needs a deterministic one-step solver without memory"),
        ({"starter": Reversible(Euler())}, "starter needs a deterministic one-step solver without memory"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        Multistep(**arguments)


@pytest.mark.parametrize("corrector", [0, 3])
@pytest.mark.parametrize("frame", ["noise", "flow", "v"])
def test_a_full_end_takes_the_step_into_zero_by_the_formula(frame, corrector):
    """As the step to a sigma that is nearly 0, where the denoised image is still far away."""
    solver = Multistep(frame, "phi", 2, corrector, full_end=True)
    sigmas = geometric(9)
    [end] = run(solve(OnGrid(solver), State(noise()), [*sigmas, 0.0]), model=mixture())
    nearly = solved(solver, noise(), [*sigmas, 1e-9])
    torch.testing.assert_close(end.state.x, nearly, rtol=0, atol=1e-7)
    [plain] = run(solve(OnGrid(Multistep(frame, "phi", 2, corrector)), State(noise()), [*sigmas, 0.0]), model=mixture())
    assert (end.state.x - plain.state.x).abs().max() > 1e-4


@pytest.mark.parametrize("frame", ["noise", "data", "flow", "v"])
def test_into_zero_a_corrector_moves_the_denoised_image_by_what_is_carried_there(frame):
    """The answer at the predicted point is kept: x = denoised + scale(0) / scale(s0) (corrected - predicted)."""
    solver, eps, sigmas = Multistep(frame, "log_sigma", 2, 3), mixture(), geometric(7)
    state = start(solver, noise(), sigmas[0], eps)
    for s0, s1 in pairwise(sigmas):
        state = by_hand(solver.step(state, s0, s1), eps)
    low = sigmas[-1]
    chart = {"noise": NoiseFrame(), "data": DataFrame(), "flow": FlowFrame(), "v": VFrame()}[frame]
    u, g = U, state.memory
    seen = [chart.seen(eps(state.x, low), state.x, low), *g]
    at = [low, *state.sigmas]
    weights = RULES["exact"](chart, u, at[1], low, at[:3])
    predicted = RULES["exact"](chart, u, at[1], low, at[1:3])
    base = state.x - sum(w * v for w, v in zip(predicted, g, strict=False))  # what the last step carried
    corrected = base + sum(w * v for w, v in zip(weights, seen, strict=False))
    moved = chart.carried(low, 0.0) * (corrected - state.x)
    got = by_hand(solver.into_zero(state, low), eps)
    torch.testing.assert_close(got.x, state.x - low * eps(state.x, low) + moved, rtol=0, atol=1e-12)
    assert (corrected - state.x).abs().max() > 1e-6
    assert (frame == "data") == (moved.abs().max() == 0)


def test_the_variable_t_needs_a_clock():
    solver = Multistep("noise", "t", 2, 0)
    with pytest.raises(ValueError, match="needs the clock of a model"):
        solved(solver, noise(), geometric(3))


@pytest.mark.parametrize("corrector", [0, 3])
def test_the_variable_t_is_log_sigma_where_that_is_the_clock(corrector):
    sigmas = geometric(8)
    clocked = Multistep("flow", "t", 2, corrector).prepared(Course(torch.log, tuple(sigmas)))
    want = solved(Multistep("flow", "log_sigma", 2, corrector), noise(), sigmas)
    torch.testing.assert_close(solved(clocked, noise(), sigmas), want, rtol=0, atol=1e-13)
    other = Multistep("flow", "t", 2, corrector).prepared(Course(torch.sqrt, tuple(sigmas)))
    assert (solved(other, noise(), sigmas) - want).abs().max() > 1e-5


def test_the_variable_log1p_is_sigma_below_a_tenth_and_its_logarithm_above():
    u = VARIABLES["log1p"]
    assert u(0.1) == pytest.approx(math.log(2), rel=1e-12)
    assert u(1e-6) == pytest.approx(1e-5, rel=1e-4)
    assert u(1e4) - u(1e3) == pytest.approx(math.log(10), rel=1e-3)


@pytest.mark.parametrize(
    ("carried", "weights", "size"),
    [
        (0.4, [0.6], 1),
        (0.05, [0.95], 157),
        (3.0, [-2.5, 0.5], 157),
        (0.5, [1.5, -1.0], 157),
        (0.5, [-0.495, 0.995], 157),
        (3.0, [-2.997, 0.997], 157),
    ],
)
def test_a_sum_with_weights_that_sum_to_1_is_right_to_a_few_roundings(carried, weights, size):
    """However small the sums on the way to 1, below 0 and above 1."""
    x, *g = (noise(64, scale=size, seed=i) for i in range(len(weights) + 1))
    want = carried * x + sum(w * one for w, one in zip(weights, g, strict=True))
    for dtype in (torch.float32, torch.float64):
        got = combined(carried, x.to(dtype), weights, [one.to(dtype) for one in g])
        assert (got - want).abs().max() < 100 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("solver", [Multistep(), Multistep("data", predictor=2, corrector=0)], ids=repr)
@pytest.mark.parametrize(("of_x", "of_eps"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_eps_may_be_of_another_precision_than_x(solver, of_x, of_eps):
    """By hand, where no model takes care of that."""

    def end(of_x, of_eps):
        eps = lambda x, s: mixture().eps(x.double(), s).to(of_eps)  # noqa: E731
        return run(on_grid(solver, noise().to(of_x), [2.0, 1.0, 0.5, 0.2]), model=eps)[0].x.double()

    torch.testing.assert_close(end(of_x, of_eps), end(torch.float64, torch.float64), rtol=1e-5, atol=1e-5)
