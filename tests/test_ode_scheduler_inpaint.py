"""Inpainting with our solvers: what is known is put back between two steps, what is remembered stays."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch

import odesampler as ods
from odesampler.adapters.diffusers import OdeScheduler, from_pipeline
from odesampler.drive import run
from odesampler.guidance import guided
from odesampler.inputs import checked_cond
from odesampler.integrate import OnGrid, solve
from odesampler.program import Course, State
from odesampler.registry import find_solver
from tests import pipelines
from tests.pipelines import STABLE, quiet

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with numpy 2

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
MASK = torch.zeros(1, 1, 16, 16)
MASK[..., 8:] = 1  # to be painted
GUIDED = {"prompt": "a cat", "guidance_scale": 4.0}
CALL = {"image": IMAGE, "mask_image": MASK, "strength": 1.0, "num_inference_steps": 8, "output_type": "latent"}
KINDS = {
    "sd": diffusers.StableDiffusionInpaintPipeline,
    "sdxl": diffusers.StableDiffusionXLInpaintPipeline,
    "flux": diffusers.FluxInpaintPipeline,
}
ASKED = {"sd": GUIDED, "sdxl": GUIDED, "flux": {"prompt": "a cat"}}


def inpainting(name, solver=None):
    """A pipeline for inpainting; with our scheduler, if a solver is named."""
    pipe = quiet(KINDS[name].from_pipe(getattr(pipelines, name)()))
    if solver is not None:
        pipe.scheduler = OdeScheduler.from_config(pipe.scheduler.config, solver=solver)
    return pipe


def ran(pipe, name, **call):
    """The latents that a run returns, the first that the scheduler is given, and what noise is added to: with it."""
    seen, noised = [], []
    scheduler = pipe.scheduler
    step, adds = scheduler.step, "scale_noise" if name == "flux" else "add_noise"
    add = getattr(scheduler, adds)

    def stepping(out, t, sample, **more):
        seen.append(sample)
        return step(out, t, sample, **more)

    def adding(*given):
        noised.append((given[0], given[-1]) if name == "flux" else given[:2])
        return add(*given)

    scheduler.step = stepping
    setattr(scheduler, adds, adding)
    generator = torch.Generator().manual_seed(0)
    found = pipe(generator=generator, height=16, width=16, **{**CALL, **ASKED[name], **call}).images
    scheduler.step = step
    setattr(scheduler, adds, add)
    return found, seen[0], noised[-1]


def close(one, other, rtol):
    assert one.shape == other.shape
    torch.testing.assert_close(one, other, rtol=0, atol=rtol * other.abs().max().item())


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc"])
def test_inpainting_is_a_loop_of_our_own_in_which_the_known_half_is_put_back(solver):
    pipe = inpainting("sd", solver)
    found, first, (image, noise) = ran(pipe, "sd")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **STABLE)
    model, sigmas = from_pipeline(pipe, **GUIDED), _sigmas()
    schedule, painted = model.schedule, MASK[..., ::2, ::2]
    eps, cond = guided(model, model.guidance_scale), checked_cond(model, None, 1)
    walker = OnGrid(find_solver(solver).prepared(Course(schedule.t, tuple(sigmas), model.range[0])))
    state = State(schedule.from_model_scale(first, sigmas[0]))
    with torch.no_grad():
        for s0, s1 in pairwise(sigmas):
            state = run(solve(walker, state, [s0, s1]), model=eps, cond=cond)[0].state
            known = image + s1 * noise if s1 else image
            state = state._replace(x=(1 - painted) * known + painted * state.x)
    close(found, state.x, 1e-5)
    assert (found - image).abs()[..., :4].max() < 1e-6
    assert (found - image).abs()[..., 4:].max() > 0.1


def _sigmas():
    """DDIM's: leading times of eight steps, moved by one, and then the image itself."""
    times = [125.0 * i + 1 for i in reversed(range(8))]
    return [*ods.VP.scaled_linear().sigma(torch.tensor(times, dtype=torch.float64)).tolist(), 0.0]


