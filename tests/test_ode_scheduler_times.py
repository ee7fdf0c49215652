"""What an `OdeScheduler` takes over of a config: the class that it is of, and the times that this would take."""

import copy
import math

import diffusers
import numpy as np
import pytest
import torch

from odesampler.adapters.diffusers import OdeScheduler, grid_of, read
from odesampler.adapters.diffusers.kinds import APART, EDM, FLOWS, IN_SIGMA, KNOWN, TABLES
from tests.pipelines import STABLE

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # their tensors, given to numpy 2

UPWARD = {"DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"}
ABSENT = {"DPMSolverSDEScheduler"}  # needs a package that is not installed
SPACINGS = ("leading", "trailing", "linspace")
DOWNWARD = sorted({*TABLES} - UPWARD - ABSENT)


def network(x_t, t):
    """Like one that was trained: what it says depends on every pixel and on the time."""
    t = torch.as_tensor(t).reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype) / 1000
    return torch.tanh(x_t * (0.4 + t) + x_t.mean(dim=(1, 2, 3), keepdim=True)) * (1.5 + 0.2 * t)


def noise():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def walked(scheduler, sample, **given):
    scheduler.set_timesteps(**given)
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(sample, t) if hasattr(scheduler, "scale_model_input") else sample
        sample = scheduler.step(network(shown, t), t, sample).prev_sample
    return sample


def close(one, other, rtol=1e-4):
    assert one.shape == other.shape
    torch.testing.assert_close(one, other, rtol=0, atol=rtol * other.abs().max().item())


def theirs(name, spacing="linspace", **config):
    config = {k: v for k, v in STABLE.items() if k != "steps_offset"} | config
    if name == "DPMSolverSinglestepScheduler":  # knows linspace alone
        return diffusers.DPMSolverSinglestepScheduler(**{k: v for k, v in config.items() if k != "steps_offset"})
    return getattr(diffusers, name)(**config, timestep_spacing=spacing)


@pytest.mark.parametrize("name", DOWNWARD)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_times_are_those_that_the_class_of_the_config_would_take(name, spacing):
    """Beside its own list, once each, and beside `grid_of`, which asks the scheduler itself."""
    config = {"steps_offset": 1} if spacing == "leading" else {}
    more = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler = theirs(name, spacing, **config, **more)
    ours = OdeScheduler.from_config(scheduler.config, solver="euler")
    for count in (4, 5, 8, 10, 25, 30):
        scheduler.set_timesteps(count)
        ours.set_timesteps(count)
        listed = scheduler.timesteps.double()
        if name.startswith("KDPM2"):  # between two of its steps it asks at a time of its own
            listed = torch.cat([listed[:1], listed[2::2]])
        listed = torch.unique(listed).flip(0)
        torch.testing.assert_close(ours.timesteps.double(), listed, rtol=0, atol=1e-4)
        listed = grid_of(scheduler, count).sigmas[:count]
        assert ours._steps.route.sigmas[:count] == pytest.approx(listed, rel=1e-3)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_clipped_lambda_leaves_out_the_noisiest_times_as_theirs(name, spacing):
    config = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}
    scheduler = theirs(name, spacing, **config)
    ours = OdeScheduler.from_config(scheduler.config, solver="euler")
    for count in (5, 8, 20):
        scheduler.set_timesteps(count)
        ours.set_timesteps(count)
        assert ours.timesteps.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_solver_that_takes_over_makes_the_picture_that_theirs_makes_from_the_same_noise(name, spacing):
    """Also where theirs starts from sigma noise instead of sqrt(1 + sigma^2)."""
    config = {"solver_order": 1, "solver_type": "bh2"} if name[0] == "U" else {}
    config |= {"disable_corrector": list(range(100))} if name[0] == "U" else {}
    scheduler = theirs(name, spacing, **config)
    ours = OdeScheduler.from_config(scheduler.config, solver="dpmpp_2m" if name[0] == "D" else "euler")
    pictures = []
    for each in (ours, scheduler):
        each.set_timesteps(8)
        pictures.append(walked(each, noise() * each.init_noise_sigma, num_inference_steps=8))
    close(*pictures)


@pytest.mark.parametrize("name", sorted(IN_SIGMA - ABSENT))
def test_noise_is_scaled_as_the_class_of_the_config_scales_it(name):
    for spacing in SPACINGS:
        scheduler = theirs(name, spacing)
        ours = OdeScheduler.from_config(scheduler.config, solver="euler")
        for each in (scheduler, ours):
            each.set_timesteps(6)
        sigma = ours._steps.route.sigmas[0]
        assert ours.init_noise_sigma == pytest.approx(
            float(scheduler.init_noise_sigma) / math.hypot(1, sigma), rel=1e-5
        )
    own = OdeScheduler.from_config(scheduler.config, solver="euler", grid="karras")
    own.set_timesteps(6)
    assert own.init_noise_sigma == 1


