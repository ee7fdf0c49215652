"""Configurations of diffusers' schedulers as schedules: their own tables as oracle, what is refused and how."""

import json
import math

import numpy as np
import pytest
import torch

from odesampler import VE, VP, DynamicThreshold, RectifiedFlow, make_grid
from odesampler.adapters.diffusers import grid_of, read
from odesampler.adapters.diffusers.kinds import EDM, FLOWS, TABLES

ABSENT = {"DPMSolverSDEScheduler"}  # needs a package that is not installed
TABLE_CLASSES = sorted({*TABLES} - ABSENT)
every_table = pytest.mark.parametrize("name", TABLE_CLASSES)
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # their tensors, given to numpy 2


def made(diffusers, name, **config):
    return getattr(diffusers, name)(**config)


def theirs(scheduler):
    return torch.cumprod(1 - scheduler.betas.double(), 0)


def table(reading):
    assert isinstance(reading.schedule, VP)
    return torch.tensor(reading.schedule.alpha_bar, dtype=torch.float64)


@every_table
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_start": 0.001, "beta_end": 0.03, "num_train_timesteps": 50},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ],
    ids=lambda c: c.get("beta_schedule", ",".join(c) or "defaults"),
)
def test_a_table_is_that_of_the_scheduler(diffusers, name, config):
    """Also of a scheduler that is told nothing: some classes have other betas of their own."""
    scheduler = made(diffusers, name, **config)
    for said in (scheduler, {**scheduler.config, "_class_name": name}):
        reading = read(said)
        torch.testing.assert_close(table(reading), theirs(scheduler), rtol=1e-4, atol=0)  # 1 - 0.999 in float32
        assert reading.num_train_timesteps == scheduler.config.num_train_timesteps
        assert reading.prediction == "eps"


