"""What inversion promises of all held-out digits: the pair in float32, and one tensor with polish."""

import pytest
import torch

import odesampler as ods
from odesampler.images import to_bytes, to_float
from tests.benchmarks.inversion import same

HELD = ods.held_out("digits")
X, COND = to_float(to_bytes(HELD.images)), {"label": HELD.labels}


@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_the_pair_brings_every_digit_back_in_float32(num_steps):
    model = ods.load("digits")
    latent = ods.encode(model, X, num_steps=num_steps, cond=COND, state_dtype=torch.float32)
    back = ods.decode(model, latent).x
    assert back.dtype == torch.float32
    assert (back - X).abs().max() < 1e-5
    assert same(back, X).all()


@pytest.mark.slow
def test_one_tensor_and_polish_bring_99_of_100_digits_back_to_the_byte_and_flag_the_others():
    model = ods.load("digits")
    latent = ods.encode(model, X, solver="multistep", num_steps=20, cond=COND)
    assert same(ods.decode(model, latent).x, X).double().mean() < 0.5
    polished = ods.polish(model, X, latent)
    assert polished.memory == ()
    good = same(ods.decode(model, polished).x, X)
    assert good.double().mean() >= 0.99
    assert good[polished.converged].all()
