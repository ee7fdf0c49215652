"""Single-step exponential solvers: the published formulas, what is integrated exactly, diffusers' scheduler."""

import math
from itertools import pairwise

import pytest
import torch

import odesampler as ods
from odesampler.adaptive import Adaptive
from odesampler.drive import Tally, run
from odesampler.integrate import on_grid
from odesampler.program import State
from odesampler.registry import find_solver, loop_for, solvers, spec_of
from odesampler.solvers import Euler, Singlestep
from tests.problems import HIGH, LOW, Spy, by_hand, geometric, mixture, mixture_ends, noise

FRAMES = ["noise", "data", "v", "flow"]
every_frame = pytest.mark.parametrize("frame", FRAMES)


def stepped(solver, x, s0, s1, eps):
    return by_hand(solver.step(State(x), s0, s1), eps)


def published(frame, fractions, s0, s1, x):
    """DPM-Solver-2, -3 and DPM-Solver++ 2S, 3S as in the papers, for alpha = 1: x_t = x, lambda = -log sigma."""
    eps, h = mixture(), math.log(s0 / s1)

    def asked(u, r):
        s = s0 * math.exp(-r * h)
        return eps(u, s) if frame == "noise" else u - s * eps(u, s)

    def first_order(r, g):
        s, grown = s0 * math.exp(-r * h), math.expm1(r * h)
        return x - s * grown * g if frame == "noise" else s / s0 * x - math.expm1(-r * h) * g

    def phi(r):  # the factor of the slope that is integrated exactly, over a step of r
        if frame == "noise":
            return -s0 * math.exp(-r * h) * (math.expm1(r * h) / (r * h) - 1)
        return math.expm1(-r * h) / (r * h) + 1

    g0 = asked(x, 0)
    r1 = fractions[0]
    g1 = asked(first_order(r1, g0), r1)
    if len(fractions) == 1:
        return first_order(1, g0 + (g1 - g0) / (2 * r1))
    r2 = fractions[1]
    g2 = asked(first_order(r2, g0) + r2 / r1 * phi(r2) * (g1 - g0), r2)
    return first_order(1, g0) + phi(1) / r2 * (g2 - g0)


@pytest.mark.parametrize("frame", ["noise", "data"])
@pytest.mark.parametrize("fractions", [(1 / 2,), (0.3,), (1 / 3, 2 / 3), (0.25, 0.8)], ids=str)
@pytest.mark.parametrize(("s0", "s1"), [(HIGH, 1.0), (LOW, 0.7)], ids=["falling", "rising"])
def test_it_is_the_published_formula(frame, fractions, s0, s1):
    got = stepped(Singlestep(frame, fractions, "dpm"), noise(), s0, s1, mixture()).x
    torch.testing.assert_close(got, published(frame, fractions, s0, s1, noise()), rtol=1e-12, atol=1e-12)


def test_dpm_2_of_k_diffusion_is_the_midpoint_rule_with_the_middle_in_log_sigma():
    x, eps, solver = noise(), mixture(), find_solver("dpm_2")
    middle = math.sqrt(HIGH * LOW)
    want = x + (LOW - HIGH) * eps(x + (middle - HIGH) * eps(x, HIGH), middle)
    torch.testing.assert_close(stepped(solver, x, HIGH, LOW, eps).x, want, rtol=1e-12, atol=1e-12)
    assert solver == find_solver("dpm_solver_2")


@pytest.mark.parametrize(
    ("solver", "degree"),
    [
        (Singlestep("noise", (0.3,)), 1),
        (Singlestep("noise", (1.0,)), 1),
        (Singlestep("noise", (0.2, 0.7), "dpm"), 1),
        (Singlestep("noise", (0.2, 0.7)), 2),
    ],
    ids=repr,
)
def test_an_eps_that_is_a_polynomial_in_log_sigma_is_integrated_exactly(solver, degree):
    """Up to the stated degree, and no further, or the test would show nothing."""
    integral = [  # of log(sigma)^n
        lambda s: s * math.log(s) - s,
        lambda s: s * (math.log(s) ** 2 - 2 * math.log(s) + 2),
        lambda s: s * (math.log(s) ** 3 - 3 * math.log(s) ** 2 + 6 * math.log(s) - 6),
    ]
    x = noise()
    off = []
    for n, antiderivative in enumerate(integral, start=1):
        x1 = stepped(solver, x, HIGH, LOW, lambda x, sigma, n=n: torch.full_like(x, math.log(sigma) ** n)).x
        off.append((x1 - x - (antiderivative(LOW) - antiderivative(HIGH))).abs().max().item())
    assert max(off[:degree]) < 1e-12
    assert off[degree] > 1e-3