@pytest.mark.parametrize("name", TABLE_CLASSES)
def test_what_a_configuration_leaves_out_is_what_its_class_takes(diffusers, name):
    """As in a scheduler_config.json of years ago, which lacks the keys of today."""
    assert read({"_class_name": name}) == read(made(diffusers, name))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
        ("DDPMScheduler", {"beta_schedule": "sigmoid", "beta_start": 0.001, "beta_end": 0.01}),
        ("DDPMScheduler", {"beta_schedule": "laplace"}),
        ("HeunDiscreteScheduler", {"beta_schedule": "exp"}),
    ],
)
def test_tables_that_few_know(diffusers, name, config):
    scheduler = made(diffusers, name, **config)
    torch.testing.assert_close(table(read(scheduler)), theirs(scheduler), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_zero_snr_is_zero_where_theirs_may_be_nearly_so(diffusers, name):
    """Euler, DPM-Solver and UniPC put 2^-24 there, sigma = 4096; nothing is clamped here."""
    scheduler = made(diffusers, name, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    ours = table(read(scheduler))
    assert (ours[-1], read(scheduler).schedule.sigma_max) == (0, math.inf)
    torch.testing.assert_close(ours[:-1], scheduler.alphas_cumprod.double()[:-1], rtol=1e-3, atol=1e-7)
    assert not torch.allclose(ours, table(read(made(diffusers, name))), atol=1e-4)


@pytest.mark.parametrize(
    ("said", "ours"), [("epsilon", "eps"), ("sample", "denoised"), ("v_prediction", "v")], ids=lambda x: x
)
def test_prediction_types(diffusers, said, ours):
    assert read(made(diffusers, "DDIMScheduler", prediction_type=said)).prediction == ours
    flow = {"prediction_type": said, "use_flow_sigmas": True}
    assert read(made(diffusers, "UniPCMultistepScheduler", **flow)).prediction == ours


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_use_flow_sigmas_makes_a_flow_of_a_table(diffusers, name):
    given = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    reading = read(made(diffusers, name, **given))
    assert (reading.schedule, reading.prediction) == (RectifiedFlow(1000.0, u_min=1e-3), "flow")
    assert reading.grid == "shift(shift=3.0)"


@pytest.mark.parametrize(
    ("kind", "key"), [(k, key) for k in FLOWS for key in ("shift", "num_train_timesteps")], ids=lambda x: str(x)[:14]
)
def test_a_flow_is_told_its_time_in_steps(diffusers, kind, key):
    scheduler = made(diffusers, kind, **{key: {"shift": 2.5, "num_train_timesteps": 250}[key]})
    scheduler.set_timesteps(7)
    schedule = read(scheduler).schedule
    u = torch.tensor([1 / (1 + 1 / s) for s in schedule.sigma(scheduler.timesteps.double()).tolist()])
    steps = scheduler.config.num_train_timesteps
    torch.testing.assert_close(u.double() * steps, scheduler.timesteps.double(), rtol=1e-6, atol=0)
    assert schedule.t(torch.tensor(1.0)) == steps / 2


@pytest.mark.parametrize("num_steps", [4, 25])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "num_train_timesteps": 200}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 20.0}),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
        ("EDMEulerScheduler", {}),
        ("EDMEulerScheduler", {"rho": 5.0, "sigma_max": 40.0}),
        ("EDMEulerScheduler", {"sigma_schedule": "exponential"}),
        (
            "EulerDiscreteScheduler",
            {
                "timestep_type": "continuous",
                "prediction_type": "v_prediction",
                "sigma_min": 0.002,
                "sigma_max": 700.0,
                "use_karras_sigmas": True,
            },
        ),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else str(x).removesuffix("Scheduler"),
)
def test_the_named_grid_is_what_the_scheduler_walks(diffusers, name, config, num_steps):
    scheduler = made(diffusers, name, **config)
    if "shift_terminal" in config:  # as pipelines call it; left alone, its last time before the stretch is another
        walked = grid_of(scheduler, None, sigmas=np.linspace(1, 1 / num_steps, num_steps))
    else:
        walked = grid_of(scheduler, num_steps)
    reading = read(scheduler)
    ends = {"sigma_min": reading.sigma_min, "sigma_max": reading.sigma_max}
    ours = make_grid(reading.grid, reading.schedule, num_steps, into_zero=True, **ends)
    if reading.grid == "linspace":  # Euler does not round its timesteps
        sigmas = torch.tensor([ours.sigmas[:-1], walked.sigmas[:-1]], dtype=torch.float64)
        ours_t, their_t = reading.schedule.t(sigmas)
        assert (ours_t - their_t).abs().max() < 0.51
    else:
        assert ours.sigmas == pytest.approx(walked.sigmas, rel=2e-4)
    assert ours[-1] == walked[-1] == 0


@pytest.mark.parametrize(("tokens", "mu"), [(None, 0.3), (64, 0.3), (512, 0.9), (288, 0.6)])
def test_a_dynamic_shift_depends_on_the_number_of_tokens(diffusers, tokens, mu):
    config = {"base_image_seq_len": 64, "max_image_seq_len": 512, "base_shift": 0.3, "max_shift": 0.9}
    scheduler = made(diffusers, FLOWS[0], use_dynamic_shifting=True, **config)
    reading = read(scheduler, tokens=tokens)
    ours = make_grid(reading.grid, reading.schedule, 6, into_zero=True)
    walked = grid_of(scheduler, None, sigmas=np.linspace(1, 1 / 6, 6), mu=mu)
    assert ours.sigmas == pytest.approx(walked.sigmas, rel=1e-5)


def test_a_linear_dynamic_shift(diffusers):
    scheduler = made(diffusers, FLOWS[0], use_dynamic_shifting=True, time_shift_type="linear")
    ours = make_grid(read(scheduler, tokens=4096).grid, RectifiedFlow(), 5, into_zero=True)
    walked = grid_of(scheduler, None, sigmas=np.linspace(1, 1 / 5, 5), mu=1.15)
    assert ours.sigmas == pytest.approx(walked.sigmas, rel=1e-5)


