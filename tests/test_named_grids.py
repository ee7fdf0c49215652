"""Named grids: their formulas, their ends, the schedules they are defined for, and those of diffusers."""

import contextlib
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import beta as beta_distribution

import odesampler as ods
from odesampler.grid import grids, make_grid
from odesampler.named_grids import AYS, NAMED, named
from odesampler.names import parsed
from odesampler.schedule import VE, VP, ContinuousVP, RectifiedFlow
from odesampler.spacing import flow_mu

SCHEDULES = {
    "table": VP.linear(),
    "stable diffusion": VP.scaled_linear(),
    "cosine": VP.cosine(),
    "zero SNR": VP.scaled_linear().with_zero_snr(),
    "continuous": ContinuousVP(),
    "edm": VE(),
    "flow": RectifiedFlow(),
    "flow, 1000": RectifiedFlow(clock_scale=1000.0),
}
SPECS = [
    *NAMED,
    "karras(rho=5)",
    "karras(rho=0.5, last=0.03)",
    "log_snr(last=0.05)",
    "polyexponential(rho=2)",
    "beta(alpha=1, beta=0.4)",
    "beta(variable='t')",
    "phi(last=0.1)",
    "power(rho=1)",
    "power(rho=3.5, variable='phi')",
    "power(rho=1.5, variable='t')",
    "power(rho=3, variable='sigma')",
    "asinh(delta=0.5, rho=2, last=0.05)",
    "angle(scale=0.5)",
    "shift(shift=1)",
    "shift(mu=1.15)",
    "shift(mu=1.15, kind='linear')",
    "shift(shift=3, terminal=0.1)",
    "ays(model='sdxl')",
    "ays(model='deepfloyd')",
    "ays(model='svd')",
]
ON_A_TABLE = ("leading", "trailing", "quadratic")
NEED_FINITE = ("karras", "log_snr", "exponential", "lu", "polyexponential", "beta", "ays", "asinh")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_spec = pytest.mark.parametrize("spec", SPECS)


def refusal(spec, schedule, nodes):
    """What a model of `schedule` is told about a grid that it does not have; None if it has it."""
    name, arguments = parsed(spec, "grid")
    variable = arguments.get("variable", "sigma" if name in NEED_FINITE else None)
    if math.isinf(schedule.sigma_max) and (variable == "sigma"):
        return "needs a finite sigma_max.*use grid='linspace', 'shift'"
    if name in ON_A_TABLE and not isinstance(schedule, VP):
        return "use linspace, karras or log_snr"
    if name in (*ON_A_TABLE, "linspace") and isinstance(schedule, VP) and nodes > 1000:
        return "1001 are too many; karras and log_snr have no such limit"
    return None


@every_spec
@every_schedule
@given(num_steps=st.integers(1, 1000), into_zero=st.booleans())
@example(num_steps=1, into_zero=True)
@example(num_steps=1, into_zero=False)
@example(num_steps=1000, into_zero=True)
@example(num_steps=1000, into_zero=False)
def test_a_named_grid_is_strictly_monotone_between_its_ends_or_refused(spec, schedule, num_steps, into_zero):
    if message := refusal(spec, schedule, num_steps + (not into_zero)):
        with pytest.raises(ValueError, match=message):
            make_grid(spec, schedule, num_steps, into_zero=into_zero)
        return
    grid = make_grid(spec, schedule, num_steps, into_zero=into_zero)
    assert grid.num_steps == len(grid) - 1 == num_steps
    assert grid.name == spec
    assert all(type(s) is float for s in grid)
    assert all(a > b for a, b in pairwise(grid))
    assert all(a < b for a, b in pairwise(grid.up()))
    assert grid.up().down() is grid is grid.up().up().down()
    asked = [s for s in grid if s > 0]
    assert schedule.sigma_min <= min(asked)
    assert max(asked) <= schedule.sigma_max
    if spec not in ("leading", "quadratic"):
        assert grid[0] == schedule.sigma_max
    if into_zero or spec not in ("trailing", "quadratic"):
        assert grid[-1] == (0 if into_zero else schedule.sigma_min)


