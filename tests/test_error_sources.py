"""Where round-trip errors come from: known answers, and cases that must be flagged."""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import pytest
import torch

import odesampler as ods
from odesampler.analysis.error_sources import _moved, doubled
from odesampler.analysis.errors import quantile, rms
from odesampler.analysis.growth import growths
from odesampler.grid import Grid
from odesampler.plan import make_plan
from odesampler.registry import find_solver
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


def test_growth_is_the_same_however_few_steps_the_solver_takes():
    x = RING.sample(2, seed=1)
    few, many = (quick(MODEL, x, "ddim", n, iterations=2) for n in (1, 40))
    for a, b in zip(few.growth, many.growth, strict=True):
        assert torch.equal(a.most, b.most)
    assert "conditioning" not in few.flags


def test_growth_of_a_sample_is_the_same_alone_and_among_others_that_settle_later():
    model, x = mixture().model(), mixture().sample(5, seed=2)
    plan = plan_of(model, 12)
    together = growths(model, plan, x, {}, 8, None)
    for i in range(5):
        for both, alone in zip(together, growths(model, plan, x[i : i + 1], {}, 8, None), strict=True):
            assert both.curve[:, i].tolist() == pytest.approx(alone.curve[:, 0].tolist(), rel=1e-9)
            assert both.settled[i] == alone.settled[0]


def test_growth_that_has_not_settled_is_said_to_be_a_lower_bound():
    x = RING.sample(2, seed=1)
    found, done = (quick(MODEL, x, "ddim", 5, iterations=n) for n in (1, 8))
    assert [r["settled"] for r in found.per_sample().records()] == [False, False]
    assert found.words().count("at least") == 2
    assert [r["note"].endswith("at least") for r in found.records() if "growth" in r["source"]] == [True, True]
    assert [r["settled"] for r in done.per_sample().records()] == [True, True]
    assert "at least" not in done.words() + done.table()


