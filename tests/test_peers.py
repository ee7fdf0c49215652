"""diffusers' schedulers as oracles, in float64, wherever their own grid and their own step agree."""

from itertools import pairwise

import pytest
import torch

from odesampler.drive import run
from odesampler.grid import make_grid
from odesampler.integrate import OnGrid, on_grid, solve
from odesampler.program import State
from odesampler.schedule import VP
from odesampler.solvers import Ancestral, Dopri5, Euler
from tests.problems import by_hand, geometric, mixture, noise, start

AGREEING = [  # (timesteps of the table, spacing, steps), where t - T // N is the next time of their own grid
    (1000, "leading", 10),
    (1000, "leading", 30),
    (1000, "leading", 333),
    (1000, "trailing", 10),
    (1000, "trailing", 50),
    (1000, "trailing", 250),
    (60, "linspace", 60),
    (60, "trailing", 60),
]
agreeing = pytest.mark.parametrize(("size", "spacing", "num_steps"), AGREEING)


class Recorded:
    """In place of streams: noise that the other side has already seen."""

    def __init__(self, *noise):
        self.noise = list(noise)

    def draw(self, like, rows=None, span=None):
        return self.noise.pop(0).to(like.dtype)


def in_float64(scheduler, schedule):
    """Their scheduler with our table, which differs from theirs by the rounding of float32 only."""
    table = torch.tensor(schedule.alpha_bar, dtype=torch.float64)
    torch.testing.assert_close(table, scheduler.alphas_cumprod.double(), rtol=0, atol=1e-6)
    scheduler.alphas_cumprod = table
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def sampled_by(scheduler, x_t, network, **options):
    """Their loop, as their pipelines have it."""
    for t in scheduler.timesteps:
        x_t = scheduler.step(network(x_t, t.expand(len(x_t))), t, x_t, **options).prev_sample
    return x_t


def sampled_by_us(solver, x_t, model, spacing, num_steps, streams=None):
    grid = make_grid(spacing, model.schedule, num_steps, into_zero=True)
    start = State(model.schedule.from_model_scale(x_t, grid[0]))
    return run(solve(OnGrid(solver), start, grid.sigmas), model=model, noise=streams)[0].state.x


def transitions(scheduler):
    """(from, to) of every step: by their grid, and by their step."""
    ts = scheduler.timesteps.tolist()
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    by_grid = [*pairwise(ts), (ts[-1], -1)]
    return by_grid, [(t, max(t - stride, -1)) for t in ts]


@agreeing
@pytest.mark.parametrize("prediction", [("eps", "epsilon"), ("v", "v_prediction"), ("denoised", "sample")], ids=str)
def test_euler_is_ddim(diffusers, size, spacing, num_steps, prediction):
    ours, theirs = prediction
    scheduler = in_float64(
        diffusers.DDIMScheduler(size, timestep_spacing=spacing, prediction_type=theirs, clip_sample=False),
        VP.linear(size),
    )
    scheduler.set_timesteps(num_steps)
    by_grid, by_step = transitions(scheduler)
    assert by_grid == by_step, "not a case in which they agree with themselves"
    model, x_t = mixture().model(VP.linear(size), ours), noise(4, scale=1.0)
    want = sampled_by(scheduler, x_t, model.network)
    got = sampled_by_us(Euler(), x_t, model, spacing, num_steps)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@agreeing
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_is_ddim_with_eta_given_the_same_noise(diffusers, size, spacing, num_steps, eta):
    scheduler = in_float64(diffusers.DDIMScheduler(size, timestep_spacing=spacing, clip_sample=False), VP.linear(size))
    scheduler.set_timesteps(num_steps)
    model, x_t = mixture().model(VP.linear(size)), noise(4, scale=1.0)
    drawn = [noise(4, scale=1.0, seed=i + 1) for i in range(num_steps)]
    want = x_t
    for t, z in zip(scheduler.timesteps, drawn, strict=True):
        out = model.network(want, t.expand(4))
        want = scheduler.step(out, t, want, eta=eta, variance_noise=z).prev_sample
    streams = Recorded(*drawn)
    got = sampled_by_us(Ancestral(eta=eta), x_t, model, spacing, num_steps, streams)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert len(streams.noise) == 1, "the last step, into zero, needs no noise"