@every_frame
@pytest.mark.parametrize("rule", ["exact", "dpm"])
def test_the_error_estimate_is_the_distance_from_the_embedded_solution_of_one_order_less(frame, rule):
    fractions = [(0.4,), (0.4, 2 / 3), (0.4, 0.7)]  # orders 2, 3, 2
    two, three, lame = (stepped(Singlestep(frame, r, rule), noise(), HIGH, LOW, mixture()) for r in fractions)
    torch.testing.assert_close(three.error, three.x - two.x, rtol=1e-12, atol=1e-12)
    one = two.x - two.error
    torch.testing.assert_close(lame.error, lame.x - one, rtol=1e-12, atol=1e-12)
    if frame in ("noise", "data"):  # where the first order is DDIM
        torch.testing.assert_close(one, stepped(Euler(), noise(), HIGH, LOW, mixture()).x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("fractions", "last"), [((0.25, 0.5), math.sqrt(HIGH * LOW)), ((0.25, 1.0), LOW)], ids=str)
def test_its_stages_lie_at_fractions_of_log_sigma(fractions, last):
    spy = Spy(mixture())
    stepped(Singlestep(fractions=fractions), noise(1), HIGH, LOW, spy)
    assert spy.sigmas == pytest.approx([HIGH, HIGH**0.75 * LOW**0.25, last], rel=1e-14)
    assert last != LOW or spy.sigmas[-1] == LOW, "the end is asked about itself, not what rounding makes of it"


def test_the_order_of_three_stages_hangs_on_the_last_one():
    """Whence the fact; that it is 2 elsewhere is tested with all solvers."""
    assert [Singlestep(fractions=r).order for r in [(0.5,), (1 / 3, 2 / 3), (0.1, 2 / 3), (1 / 3, 0.6)]] == [2, 3, 3, 2]


THEIRS = {"noise": "dpmsolver", "data": "dpmsolver++"}
their_frames = pytest.mark.parametrize("frame", THEIRS)
# of their own making: algorithm_type="dpmsolver" warns of its removal, and numpy 2 of how they hand it tensors
quietly = pytest.mark.filterwarnings(
    "ignore:.*algorithm_types=dpmsolver:FutureWarning", "ignore:__array__:DeprecationWarning"
)
BLOCKS = 4


def by_diffusers(diffusers, frame, order, kind, x):
    """x at LOW by their scheduler, whose grid has every stage of BLOCKS steps from HIGH to LOW on it."""
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type=THEIRS[frame], solver_order=order, solver_type=kind, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(order * BLOCKS)
    assert scheduler.order_list == [*range(1, order + 1)] * BLOCKS
    scheduler.set_begin_index(0)
    scheduler.sigmas = torch.tensor(geometric(order * BLOCKS), dtype=torch.float64)
    alpha = 1 / (1 + scheduler.sigmas**2).sqrt()
    x_t = alpha[0] * x
    for i, t in enumerate(scheduler.timesteps):
        out = mixture()(x_t / alpha[i], scheduler.sigmas[i].item())
        x_t = scheduler.step(out, t, x_t).prev_sample
    return x_t / alpha[-1]


@quietly
@their_frames
@pytest.mark.parametrize(
    ("order", "kind", "rule"), [(2, "midpoint", "dpm"), (2, "heun", "exact"), (3, "heun", "exact")]
)
def test_it_is_the_singlestep_scheduler_of_diffusers(diffusers, frame, order, kind, rule):
    """Their "heun" integrates the polynomial exactly; it is not Heun's method."""
    solver = Singlestep(frame, (1 / 2,) if order == 2 else (1 / 3, 2 / 3), rule)
    [got] = run(on_grid(solver, noise(), geometric(BLOCKS)), model=mixture())
    torch.testing.assert_close(got.x, by_diffusers(diffusers, frame, order, kind, noise()), rtol=1e-10, atol=1e-10)


