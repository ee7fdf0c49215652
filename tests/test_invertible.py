"""Exactly invertible solvers: all of them undo what they did to rounding, anywhere; each is the published method.

How much rounding may do is measured, not guessed: the same steps again, with the state jittered in its last bits.
"""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import odesampler as ods
from odesampler.exact import GaussianMixture
from odesampler.program import Course, Invertible, State
from tests.problems import SOLVERS, by_hand

INVERTIBLE = [s for s in SOLVERS if isinstance(s, Invertible)]
every_invertible = pytest.mark.parametrize("solver", INVERTIBLE, ids=repr)
SCHEDULES = {
    "VP linear": (ods.VP.linear(), "eps"),
    "cosine": (ods.VP.cosine(), "v"),
    "continuous VP": (ods.ContinuousVP(), "eps"),
    "VE": (ods.VE(0.01, 80.0), "denoised"),
    "flow": (ods.RectifiedFlow(), "flow"),
}
LEAST, MOST = 0.02, 40.0  # sigmas that all of these have
SLACK = 60.0  # rounding of a whole step against one rounding of its state


@st.composite
def falling(draw, least=3):
    """Sigmas between LEAST and MOST, the steps of uneven length."""
    lengths = draw(st.lists(st.floats(0.3, 1.0), min_size=least, max_size=10))
    span, done, whole = draw(st.floats(1.0, 7.5)), 0.0, sum(lengths)
    sigmas = [MOST]
    for length in lengths:
        done += length
        sigmas.append(MOST * 2.718281828 ** (-span * done / whole))
    return sigmas


some_shape = st.sampled_from([(1,), (3,), (1, 2, 2), (3, 2, 2)])
some_dtype = st.sampled_from([torch.float32, torch.float64])
some_solver = st.sampled_from(INVERTIBLE)
some_seed = st.integers(0, 2**31)


def problem(shape, seed):
    """Three Gaussians of that shape, not so narrow that rounding is all there is."""
    generator = torch.Generator().manual_seed(seed)
    return GaussianMixture(torch.randn(3, *shape, generator=generator), torch.tensor([0.2, 0.4, 0.3]))


def jittered(state, generator):
    """A state that differs by the rounding of each of its values, as if computed in another order."""

    def rough(value):
        if not value.is_floating_point():
            return value + torch.randint(-1, 2, value.shape, generator=generator)
        draws = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        return value * (1 + draws * torch.finfo(value.dtype).eps)

    return state._replace(x=rough(state.x), memory=tuple(map(rough, state.memory)))


def tensors(state):
    return [state.x, *state.memory]


def largest(values):
    return max(v.abs().max().item() for v in values)


@settings(max_examples=150)
@given(some_solver, falling(), some_shape, some_dtype, some_seed, st.data())
def test_unstep_undoes_step_to_rounding(solver, sigmas, shape, dtype, seed, data):
    eps, generator = problem(shape, seed), torch.Generator().manual_seed(seed)
    if data.draw(st.booleans(), label="rising"):
        sigmas = sigmas[::-1]
    solver = solver.prepared(Course(torch.log, tuple(sigmas)))
    x = (sigmas[0] * torch.randn(3, *shape, generator=generator, dtype=torch.float64)).to(dtype)
    state = by_hand(solver.init(x, sigmas[0]), eps)
    for s0, s1 in pairwise(sigmas[:-1]):
        state = by_hand(solver.step(state, s0, s1), eps)
    s0, s1 = sigmas[-2:]
    there = by_hand(solver.step(state, s0, s1), eps)
    back = by_hand(solver.unstep(there, s0, s1), eps)
    roughly = [by_hand(solver.unstep(jittered(there, generator), s0, s1), eps) for _ in range(3)]
    for i, (want, got) in enumerate(zip(tensors(state), tensors(back), strict=True)):
        rounding = largest(tensors(r)[i] - got for r in roughly) + torch.finfo(dtype).eps * largest([want])
        assert (got - want).abs().max() <= SLACK * rounding
    assert (there.x - state.x).abs().max() > 0


def decoded_roughly(model, latent, generator):
    """`decode`, stepped by hand, with the state jittered before every step."""
    solver, sigmas = latent.plan.loop.solver, latent.plan.grid.down().sigmas
    state = State(model.schedule.from_model_scale(latent.x, sigmas[0]), latent.memory)
    for s0, s1 in pairwise(sigmas):
        state = by_hand(solver.step(jittered(state, generator), s0, s1), model)
    return model.schedule.to_model_scale(state.x, sigmas[-1])


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=25)
@given(some_solver, falling(), some_shape, some_dtype, some_seed)
def test_decode_undoes_encode_to_rounding_and_batch_mates_do_not_matter(schedule, solver, sigmas, shape, dtype, seed):
    data, generator = problem(shape, seed), torch.Generator().manual_seed(seed)
    family, prediction = SCHEDULES[schedule]
    model = data.model(family, prediction, sigma_max=min(MOST, family.sigma_max))
    images = data.sample(3, seed)
    latent = ods.encode(model, images, solver=solver, grid=sigmas, state_dtype=dtype)
    back = ods.decode(model, latent).x
    roughly = [decoded_roughly(model, latent, generator) for _ in range(3)]
    rounding = largest(r - back for r in roughly) + torch.finfo(dtype).eps * largest([images])
    assert (back - images).abs().max() <= SLACK * rounding
    alone = ods.decode(model, latent.select([1])).x
    assert (alone - back[1:2]).abs().max() <= SLACK * rounding
    single = ods.encode(model, images[1:2], solver=solver, grid=sigmas, state_dtype=dtype)
    assert (ods.decode(model, single).x - images[1:2]).abs().max() <= SLACK * rounding


@every_invertible
def test_a_latent_from_disk_decodes_to_the_same_bits(solver, tmp_path):
    data = GaussianMixture.ring()
    model = data.model()
    latent = ods.encode(model, data.sample(2), solver=solver, num_steps=6)
    latent.save(tmp_path / "z.safetensors")
    loaded = ods.Latent.load(tmp_path / "z.safetensors")
    assert loaded.plan is None
    assert torch.equal(ods.decode(model, loaded).x, ods.decode(model, latent).x)