@pytest.mark.parametrize("kind", EDM)
def test_edm(diffusers, kind):
    config = {"sigma_min": 0.01, "sigma_max": 30.0, "sigma_data": 0.7, "prediction_type": "v_prediction"}
    reading = read(made(diffusers, kind, **config))
    assert (reading.schedule, reading.prediction) == (VE(0.01, 30.0), "denoised")
    assert (reading.preconditioning.data, reading.preconditioning.sign) == (0.7, -1.0)
    assert read(made(diffusers, kind)).preconditioning.sign == 1.0


def test_continuous_timesteps_mean_nothing_but_with_v(diffusers):
    """As in EulerDiscreteScheduler itself, which then takes whole timesteps."""
    assert read(made(diffusers, "EulerDiscreteScheduler", timestep_type="continuous")).preconditioning is None


def test_clipping_is_reported_as_a_verb_would_take_it(diffusers):
    assert read(made(diffusers, "DDPMScheduler")).clip_denoised == 1.0
    assert read(made(diffusers, "DDPMScheduler", clip_sample_range=2.5)).clip_denoised == 2.5
    assert read(made(diffusers, "DDIMScheduler", clip_sample=False)).clip_denoised is None
    assert read(made(diffusers, "EulerDiscreteScheduler")).clip_denoised is None
    given = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}
    assert read(made(diffusers, "DDPMScheduler", **given)).clip_denoised == DynamicThreshold(0.9, largest=3.0)


def test_a_clipped_lambda_ends_the_range(diffusers):
    """As far as DPM-Solver goes: its first timestep is the last whose lambda is above the bound."""
    scheduler = made(
        diffusers, "DPMSolverMultistepScheduler", beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1
    )
    reading, first = read(scheduler), grid_of(scheduler, 10)[0]
    assert reading.sigma_max == pytest.approx(math.exp(5.1))
    assert first <= reading.sigma_max < reading.schedule.sigma_max
    assert reading.sigma_max / first < 1.2


def test_a_mapping_without_a_class_is_what_its_keys_say():
    """As `scheduler.config` is, and as JSON gives it."""
    betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
    assert read(json.loads(json.dumps(betas))).schedule == VP.linear()
    assert read({"shift": 3.0}).prediction == "flow"


def test_a_scheduler_made_from_another_is_read_as_what_it_is(diffusers):
    sd = made(
        diffusers, "DDIMScheduler", **{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    )
    other = diffusers.DPMSolverMultistepScheduler.from_config(sd.config, use_karras_sigmas=True)
    assert read(other).schedule == read(sd).schedule == VP.scaled_linear()
    assert (read(other).grid, read(sd).grid) == ("karras", "leading")


def test_a_class_made_from_theirs_is_read_as_theirs(diffusers):
    class Mine(diffusers.EulerDiscreteScheduler):
        pass

    assert read(Mine()) == read(diffusers.EulerDiscreteScheduler())


def test_a_configuration_taken_over_is_read_as_that_of_its_class():
    """As an OdeScheduler has it; a class that is known itself goes before."""
    said = {"config_of": "HeunDiscreteScheduler"}
    assert read({**said, "_class_name": "OdeScheduler"}) == read({"_class_name": "HeunDiscreteScheduler"})
    assert read({**said, "_class_name": "DDIMScheduler"}) == read({"_class_name": "DDIMScheduler"})


@pytest.mark.parametrize(
    "name",
    [
        "LCMScheduler",
        "TCDScheduler",
        "CMStochasticIterativeScheduler",
        "RePaintScheduler",
        "VQDiffusionScheduler",
        "IPNDMScheduler",
        "ScoreSdeVeScheduler",
        "KarrasVeScheduler",
        "SCMScheduler",
        "CogVideoXDDIMScheduler",
        "AmusedScheduler",
    ],
)
def test_other_classes_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"thing config: _class_name='{name}' is not a scheduler of one Gaussian"):
        read({"_class_name": name, "beta_schedule": "linear", "shift": 1.0}, "thing")


