"""Our solvers in pipelines of diffusers: as our own loop, and as theirs where those are the same method."""

import functools
import json

import diffusers
import pytest
import torch

import odesampler as ods
from odesampler.adapters.diffusers import OdeScheduler, from_pipeline
from tests import pipelines
from tests.pipelines import quiet

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with numpy 2

GUIDED = {"prompt": "a cat", "guidance_scale": 4.0}
LATENT = {**GUIDED, "output_type": "latent"}
CALLS = {  # what a pipeline is called with, and what `from_pipeline` is told
    "ddpm": ({"batch_size": 2}, {}),
    "dit": ({"class_labels": [3, 8], "guidance_scale": 4.0}, {"guidance_scale": 4.0}),
    "sd": (LATENT, GUIDED),
    "sdxl": (LATENT, GUIDED),
    "sd3": (LATENT, GUIDED),
    "flux": (
        {"prompt": "a cat", "output_type": "latent", "height": 16, "width": 16},
        {"prompt": "a cat", "height": 16, "width": 16},
    ),
}
every_pipeline = pytest.mark.parametrize("name", CALLS)


def with_ours(pipe, solver, **more):
    pipe.scheduler = OdeScheduler.from_config(pipe.scheduler.config, solver=solver, **more)
    return pipe


def ran(pipe, **call):
    """The first sample that its scheduler is given in a run of a pipeline, and the last that it returns."""
    seen, step = [], pipe.scheduler.step

    @functools.wraps(step)  # pipelines look which arguments it takes
    def recording(out, t, sample, **more):
        found = step(out, t, sample, **more)
        seen.append((sample, found[0]))
        return found

    pipe.scheduler.step = recording
    pipe(generator=torch.Generator().manual_seed(0), **call)
    pipe.scheduler.step = step
    return seen[0][0], seen[-1][1]


def library(name, pipe, first, solver, start=0, **given):
    """Our own loop from the same sample over the same sigmas, with what `from_pipeline` makes of the pipeline."""
    model = from_pipeline(pipe, **{**CALLS[name][1], **given})
    cond = {"label": torch.tensor([3, 8])} if name == "dit" else None
    steps = pipe.scheduler._steps
    grid = steps.route.sigmas[steps.asked[start].step :]
    clip = pipe.scheduler.reading.clip_denoised
    return ods.sample(model, x=first, solver=solver, grid=grid, cond=cond, clip_denoised=clip).x


