"""Which level the network is told on the way up: against formulas written by hand, and against diffusers."""

from itertools import pairwise

import pytest
import torch

import odesampler as ods
from odesampler.combine import mirrored, together, within
from odesampler.conventions import upward
from odesampler.drive import run
from odesampler.integrate import OnGrid, on_grid
from odesampler.program import Request, Solver
from odesampler.trial import carries
from tests.problems import SOLVERS, by_hand, geometric, labelled, mixture, noise

TIMES = [0, *range(40, 1000, 40), 999]
PREDICTIONS = pytest.mark.parametrize("prediction", ["eps", "v", "denoised"])


def on_the_table(prediction="eps"):
    """The mixture under DDPM's table, its sigmas at TIMES, and alpha-bar there."""
    schedule = ods.VP.linear()
    bar = torch.tensor(schedule.alpha_bar, dtype=torch.float64)[TIMES]
    return mixture().model(schedule, prediction), ((1 - bar) / bar).sqrt(), bar


def encoded(model, x, sigmas, **how):
    return ods.encode(model, x, grid=sigmas.tolist(), solver="ddim", **how).x


@PREDICTIONS
@pytest.mark.parametrize("convention", ["source", "target"])
def test_explicit_ddim_inversion_is_that_of_the_formulas(convention, prediction):
    """ADM, appendix F: the network is told t of the step's start; null-text inversion: that of its end."""
    model, sigmas, bars = on_the_table(prediction)
    want = x = mixture().sample(4)
    for (t0, t1), (a0, a1) in zip(pairwise(TIMES), pairwise(bars), strict=True):
        out = model.network(want, torch.full((4,), float(t0 if convention == "source" else t1), dtype=torch.float64))
        eps = {
            "eps": lambda x_t, out, a: out,
            "v": lambda x_t, out, a: a.sqrt() * out + (1 - a).sqrt() * x_t,
            "denoised": lambda x_t, out, a: (x_t - a.sqrt() * out) / (1 - a).sqrt(),
        }[prediction](want, out, a0)
        want = a1.sqrt() * (want - (1 - a0).sqrt() * eps) / a0.sqrt() + (1 - a1).sqrt() * eps
    torch.testing.assert_close(encoded(model, x, sigmas, convention=convention), want, rtol=0, atol=1e-9)


@PREDICTIONS
def test_target_is_the_inverse_scheduler_of_diffusers(diffusers, prediction):
    model, _, _ = on_the_table(prediction)
    theirs = {"eps": "epsilon", "v": "v_prediction", "denoised": "sample"}[prediction]
    scheduler = diffusers.DDIMInverseScheduler(clip_sample=False, set_alpha_to_one=False, prediction_type=theirs)
    scheduler.alphas_cumprod = torch.tensor(model.schedule.alpha_bar, dtype=torch.float64)
    scheduler.initial_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(25)
    want = x = mixture().sample(4)
    for t in scheduler.timesteps:  # the first of them, 0, moves nothing: it steps from alpha-bar 0 to itself
        want = scheduler.step(model.network(want, t.double().expand(4)), t, want).prev_sample
    sigmas = model.schedule.sigma(scheduler.timesteps.double())
    torch.testing.assert_close(encoded(model, x, sigmas, convention="target"), want, rtol=0, atol=1e-9)


def test_the_two_conventions_differ_and_source_is_the_default():
    model, sigmas, _ = on_the_table()
    x = mixture().sample(4)
    source, target, default = (encoded(model, x, sigmas, convention=c) for c in ("source", "target", None))
    assert torch.equal(source, default)
    assert (source - target).abs().max() > 1e-3


def test_every_question_of_a_step_is_told_the_level_mirrored_in_it():
    """Also the stages, and the first eps of a solver that would have kept it from the step before."""
    for solver in (ods.Heun(), ods.Midpoint(), ods.RK4(), ods.Dopri5(), ods.Multistep()):
        asked = []

        def eps(x, sigma, told, asked=asked):
            asked.append((sigma, told))
            return mixture()(x, sigma)

        loop, name = upward(OnGrid(solver), "target")
        grid = [0.2, 0.5, 1.5]
        run(loop.across(ods.State(noise(2)), grid), model=eps)
        assert name == "target"
        assert set(pairwise(grid)) <= set(asked), "each step asks at its start, told its end"
        for sigma, told in asked:
            ends = [(a, b) for a, b in pairwise(grid) if a <= sigma <= b and told == pytest.approx(a + b - sigma)]
            assert ends, (solver, sigma, told)


@pytest.mark.parametrize(
    "solver", [ods.Euler(), ods.Multistep(), ods.Multistep("data", corrector=0, rule="dpm")], ids=repr
)
def test_a_solver_with_memory_keeps_it_under_target(solver):
    """It asks at the starts of its steps only: so it is the same solve of an equation with shifted clocks."""
    grid = geometric(8)[::-1]
    after = dict(pairwise(grid))
    [want] = run(on_grid(solver, noise(3), grid), model=lambda x, sigma: mixture()(x, after[sigma]))
    loop, _ = upward(OnGrid(solver), "target")
    [got] = run(loop.across(ods.State(noise(3)), grid), model=lambda x, sigma, told: mixture()(x, told))
    torch.testing.assert_close(got.state.x, want.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not s.stochastic], ids=repr)