@pytest.mark.parametrize(
    ("spacing", "num_steps"), [("trailing", 60), ("leading", 7), ("linspace", 60), ("linspace", 9)]
)
@pytest.mark.parametrize(("variance", "sigma_hat"), [("fixed_small", False), ("fixed_large", True)])
def test_ancestral_is_ddpm_given_the_same_noise(diffusers, spacing, num_steps, variance, sigma_hat):
    """Their DDPM step looks up the next time of its own grid, so that it agrees with itself on every one."""
    schedule = VP.linear(60)
    scheduler = in_float64(
        diffusers.DDPMScheduler(60, variance_type=variance, timestep_spacing=spacing, clip_sample=False), schedule
    )
    scheduler.set_timesteps(num_steps)
    model, x_t = mixture().model(schedule), noise(4, scale=1.0)
    want = sampled_by(scheduler, x_t, model.network, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(num_steps)]
    got = sampled_by_us(Ancestral(sigma_hat=sigma_hat), x_t, model, spacing, num_steps, Recorded(*drawn))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_the_two_variances_of_ddpm_are_not_the_same():
    model, x_t = mixture().model(VP.linear(60)), noise(4, scale=1.0)
    drawn = [noise(4, scale=1.0, seed=i + 1) for i in range(9)]
    ends = [
        sampled_by_us(Ancestral(sigma_hat=hat), x_t, model, "leading", 9, Recorded(*drawn)) for hat in (False, True)
    ]
    assert (ends[0] - ends[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("spacing", "num_steps", "off", "of"), [("linspace", 10, 9, 9), ("trailing", 30, 10, 29)])
def test_elsewhere_the_ddim_of_diffusers_steps_to_other_times_than_its_grid_goes_on_from(
    diffusers, spacing, num_steps, off, of
):
    """Why the cases above are chosen. If this fails, diffusers has mended it, and they need not be chosen any more."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    by_grid, by_step = transitions(scheduler)
    assert len(by_grid) - 1 == of
    assert sum(a != b for a, b in zip(by_grid[:-1], by_step[:-1], strict=True)) == off


def test_where_diffusers_disagrees_with_itself_we_follow_its_grid(diffusers):
    """Their DDIM with the next time taken from its grid, written by hand, is our Euler; as it is, it is not."""
    schedule = VP.linear()
    scheduler = in_float64(diffusers.DDIMScheduler(timestep_spacing="linspace", clip_sample=False), schedule)
    scheduler.set_timesteps(10)
    model, x_t = mixture().model(schedule), noise(4, scale=1.0)
    theirs = sampled_by(scheduler, x_t, model.network)
    ours = sampled_by_us(Euler(), x_t, model, "linspace", 10)
    mended = x_t
    for t, s in transitions(scheduler)[0]:
        a0 = scheduler.alphas_cumprod[t]
        a1 = scheduler.alphas_cumprod[s] if s >= 0 else torch.tensor(1.0, dtype=torch.float64)
        eps = model.network(mended, torch.full((4,), t))
        mended = a1**0.5 * (mended - (1 - a0) ** 0.5 * eps) / a0**0.5 + (1 - a1) ** 0.5 * eps  # DDIM, eq. 12
    torch.testing.assert_close(ours, mended, rtol=0, atol=1e-10)
    assert (ours - theirs).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # their tensors, given to numpy 2
def test_two_trajectories_may_interleave_which_a_scheduler_with_state_does_not_allow(diffusers):
    """diffusers' multistep schedulers count their steps in the object; our states are values."""
    scheduler = diffusers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(3)
    times = scheduler.timesteps.repeat_interleave(2)
    with pytest.raises(IndexError):
        [scheduler.step(torch.zeros(1, 2), t, torch.zeros(1, 2)) for t in times]
    sigmas, solver, eps = geometric(5), Dopri5(), mixture()
    states = [start(solver, noise(2, seed=seed), sigmas[0], eps) for seed in (1, 2)]
    for s0, s1 in pairwise(sigmas):
        states = [by_hand(solver.step(state, s0, s1), eps) for state in states]
    for state, seed in zip(states, (1, 2), strict=True):
        [alone] = run(on_grid(solver, noise(2, seed=seed), sigmas), model=eps)
        assert torch.equal(state.x, alone.x)