def test_what_a_saved_config_leaves_out_is_what_its_class_takes():
    """As scheduler_config.json of years ago has it, which lacks timestep_spacing."""
    said = {**STABLE, "_class_name": "PNDMScheduler", "steps_offset": 1}
    old = OdeScheduler.from_config(said, solver="euler")
    old.set_timesteps(4)
    assert old.timesteps.tolist() == [751, 501, 251, 1]
    assert OdeScheduler.from_config({"_class_name": "KDPM2DiscreteScheduler"}).config.beta_end == 0.012


# Whose config it is.


def made(name):
    return getattr(diffusers, name)()


@pytest.mark.parametrize("name", sorted({*KNOWN} - ABSENT))
def test_the_class_of_a_config_in_memory_is_known_by_its_keys(name):
    """Some classes take the same: then one of them, which also takes the same times."""
    scheduler = made(name)
    assert "_class_name" not in scheduler.config
    kind = OdeScheduler.from_config(scheduler.config).config.config_of
    assert [kind in group for group in (APART, IN_SIGMA, FLOWS, EDM)] == [
        name in group for group in (APART, IN_SIGMA, FLOWS, EDM)
    ]
    assert read(scheduler.config) == read(scheduler)
    assert OdeScheduler.from_config(scheduler).config.config_of == name


def test_what_a_config_keeps_of_another_class_does_not_say_what_it_is():
    source = diffusers.DPMSolverMultistepScheduler(**STABLE | {"solver_order": 3, "solver_type": "heun"})
    kept = diffusers.LMSDiscreteScheduler.from_config(source.config)
    assert kept.config.solver_order == 3
    ours = OdeScheduler.from_config(kept.config, solver="euler")
    ours.set_timesteps(5)
    kept.set_timesteps(5)
    torch.testing.assert_close(ours.timesteps, kept.timesteps)


@pytest.mark.parametrize(
    "name",
    [
        "LCMScheduler",
        "TCDScheduler",
        "RePaintScheduler",
        "UnCLIPScheduler",
        "CogVideoXDDIMScheduler",
        "CogVideoXDPMScheduler",
        "FlowMatchLCMScheduler",
        "HeliosScheduler",
        "PiflowScheduler",
        "IPNDMScheduler",
        "SCMScheduler",
    ],
)
def test_schedulers_of_other_processes_are_refused_by_name_in_memory_too(name):
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    scheduler = made(name)
    for said, told in ((scheduler.config, "its keys are those of .*, which"), (scheduler, f"_class_name='{name}'")):
        for taken in (OdeScheduler.from_config, read):
            with pytest.raises(ValueError, match=f"{told} is not a scheduler of one Gaussian"):
                taken(said)


@pytest.mark.parametrize("key", ["snr_shift_scale", "original_inference_steps", "timestep_scaling", "eta", "stages"])
def test_a_key_that_nobody_knows_is_refused_by_name(key):
    for taken in (OdeScheduler.from_config, read):
        with pytest.raises(ValueError, match=f"'{key}' is a key of no scheduler that can be read"):
            taken({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, key: 1.0, "_private": 1})
    said = {"beta_schedule": "linear", key: 1.0}
    assert OdeScheduler.from_config(said, config_of="DDIMScheduler").config.config_of == "DDIMScheduler"


def test_a_mapping_written_by_hand_is_known_by_keys_that_tell():
    betas = {"prediction_type": "epsilon", "beta_schedule": "linear"}
    for key, kind in (("solver_order", "DPMSolverMultistepScheduler"), ("predictor_order", "SASolverScheduler")):
        assert OdeScheduler.from_config({**betas, key: 2}).config.config_of == kind
    plain = OdeScheduler.from_config(betas)
    assert not plain.config.clip_sample


def test_what_is_neither_a_scheduler_nor_a_config_is_refused_at_once():
    with pytest.raises(TypeError, match="must be a scheduler of diffusers or its config; got str"):
        OdeScheduler.from_config("stabilityai/stable-diffusion")


def test_log_linear_interpolation_is_refused_by_its_key():
    scheduler = diffusers.EulerDiscreteScheduler(interpolation_type="log_linear")
    for taken in (OdeScheduler.from_config, read):
        with pytest.raises(
            ValueError, match="interpolation_type='log_linear' takes levels of one grid and times of an"
        ):
            taken(scheduler.config)
    spaced = diffusers.EulerDiscreteScheduler(interpolation_type="log_linear", use_karras_sigmas=True)
    assert read(spaced.config).grid == "karras"  # which has its own levels


# Flows, and one grid in two directions.