def test_a_scheduler_object_of_another_class_is_refused_by_name(diffusers):
    with pytest.raises(ValueError, match="_class_name='LCMScheduler' is not"):
        read(diffusers.LCMScheduler())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "quadratic"}, "scheduler config: beta_schedule='quadratic' is not one of linear, scaled"),
        ({"prediction_type": "score"}, "prediction_type='score' is not one of epsilon, sample"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction' goes with use_flow_sigmas=True"),
        ({"timestep_spacing": "random"}, "timestep_spacing='random' is not one of leading"),
        ({"trained_betas": [0.1, 0.2]}, "num_train_timesteps=1000 but trained_betas has 2 entries"),
        ({"use_karras_sigmas": True, "sigma_max": 700.0}, "sigma_max=700.0 is not within its table, 0.010"),
        ({"use_beta_sigmas": True, "sigma_min": 1e-5}, "sigma_min=1e-05 is not within its table"),
        ({"_class_name": FLOWS[0], "invert_sigmas": True}, "invert_sigmas=True counts time from noise to image"),
        (
            {"_class_name": EDM[0], "prediction_type": "sample"},
            "prediction_type='sample' is not one of epsilon, v_pred",
        ),
    ],
    ids=lambda x: next(reversed(x)) if isinstance(x, dict) else "",
)
def test_settings_that_are_not_known_are_refused_by_their_key(config, message):
    with pytest.raises(ValueError, match=message):
        read({"_class_name": "EulerDiscreteScheduler", **config})


def test_what_is_no_configuration_is_refused():
    with pytest.raises(TypeError, match="scheduler must be a scheduler of diffusers or its config; got str"):
        read("ddim")
    with pytest.raises(ValueError, match="neither _class_name nor beta_schedule is there"):
        read({"solver_order": 2})


