"""Where round-trip errors come from: known answers, and cases that must be flagged."""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import pytest
import torch

import odesampler as ods
from odesampler.analysis.cases import doubled
from odesampler.analysis.growth import growths
from odesampler.analysis.reference import rms
from odesampler.grid import Grid
from odesampler.plan import make_plan
from odesampler.solvers import RK4
from tests.problems import gaussian, mixture

RING = ods.exact.GaussianMixture.ring()
MODEL = RING.model()


@dataclass(frozen=True)
class Slip(ods.Solver):
    """Heun's method with a slip in its weights: of order 1, and it says 2."""

    order = 2
    evaluations = 2

    def step(self, state, s0, s1):
        k0 = yield state.x, s0
        k1 = yield state.x + (s1 - s0) * k0, s1
        return ods.State(state.x + (s1 - s0) * (0.45 * k0 + 0.55 * k1))


def plan_of(model, n):
    ends = {"rtol": None, "atol": None, "into_zero": False}
    return make_plan(model, "rk4", num_steps=n, grid="log_snr", state_dtype=torch.float64, **ends)


def quick(model, x, solver, n, **options):
    return ods.error_sources(model, x, solver, n, **{"conventions": (), "iterations": 0, **options})


def test_growth_of_one_gaussian_is_that_of_the_closed_form():
    model, x = gaussian().model(sigma_min=0.3, sigma_max=3.0), gaussian().sample(1)
    plan = plan_of(model, 24)
    up, down = growths(model, plan, x, {}, 2, None, RK4())
    low, high = plan.grid[-1], plan.grid[0]
    for growth, start in ((up, low), (down, high)):
        assert growth.settled.all()
        for sigma, found in zip(growth.sigmas, growth.curve, strict=True):
            exact = math.sqrt((0.5 + sigma**2) / (0.5 + start**2)) * math.sqrt((1 + start**2) / (1 + sigma**2))
            assert found.tolist() == pytest.approx([exact], rel=1e-6)
        assert torch.equal(growth.most, growth.curve[-1])


def test_growth_is_the_largest_singular_value_of_the_whole_derivative():
    model, x = MODEL, RING.sample(3, seed=1)
    plan = plan_of(model, 30)
    ways = growths(model, plan, x, {}, 8, None)

    def encoded(x):
        return ods.encode(model, x, solver="heun", num_steps=30, grid="log_snr", grad=True).x

    jacobian = torch.autograd.functional.jacobian(encoded, x)
    largest = [torch.linalg.svdvals(jacobian[i, :, i])[0].item() for i in range(3)]
    assert ways[0].most.tolist() == pytest.approx(largest, rel=0.05)
    assert (ways[0].most <= torch.tensor(largest) * (1 + 1e-9)).all()
    inverse = [1 / torch.linalg.svdvals(jacobian[i, :, i])[1].item() for i in range(3)]
    assert ways[1].most.tolist() == pytest.approx(inverse, rel=0.1)


def test_growth_at_infinity_starts_from_the_latent_itself():
    model = gaussian().model(ods.RectifiedFlow(), "flow", sigma_min=0.05)
    plan = make_plan(
        model, "rk4", num_steps=24, grid=None, rtol=None, atol=None, into_zero=False, state_dtype=torch.float64
    )
    down = growths(model, plan, gaussian().sample(2), {}, 1, None)[1]
    alpha = model.schedule.alpha(torch.tensor(0.05, dtype=torch.float64)).item()
    assert down.most.tolist() == pytest.approx([alpha * math.sqrt(0.5 + 0.05**2)] * 2, rel=1e-2)


def test_a_solver_with_a_slip_is_flagged_and_the_right_one_is_not():
    x = RING.sample(6)
    right, wrong = quick(MODEL, x, "heun", 40), quick(MODEL, x, Slip(), 40)
    assert right.flags == ()
    assert right.observed_order.median() > 2.5  # what Heun's method misses on its way up, it takes back on its way down
    assert wrong.flags == ("order",)
    assert wrong.observed_order.median().item() == pytest.approx(1, abs=0.2)
    assert "a wrong coefficient" in wrong.words()
    assert wrong.dominant == "discretisation"


def test_rounding_is_flagged_where_it_makes_the_error_and_only_there():
    x = RING.sample(6)
    single = quick(MODEL, x, "rk4", 100, state_dtype=torch.float32)
    assert (single.dominant, single.flags) == ("rounding", ("rounding",))
    assert "a finer dtype does" in single.words()
    double = quick(MODEL, x, "rk4", 100)
    assert (double.dominant, double.flags) == ("discretisation", ())
    assert rms(double.rounding).max() < 1e-14
    difference = (single.error - double.error).double()
    assert rms(difference).median() == pytest.approx(rms(single.states).median().item(), rel=0.05)
    assert 1 / 3 < rms(single.rounding).median() / rms(difference).median() < 3
    assert single.other_dtype == "float64"


def test_a_network_in_half_precision_rounds_however_fine_the_state():
    model = replace(MODEL, dtype=torch.bfloat16)
    found = quick(model, RING.sample(6), "rk4", 40)
    assert found.dtypes == ("float64", "bfloat16")
    assert found.dominant == "rounding"