@every_spec
@given(num_steps=st.integers(1, 100), low=st.floats(0.01, 0.02), high=st.floats(2, 50), into_zero=st.booleans())
def test_a_narrower_range_is_kept_or_the_grid_is_refused(spec, num_steps, low, high, into_zero):
    whole = spec in (*ON_A_TABLE, "linspace")  # whole times of a table may not reach so near
    with contextlib.suppress(ValueError) if whole else contextlib.nullcontext():
        grid = make_grid(spec, VP.linear(), num_steps, into_zero=into_zero, sigma_min=low, sigma_max=high)
        assert grid.num_steps == num_steps
        assert low <= grid[-2 if into_zero else -1] <= grid[0] <= high
        assert whole or (grid[0], grid[-1]) == (high, 0 if into_zero else low)


N, LOW, HIGH = 12, 0.002, 80.0
K, K3 = (math.log(math.atan(HIGH / c) / math.atan(LOW / c)) / math.log(2 * N) for c in (2, 0.3))
FLOW_HIGH, PHI_HIGH = HIGH / (1 + HIGH), math.atan(HIGH)
FORMULAS = {  # sigma_i of N steps from 80 into 0
    "karras": lambda i: (HIGH ** (1 / 7) + i / (N - 1) * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7,
    "karras(rho=3)": lambda i: (HIGH ** (1 / 3) + i / (N - 1) * (LOW ** (1 / 3) - HIGH ** (1 / 3))) ** 3,
    "karras(rho=1)": lambda i: HIGH + i / (N - 1) * (LOW - HIGH),
    "karras(last=0.03)": lambda i: (HIGH ** (1 / 7) + i / (N - 1) * (0.03 ** (1 / 7) - HIGH ** (1 / 7))) ** 7,
    "log_snr": lambda i: HIGH * (LOW / HIGH) ** (i / (N - 1)),
    "log_snr(last=0.05)": lambda i: HIGH * (0.05 / HIGH) ** (i / (N - 1)),
    "lu": lambda i: math.exp(-(-math.log(HIGH) + i / (N - 1) * (math.log(HIGH) - math.log(LOW)))),
    "polyexponential": lambda i: HIGH * (LOW / HIGH) ** (i / (N - 1)),
    "polyexponential(rho=2)": lambda i: LOW * (HIGH / LOW) ** ((1 - i / (N - 1)) ** 2),
    "beta": lambda i: LOW + beta_distribution.ppf(1 - i / (N - 1), 0.6, 0.6) * (HIGH - LOW),
    "beta(alpha=0.5, beta=0.9)": lambda i: LOW + beta_distribution.ppf(1 - i / (N - 1), 0.5, 0.9) * (HIGH - LOW),
    "beta(variable='t')": lambda i: HIGH * beta_distribution.ppf(1 - i / N, 0.6, 0.6),
    "phi": lambda i: math.tan(PHI_HIGH * (1 - i / N)),
    "phi(last=0.1)": lambda i: math.tan(PHI_HIGH + i / (N - 1) * (math.atan(0.1) - PHI_HIGH)),
    "power": lambda i: (w := FLOW_HIGH * (1 - i / N) ** 2) / (1 - w),
    "power(rho=1.3)": lambda i: (w := FLOW_HIGH * (1 - i / N) ** 1.3) / (1 - w),
    "power(rho=2, variable='phi')": lambda i: math.tan(PHI_HIGH * (1 - i / N) ** 2),
    "power(rho=1.5, variable='sigma')": lambda i: HIGH * (1 - i / N) ** 1.5,
    "power(rho=1.5, variable='t')": lambda i: HIGH * (1 - i / N) ** 1.5,  # EDM's clock is sigma
    "asinh": lambda i: 0.02 * math.sinh((i * math.asinh(LOW / 0.02) + (N - 1 - i) * math.asinh(HIGH / 0.02)) / (N - 1)),
    "asinh(delta=2, rho=3, last=0.05)": lambda i: (
        2 * math.sinh(math.asinh(0.025) + (math.asinh(HIGH / 2) - math.asinh(0.025)) * (1 - i / (N - 1)) ** 3)
    ),
    "angle": lambda i: 2 * math.tan(math.atan(HIGH / 2) * (1 - i / N) ** K),
    "angle(scale=0.3, last=0.05)": lambda i: (
        0.3
        * math.tan(math.atan(0.05 / 0.3) + (math.atan(HIGH / 0.3) - math.atan(0.05 / 0.3)) * (1 - i / (N - 1)) ** K3)
    ),
}


@pytest.mark.parametrize("spec", FORMULAS)
def test_a_grid_is_its_formula(spec):
    grid = make_grid(spec, VE(LOW, HIGH), N, into_zero=True)
    assert grid.sigmas == pytest.approx((*map(FORMULAS[spec], range(N)), 0.0), rel=1e-9)


def test_a_power_on_the_clock_of_a_table_falls_towards_its_time_0():
    schedule = VP.linear()
    grid = make_grid("power(rho=1.5, variable='t')", schedule, 10, into_zero=True)
    ts = schedule.t(torch.tensor(grid.sigmas[:-1], dtype=torch.float64)).tolist()
    assert ts == pytest.approx([999 * (1 - i / 10) ** 1.5 for i in range(10)], rel=1e-9)


@given(num_steps=st.integers(2, 200), scale=st.floats(0.1, 10))
def test_the_middle_of_the_last_step_of_angle_is_at_sigma_min(num_steps, scale):
    grid = make_grid(f"angle(scale={scale!r})", VE(LOW, HIGH), num_steps, into_zero=True)
    first, last = math.atan(grid[0] / scale), math.atan(grid[-2] / scale)
    power = math.log(last / first) / math.log(1 / num_steps)
    assert first * (0.5 / num_steps) ** power == pytest.approx(math.atan(LOW / scale))


def test_linspace_has_equal_distances_on_a_clock_without_a_table():
    grid = make_grid("linspace", ContinuousVP(), 12, into_zero=False)
    ts = ContinuousVP().t(torch.tensor(grid.sigmas, dtype=torch.float64)).tolist()
    assert [a - b for a, b in pairwise(ts)] == pytest.approx([0.999 / 12] * 12, rel=1e-9)


@pytest.mark.parametrize("spec", ["power(rho=4)", "power(rho=3, variable='phi')", "power(rho=3, variable='sigma')"])
def test_a_grid_that_would_ask_below_sigma_min_is_lifted_to_it_as_a_whole(spec):
    _, arguments = parsed(spec, "grid")
    v = {"phi": math.atan, "sigma": float}.get(arguments.get("variable"), lambda s: s / (1 + s))
    grid = make_grid(spec, VE(LOW, HIGH), 60, into_zero=True)
    assert grid[-2] == LOW
    lifts = []
    for i, sigma in enumerate(grid.sigmas[1:-1], 1):  # v = lift + (v_max - lift) r
        r = (1 - i / 60) ** arguments["rho"]
        lifts.append((v(sigma) - v(HIGH) * r) / (1 - r))
    assert lifts == pytest.approx([lifts[-1]] * len(lifts), rel=1e-6)
    assert 0 < lifts[-1] < v(LOW)


def test_encoding_with_another_last_sigma_walks_the_nodes_of_sampling():
    down = make_grid("log_snr(last=0.05)", VE(), 8, into_zero=True)
    up = make_grid("log_snr(last=0.05)", VE(), 8, into_zero=False)
    assert up.sigmas == (*down.sigmas[:-1], VE().sigma_min)
    least = make_grid("log_snr(last=0.002)", VE(), 8, into_zero=False)
    assert least.sigmas == make_grid("log_snr", VE(), 8, into_zero=False).sigmas


@given(shift=st.floats(0.1, 20), num_steps=st.integers(2, 50))
def test_a_shift_multiplies_sigma_and_its_three_kinds_are_one(shift, num_steps):
    def made(spec):
        return make_grid(spec, RectifiedFlow(u_min=1e-6), num_steps, into_zero=True).sigmas

    even = made("shift(shift=1)")
    assert even[1:] == pytest.approx([1 / (num_steps / (num_steps - i) - 1) for i in range(1, num_steps)] + [0])
    assert made(f"shift(shift={shift!r})") == pytest.approx([shift * s for s in even])
    assert made(f"shift(mu={math.log(shift)!r})") == pytest.approx([shift * s for s in even])
    assert made(f"shift(mu={shift!r}, kind='linear')") == made(f"shift(shift={shift!r})")
    assert made("shift") == made("shift(shift=3.0)")


def test_align_your_steps_keeps_what_is_published_and_interpolates_in_log_sigma():
    sd = VP.scaled_linear()
    ten = make_grid("ays", sd, 10, into_zero=False)
    assert ten.sigmas[1:-1] == pytest.approx(AYS["sd15"][1:-1], rel=1e-12)
    twenty = make_grid("ays", sd, 20, into_zero=False)
    assert twenty.sigmas[::2] == pytest.approx(ten.sigmas, rel=1e-12)
    assert twenty.sigmas[1::2] == pytest.approx([math.sqrt(a * b) for a, b in pairwise(ten)], rel=1e-12)
    assert make_grid("ays", sd, 20, into_zero=True).sigmas == (*twenty.sigmas[:-1], 0.0)


def test_align_your_steps_is_stretched_to_the_range_of_another_model():
    grid = make_grid("ays(model='sdxl')", VP.linear(), 10, into_zero=False)
    stretch = [
        math.log(a / b) / math.log(c / d) for (a, b), (c, d) in zip(*map(pairwise, (grid, AYS["sdxl"])), strict=True)
    ]
    whole = math.log(VP.linear().sigma_max / VP.linear().sigma_min) / math.log(AYS["sdxl"][0] / AYS["sdxl"][-1])
    assert stretch == pytest.approx([whole] * 10, rel=1e-9)


@pytest.mark.parametrize("model", ["sd15", "sdxl", "svd"])
def test_align_your_steps_equals_the_tables_of_diffusers(diffusers, model):
    key = {"sd15": "", "sdxl": "XL", "svd": "Video"}[model]
    theirs = diffusers.schedulers.scheduling_utils.AysSchedules[f"StableDiffusion{key}Sigmas"]
    schedule = VE(0.002, 700.0) if model == "svd" else VP.scaled_linear()
    ours = make_grid(f"ays(model='{model}')", schedule, 10, into_zero=True)
    assert ours.sigmas[1:] == pytest.approx(theirs[1:], rel=1e-12)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4), "of the model, not rounded"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # their tensors, given to numpy 2