def unpacked(name, pipe, sample):
    """As our models have it: DiT's pipeline carries everything twice, Flux's in rows of patches."""
    if name == "dit":
        return sample[: len(sample) // 2]
    return pipe._unpack_latents(sample, 16, 16, pipe.vae_scale_factor) if name == "flux" else sample


def close(one, other, rtol=1e-5):
    assert one.shape == other.shape
    torch.testing.assert_close(one, other, rtol=0, atol=rtol * other.abs().max().item())


@every_pipeline
@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m", "unipc", "reversible", "alf"])
def test_a_pipeline_gives_what_our_own_loop_gives(name, solver):
    pipe = with_ours(getattr(pipelines, name)(), solver)
    first, last = (unpacked(name, pipe, s) for s in ran(pipe, num_inference_steps=5, **CALLS[name][0]))
    close(last, library(name, pipe, first, solver))


def beside_theirs(pipe, theirs, solver, call, spacing="trailing"):
    """(first, last) of a run with a scheduler of diffusers, and of one with ours that takes over its config."""
    how = {} if theirs.startswith("Flow") else {"timestep_spacing": spacing}
    how |= {"clip_sample": False} if theirs == "DDIM" else {}
    pipe.scheduler = getattr(diffusers, f"{theirs}Scheduler").from_config(pipe.scheduler.config, **how)
    expected = ran(pipe, **call)
    to_one = pipe.scheduler.config.get("set_alpha_to_one", True) or theirs != "DDIM"
    with_ours(pipe, solver, final_sigmas_type="zero" if to_one else "sigma_min")
    return expected, ran(pipe, **call)


@pytest.mark.parametrize(
    ("name", "theirs", "solver"),
    [
        ("ddpm", "DDIM", "ddim"),
        ("dit", "DDIM", "ddim"),
        ("dit", "DPMSolverMultistep", "dpmpp_2m"),
        ("sd", "DDIM", "ddim"),
        ("sd", "DPMSolverMultistep", "dpmpp_2m"),
        ("sdxl", "DPMSolverMultistep", "dpmpp_2m"),
        ("sd3", "FlowMatchEulerDiscrete", "ddim"),
        ("flux", "FlowMatchEulerDiscrete", "ddim"),
    ],
)
def test_a_pipeline_gives_what_their_scheduler_gives(name, theirs, solver):
    """Theirs computes in float32 throughout, hence not to the last digit."""
    pipe, call = getattr(pipelines, name)(), {"num_inference_steps": 8, **CALLS[name][0]}
    expected, found = beside_theirs(pipe, theirs, solver, call)
    assert torch.equal(expected[0], found[0])
    close(found[1], expected[1], rtol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize(("theirs", "solver"), [("DPMSolverMultistep", "dpmpp_2m"), ("EulerDiscrete", "euler")])
def test_a_solver_swapped_in_keeps_the_times_and_the_noise_of_their_scheduler(name, theirs, solver, spacing):
    pipe, call = getattr(pipelines, name)(), {"num_inference_steps": 8, **CALLS[name][0]}
    expected, found = beside_theirs(pipe, theirs, solver, call, spacing)
    close(found[1], expected[1], rtol=1e-4)


@pytest.mark.parametrize("key", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_flux_keeps_how_its_sigmas_are_spaced(key):
    pipe, call = pipelines.flux(**{key: True}), {"num_inference_steps": 5, **CALLS["flux"][0]}
    expected, found = beside_theirs(pipe, "FlowMatchEulerDiscrete", "euler", call)
    close(found[1], expected[1])


IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
IMG2IMG = {
    "sd": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
    "sd3": diffusers.StableDiffusion3Img2ImgPipeline,
    "flux": diffusers.FluxImg2ImgPipeline,
}


def turned(pipe, kind):
    """The parts of a pipeline in one of another kind."""
    return quiet(kind.from_pipe(pipe))


@pytest.mark.parametrize("name", IMG2IMG)
@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m", "unipc"])
def test_img2img_begins_in_the_middle(name, solver):
    base = getattr(pipelines, name)()
    pipe = with_ours(turned(base, IMG2IMG[name]), solver)
    call = {**CALLS[name][0], "image": IMAGE, "strength": 0.5, "num_inference_steps": 6}
    if (name, solver) == ("flux", "heun"):
        call["strength"] = 0.6  # its pipeline gives sigmas, and counts evaluations for steps; see the next test
    size = {"height": 16, "width": 16} if name in ("sd3", "flux") else {}
    first, last = (unpacked(name, pipe, s) for s in ran(pipe, **{**call, **size}))
    begun = pipe.scheduler.begin_index
    assert begun == (4 if (name, solver) == ("flux", "heun") else 3 * pipe.scheduler.order)
    base.scheduler = pipe.scheduler
    close(last, library(name, base, first, solver, start=begun))


def in_two(solver, end):
    """Latents after a solve that two pipelines with one scheduler share, and after one alone."""
    base = with_ours(pipelines.sdxl(), solver)
    call = {**CALLS["sdxl"][0], "num_inference_steps": 10, "height": 16, "width": 16}
    whole, half = (
        base(**call, **more, generator=torch.Generator().manual_seed(0)).images for more in ({}, {"denoising_end": end})
    )
    return turned(base, IMG2IMG["sdxl"])(**{**call, "image": half, "denoising_start": end}).images, whole


@pytest.mark.parametrize(("solver", "end"), [("ddim", 0.5), ("ddim", 0.8), ("dpm_2", 0.3)])
def test_between_two_steps_a_second_pipeline_goes_on_from_where_the_first_ended(solver, end):
    close(*in_two(solver, end))


@pytest.mark.parametrize(("solver", "end"), [("heun", 0.5), ("heun", 0.8), ("dpm_2", 0.8), ("rk4", 0.8)])
def test_within_a_step_a_second_pipeline_cannot_go_on(solver, end):
    """Theirs count evaluations for steps, so that what the first returns is for an inner one."""
    with pytest.raises(ValueError, match=r"denoising_start.* 'dpmpp_2m'"):
        in_two(solver, end)


def test_a_solve_that_was_broken_off_is_begun_anew():
    made = with_ours(pipelines.sdxl(), "heun").scheduler
    x = torch.ones(1, 4, 8, 8)
    for _ in range(2):
        made.set_timesteps(10)
        made.set_begin_index(4)  # also the second time: in this step the first began, so it is the same solve again
        made.step(x * 0.1, made.timesteps[4], x)
        assert made.step_index == 5


def test_where_a_pipeline_counts_evaluations_for_steps_we_say_so():
    pipe = with_ours(turned(pipelines.flux(), IMG2IMG["flux"]), "heun")
    with pytest.raises(ValueError, match=r"timesteps\[5\] is an inner evaluation of a step of heun.*sigmas"):
        ran(pipe, **CALLS["flux"][0], image=IMAGE, strength=0.5, num_inference_steps=6)


@pytest.mark.parametrize(("theirs", "solver"), [("DDIM", "ddim"), ("DPMSolverMultistep", "dpmpp_2m")])
def test_inpainting_edits_every_sample_and_is_what_it_is_with_theirs(theirs, solver):
    """Methods that remember keep what they remember, in diffusers too."""
    pipe = turned(pipelines.sd(), diffusers.StableDiffusionInpaintPipeline)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    call = {**LATENT, "image": IMAGE, "mask_image": mask, "strength": 1.0, "num_inference_steps": 8}
    expected, found = beside_theirs(pipe, theirs, solver, {**call, "height": 16, "width": 16})
    close(found[1], expected[1], rtol=1e-4)


def test_inpainting_is_refused_where_a_step_has_inner_evaluations():
    pipe = with_ours(turned(pipelines.sd(), diffusers.StableDiffusionInpaintPipeline), "heun")
    call = {**LATENT, "image": IMAGE, "mask_image": torch.ones(1, 1, 16, 16) * 0.7, "num_inference_steps": 4}
    call["mask_image"][..., :8] = 0
    with pytest.raises(ValueError, match=r"inner evaluation of a step of heun.* such as 'ddim', 'dpmpp_2m'"):
        pipe(**call, height=16, width=16)
    assert pipe.scheduler.step_index == 1  # and after set_timesteps it runs again
    with_again = turned(pipe, diffusers.StableDiffusionPipeline)
    assert torch.isfinite(with_again(**LATENT, num_inference_steps=4).images).all()


def test_callbacks_see_every_evaluation_and_may_edit_between_steps():
    pipe = with_ours(pipelines.sd(), "heun")
    seen = []

    def watch(pipe, i, t, given):
        seen.append((i, t.item()))
        return given

    def shift(pipe, i, t, given):
        return {"latents": given["latents"] + 0.1} if i == 3 else given

    call = {**LATENT, "num_inference_steps": 4, "generator": torch.Generator().manual_seed(0)}
    plain = pipe(**call, callback_on_step_end=watch).images
    assert [t for _, t in seen] == pipe.scheduler.timesteps.tolist()
    assert len(seen) == 7
    call["generator"].manual_seed(0)
    assert not torch.equal(pipe(**call, callback_on_step_end=shift).images, plain)


@every_pipeline
def test_a_pipeline_is_saved_and_read_back_with_our_scheduler(name, tmp_path):
    pipe, call = with_ours(getattr(pipelines, name)(), "heun"), {**CALLS[name][0], "num_inference_steps": 3}
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["odesampler.adapters.diffusers.scheduler", "OdeScheduler"]
    back = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(back.scheduler) is OdeScheduler
    assert back.scheduler.config.solver == "heun"
    close(ran(back, **call)[1], ran(pipe, **call)[1])


@pytest.mark.parametrize("solver", ["alf", "reversible", "fixed_point"])
@pytest.mark.parametrize("name", ["ddpm", "sd3"])
def test_up_through_a_network_and_down_through_its_pipeline(name, solver):
    """The loop up is what a user writes who holds a pipeline; down is the pipeline itself, or the same loop."""
    pipe = with_ours(getattr(pipelines, name)(), solver, rising=True, clip_sample=False)
    model = from_pipeline(pipe, **({"prompt": "a cat"} if name == "sd3" else {}))
    x = torch.randn(1, *model.data_shape, generator=torch.Generator().manual_seed(1)) * 0.5

    def walked(scheduler, sample):
        cond = model.usual(1) if hasattr(model, "usual") else {}
        for t in scheduler.timesteps:
            with torch.no_grad():
                out = model.network(sample, t.expand(1), **cond)
            sample = scheduler.step(out, t, sample).prev_sample
        return sample

    up = pipe.scheduler
    up.set_timesteps(6)
    latent = walked(up, x)
    assert (latent - x).abs().max() > 0.1
    close(walked(up.inverse(), latent), x, rtol=1e-3)


def test_an_image_goes_up_by_hand_and_comes_down_by_the_pipeline():
    pipe = with_ours(pipelines.sd(), "alf", rising=True)
    text = pipe.encode_prompt("a cat", "cpu", 1, False)[0]
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.5
    pipe.scheduler.set_timesteps(6)
    latent = x
    for t in pipe.scheduler.timesteps:
        with torch.no_grad():
            out = pipe.unet(latent, t, encoder_hidden_states=text).sample
        latent = pipe.scheduler.step(out, t, latent).prev_sample
    pipe.scheduler = pipe.scheduler.inverse()
    call = {"guidance_scale": 1.0, "num_inference_steps": 6, "output_type": "latent"}
    close(pipe("a cat", latents=latent, **call).images, x, rtol=1e-3)
    with pytest.raises(ValueError, match="carries what alf needs"):
        pipe("a cat", latents=latent + 1, **call)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_half_precision_is_near_to_single(name):
    call, results = {"num_inference_steps": 4, **CALLS[name][0]}, []
    start = ran(with_ours(getattr(pipelines, name)(), "dpmpp_2m"), **call)[0]
    for dtype in (torch.bfloat16, torch.float32):
        pipe = with_ours(getattr(pipelines, name)().to(dtype), "dpmpp_2m")
        _, last = ran(pipe, latents=start.to(dtype), **call)
        assert last.dtype == dtype
        results.append(last.float())
    close(*results, rtol=0.05)


def test_flux_with_a_grid_of_ours_is_given_no_sigmas():
    pipe = with_ours(pipelines.flux(), "unipc", grid="phi")
    _, last = ran(pipe, num_inference_steps=5, **CALLS["flux"][0])
    assert (
        pipe.scheduler._steps.route.sigmas
        == ods.make_grid("phi", pipe.scheduler.reading.schedule, 5, into_zero=True).sigmas
    )
    assert torch.isfinite(last).all()