@pytest.mark.parametrize("key", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("config", [{"shift": 3.0}, {"use_dynamic_shifting": True}, {"shift_terminal": 0.1}])
def test_sigmas_of_flows_are_spaced_as_theirs_after_the_shift(key, config):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config, **{key: True})
    ours = OdeScheduler.from_config(scheduler.config, solver="euler")
    mu = {"mu": 0.7} if "use_dynamic_shifting" in config else {}
    plain = OdeScheduler.from_config(scheduler.config, solver="euler", **{key: False})
    for given in ({"sigmas": np.linspace(1, 1 / 7, 7)}, {"num_inference_steps": 6}):
        if "shift_terminal" in config and "sigmas" not in given:
            continue  # left alone, the last time before the stretch is another
        close(walked(ours, noise(), **given, **mu), walked(scheduler, noise(), **given, **mu))
        close(ours.timesteps, scheduler.timesteps)
        plain.set_timesteps(**given, **mu)
        assert (plain.timesteps - ours.timesteps).abs().max() > 1


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
def test_up_and_down_are_over_the_times_of_ddim_of_as_many_steps(spacing, offset):
    config = {**STABLE, "timestep_spacing": spacing, "steps_offset": offset, "clip_sample": False}
    decoder = diffusers.DDIMScheduler(**config, set_alpha_to_one=False)
    up = OdeScheduler.from_config(decoder.config, solver="ddim", rising=True)
    up.set_timesteps(10)
    assert up.num_inference_steps == 10
    assert up._steps.route.sigmas[::-1] == pytest.approx(grid_of(decoder, 10).sigmas)
    decoder.set_timesteps(10)
    assert set(decoder.timesteps.tolist()) >= set(up.timesteps.tolist()[1:])
    down = up.inverse()
    down.set_timesteps(10)
    assert down._steps.route.sigmas == up._steps.route.sigmas[::-1]
    latent = noise()
    close(walked(down, latent, num_inference_steps=10), walked(decoder, latent, num_inference_steps=10))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
def test_ddim_told_the_target_is_ddim_inverse_in_as_many_steps(spacing, offset):
    config = {**STABLE, "timestep_spacing": spacing, "steps_offset": offset, "clip_sample": False}
    inverse = diffusers.DDIMInverseScheduler(**config, set_alpha_to_one=False)
    for source in (inverse, diffusers.DDIMScheduler(**config, set_alpha_to_one=False)):
        up = OdeScheduler.from_config(source.config, solver="ddim", rising=True, convention="target")
        x = noise() * 0.5
        close(walked(up, x, num_inference_steps=10), walked(inverse, x, num_inference_steps=10))
        assert up.timesteps.tolist() == [t for t in inverse.timesteps.tolist() if t > 0]


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_the_way_up_asks_at_the_times_of_dpm_solver_inverse(spacing):
    inverse = theirs("DPMSolverMultistepInverseScheduler", spacing)
    up = OdeScheduler.from_config(inverse.config, solver="ddim", rising=True)
    for count in (5, 8):
        inverse.set_timesteps(count)
        up.set_timesteps(count)
        assert up.timesteps.tolist() == inverse.timesteps.tolist()


def test_one_time_alone_that_is_the_end_itself_is_no_way_up():
    up = OdeScheduler.from_config(diffusers.DDIMScheduler().config, solver="alf", rising=True, clip_sample=False)
    with pytest.raises(ValueError, match="num_inference_steps=1 of 'leading' is the time of sigma_min alone"):
        up.set_timesteps(1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"grid": "nonsense"}, "unknown grid 'nonsense'"),
        ({"convention": "nonsense"}, "convention='nonsense' is not one of"),
        ({"variance_type": "zz"}, "variance_type='zz' is not one of"),
        ({"solver": "ancestral", "rising": True}, "solver='ancestral' draws noise"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type='one' is not one of"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_when_it_is_said(given, said):
    with pytest.raises(ValueError, match=said):
        OdeScheduler(**given)


def test_one_step_has_no_last_time_to_stretch_to():
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1).config
    with pytest.raises(ValueError, match=r"shift_terminal=0\.1 stretches"):
        OdeScheduler.from_config(config, solver="euler").set_timesteps(1)


def test_a_solve_that_begins_at_a_time_is_at_the_nearest_of_times_that_are_close():
    scheduler = OdeScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config, solver="euler")
    scheduler.set_timesteps(1000)
    x = torch.ones(1, 1, 2, 2)
    scheduler.step(x, scheduler.timesteps[1], x)
    assert scheduler.step_index == 2


def test_shallow_copies_go_their_own_ways():
    scheduler = OdeScheduler(solver="dpmpp_2m")
    scheduler.set_timesteps(4)
    x = torch.ones(1, 1, 2, 2)
    first = scheduler.step(0.3 * x, scheduler.timesteps[0], x).prev_sample
    other = copy.copy(scheduler)
    ends = []
    for one in (scheduler, other):
        sample = first
        for t in one.timesteps[1:]:
            sample = one.step(0.3 * sample, t, sample).prev_sample
        ends.append(sample)
    assert torch.equal(*ends)


def test_after_the_end_there_is_nothing_to_scale():
    scheduler = OdeScheduler.from_config(diffusers.EDMEulerScheduler().config, solver="euler")
    scheduler.set_timesteps(1)
    x = torch.ones(1, 1, 2, 2)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="arrived at its end"):
        scheduler.scale_model_input(x, scheduler.timesteps[0])
