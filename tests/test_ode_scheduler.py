"""Our solvers as schedulers: the contract of those of diffusers, and the same results as our own loop."""

import copy
import math
import pickle

import diffusers
import pytest
import torch

import odesampler as ods
from odesampler.adapters.diffusers import OdeScheduler
from odesampler.drive import run
from odesampler.integrate import OnGrid, on_grid, solve
from odesampler.noise import Streams
from odesampler.program import Course, Invertible, State
from odesampler.registry import SOLVERS, find_solver
from odesampler.threshold import thresholded
from tests.pipelines import STABLE

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with numpy 2

FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
INVERTIBLE = [name for name, maker in SOLVERS.items() if isinstance(maker(), Invertible)]
every_solver = pytest.mark.parametrize("solver", SOLVERS)


def network(x_t, t, **_):
    """Like one that was trained: what it says depends on every pixel and on the time."""
    t = t.reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype) / 1000
    return torch.tanh(x_t * (0.4 + t) + x_t.mean(dim=(1, 2, 3), keepdim=True)) * (1.5 + 0.2 * t)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*(shape or (2, 3, 4, 4)), generator=torch.Generator().manual_seed(seed)).to(dtype)


def scheduler(solver=None, config=None, **more):
    usual = {**STABLE, "_class_name": "DDIMScheduler", "timestep_spacing": "linspace", "clip_sample": False}
    return OdeScheduler.from_config(config or usual, solver=solver, **more)


def asked(scheduler, sample, t):
    shown = scheduler.scale_model_input(sample, t)
    fine = torch.promote_types(sample.dtype, torch.float32)
    return network(shown.to(fine), torch.as_tensor(t).expand(len(sample))).to(sample.dtype)


def finished(scheduler, sample, edit=None, generator=None):
    """The loop that every pipeline has."""
    for i, t in enumerate(scheduler.timesteps):
        sample = scheduler.step(asked(scheduler, sample, t), t, sample, generator=generator).prev_sample
        sample = sample if edit is None else edit(i, sample)
    return sample


def library(scheduler, sample, solver):
    """The same with our own loop and driver, at the same sigmas; noise from the streams of seeds 7 and 8."""
    reading, sigmas = scheduler.reading, scheduler._steps.route.sigmas
    model = ods.Model(network, reading.schedule, reading.prediction)
    loop = OnGrid(find_solver(solver).prepared(Course(reading.schedule.t, sigmas, model.range[0])))
    start = State(reading.schedule.from_model_scale(sample, sigmas[0]))
    eps = thresholded(model, reading.clip_denoised)
    return run(solve(loop, start, sigmas), model=eps, noise=Streams([7, 8]))[0].state.x


def close(one, other, rtol=1e-5):
    """Within rtol of the size of the answer."""
    assert one.shape == other.shape
    torch.testing.assert_close(one, other, rtol=0, atol=rtol * other.abs().max().item())


@every_solver
@pytest.mark.parametrize("config", [None, FLOW], ids=["table", "flow"])
def test_every_solver_gives_what_our_own_loop_gives(solver, config):
    made, x = scheduler(solver, config), noise()
    made.set_timesteps(6)
    if config is FLOW:
        assert made.timesteps[0] == 1000
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]  # as `Streams`: one a sample
    close(finished(made, x, generator=generators), library(made, x, solver))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clipped", [{}, {"clip_sample": True}, {"thresholding": True, "sample_max_value": 1.5}])
def test_what_the_network_says_is_understood_as_our_models_do(prediction, clipped):
    made, x = scheduler("dpmpp_2m", prediction_type=prediction, **clipped), noise()
    made.set_timesteps(5)
    got = finished(made, x)
    close(got, library(made, x, "dpmpp_2m"))
    plain = scheduler("dpmpp_2m", prediction_type=prediction)
    plain.set_timesteps(5)
    assert torch.equal(got, finished(plain, x)) == (not clipped)


