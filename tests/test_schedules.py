"""Schedules: the change of variables holds everywhere, and agrees with what others compute."""

import json
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from odesampler.schedule import VE, VP, ContinuousVP, RectifiedFlow

USER_TABLE = VP((0.98, 0.7, 0.65, 0.1, 0.003))
SCHEDULES = {
    "linear": VP.linear(),
    "scaled_linear": VP.scaled_linear(),
    "cosine": VP.cosine(),
    "short cosine": VP.cosine(50),
    "user table": USER_TABLE,
    "zero SNR": VP.scaled_linear().with_zero_snr(),
    "zero SNR by its last beta": VP.from_betas([0.1, 0.3, 0.5, 1.0]),
    "continuous": ContinuousVP(),
    "edm": VE(),
    "flow": RectifiedFlow(),
    "flow that counts to 1000": RectifiedFlow(clock_scale=1000.0),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
shares = st.floats(0, 1)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def clock(schedule, share):
    """A time inside the clock of `schedule`, `share` of the way from its start to its end."""
    low = schedule.t(number(schedule.sigma_min)).item()
    high = schedule.t(number(schedule.sigma_max)).item()
    return number(min(low + (high - low) * share, high))


def a_sigma(schedule, share):
    """A sigma in the range, `share` of the way in log sigma; an infinite range is cut at 1e6."""
    low, high = schedule.sigma_min, min(schedule.sigma_max, 1e6)
    return number(math.exp(math.log(low) + (math.log(high) - math.log(low)) * share)).clamp(low, high)


@every_schedule
@given(share=shares)
def test_t_undoes_sigma(schedule, share):
    t = clock(schedule, share)
    torch.testing.assert_close(schedule.t(schedule.sigma(t)), t, rtol=1e-9, atol=1e-9)


@every_schedule
@given(share=shares)
def test_sigma_undoes_t(schedule, share):
    sigma = a_sigma(schedule, share)
    torch.testing.assert_close(schedule.sigma(schedule.t(sigma)), sigma, rtol=1e-8, atol=0)


@every_schedule
@given(one=shares, other=shares)
def test_sigma_rises_with_t_and_alpha_falls(schedule, one, other):
    early, late = sorted([clock(schedule, one), clock(schedule, other)])
    assume(late - early > 1e-6)
    s0, s1 = schedule.sigma(early), schedule.sigma(late)
    assert s0 < s1
    assert schedule.alpha(s0) >= schedule.alpha(s1)
    assert schedule.std(s0) <= schedule.std(s1)


@every_schedule
@given(share=shares)
def test_std_is_alpha_times_sigma(schedule, share):
    sigma = a_sigma(schedule, share)
    torch.testing.assert_close(schedule.alpha(sigma) * sigma, schedule.std(sigma), rtol=1e-12, atol=0)
    scale = math.hypot(schedule.alpha(sigma).item(), schedule.std(sigma).item())
    assert schedule.latent_scale(sigma.item()) == pytest.approx(scale, rel=1e-12)


@every_schedule
def test_alpha_and_std_are_right_at_the_ends_of_all_sigmas(schedule):
    ends = torch.tensor([0.0, math.inf], dtype=torch.float64)
    assert schedule.alpha(ends)[0] == 1
    assert schedule.std(ends)[0] == 0
    if not isinstance(schedule, VE):  # whose alpha is 1 at any sigma
        assert schedule.alpha(ends)[1] == 0
        assert schedule.std(ends)[1] == 1


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "user table", "continuous", "zero SNR"])
@given(share=shares)
def test_variance_is_preserved(name, share):
    schedule = SCHEDULES[name]
    sigma = a_sigma(schedule, share)
    assert (schedule.alpha(sigma) ** 2 + schedule.std(sigma) ** 2).item() == pytest.approx(1, abs=1e-14)
    assert schedule.latent_scale(sigma.item()) == pytest.approx(1, abs=1e-14)


@given(share=shares)
def test_signal_and_noise_of_a_straight_path_add_up_to_one(share):
    schedule = SCHEDULES["flow"]
    sigma = a_sigma(schedule, share)
    assert (schedule.alpha(sigma) + schedule.std(sigma)).item() == pytest.approx(1, abs=1e-14)
    assert schedule.t(sigma).item() == pytest.approx(schedule.std(sigma).item(), abs=1e-14)


@every_schedule
@pytest.mark.parametrize("shape", [(), (5,), (2, 1, 3)])
def test_any_shape_is_taken_elementwise_in_float64(schedule, shape):
    sigma = torch.linspace(0.5, 2.0, math.prod(shape), dtype=torch.float64).reshape(shape)
    for f in (schedule.alpha, schedule.std, schedule.t, schedule.sigma):
        at = schedule.t(sigma) if f == schedule.sigma else sigma
        assert (f(at).shape, f(at).dtype) == (shape, torch.float64)
        each = torch.stack([f(one) for one in at.flatten()]).reshape(shape)
        torch.testing.assert_close(f(at), each, rtol=1e-15, atol=0)


@every_schedule
def test_a_clock_as_a_network_is_told_it_is_understood(schedule):
    """In float32."""
    sigma = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
    told = schedule.t(sigma).float()
    for t, want in ((told, sigma), (told[0], sigma[0])):
        torch.testing.assert_close(schedule.sigma(t).double(), want, rtol=1e-5, atol=0)