@pytest.mark.parametrize("num_steps", [2, 5, 10, 33])
@pytest.mark.parametrize("name", ["karras", "exponential", "beta", "lu"])
def test_equals_the_sigmas_of_diffusers(diffusers, name, num_steps):
    chosen = {f"use_{name}_{'lambdas' if name == 'lu' else 'sigmas'}": True}
    scheduler = diffusers.DPMSolverMultistepScheduler(**chosen)
    scheduler.set_timesteps(num_steps)
    *asked, zero = scheduler.sigmas.double().tolist()
    ours = make_grid(name, VP.linear(), num_steps, into_zero=True, sigma_min=asked[-1], sigma_max=asked[0])
    assert ours.sigmas[:-1] == pytest.approx(asked, rel=1e-6)
    assert ours[-1] == zero
    assert (asked[0], asked[-1]) == pytest.approx((VP.linear().sigma_max, VP.linear().sigma_min), rel=1e-3), "float32"


def times_of_flow(diffusers, options, num_steps, **given):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps), **given)  # as the pipelines of Flux do
    return scheduler.sigmas.double().tolist()


@pytest.mark.parametrize("num_steps", [2, 5, 28, 50])
@pytest.mark.parametrize(
    ("spec", "options", "given"),
    [
        ("shift(shift=1.0)", {}, {}),
        ("shift(shift=3.0)", {"shift": 3.0}, {}),
        ("shift(mu=0.73)", {"use_dynamic_shifting": True}, {"mu": 0.73}),
        ("shift(mu=1.15, kind='linear')", {"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 1.15}),
        ("shift(shift=3.0, terminal=0.1)", {"shift": 3.0, "shift_terminal": 0.1}, {}),
    ],
)
def test_flow_shift_equals_that_of_diffusers(diffusers, spec, options, given, num_steps):
    ours = make_grid(spec, RectifiedFlow(), num_steps, into_zero=True)
    times = RectifiedFlow().t(torch.tensor(ours.sigmas, dtype=torch.float64)).tolist()
    assert times == pytest.approx(times_of_flow(diffusers, options, num_steps, **given), rel=1e-6)


def test_flow_shift_left_to_the_scheduler_of_diffusers_shifts_its_last_sigma_twice(diffusers):
    """Its sigma_min is that of its shifted table, and `set_timesteps` shifts the times between the ends once more."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    last = 3 * 3 / 999  # shifted once: 3 / 999
    ours = make_grid(f"shift(shift=3.0, last={last!r})", RectifiedFlow(), 10, into_zero=True)
    times = RectifiedFlow().t(torch.tensor(ours.sigmas, dtype=torch.float64)).tolist()
    assert times == pytest.approx(scheduler.sigmas.double().tolist(), rel=1e-5)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (2176, 0.825), (1, 0.5 - 255 * 0.65 / 3840)])
def test_mu_of_an_image_is_that_of_flux(tokens, mu):
    """A line through 0.5 at 256 tokens and 1.15 at 4096, the numbers of Flux's scheduler; it goes on beyond them."""
    assert flow_mu(tokens) == pytest.approx(mu, rel=1e-12)
    other = flow_mu(tokens, base_tokens=64, most_tokens=512, base_shift=0.3, max_shift=0.9)
    assert other == pytest.approx(0.3 + (tokens - 64) * 0.6 / 448, rel=1e-12)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("karras(roh=5)", "the karras grid takes rho, last; got roh"),
        ("leading(k=3)", "the leading grid takes no arguments; got k"),
        ("karras(5)", "cannot read grid 'karras\\(5\\)'; write a name"),
        ("karras(rho=", "cannot read grid"),
        ("karras(rho=__import__('os'))", "cannot read grid"),
        ("karras(rho=0)", r"rho, of the karras\(rho=0\) grid, is above 0; got 0"),
        ("karras(rho='7')", "is a finite number; got '7'"),
        ("karras(rho=True)", "is a finite number; got True"),
        ("karras(rho=1e999)", "is a finite number; got inf"),
        ("polyexponential(rho=-1)", "rho, .* is above 0"),
        ("asinh(delta=0)", "delta, .* is above 0"),
        ("asinh(rho=-1)", "rho, .* is above 0"),
        ("angle(scale=-2)", "scale, .* is above 0"),
        ("beta(alpha=0)", "alpha, .* is above 0"),
        ("beta(beta=-1)", "beta, .* is above 0"),
        ("beta(variable='phi')", "is one of sigma, t; got 'phi'"),
        ("power(variable='u')", "is one of sigma, flow, phi, t; got 'u'"),
        ("power(rho=40)", "too fine for float64: sigmas .* take fewer, milder arguments, or grid='log_snr'"),
        ("karras(rho=0.001)", "too fine for float64"),
        ("log_snr(last=0.001)", "at least sigma_min = 0.002 and below sigma_max = 80; got 0.001"),
        ("log_snr(last=80)", "below sigma_max = 80; got 80"),
        ("log_snr(last='0.1')", "got '0.1'"),
        ("shift(shift=3, mu=1)", "say the same: give one"),
        ("shift(shift=0)", "shift, .* is above 0"),
        ("shift(mu=-1, kind='linear')", "mu, .* is above 0"),
        ("shift(kind='cubic')", "is 'exponential' or 'linear'; got 'cubic'"),
        ("shift(terminal=1.5)", "between 0.00199601 and 0.987654, and instead of last; got terminal=1.5"),
        ("shift(terminal=0.1, last=0.1)", "instead of last"),
        ("ays(model='flux')", "models sd15, sdxl, deepfloyd, svd; got model='flux'"),
    ],
)
def test_arguments_that_mean_no_grid_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_grid(spec, VE(), 100, into_zero=True)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_a_range_that_is_none_is_refused(ends):
    with pytest.raises(ValueError, match="runs between 0 < sigma_min < sigma_max"):
        make_grid("karras", VE(), 5, into_zero=True, sigma_min=ends[0], sigma_max=ends[1])