class OfFlows(diffusers.DPMSolverMultistepScheduler):
    """Theirs takes no times and adds no noise under the names that Flux has for them."""

    @classmethod
    def from_config(cls, config):
        made = cls(use_flow_sigmas=True, prediction_type="flow_prediction")
        made.register_to_config(**{key: config[key] for key in ("base_image_seq_len", "max_image_seq_len")})
        return made

    def set_timesteps(self, device=None, sigmas=None, mu=None):
        super().set_timesteps(len(sigmas))
        u = torch.tensor(sigmas, dtype=torch.float64)
        u = math.exp(mu) * u / (1 + (math.exp(mu) - 1) * u)
        self.sigmas, self.timesteps = torch.cat([u, u.new_zeros(1)]).float(), (1000 * u).float()

    def scale_noise(self, sample, timestep, noise):
        return self.add_noise(sample, noise, timestep)


THEIRS = {
    ("sdxl", "ddim"): diffusers.EulerDiscreteScheduler,
    ("sdxl", "dpmpp_2m"): diffusers.DPMSolverMultistepScheduler,
    ("flux", "ddim"): diffusers.FlowMatchEulerDiscreteScheduler,
    ("flux", "dpmpp_2m"): OfFlows,
}


@pytest.mark.parametrize("name", ["sdxl", "flux"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_inpainting_with_other_pipelines_is_what_it_is_with_theirs(name, solver):
    """On the same sigmas: theirs computes in float32 throughout."""
    pipe = inpainting(name)
    more = {"timestep_spacing": "trailing"} if name == "sdxl" else {}
    said = type(pipe.scheduler).from_config(pipe.scheduler.config, **more).config
    pipe.scheduler = THEIRS[name, solver].from_config(said, **more)
    call = {"strength": 0.5}  # of which the first is not pure noise
    expected, first, _ = ran(pipe, name, **call)
    pipe.scheduler = OdeScheduler.from_config(said, solver=solver)
    found, again, _ = ran(pipe, name, **call)
    assert (first - expected).abs().max() > 0.1
    close(again / again.std(), first / first.std(), 1e-4)
    close(found, expected, 1e-4)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("solver", "why"),
    [
        ("heun", r"is an inner evaluation of a step of heun.* such as 'ddim', 'dpmpp_2m' or 'unipc'"),
        ("alf", r"alf, which undoes its own steps, keeps a second value"),
        ("reversible", r"reversible.*, which undoes its own steps, keeps a second value"),
        ("edict", r"edict, which undoes its own steps"),
    ],
)
def test_inpainting_is_refused_where_an_edit_would_leave_halves_that_do_not_belong_together(name, solver, why):
    with pytest.raises(ValueError, match=f"sample is not what step returned.*{why}"):
        ran(inpainting(name, solver), name)


@pytest.mark.parametrize("config", [{**STABLE, "_class_name": "DDIMScheduler"}, pipelines.flux().scheduler.config])
@pytest.mark.parametrize("solver", ["ddim", "heun", "unipc", "alf"])
def test_times_go_to_the_device_that_is_asked_for_and_nothing_else_does(config, solver):
    """The meta device stands for a GPU: to read a value there raises, where on a GPU it would wait."""
    given = {"mu": 0.5} if "shift" in config else {}
    made = OdeScheduler.from_config(config, solver=solver)
    made.set_timesteps(5, device="meta", **given)
    here = OdeScheduler.from_config(config, solver=solver)
    here.set_timesteps(5, device="cpu", **given)
    assert made.timesteps.device.type == "meta"
    assert made.timesteps.shape == here.timesteps.shape
    sample = other = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made.set_begin_index(0)
    for there, t in zip(made.timesteps, here.timesteps, strict=True):
        sample = made.step(0.1 * made.scale_model_input(sample, there), there, sample).prev_sample
        other = here.step(0.1 * here.scale_model_input(other, t), t, other).prev_sample
    assert torch.equal(sample, other)