def test_a_stiff_problem_is_flagged_for_its_conditioning_and_a_smooth_one_is_not():
    narrow = ods.exact.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3**2)
    between = torch.tensor([[0.1]], dtype=torch.float64)
    stiff = quick(narrow.model(), between, "heun", 50, iterations=2)
    assert "conditioning" in stiff.flags
    assert "badly conditioned" in stiff.words()
    # In one dimension the flow keeps ranks: latent = Phi^-1(F(x)), so its slope is p(x) / phi(latent).
    law, spread = NormalDist(), math.hypot(0.3, narrow.model().range[0])
    parts = [NormalDist(mean, spread) for mean in (-1, 1)]
    rank, density = (sum(f(p) for p in parts) / 2 for f in (lambda p: p.cdf(0.1), lambda p: p.pdf(0.1)))
    assert stiff.growth[1].most.item() == pytest.approx(law.pdf(law.inv_cdf(rank)) / density, rel=0.1)
    assert "conditioning" not in quick(gaussian().model(), gaussian().sample(2), "heun", 30, iterations=2).flags


def test_step_doubling_tells_the_error_and_that_of_the_latent():
    problem, n = gaussian(), 160
    x = problem.sample(4)
    found = quick(problem.model(), x, "ddim", n, grid="log_snr")
    assert torch.allclose(found.discretisation, found.error, rtol=0.03)
    plan = plan_of(problem.model(), n)
    s1, s0 = plan.grid[0], plan.grid[-1]
    schedule = problem.model().schedule
    exact = schedule.to_model_scale(problem.trajectory(schedule.from_model_scale(x, s0), s0, s1), s1)
    latent = ods.encode(problem.model(), x, solver="ddim", num_steps=n, grid="log_snr").x
    assert torch.allclose(found.latent_change, latent - exact, rtol=0.1)


def test_conventions_are_compared_and_one_twice_as_good_is_flagged():
    x = RING.sample(4)
    found = ods.error_sources(MODEL, x, "heun", 20, convention="target", iterations=0)
    assert [o.convention for o in found.others] == ["source", "target", "implicit"]
    for other in found.others[:2]:
        latent = ods.encode(MODEL, x, solver="heun", num_steps=20, convention=other.convention)
        assert torch.equal(other.error, ods.decode(MODEL, latent).x - x)
    assert found.others[1].latent_change.abs().max() == 0
    assert found.others[0].latent_change.abs().max() > 0
    assert rms(found.others[2].error).max() < 1e-5
    assert found.others[2].converged.all()
    assert "convention" in found.flags
    assert "convention" not in ods.error_sources(MODEL, x, "heun", 20, iterations=0).flags


def test_a_solver_that_is_undone_exactly_leaves_rounding_and_has_no_other_convention():
    found = ods.error_sources(MODEL, RING.sample(3), "alf", 10, iterations=0)
    assert found.others == ()
    assert found.estimate is None
    assert (found.dominant, found.flags) == ("rounding", ())
    assert "undoes its own steps exactly" in found.table()
    assert found.sections()[0].draw is None


def test_the_report_has_the_numbers_of_each_image_and_pictures_with_axes():
    found = ods.error_sources(mixture().model(), mixture().sample(3), "ddim", 12, iterations=2)
    each = found.per_sample().records()
    assert [r["rmse"] for r in each] == rms(found.error).tolist()
    assert [r["growth_down"] for r in each] == found.growth[1].most.tolist()
    assert [r["estimate"] for r in each] == found.estimate.rmse.tolist()
    assert [r["convention implicit"] for r in each] == rms(found.others[2].error).tolist()
    records = {r["source"]: r for r in found.records()}
    assert records["all"]["rmse_worst"] == rms(found.error).max().item()
    assert records["twice the steps"]["rmse_median"] == rms(found.finer).median().item()
    first, second = found.plot().axes
    assert all(axis.get_xscale() == axis.get_yscale() == "log" for axis in (first, second))
    assert "sigma" in first.get_xlabel()
    assert "growth" in second.get_ylabel()
    assert second.lines[0].get_ydata()[0] == pytest.approx(1.0)
    assert [s.title for s in found.sections()] == [found.title, found.estimate.title]


def test_a_round_trip_shows_the_sources_of_each_solver_at_its_most_steps():
    found = ods.round_trip(MODEL, RING.sample(2), ["ddim", "adaptive:bosh3", ods.Heun()], [4, 8], sources=True)
    assert [s.how for s in found.sources] == ["ddim, 8 steps, source", "heun, 8 steps, source"]
    assert found.sources[1].estimate is not None
    assert [s.title for s in found.sections()][1] == found.sources[0].title
    assert ods.round_trip(MODEL, RING.sample(2), "ddim", 4).sources == ()


def test_a_grid_is_doubled_between_its_sigmas():
    assert doubled(Grid((4.0, 1.0, 0.25))).sigmas == (4.0, 2.0, 1.0, 0.5, 0.25)
    assert doubled(Grid((0.25, 3.0, math.inf))).sigmas == pytest.approx((math.inf, 6.0, 3.0, 0.75**0.5, 0.25))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "adaptive:dopri5", "num_steps": None}, "chooses its own steps, or takes them in another library"),
        ({"solver": "ddpm"}, "draws noise"),
        ({"conventions": ("source", "sauce")}, "convention must be one of"),
        ({"iterations": -1}, "iterations must be a whole number"),
        ({"guidance_scale": 3}, "needs a model with a null condition"),
        ({"images": torch.zeros(1, 5)}, "must have shape"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model_is_asked(arguments, message):
    def never(x_t, t):
        raise AssertionError("the model was called")

    model = ods.Model(never, ods.VP.linear(), data_shape=(2,))
    with pytest.raises(ValueError, match=message):
        ods.error_sources(model, **{"images": torch.zeros(2, 2), "num_steps": 5, **arguments})