class Plain(torch.autograd.Function):
    """The identity, without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


WITHOUT = {
    "answers without a derivative": lambda x, t: torch.from_numpy(MODEL.network(x.detach(), t).numpy().copy()),
    "under inference_mode": lambda x, t: torch.inference_mode()(MODEL.network)(x, t),
    "implement the jvp function": lambda x, t: MODEL.network(Plain.apply(x), t),
}


@pytest.mark.parametrize("why", WITHOUT)
def test_a_network_without_derivatives_loses_growth_and_nothing_else(why):
    found = ods.error_sources(replace(MODEL, network=WITHOUT[why]), RING.sample(2), "ddim", 4, conventions=())
    assert found.growth is None
    assert why in found.why_no_growth
    assert found.table().count(found.why_no_growth) == 1
    whole = quick(MODEL, RING.sample(2), "ddim", 4)
    assert torch.allclose(found.discretisation, whole.discretisation)
    assert found.words() in whole.words()


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
    assert right.observed_order.median().item() == pytest.approx(2, abs=0.2)
    assert wrong.flags == ("order",)
    assert wrong.trip_order.median().item() == pytest.approx(1, abs=0.2)
    assert "a wrong coefficient" in wrong.words()
    assert wrong.dominant == "discretisation"


@pytest.mark.parametrize("true", [ods.Heun(), ods.Midpoint(), find_solver("dpmpp_2m")])
def test_a_solver_of_order_2_that_says_3_is_flagged_though_its_round_trip_has_order_3(true):
    class Boasts(type(true)):
        order = 3

    boast = object.__new__(Boasts)
    boast.__dict__.update(true.__dict__)
    found = quick(MODEL, RING.sample(6), boast, 60)
    assert found.observed_order.median().item() == pytest.approx(2, abs=0.3)
    assert found.trip_order.median() > 2.5  # what it misses on its way up, it takes back on its way down
    assert found.flags == ("order",)


@pytest.mark.parametrize(("solver", "n"), [("ddim", 320), ("heun", 80), ("rk4", 40), ("bosh3", 80)])
@pytest.mark.parametrize("convention", ["source", "target"])
def test_the_share_of_the_steps_is_the_whole_error_where_rounding_has_none(solver, n, convention):
    found = quick(gaussian().model(), gaussian().sample(2), solver, n, convention=convention, grid="log_snr")
    ratio = rms(found.discretisation) / rms(found.error)
    assert ratio.tolist() == pytest.approx([1] * 2, abs=0.025)
    assert "order" not in found.flags


def test_an_order_that_rounding_hides_is_not_told():
    found = quick(MODEL, RING.sample(4), "rk4", 40)
    assert not found.observed_order.isnan().any()
    blurred = replace(found, latent_rounding=found.finer_latent_change / 5, rounding=found.finer / 5)
    assert blurred.observed_order.isnan().all()
    assert blurred.flags == ()
    assert "hidden by rounding" in blurred.words()


def test_rounding_is_flagged_where_it_makes_the_error_and_only_there():
    x = RING.sample(6).float().double()  # what both dtypes hold, so that only the way differs
    single = quick(MODEL, x, "rk4", 100, state_dtype=torch.float32)
    assert (single.dominant, single.flags) == ("rounding", ("rounding",))
    assert "a finer dtype does" in single.words()
    double = quick(MODEL, x, "rk4", 100)
    assert (double.dominant, double.flags) == ("discretisation", ())
    assert rms(double.rounding).max() < 1e-14
    difference = (single.error - double.error).double()
    assert torch.allclose(single.states, -difference, rtol=1e-6, atol=1e-13)
    assert 1 / 3 < rms(single.rounding).median() / rms(difference).median() < 3
    assert single.other_dtype == "float64"


def test_rounding_is_the_spread_of_errors_between_images_that_differ_in_the_last_place():
    problem = ods.exact.Gaussian(torch.zeros(64), 0.5)
    ulps = torch.randint(-3, 4, (32, 64), generator=torch.Generator().manual_seed(0)) * 2.0**-23
    found = quick(problem.model(), problem.sample(1) + ulps, "rk4", 30, state_dtype=torch.float32)
    spread = found.error.double().std(0).square().mean().sqrt().item()
    assert rms(found.rounding).square().mean().sqrt().item() == pytest.approx(spread, rel=0.2)


def test_images_are_moved_by_a_unit_in_the_last_place_up_and_down_the_same_in_every_batch():
    x = torch.linspace(-4, 4, 3 * 1000, dtype=torch.float64).reshape(3, 1000)
    moved = _moved(x, torch.bfloat16)
    units = (moved - x) / (2.0**-7 * x.abs().clamp(min=1.0))
    assert torch.allclose(units.abs(), torch.ones_like(x))
    assert units.mean(1).abs().max() < 0.1
    assert torch.equal(moved[2:], _moved(x[2:], torch.bfloat16))


@pytest.mark.parametrize(("part", "dominant"), [(0.3, "discretisation"), (0.4, "rounding")])
def test_rounding_is_what_dominates_from_a_third_of_the_error_on(part, dominant):
    found = quick(MODEL, RING.sample(2), "ddim", 5)
    assert replace(found, rounding=part * found.error).dominant == dominant


@pytest.mark.parametrize(("short", "flags"), [(0.4, ()), (0.6, ("order",))])
@pytest.mark.parametrize("names", [("latent_change", "finer_latent_change"), ("error", "finer")])
def test_an_order_is_flagged_where_half_an_order_is_missing(names, short, flags):
    found = quick(MODEL, RING.sample(2), "heun", 40)
    a, b = names
    assert replace(found, **{b: getattr(found, a) / 2 ** (2 - short)}).flags == flags


@pytest.mark.parametrize(("left", "flags"), [(0.6, ()), (0.4, ("convention",))])
def test_a_convention_is_flagged_where_it_leaves_half_of_the_error(left, flags):
    found = quick(MODEL, RING.sample(2), "heun", 40, conventions=("target",))
    other = found.others[0]._replace(error=left * found.error)
    assert replace(found, others=(other,)).flags == flags


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


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
def test_what_equations_may_miss_is_put_down_to_their_tolerance_and_not_to_the_solver(solver):
    x = RING.sample(2)
    found = quick(MODEL, x, solver, 20, convention="implicit")
    assert (found.dominant, found.flags) == ("tolerance", ())
    assert "a smaller tolerance helps" in found.words()
    assert not {"discretisation", "observed_order"} & {*found.per_sample().records()[0]}
    assert "discretisation" not in [r["source"] for r in found.records()]
    many = RING.sample(16)  # of few the rounding of some may be none
    finest = quick(MODEL, many, "ddim", 20, convention="implicit(tolerance=0)", state_dtype=torch.float32)
    assert finest.dominant == "rounding"


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
    assert f"source leaves half of the error or less, {quantile(rms(found.others[0].error), 0.5):.1e}" in found.words()
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
    estimate = found.estimate
    for line, values in zip(first.lines, (estimate.defects, estimate.arriving), strict=False):
        assert line.get_ydata() == pytest.approx(values.median(1).values.tolist())
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
        ({"solver": type("Vague", (ods.Euler,), {"order": 0})()}, "states the order 0"),
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


def test_a_network_without_derivatives_has_no_growth_rather_than_that_of_a_flat_one():
    def network(x_t, t):
        return torch.from_numpy(gaussian().model().network(x_t, t).numpy().copy())

    model = ods.Model(network, ods.VP.linear(), data_shape=(2,), name="of numpy")
    found = quick(model, torch.zeros(2, 2), "ddim", 5, iterations=1)
    assert found.growth is None
    assert "of numpy answers without a derivative" in found.table()
    assert ods.estimate_round_trip(model, torch.zeros(2, 2), "ddim", 5).rmse.isfinite().all()  # it needs none


def test_a_round_trip_that_lost_the_images_is_flagged_and_says_so_when_printed():
    model, x = ods.load("digits"), ods.held_out("digits").images[:2]
    found = quick(model, x, "lms", 10)
    assert "lost" in found.flags
    assert found.grey == pytest.approx(rms(x).mean().item())  # of two, the mean is the median
    assert "The images are lost" in repr(found)
    assert f"flags: {', '.join(found.flags)}" in repr(found)
    report = ods.round_trip(model, x, ["lms", "heun"], 10)
    assert [r["lost"] for r in report.records()] == [2, 0]
    assert "lost: lms, 10 steps: 2 of 2 came back farther off than plain grey would be" in report.table()
    assert "lost: heun" not in report.table()


def test_the_printed_report_has_the_verdict_and_the_flags():
    found = quick(MODEL, RING.sample(6), "heun", 20)
    assert "flags: none" in repr(found)
    assert all(sentence in repr(found) for sentence in found.words().split(". ")[:1])


def test_where_rounding_is_all_there_is_no_order_is_told():
    exact = quick(MODEL, RING.sample(3), "alf", 10)
    assert exact.trip_order.isnan().all()
    assert not [r for r in exact.records() if "order" in r["note"]]
    assert "order" not in exact.words()
    single = quick(MODEL, RING.sample(3), "rk4", 100, state_dtype=torch.float32)
    assert single.trip_order.isnan().all()
    assert quick(MODEL, RING.sample(3), "rk4", 20).observed_order.isfinite().all()