@quietly
@their_frames
def test_the_third_order_midpoint_of_diffusers_takes_the_last_stage_by_the_midpoint_rule_not_as_published(
    diffusers, frame
):
    """With that stage by the second-order step of the same name, written by hand, their result; as published, not."""
    eps, x = mixture(), noise()
    two = Singlestep(frame, (1 / 2,), "dpm")
    for s0, s1 in pairwise(geometric(BLOCKS)):
        s = s0 * (s1 / s0) ** (2 / 3)
        stage = stepped(two, x, s0, s, eps).x  # its own stage, half-way to 2/3, is the one at 1/3
        g0, g2 = (eps(at, t) if frame == "noise" else at - t * eps(at, t) for at, t in ((x, s0), (stage, s)))
        h = math.log(s0 / s1)
        if frame == "noise":
            x = x + (s1 - s0) * g0 - s1 * (math.expm1(h) / h - 1) * 1.5 * (g2 - g0)
        else:
            x = s1 / s0 * x - math.expm1(-h) * g0 + (math.expm1(-h) / h + 1) * 1.5 * (g2 - g0)
    theirs = by_diffusers(diffusers, frame, 3, "midpoint", noise())
    torch.testing.assert_close(theirs, x, rtol=1e-10, atol=1e-10)
    [ours] = run(on_grid(Singlestep(frame, rule="dpm"), noise(), geometric(BLOCKS)), model=mixture())
    assert (ours.x - theirs).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("dpm_solver_2", Singlestep("noise", (1 / 2,), "dpm")),
        ("dpm_solver_3", Singlestep("noise", (1 / 3, 2 / 3), "dpm")),
        ("dpmpp_2s", Singlestep("data", (1 / 2,), "dpm")),
        ("dpmpp_3s", Singlestep("data", (1 / 3, 2 / 3), "dpm")),
        ("dpmpp_2s(fractions=(0.25,))", Singlestep("data", (0.25,), "dpm")),
        ("adaptive:dpm_solver_3(rtol=1e-3)", Adaptive(Singlestep("noise", rule="dpm"), rtol=1e-3)),
        ("dpm_adaptive", Adaptive(Singlestep("noise", rule="dpm"), coordinate="asinh")),
        (
            "dpm_adaptive(rtol=0.05, atol=0.0078)",
            Adaptive(Singlestep("noise", rule="dpm"), 0.05, 0.0078, coordinate="asinh"),
        ),
        ("dpm_adaptive(coordinate='sigma')", Adaptive(Singlestep("noise", rule="dpm"), coordinate="sigma")),
    ],
)
def test_names_mean_what_the_papers_mean(name, solver):
    assert find_solver(name) == solver
    assert find_solver(spec_of(solver)) == solver


def test_dpm_adaptive_is_listed_and_its_name_is_taken():
    [facts] = [f for f in solvers() if f.name == "dpm_adaptive"]
    assert facts.aliases == ("adaptive:dpm_solver_3(coordinate='asinh')",)
    assert (facts.order, facts.evaluations, facts.error_estimate) == (3, 3, True)
    with pytest.raises(ValueError, match="free identifier"):
        ods.register("dpm_adaptive", Euler)
    with pytest.raises(ValueError, match=r"known: .*dpm_adaptive"):
        find_solver("dpm_adaptiv")
    with pytest.raises(ValueError, match="chooses its own steps"):
        loop_for("dpm_adaptive", 20, None, None)


def test_dpm_adaptive_asks_more_often_the_tighter_its_tolerance_and_comes_closer():
    high, low = mixture_ends()
    calls, off = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        tally, loop = Tally(), find_solver(f"dpm_adaptive(rtol={tolerance}, atol={tolerance})")
        [solved] = run(loop.across(State(high), [HIGH, LOW]), model=mixture(), tally=tally)
        calls.append(tally.calls)
        off.append((solved.state.x - low).abs().max().item())
    assert calls == sorted(calls)
    assert off[0] > 10 * off[1] > 300 * off[2]
    assert off[0] > 900 * off[2]
    assert all(error < tolerance for error, tolerance in zip(off, (1e-2, 1e-4, 1e-6), strict=True))
    assert off[2] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame": "eps"}, "frame must be one of data, flow, noise, v; got 'eps'"),
        ({"rule": "bh2"}, 'rule must be "exact" or "dpm"; got \'bh2\''),
        ({"fractions": ()}, "fractions must be"),
        ({"fractions": 0.5}, "fractions must be"),
        ({"fractions": [0.5]}, "fractions must be"),
        ({"fractions": (0.0,)}, "fractions must be"),
        ({"fractions": (1.1,)}, "fractions must be"),
        ({"fractions": (math.nan,)}, "fractions must be"),
        ({"fractions": (0.6, 0.6)}, "fractions must be"),
        ({"fractions": (0.6, 0.3)}, "fractions must be"),
        ({"fractions": (0.2, 0.4, 0.6)}, "fractions must be"),
        ({"data_scale": 0.0}, "data_scale must be above 0"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Singlestep(**arguments)