@pytest.mark.parametrize("arguments", [{"tokens": 0}, {"tokens": 10, "base_tokens": 4096}])
def test_an_image_without_tokens_has_no_mu(arguments):
    with pytest.raises(ValueError, match="line over the number of tokens"):
        flow_mu(**arguments)


def test_the_listing_shows_every_grid_with_parameters_that_can_be_typed_back():
    listing = grids()
    assert sorted(NAMED) == sorted(name for facts in listing for name in (facts.name, *facts.aliases))
    assert [f.aliases for f in listing if f.name == "log_snr"] == [("exponential", "lu")]
    for facts in listing:
        assert facts.summary.endswith("."), "a sentence on one line"
        spec = f"{facts.name}({', '.join(facts.parameters)})"
        plain = make_grid(facts.name, VP.linear(), 9, into_zero=True)
        assert make_grid(spec, VP.linear(), 9, into_zero=True).sigmas == plain.sigmas
    lines = str(listing).splitlines()
    assert len(lines) == 1 + len(listing)
    assert lines[0].split() == ["name", "also", "parameters"]
    assert "karras" in repr(listing)


def test_a_grid_is_added_by_one_function():
    @named("mine_too")
    def mine(span, scale=2.0):
        """Squares."""
        return [scale * i**2 for i in range(span.num_steps, -1, -1)]

    try:
        grid = make_grid("mine_too(scale=3.0)", VE(), 4, into_zero=True)
        assert grid.sigmas == (48.0, 27.0, 12.0, 3.0, 0.0)
        assert ("mine", ("mine_too",), ("scale=2.0",), "Squares.") in grids()
    finally:
        del NAMED["mine"], NAMED["mine_too"]


def test_verbs_take_names_with_arguments_and_recipes_show_them():
    model = ods.exact.Gaussian(torch.zeros(2), 1.0).model(VP.linear())
    latent = ods.encode(model, torch.zeros(1, 2), num_steps=5, grid="power(rho=3, variable='phi')")
    assert latent.recipe.grid == "power(rho=3, variable='phi')"
    assert "power(rho=3, variable='phi')" in repr(latent)
    assert ods.sample(model, 1, num_steps=3, grid="log_snr(last=0.05)").nfe.tolist() == [3]


@pytest.mark.parametrize("grid", ["shift(mu=1000.0)", "ays(model=['x'])", "karras(rho='x')"])
def test_arguments_of_the_wrong_kind_are_a_value_error_that_shows_them(grid):
    with pytest.raises(ValueError, match="grid"):
        ods.make_grid(grid, ods.VP.linear(), 5, into_zero=True)


@pytest.mark.parametrize("grid", [3.0, ["a", "b"]])
def test_what_is_no_grid_is_a_type_error(grid):
    with pytest.raises(TypeError, match="a name, a Grid or a sequence of sigmas"):
        ods.sample(ods.exact.GaussianMixture.ring().model(), 1, grid=grid)