def test_what_a_solver_carries_is_found_out_by_trying(solver):
    dopri = isinstance(solver, (ods.Dopri5, ods.Bosh3))
    kept = isinstance(solver, (ods.Multistep, ods.Fitted, ods.Invertible))
    memoryless = isinstance(solver, ods.Multistep) and max(solver.predictor, solver.corrector) == 1
    assert carries(solver) == (kept and not dopri and not memoryless)


def test_what_is_told_follows_its_rows_and_is_merged_with_what_is_not():
    def told(*levels):
        yield Request(noise(2), 1.0, None, levels[0])
        yield Request(noise(1), 1.0, torch.tensor([1]), levels[1])

    asked = []

    def answer(x, sigma, told=None):
        asked.append((sigma, told))
        return x

    run(together(told(None, 2.0), told(None, 2.0)), model=answer)
    assert asked == [(1.0, None), (1.0, 2.0)]
    run(together(told(None, 2.0), told(3.0, None)), model=answer)
    assert [t.tolist() for _, t in asked[2:]] == [[1, 1, 3, 3], [2, 1]]
    run(told(torch.tensor([2.0, 3.0]), 2.0), model=answer, max_batch=1)
    assert [t if isinstance(t, float) else t.tolist() for _, t in asked[4:]] == [[2], [3], 2.0]


def test_nobody_is_told_a_level_outside_the_range():
    program = mirrored(ods.Euler().step(ods.State(noise(2)), 1.0, 5.0), 1.0, 5.0)
    with pytest.raises(ValueError, match=r"euler asked for eps at sigma = 5, outside"):
        by_hand(within(0.1, 4.0, "euler", program), mixture())


@pytest.mark.parametrize("guidance", [3.0, ods.Guidance(3.0, interval=(0.5, 100.0))])
def test_target_goes_with_guidance_and_with_thresholds(guidance):
    """Written by hand: the guided eps at x, its clock told another level; the interval is about the level of x."""
    model, x, sigmas = labelled(), noise(3, scale=1.0), [0.2, 0.4, 1.0, 3.0]
    want = x
    for s0, s1 in pairwise(sigmas):
        guided = not isinstance(guidance, ods.Guidance) or s0 >= 0.5
        clean = mixture()(want, s1)
        eps = clean + (3.0 if guided else 1.0) * 0.25
        denoised = (want - s0 * eps).clamp(-1.5, 1.5)
        want = want + (s1 - s0) * (want - denoised) / s0
    with pytest.warns(UserWarning, match="floor under the round trip"):
        latent = ods.encode(
            model, x, solver="ddim", grid=sigmas, convention="target", guidance_scale=guidance, cond={"label": 0.25},
            clip_denoised=1.5,
        )  # fmt: skip
    torch.testing.assert_close(latent.x, want, rtol=0, atol=1e-12)


def test_target_reaches_infinity_where_the_network_is_told_its_clock():
    told = []
    flow = mixture().model(ods.RectifiedFlow(), "flow")
    model = ods.Model(lambda x, t: told.append(t[0].item()) or flow.network(x, t), flow.schedule, "flow")
    ods.encode(model, mixture().sample(2), solver="ddim", num_steps=4, convention="target")
    assert len(told) == 4
    assert told == sorted(told)
    assert told[-1] == flow.schedule.t(torch.tensor(torch.inf, dtype=torch.float64)).item()


def test_a_recipe_knows_its_convention():
    model, x = mixture().model(), mixture().sample(2)
    for solver, convention, want in [
        ("heun", None, "source"),
        ("heun", "target", "target"),
        ("reversible", None, "exact"),
        ("reversible", "exact", "exact"),
        ("scipy:RK45", "source", "source"),
    ]:
        latent = ods.encode(model, x, solver=solver, convention=convention)
        assert latent.recipe.convention == want


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"convention": "up"}, "convention must be one of source, target"),
        ({"convention": 3}, "convention must be one of source, target"),
        ({"convention": "implicit(speed=9)"}, "implicit takes .*; got speed"),
        ({"convention": "implicit(method='secant')"}, "method must be one of"),
        ({"convention": "target(3)"}, "cannot read convention"),
        ({"solver": "rk45", "rtol": 1e-3, "convention": "target"}, "about the steps of a grid"),
        ({"solver": "scipy:RK45", "convention": "target"}, "about the steps of a grid"),
        ({"solver": "torchdiffeq:rk4", "convention": "target"}, "about the steps of a grid"),
        ({"solver": "reversible", "convention": "target"}, "would only make it worse"),
        ({"solver": "reversible", "convention": "source"}, "would only make it worse"),
        ({"solver": "heun", "convention": "exact"}, "no exact inverse of its own"),
    ],
)
def test_a_convention_that_cannot_be_meant_is_refused_before_the_model_is_called(arguments, message):
    def never(x_t, t):
        raise AssertionError("the model was called")

    model = ods.Model(never, ods.VP.linear(), data_shape=(2,))
    with pytest.raises(ValueError, match=message):
        ods.encode(model, torch.zeros(2, 2), **arguments)


def test_a_solver_of_ones_own_may_be_tried():
    class Mine(Solver):
        order = evaluations = 1

        def step(self, state, s0, s1):
            k0 = yield state.x, s0
            return ods.State(state.x + (s1 - s0) * k0)

    assert not carries(Mine())