def theirs_finished(scheduler, sample, **more):
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(sample, t) if hasattr(scheduler, "scale_model_input") else sample
        sample = scheduler.step(network(shown, t.expand(len(sample))), t, sample, **more).prev_sample
    return sample


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    ("theirs", "config", "solver", "more"),
    [
        ("DDIM", {**STABLE, "clip_sample": False}, "ddim", {}),
        ("DDIM", {**STABLE, "clip_sample": True, "clip_sample_range": 0.8}, "ddim", {}),
        (
            "DDIM",
            {**STABLE, "set_alpha_to_one": False, "clip_sample": False},
            "ddim",
            {"final_sigmas_type": "sigma_min"},
        ),
        ("DDIM", {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "clip_sample": True}, "ddim", {}),
        ("DDIM", {**STABLE, **ZERO_SNR, "clip_sample": False}, "ddim", {}),
        ("DPMSolverMultistep", {**STABLE, "timestep_spacing": "trailing"}, "dpmpp_2m", {}),
        ("EulerDiscrete", {**STABLE, "timestep_spacing": "trailing"}, "euler", {}),
        ("EulerDiscrete", {**STABLE, "use_karras_sigmas": True}, "euler", {}),
        ("HeunDiscrete", {**STABLE, "timestep_spacing": "trailing"}, "heun", {}),
        ("HeunDiscrete", {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}, "heun", {}),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}, "euler", {}),
        ("FlowMatchEulerDiscrete", {"shift": 1.0, "shift_terminal": 0.1}, "euler", {}),
        ("EDMEuler", {"sigma_data": 0.7}, "euler", {}),
        ("EDMEuler", {"prediction_type": "v_prediction"}, "euler", {}),
    ],
)
def test_their_own_scheduler_gives_the_same_with_the_times_that_are_taken_over(theirs, config, solver, more):
    theirs = getattr(diffusers, f"{theirs}Scheduler")(**config)
    ours, x = OdeScheduler.from_config(theirs.config, solver=solver, **more), noise()
    theirs.set_timesteps(8)
    ours.set_timesteps(8)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps.float(), rtol=1e-4, atol=1e-3)
    more = {"use_clipped_model_output": True} if config.get("clip_sample") else {}  # else they mix clipped and not
    scale = getattr(theirs, "init_noise_sigma", 1.0)
    close(finished(ours, x * ours.init_noise_sigma), theirs_finished(theirs, x * scale, **more), rtol=1e-4)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_given_the_same_sigmas_ddim_and_dpmpp_2m_are_theirs_to_1e_5(name):
    """Theirs walk their table in float32, which is most of what is left."""
    theirs = getattr(diffusers, name)(**STABLE, timestep_spacing="trailing")
    ours = OdeScheduler.from_config(theirs.config, solver="ddim" if name[1] == "D" else "dpmpp_2m", clip_sample=False)
    theirs.register_to_config(clip_sample=False)
    theirs.set_timesteps(10)
    ours.set_timesteps(timesteps=theirs.timesteps.tolist())
    close(finished(ours, noise()), theirs_finished(theirs, noise()))


# The contract that all schedulers of diffusers keep.