def test_the_grid_of_a_scheduler_ends_where_it_says(diffusers):
    """DDIM of Stable Diffusion: offset by one, and down to the table's first level instead of 0."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    scheduler = made(diffusers, "DDIMScheduler", **betas, set_alpha_to_one=False)
    grid = grid_of(scheduler, 4)
    schedule = VP.scaled_linear()
    expected = schedule.sigma(torch.tensor([751.0, 501.0, 251.0, 1.0, 0.0], dtype=torch.float64)).tolist()
    assert grid.sigmas == pytest.approx(expected, rel=1e-12)
    assert grid_of(made(diffusers, "DDIMScheduler"), 4)[-1] == 0
    assert scheduler.num_inference_steps is None, "the scheduler itself is left alone"


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler"])
def test_a_sigma_that_is_named_twice_is_walked_once(diffusers, name):
    config = {"timestep_spacing": "leading", "beta_start": 1e-4, "beta_end": 0.02}
    more = {"set_alpha_to_one": True, "skip_prk_steps": True} if name == "PNDMScheduler" else {}
    euler = grid_of(made(diffusers, "EulerDiscreteScheduler", **config), 6)
    assert grid_of(made(diffusers, name, **config, **more), 6).sigmas == pytest.approx(euler.sigmas, rel=1e-4)


def test_a_scheduler_that_goes_up_has_no_grid_to_come_down(diffusers):
    with pytest.raises(ValueError, match="DDIMInverseScheduler walks upward"):
        grid_of(made(diffusers, "DDIMInverseScheduler"), 5)


@pytest.mark.parametrize("use", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
def test_the_ends_of_a_grid_are_within_the_schedule(diffusers, name, use, betas):
    """Theirs are of a table in float32, whose first and last entries are off by up to 1e-4."""
    scheduler = made(diffusers, name, beta_schedule=betas, **{f"use_{use}_sigmas": True})
    first, *_, last, zero = grid_of(scheduler, 12)
    schedule = read(scheduler).schedule
    assert schedule.sigma_min <= last < first <= schedule.sigma_max
    assert (first, last, zero) == pytest.approx((schedule.sigma_max, schedule.sigma_min, 0), rel=1e-3)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_sigma_min_and_sigma_max_bound_sigmas_that_are_spaced_out_and_no_times_of_a_table(diffusers, name, spacing):
    config = {"sigma_min": 0.5, "sigma_max": 10.0, "timestep_spacing": spacing}
    scheduler = made(diffusers, name, **config)
    reading = read(scheduler)
    assert (reading.sigma_min, reading.sigma_max) == (None, None)
    ours = make_grid(reading.grid, reading.schedule, 5, into_zero=True)
    assert ours.sigmas[0] == pytest.approx(grid_of(scheduler, 5)[0], rel=1e-3)
    spaced = made(diffusers, name, **config, use_karras_sigmas=True)
    assert (read(spaced).sigma_min, read(spaced).sigma_max) == (0.5, 10.0)
    assert grid_of(spaced, 5)[0] == pytest.approx(10.0)


def test_a_lambda_that_clips_nothing_leaves_the_range_as_it_is():
    reading = read({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -20.0})
    assert reading.sigma_max == reading.schedule.sigma_max


def test_of_two_bounds_the_lower_ends_the_range():
    config = {"_class_name": "UniPCMultistepScheduler", "use_karras_sigmas": True, "sigma_max": 10.0}
    assert read({**config, "lambda_min_clipped": -5.0}).sigma_max == 10.0
    assert read({**config, "lambda_min_clipped": -2.0}).sigma_max == pytest.approx(math.exp(2))


DYNAMIC = {"use_dynamic_shifting": True, "base_shift": -0.5, "max_shift": -1.5}


@pytest.mark.parametrize(
    "config",
    [
        {"shift": 0.9},
        {"shift": 0.1},
        {"shift": 0.5, "num_train_timesteps": 50},
        DYNAMIC,
        {**DYNAMIC, "time_shift_type": "linear", "base_shift": 0.4, "max_shift": 0.2},
    ],
    ids=str,
)
def test_a_flow_that_is_shifted_towards_the_image_is_walked_to_where_theirs_ends(diffusers, config):
    scheduler = made(diffusers, FLOWS[0], **config)
    reading = read(scheduler)
    ours = make_grid(reading.grid, reading.schedule, 40, into_zero=True)
    given = (None, "sigmas") if "use_dynamic_shifting" in config else (40, None)
    mu = config.get("base_shift")
    walked = grid_of(scheduler, given[0], **({"sigmas": np.linspace(1, 1 / 40, 40), "mu": mu} if given[1] else {}))
    assert ours.sigmas[1:] == pytest.approx(walked.sigmas[1:], rel=1e-4)  # their first may be rounded off infinity
    if mu is None:  # without sigmas, pipelines leave the last to the scheduler
        assert reading.schedule.sigma_min == pytest.approx(ours[-2], rel=1e-9)
    else:
        last = grid_of(scheduler, 40, mu=config["max_shift"])[-2]
        assert reading.schedule.sigma_min == pytest.approx(last, rel=1e-3)


def test_a_flow_that_is_shifted_towards_noise_may_be_asked_down_to_the_first_time_of_its_table(diffusers):
    for shift in (1.0, 3.0):
        assert read(made(diffusers, FLOWS[0], shift=shift)).schedule == RectifiedFlow(1000.0, u_min=1e-3)
    assert read(made(diffusers, FLOWS[0], use_dynamic_shifting=True)).schedule == RectifiedFlow(1000.0, u_min=1e-3)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 0.5}
    low = read(made(diffusers, "UniPCMultistepScheduler", **flow)).schedule.sigma_min
    assert low == pytest.approx(0.5 / 999)


FLOW, OF_EDM, OF_DDIM = ({"_class_name": name} for name in (FLOWS[0], EDM[0], "DDIMScheduler"))
LINEAR = {**FLOW, "use_dynamic_shifting": True, "time_shift_type": "linear"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**FLOW, "use_dynamic_shifting": True, "time_shift_type": "zzz"}, "time_shift_type='zzz' is not one of expon"),
        ({**FLOW, "shift": -1.0}, "shift=-1.0 must be a finite number above 0"),
        ({**FLOW, "shift": 0.0}, "shift=0.0 must be a finite number above 0"),
        ({**FLOW, "shift": "3"}, "shift='3' must be a finite number above 0"),
        ({**FLOW, "shift": math.inf}, "shift=inf must be a finite number above 0"),
        ({**OF_DDIM, "use_flow_sigmas": True, "flow_shift": 0}, "flow_shift=0 must be a finite number above 0"),
        ({**FLOW, "shift_terminal": 2.0}, "shift_terminal=2.0 must be a finite number above 0 and below 1"),
        ({**FLOW, "shift_terminal": 1.0}, "shift_terminal=1.0 must be"),
        ({**FLOW, "num_train_timesteps": 1}, "num_train_timesteps=1 must be a whole number, 2 or more"),
        ({**LINEAR, "base_shift": -0.5}, "base_shift=-0.5 must be a finite number above 0"),
        ({**LINEAR, "max_image_seq_len": 256}, "base_image_seq_len=.* must be another number than max_image_seq_len"),
        ({**LINEAR, "max_image_seq_len": "4096"}, "max_image_seq_len='4096' must be a whole number, 1 or more"),
        ({**OF_EDM, "sigma_schedule": "zz"}, "sigma_schedule='zz' is not one of karras, exponential"),
        ({**OF_EDM, "sigma_data": -1.0}, "sigma_data=-1.0 must be a finite number above 0"),
        ({**OF_EDM, "rho": 0.0}, "rho=0.0 must be a finite number above 0"),
        ({**OF_EDM, "sigma_min": 5.0, "sigma_max": 1.0}, "sigma_min=5.0 must be below sigma_max=1"),
        ({**OF_EDM, "sigma_min": 0.0}, "sigma_min=0.0 must be a finite number above 0"),
        ({**OF_DDIM, "clip_sample_range": -1.0}, "clip_sample_range=-1.0 must be a finite number above 0"),
        ({**OF_DDIM, "thresholding": True, "sample_max_value": 0.5}, "sample_max_value=0.5 must be 1 or more"),
        (
            {**OF_DDIM, "thresholding": True, "dynamic_thresholding_ratio": 99.5},
            "dynamic_thresholding_ratio=99.5 must be a fraction",
        ),
        ({**OF_DDIM, "beta_start": None}, "beta_start=None must be a finite number above 0 and below 1"),
        ({**OF_DDIM, "beta_end": 1.5}, "beta_end=1.5 must be"),
        ({**OF_DDIM, "num_train_timesteps": "a"}, "num_train_timesteps='a' must be a whole number, 2 or more"),
        ({**OF_DDIM, "num_train_timesteps": 10.5}, "num_train_timesteps=10.5 must be a whole number"),
        ({**OF_DDIM, "num_train_timesteps": True}, "num_train_timesteps=True must be a whole number"),
        ({**OF_DDIM, "trained_betas": ["a"]}, r"trained_betas=\['a'\] must be a row of numbers"),
        ({**OF_DDIM, "trained_betas": [0.1, 2.0], "num_train_timesteps": 2}, r"trained_betas=\[0.1, 2.0\] is no table"),
        ({**OF_DDIM, "prediction_type": ["epsilon"]}, r"prediction_type=\['epsilon'\] is not one of"),
        ({**OF_DDIM, "lambda_min_clipped": "a"}, "lambda_min_clipped='a' must be a finite number"),
    ],
    ids=lambda x: f"{[*x][-1]}={[*x.values()][-1]}" if isinstance(x, dict) else "",
)
def test_values_that_cannot_be_meant_are_refused_by_their_key(config, message):
    with pytest.raises(ValueError, match=f"scheduler config: {message}"):
        read(config)


def test_a_shift_that_turns_negative_beyond_the_sizes_of_the_config_is_refused():
    with pytest.raises(ValueError, match=r"max_shift=0\.1 with base_shift=0.9 makes the shift of 8000 tokens"):
        read({**LINEAR, "base_shift": 0.9, "max_shift": 0.1}, tokens=8000)


def test_a_whole_number_of_steps_may_be_written_as_json_writes_a_float():
    assert read({**OF_DDIM, "num_train_timesteps": 50.0}).num_train_timesteps == 50