@every_schedule
@given(share=shares)
def test_both_scales_name_the_same_point(schedule, share):
    sigma, x = a_sigma(schedule, share).item(), torch.linspace(-2, 2, 5, dtype=torch.float64)
    x_t = schedule.to_model_scale(x, sigma)
    torch.testing.assert_close(x_t, x * schedule.alpha(number(sigma)), rtol=1e-15, atol=0)
    torch.testing.assert_close(schedule.from_model_scale(x_t, sigma), x, rtol=1e-14, atol=0)
    assert schedule.to_model_scale(x, math.inf) is schedule.from_model_scale(x, math.inf) is x


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "user table"])
def test_a_table_is_met_exactly_at_whole_times(name):
    schedule = SCHEDULES[name]
    alpha_bar = torch.tensor(schedule.alpha_bar, dtype=torch.float64)
    sigma = schedule.sigma(torch.arange(len(alpha_bar), dtype=torch.float64))
    torch.testing.assert_close(sigma, ((1 - alpha_bar) / alpha_bar).sqrt(), rtol=1e-13, atol=0)
    torch.testing.assert_close(schedule.alpha(sigma) ** 2, alpha_bar, rtol=1e-13, atol=0)
    torch.testing.assert_close(schedule.t(sigma), torch.arange(len(alpha_bar)).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["zero SNR", "zero SNR by its last beta"])
def test_zero_terminal_snr_means_infinity_at_the_last_time_and_nothing_near_it_is_lost(name):
    schedule = SCHEDULES[name]
    last = len(schedule.alpha_bar) - 1.0
    assert schedule.sigma_max == math.inf
    assert schedule.sigma(number(last)) == math.inf
    assert schedule.t(number(math.inf)) == last
    assert math.isfinite(schedule.sigma(number(last - 1e-9)))
    halfway = schedule.sigma(number(last - 0.5))
    assert halfway == pytest.approx(2 * schedule.sigma(number(last - 1)).item(), rel=1e-12)


def test_the_schedules_are_those_of_their_papers():
    """DDPM: abar_T = 4.0e-5. Nichol & Dhariwal: cos^2 halfway. Song: int beta = 10.05. EDM: 0.002 .. 80."""
    assert VP.linear().alpha_bar[0] == pytest.approx(1 - 1e-4, rel=1e-12)
    assert VP.linear().alpha_bar[-1] == pytest.approx(4.0358e-5, rel=1e-4)
    half = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert VP.cosine().alpha_bar[499] == pytest.approx(half, rel=1e-12)
    assert ContinuousVP().alpha(number(ContinuousVP().sigma_max)) == pytest.approx(math.exp(-10.05 / 2), rel=1e-12)
    assert (VE().sigma_min, VE().sigma_max) == (0.002, 80.0)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
    ("name", "betas"),
    [
        ("linear", {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        ("scaled_linear", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_tables_equal_those_of_diffusers_to_the_precision_of_theirs(diffusers, name, betas, zero_snr):
    theirs = diffusers.DDIMScheduler(**betas, rescale_betas_zero_snr=zero_snr)  # float32
    ours = getattr(VP, name)().with_zero_snr() if zero_snr else getattr(VP, name)()
    table = torch.tensor(ours.alpha_bar, dtype=torch.float64)
    torch.testing.assert_close(table, theirs.alphas_cumprod.double(), rtol=0, atol=1e-6)
    if zero_snr:
        assert theirs.alphas_cumprod[-1] == table[-1] == 0
    else:
        in_float64 = torch.cumprod(1 - theirs.betas.double(), 0)
        torch.testing.assert_close(table, in_float64, rtol=2e-5, atol=0)  # 1 - beta is 0.001 at the last cosine


@every_schedule
def test_describes_itself_so_that_json_can_hold_it(schedule):
    described = json.loads(json.dumps(schedule.describe()))
    family = type(schedule)
    assert described.pop("family") == family.__name__
    assert family(**described) == schedule


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((0.9,), "at least 2 entries"),
        ((0.9, 0.9), "fall strictly"),
        ((0.5, 0.9), "fall strictly"),
        ((1.0, 0.5), "from below 1"),
        ((0.9, -0.1), "to 0 or above"),
        ((0.9, float("nan")), "fall strictly"),
        ((0.9, 0.0), "two entries above 0"),
    ],
)
def test_a_bad_table_is_refused_and_shown(table, message):
    with pytest.raises(ValueError, match=message) as raised:
        VP(table)
    assert f"{table[0]:g}" in str(raised.value)


@pytest.mark.parametrize("betas", [[0.0, 0.1], [0.1, 1.1], [-0.1, 0.1], [[0.1, 0.2]], [float("nan"), 0.1]])
def test_bad_betas_are_refused(betas):
    with pytest.raises(ValueError, match=r"numbers in \(0, 1\]"):
        VP.from_betas(betas)


def test_a_beta_of_one_before_the_end_is_refused():
    with pytest.raises(ValueError, match="fall strictly"):
        VP.from_betas([0.1, 1.0, 0.1])


def test_equal_tables_are_one_so_that_comparing_schedules_compares_no_numbers():
    """Each evaluation looks up what a sigma means by the schedule: a thousand numbers took as long as a step."""
    one, other = VP.linear(), VP.linear()
    assert one == other
    assert one.alpha_bar is other.alpha_bar
    assert one != VP.cosine()