CONFIGS = [
    {**STABLE, "timestep_spacing": "leading", "prediction_type": "v_prediction"},
    {"trained_betas": [0.001 * (i + 1) for i in range(50)], "num_train_timesteps": 50, "timestep_spacing": "trailing"},
    {"beta_schedule": "squaredcos_cap_v2", "solver": "reversible(coupling=0.99)", "grid": "karras(rho=5)"},
    {"config_of": "FlowMatchEulerDiscreteScheduler", "shift": 2.0, "prediction_type": "flow_prediction"},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_scheduler_is_saved_and_read_back(config, tmp_path):
    made = OdeScheduler(**{"solver": "heun", **config})
    made.save_pretrained(tmp_path)
    back = OdeScheduler.from_pretrained(tmp_path)
    again = OdeScheduler.from_config(made.config)
    for other in (back, again):
        assert {k: other.config[k] for k in made.config if k[0] != "_"} == {
            k: v for k, v in made.config.items() if k[0] != "_"
        }
        results = []
        for each in (made, other):
            each.set_timesteps(5)
            results.append(finished(each, noise()))
        assert torch.equal(*results)


def test_keys_that_we_do_not_know_are_kept_for_those_who_do_and_other_schedulers_read_ours():
    theirs = diffusers.DPMSolverMultistepScheduler(**STABLE, solver_order=3, algorithm_type="sde-dpmsolver++")
    ours = OdeScheduler.from_config(theirs.config, solver="heun")
    assert ours.config.solver_order == 3
    back = diffusers.DPMSolverMultistepScheduler.from_config(ours.config)
    assert back.config.solver_order == 3
    assert back.config.algorithm_type == "sde-dpmsolver++"
    torch.testing.assert_close(back.alphas_cumprod, ours.alphas_cumprod, rtol=1e-4, atol=0)
    assert diffusers.UniPCMultistepScheduler in ours.compatibles


def test_the_model_stays_the_same_where_theirs_would_take_their_own_defaults():
    """Heun of diffusers has another beta_start: from_config of a DDPMScheduler() gives it another model."""
    source = diffusers.DDPMScheduler()
    theirs = diffusers.HeunDiscreteScheduler.from_config(source.config)
    assert theirs.config.beta_start != source.config.beta_start
    torch.testing.assert_close(scheduler("heun", source.config).alphas_cumprod, source.alphas_cumprod)
    assert scheduler("heun", source.config).config.timestep_spacing == "leading"


@pytest.mark.parametrize(
    ("solver", "length", "order"),
    [
        ("ddim", 10, 1),
        ("heun", 19, 2),
        ("rk4", 37, 4),
        ("unipc", 10, 1),
        ("ddpm", 10, 1),
        ("reversible", 37, 4),
        ("alf", 11, 1),
        ("adams_bashforth", 19, 1),
        (None, 10, 1),
    ],
)
def test_there_is_a_time_for_every_evaluation(solver, length, order):
    made = scheduler(solver)
    assert len(made.timesteps) == len(made) == 1000
    made.set_timesteps(10, device="cpu")
    assert made.timesteps.shape == (length,)
    assert made.timesteps.dtype == torch.float32
    assert made.order == order
    assert made.num_inference_steps == 10
    assert made.sigmas.shape == (length + 1,)
    assert made.sigmas[-1] == 0
    if solver != "reversible":
        assert (made.timesteps.diff() <= 0).all()


def test_out_of_infinity_a_step_has_as_many_times_as_the_others():
    for solver, length in (("heun", 11), ("rk4", 21), ("ddim", 6)):
        made = scheduler(solver, FLOW)
        made.set_timesteps(6)
        assert len(made.timesteps) == length
        assert made.order == made._solver(6).evaluations
        assert (made.timesteps == 1000).sum() == made.order
        made.set_begin_index(3 * made.order)
        assert made._steps.asked[3 * made.order].step == 3


def test_times_are_those_that_were_asked_for():
    made = scheduler("heun")
    made.set_timesteps(timesteps=[999, 500, 1])
    assert made.timesteps.tolist() == [999, 500, 500, 1, 1]
    made.set_timesteps(sigmas=[14.615, 6.475, 0.029, 0.0])  # a published schedule, rounded; outside by a little
    assert made.timesteps[0] == 999
    assert made.timesteps[-1] == 0
    flow = scheduler("ddim", FLOW)
    flow.set_timesteps(timesteps=[1000, 500])
    assert flow.timesteps.tolist() == [1000, 500]
    flow.set_timesteps(sigmas=[1.0, 0.5])
    assert flow.timesteps.tolist() == [1000, 750]  # shifted
    dynamic = scheduler("ddim", FLOW, use_dynamic_shifting=True)
    dynamic.set_timesteps(sigmas=[1.0, 0.5], mu=math.log(3))
    torch.testing.assert_close(dynamic.timesteps, flow.timesteps)


def test_our_grids_are_to_be_had_by_name():
    made = scheduler("dpmpp_2m", grid="karras(rho=3)")
    made.set_timesteps(6)
    schedule = made.reading.schedule
    assert made._steps.route.sigmas == ods.make_grid("karras(rho=3)", schedule, 6, into_zero=True).sigmas
    default = scheduler(None, grid="default")
    default.set_timesteps(20)
    model = ods.Model(network, schedule)
    close(finished(default, noise()), ods.sample(model, x=noise(), num_steps=20).x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["ddim", "heun", "unipc", "alf"])
def test_samples_keep_their_dtype_and_the_state_is_finer(dtype, solver):
    made, x = scheduler(solver), noise(dtype=dtype)
    made.set_timesteps(5)
    t = made.timesteps[0]
    out = made.step(asked(made, x, t), t, x, return_dict=False)
    assert isinstance(out, tuple)
    assert len(out) == 1
    assert out[0].dtype == dtype
    assert out[0].shape == x.shape
    assert made._steps.stand.state.x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    made.set_timesteps(5)
    finest = scheduler(solver)
    finest.set_timesteps(5)
    got, expected = finished(made, x), finished(finest, x.double())
    assert got.dtype == dtype
    close(got.double(), expected, rtol=40 * torch.finfo(torch.promote_types(dtype, dtype)).eps)


@pytest.mark.parametrize("solver", ["heun", "unipc", "alf", "dpmpp_2m_sde"])
def test_one_object_runs_again_and_again(solver):
    made = scheduler(solver)
    results = []
    for _ in range(2):
        made.set_timesteps(5)
        results.append(finished(made, noise(), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(*results)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
@pytest.mark.parametrize("solver", ["rk4", "plms", "deis_tab", "alf", "reversible", "churn", "fixed_point"])
def test_a_solve_under_way_is_copied_and_both_go_on(copied, solver):
    made, x = scheduler(solver), noise()
    made.set_timesteps(6)
    whole = finished(copy.deepcopy(made), x, generator=torch.Generator().manual_seed(5))
    middle = len(made.timesteps) // 2  # an inner evaluation, of most
    generator = torch.Generator().manual_seed(5)
    for t in made.timesteps[:middle]:
        x = made.step(asked(made, x, t), t, x, generator=generator).prev_sample
    other, kept = copied(made), generator.get_state()
    for each in (made, other):
        sample = x.clone()
        generator.set_state(kept)
        for t in each.timesteps[middle:]:
            sample = each.step(asked(each, sample, t), t, sample, generator=generator).prev_sample
        assert torch.equal(sample, whole)


def test_two_trajectories_on_copies_do_not_know_of_each_other():
    first = scheduler("unipc")
    first.set_timesteps(6)
    second, alone = copy.deepcopy(first), [finished(copy.deepcopy(first), noise(seed=s)) for s in (1, 2)]
    samples = [noise(seed=1), noise(seed=2)]
    for t in first.timesteps:
        for i, each in enumerate((first, second)):
            samples[i] = each.step(asked(each, samples[i], t), t, samples[i]).prev_sample
    assert torch.equal(samples[0], alone[0])
    assert torch.equal(samples[1], alone[1])


def test_a_step_that_fails_leaves_the_solve_where_it_stood():
    made, x = scheduler("heun"), noise()
    made.set_timesteps(5)
    whole = finished(copy.deepcopy(made), x)
    for t in made.timesteps:
        with pytest.raises(ValueError, match="model_output must have the shape of sample"):
            made.step(torch.zeros(2, 6, 4, 4), t, x)
        x = made.step(asked(made, x, t), t, x).prev_sample
    assert torch.equal(x, whole)


@pytest.mark.parametrize("timesteps", [torch.tensor([10, 999]), torch.tensor([0.25, 700.5]), torch.tensor([500])])
def test_noise_is_added_as_at_the_times_that_the_network_is_told(timesteps):
    made, clean, z = scheduler("heun"), noise(), noise(seed=1)
    theirs = diffusers.DDPMScheduler(**{k: v for k, v in STABLE.items() if k != "steps_offset"})
    if not timesteps.is_floating_point():
        times = timesteps.expand(2)
        torch.testing.assert_close(made.add_noise(clean, z, timesteps), theirs.add_noise(clean, z, times))
        torch.testing.assert_close(made.get_velocity(clean, z, timesteps), theirs.get_velocity(clean, z, times))
    sigma = made.reading.schedule.sigma(timesteps.double())
    alpha = (1 / (1 + sigma**2).sqrt()).float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(
        made.add_noise(clean, z, timesteps), alpha * (clean + sigma.float().reshape(-1, 1, 1, 1) * z)
    )
    half = made.add_noise(clean.half(), z.half(), timesteps)
    assert half.dtype == torch.float16


def test_noise_of_flows_is_scaled_as_theirs():
    made, clean, z = scheduler("heun", FLOW), noise(), noise(seed=1)
    times = torch.tensor([1000.0, 250.0])
    u = (times / 1000).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(made.scale_noise(clean, times, z), (1 - u) * clean + u * z)
    assert torch.equal(made.add_noise(clean, z, times), made.scale_noise(clean, times, z))
    with pytest.raises(AttributeError, match="alphas_cumprod"):
        _ = made.alphas_cumprod


def test_a_learned_variance_is_dropped():
    made, plain, x = (*(scheduler("ddim", variance_type=kind) for kind in ("learned_range", None)), noise())
    for each in (made, plain):
        each.set_timesteps(3)
    t = made.timesteps[0]
    out = asked(made, x, t)
    both = torch.cat([out, noise(seed=9)], dim=1)
    assert torch.equal(made.step(both, t, x).prev_sample, plain.step(out, t, x).prev_sample)


def test_the_image_that_the_network_predicts_is_told():
    made, x = scheduler("heun", prediction_type="sample"), noise()
    made.set_timesteps(4)
    t = made.timesteps[0]
    out = asked(made, x, t)
    torch.testing.assert_close(made.step(out, t, x).pred_original_sample, out, rtol=1e-4, atol=1e-4)


# Begun in the middle, edited, and upward.


@pytest.mark.parametrize("solver", ["ddim", "heun", "rk4", "dpmpp_2m", "unipc", "reversible"])
def test_a_solve_begins_in_the_middle_as_one_of_the_rest_alone(solver):
    made, x = scheduler(solver), noise()
    made.set_timesteps(8)
    start = 3 * made.order
    rest = scheduler(solver)
    rest.set_timesteps(timesteps=[999 / 7 * (7 - i) for i in range(8)])
    made.set_timesteps(timesteps=[990, 800, 600, 400, 200, 100])
    rest.set_timesteps(timesteps=[400, 200, 100])
    made.set_begin_index(start)
    assert made.begin_index == start
    assert made.step_index is None
    sample = x
    for i, t in enumerate(made.timesteps[start:], start):
        sample = made.step(asked(made, sample, t), t, sample).prev_sample
        assert made.step_index == i + 1
    close(sample, finished(rest, x), rtol=1e-6)
    by_time = scheduler(solver)  # as pipelines that set no index: by the time alone, which Heun has twice
    by_time.set_timesteps(timesteps=[990, 800, 600, 400, 200, 100])
    t = by_time.timesteps[start]
    by_time.step(asked(by_time, x, t), t, x)
    assert by_time.step_index == start + 1


def edited(sample):
    return sample + 0.1 * noise(seed=100)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc", "multistep", "ddpm", "dpmpp_2m_sde"])
@pytest.mark.parametrize("in_place", [False, True])
def test_an_edit_between_two_steps_takes_the_place_of_x_and_what_is_remembered_stays(solver, in_place):
    made, x = scheduler(solver), noise()
    made.set_timesteps(6)

    def edit(i, sample):
        if i != 2:
            return sample
        return sample.copy_(edited(sample)) if in_place else edited(sample)

    got = finished(made, x, edit, [torch.Generator().manual_seed(seed) for seed in (7, 8)])
    sigmas, schedule, streams = made._steps.route.sigmas, made.reading.schedule, Streams([7, 8])
    model = ods.Model(network, schedule)
    step = find_solver(solver)
    start = schedule.from_model_scale(x, sigmas[0])
    state = run(on_grid(step, start, sigmas[:4]), model=model, noise=streams)[0]
    there = schedule.from_model_scale(edited(schedule.to_model_scale(state.x, sigmas[3])), sigmas[3])
    rest = run(solve(OnGrid(step), state._replace(x=there), sigmas[3:]), model=model, noise=streams)[0]
    close(got, rest.state.x)


@pytest.mark.parametrize(
    ("solver", "at", "why"),
    [
        ("heun", 0, r"timesteps\[1\] is an inner evaluation of a step of heun"),
        ("rk4", 5, r"timesteps\[6\] is an inner evaluation of a step of rk4"),
        ("churn", 1, r"timesteps\[2\] is an inner evaluation of a step of churn, or one that noise was drawn for"),
        ("plms", 0, r"timesteps\[1\] is an inner evaluation of a step of plms"),
        ("two_step", 1, "two_step, which undoes its own steps, keeps a second value"),
        ("edict", 1, "edict, which undoes its own steps"),
        ("alf", 0, "alf, which undoes its own steps"),
    ],
)
def test_an_edit_elsewhere_is_refused_and_the_solve_goes_on_without_it(solver, at, why):
    made, x = scheduler(solver), noise()
    made.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    whole = finished(copy.deepcopy(made), x, generator=generator)
    generator.manual_seed(0)
    for i, t in enumerate(made.timesteps):
        if i == at + 1:
            with pytest.raises(ValueError, match=why):
                made.step(asked(made, x, t), t, edited(x), generator)
        x = made.step(asked(made, x, t), t, x, generator).prev_sample
    assert torch.equal(x, whole)


def test_between_the_steps_of_heun_an_edit_is_taken():
    made, x = scheduler("heun"), noise()
    made.set_timesteps(5)
    assert not torch.equal(finished(copy.deepcopy(made), x), finished(made, x, lambda i, s: edited(s) if i == 1 else s))


def test_what_comes_back_in_another_dtype_or_as_a_copy_is_no_edit():
    made, x = scheduler("heun"), noise(dtype=torch.float16)
    made.set_timesteps(5)
    whole = finished(copy.deepcopy(made), x)
    other = copy.deepcopy(made)
    assert torch.equal(finished(made, x, lambda i, sample: sample.clone()), whole)
    got = finished(other, x, lambda i, sample: sample.float())  # else refused, at the first inner evaluation
    close(got, whole.float(), rtol=0.01)


@pytest.mark.parametrize("config", [None, FLOW], ids=["table", "flow"])
@pytest.mark.parametrize("solver", INVERTIBLE)
def test_down_undoes_up_for_every_solver_that_can_be_undone(solver, config):
    up, x = scheduler(solver, config, rising=True), noise(dtype=torch.float64) * 0.5
    up.set_timesteps(8)
    assert (up.timesteps.diff() >= 0).all() or solver in ("reversible", "rex")
    latent = finished(up, x)
    assert (latent - x).abs().max() > 0.1
    down = up.inverse()
    close(finished(down, latent), x, rtol=1e-9)
    down.set_timesteps(8)  # as pipelines do, whatever was set before
    close(finished(down, latent.clone()), x, rtol=1e-9)
    model = ods.Model(network, up.reading.schedule, up.reading.prediction)
    expected = ods.encode(model, x, solver=solver, grid=up._steps.route.sigmas[::-1])
    close(latent, expected.x)  # times are told in float32 here


def test_without_what_it_carries_a_solve_begins_as_from_any_sample():
    up, x = scheduler("alf", rising=True), noise(dtype=torch.float64)
    up.set_timesteps(8)
    down = (latent := finished(up, x), up.inverse())[1]
    with pytest.raises(ValueError, match="carries what alf needs to undo"):
        finished(down, latent + 0.1)
    with pytest.raises(ValueError, match="undoes 7 steps of alf, and these are other times"):
        down.set_timesteps(9)
    free = OdeScheduler.from_config(down.config)
    free.set_timesteps(8)
    back = finished(free, latent)
    assert (back - x).abs().max() > 1e-3


def test_upward_ddim_told_the_target_is_ddim_inverse_of_diffusers():
    theirs = diffusers.DDIMInverseScheduler(**STABLE, clip_sample=False, set_alpha_to_one=False)
    theirs.set_timesteps(10)
    x = expected = noise() * 0.5
    for t in theirs.timesteps:
        expected = theirs.step(network(expected, t.expand(2)), t, expected).prev_sample
    up = scheduler("ddim", theirs.config, rising=True, convention="target")
    up.set_timesteps(timesteps=[*theirs.timesteps.tolist(), 0])
    assert up.timesteps.tolist() == theirs.timesteps.tolist()
    close(finished(up, x), expected, rtol=1e-4)


def test_up_and_down_walk_the_same_times():
    down = scheduler("ddim", final_sigmas_type="sigma_min")
    down.set_timesteps(7)
    up = down.inverse()
    assert up._steps.route.sigmas == down._steps.route.sigmas[::-1]
    assert up.inverse()._steps.route == down._steps.route
    assert scheduler("ddim").inverse().config.rising


# What cannot be meant.


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"solver": "hoin"}, "unknown solver 'hoin'; known: alf"),
        ({"solver": "scipy:RK45"}, "solver='scipy:RK45' chooses its own steps or is of another library"),
        ({"solver": "adaptive:heun"}, "solver='adaptive:heun' chooses its own steps"),
        ({"final_sigmas_type": "none"}, "final_sigmas_type='none' is not one of"),
        ({"grid": "karas"}, "unknown grid 'karas'"),
        ({"solver": "ddpm", "rising": True}, "solver='ddpm' draws noise"),
        ({"convention": "implicit", "rising": True, "solver": "ddim"}, "convention='implicit' is not one of"),
        ({"beta_schedule": "steps"}, "beta_schedule='steps' is not one of"),
        ({"prediction_type": "noise"}, "prediction_type='noise' is not one of"),
        ({"config_of": "VQDiffusionScheduler"}, "_class_name='VQDiffusionScheduler' is not"),
        ({"timestep_spacing": "even"}, "timestep_spacing='even' is not one of"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_by_its_key(config, why):
    with pytest.raises(ValueError, match=why):
        OdeScheduler(**config)
    with pytest.raises(ValueError, match=why):
        OdeScheduler.from_config({**OdeScheduler().config, **config})


@pytest.mark.parametrize(
    ("config", "given", "why"),
    [
        ({}, {}, "needs num_inference_steps, timesteps or sigmas"),
        ({}, {"num_inference_steps": 0}, "a whole number from 1"),
        ({}, {"timesteps": [9, 5], "sigmas": [2.0, 1.0]}, "timesteps or sigmas, not both"),
        ({}, {"timesteps": []}, "timesteps must hold at least one value"),
        ({}, {"timesteps": [5, 5]}, "strictly monotone"),
        ({}, {"sigmas": [200.0, 1.0]}, "outside the model's range"),
        ({}, {"num_inference_steps": 3, "sigmas": [2.0, 1.0]}, "num_inference_steps=3, but 2 sigmas are given"),
        (
            {"grid": "karras"},
            {"sigmas": [2.0, 1.0]},
            "sigmas are given, and the config of this scheduler has grid='karr",
        ),
        (
            {"steps_offset": 500, "timestep_spacing": "leading"},
            {"num_inference_steps": 9},
            "steps_offset=500 moves times",
        ),
        ({"rescale_betas_zero_snr": True}, {"num_inference_steps": 9}, "prediction_type='epsilon' says nothing"),
        ({"convention": "target", "rising": True, "solver": "alf"}, {"num_inference_steps": 9}, "convention='target'"),
        ({**FLOW, "use_dynamic_shifting": True}, {"num_inference_steps": 9}, "use_dynamic_shifting=True needs .*mu"),
        (
            {"use_flow_sigmas": True, "use_karras_sigmas": True},
            {"num_inference_steps": 9},
            "use_karras_sigmas=True with",
        ),
        ({**FLOW}, {"sigmas": [3.0, 0.5]}, "sigmas of a flow are times from 1"),
    ],
)
def test_times_that_cannot_be_meant_are_refused_by_name(config, given, why):
    made = OdeScheduler.from_config({**STABLE, "steps_offset": 0, **config} if "shift" not in config else config)
    with pytest.raises(ValueError, match=why):
        made.set_timesteps(**given)


def test_an_implausible_solver_is_no_name():
    with pytest.raises(TypeError, match="solver must be a name"):
        OdeScheduler(solver=ods.Heun())


def test_calls_out_of_turn_are_refused():
    made, x = scheduler("heun"), noise()
    with pytest.raises(ValueError, match="step needs to know where the solve goes: call set_timesteps before"):
        made.step(x, 999, x)
    made.set_timesteps(4)
    with pytest.raises(ValueError, match=r"timestep=3 is none of timesteps, 999, 666, 666, 333, 333, 0, 0, at one"):
        made.step(x, 3, x)
    made.step(x, 999, x)
    with pytest.raises(ValueError, match=r"timestep=333 is out of turn: the solve stands at timesteps\[1\] = 666"):
        made.step(x, 333, x)
    with pytest.raises(ValueError, match=r"sample must keep its shape, \(2, 3, 4, 4\); got \(1, 3, 4, 4\)"):
        made.step(x[:1], 666, x[:1])
    made.set_timesteps(4)
    sample = finished(made, x)
    with pytest.raises(ValueError, match="the solve has arrived at its end: call set_timesteps"):
        made.step(x, 1, sample)
    for index, why in (
        (1, r"begin at one of \[0, 2, 4, 6\]"),
        (7, "at index 7; .* strength x num_inference_steps"),
        (-1, "at index -1"),
    ):
        with pytest.raises(ValueError, match=why):
            made.set_begin_index(index)


@pytest.mark.parametrize("solver", ["alf", "plms", "churn", "dopri5", "two_step"])
def test_a_solver_that_begins_otherwise_than_it_goes_on_does_not_begin_in_the_middle(solver):
    made = scheduler(solver)
    made.set_timesteps(8)
    with pytest.raises(ValueError, match=r"cannot begin at timesteps|where no solve can begin"):
        made.set_begin_index(4 * made.order)


def test_alf_that_knows_its_slope_still_asks_elsewhere_first():
    """Up in the noise it begins as it goes on, but with a question about a midpoint."""
    made = scheduler("alf")
    made.set_timesteps(40)
    assert made.sigmas[2] > 11
    with pytest.raises(ValueError, match=r"cannot begin at timesteps\[2\]"):
        made.set_begin_index(2)


def test_a_config_without_a_class_says_enough_or_is_refused():
    with pytest.raises(ValueError, match="give config_of, the class of diffusers"):
        OdeScheduler.from_config({"num_train_timesteps": 10})
    assert OdeScheduler.from_config(FLOW).config.prediction_type == "flow_prediction"
    assert OdeScheduler.from_config({"num_train_timesteps": 10}, config_of="DDPMScheduler").reading.prediction == "eps"


def test_clipping_on_the_way_up_warns():
    made = scheduler("ddim", rising=True, clip_sample=True)
    with pytest.warns(UserWarning, match="clip_sample or thresholding bounds the predicted image"):
        made.set_timesteps(4)


def test_levels_and_scales_are_told_as_diffusers_counts_them():
    flow = scheduler("ddim", FLOW)
    flow.set_timesteps(sigmas=[0.9, 0.5])
    torch.testing.assert_close(flow.sigmas, torch.tensor([2.7 / 2.8, 0.75, 0]))
    assert flow.init_noise_sigma == 1
    edm = scheduler("alf", diffusers.EDMEulerScheduler().config, rising=True)
    edm.set_timesteps(4)
    assert edm.init_noise_sigma == 1  # an image is not scaled
    down = scheduler("ddim", diffusers.EDMEulerScheduler().config)
    assert down.init_noise_sigma == diffusers.EDMEulerScheduler().init_noise_sigma
