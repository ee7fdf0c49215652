"""Polish: one tensor that decodes to its image, whatever decodes it, and an honest word where it does not."""

import math
import warnings

import pytest
import torch

import odesampler as ods
from tests.problems import geometric, labelled, mixture

MODEL = mixture().model(sigma_min=0.1, sigma_max=20.0)


def images(n: int = 6) -> torch.Tensor:
    return mixture().sample(n, seed=1)


def missed(model, latent, x):
    return (ods.decode(model, latent).x - x).abs().flatten(1).amax(1)


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        ("ddim", {"num_steps": 20}),
        ("heun", {"num_steps": 10}),
        ("dpmpp_2m", {"num_steps": 20}),
        ("unipc", {"num_steps": 20}),
        ("adaptive:bosh3(rtol=0.003, atol=0.003)", {}),
        ("adaptive:bosh3(rtol=0.01, atol=0.01, coordinate='sigma')", {}),
        ("scipy:RK23", {}),
        ("torchdiffeq:rk4", {"num_steps": 10}),
    ],
)
def test_any_decoder_brings_polished_latents_back(solver, steps):
    latent = ods.encode(MODEL, images(), solver=solver, **steps)
    before = missed(MODEL, latent, images())
    polished = ods.polish(MODEL, images(), latent, sweeps=40, tolerance=1e-7)
    assert before.max() > 1e-5
    assert missed(MODEL, polished, images()).max() < 1e-7
    assert polished.converged.all()
    assert (polished.recipe.convention, polished.recipe.polished) == ("source", True)


@pytest.mark.parametrize("schedule", [ods.RectifiedFlow(), ods.VP.linear().with_zero_snr()], ids=["flow", "zero SNR"])
def test_latents_at_infinity_are_polished_too(schedule):
    model = mixture().model(schedule, "v", sigma_min=0.1)
    latent = ods.encode(model, images(), solver="heun", num_steps=12)
    polished = ods.polish(model, images(), latent, sweeps=20, tolerance=1e-7)
    assert missed(model, polished, images()).max() < 1e-7


def test_guided_latents_are_polished_too():
    model, options = labelled(), {"grid": geometric(10), "guidance_scale": 3.0, "cond": {"label": 0.25}}
    latent = ods.encode(model, images(), solver="ddim", **options)
    assert missed(model, latent, images()).max() > 0.1
    polished = ods.polish(model, images(), latent, sweeps=30, tolerance=1e-7)
    assert missed(model, polished, images()).max() < 1e-7


@pytest.mark.filterwarnings("ignore:.*did not converge:RuntimeWarning")
def test_one_sweep_is_the_formula():
    """z + E(x) - E(G(z)), here at a latent that is not E(x)."""
    x = images()
    encoded = ods.encode(MODEL, x, solver="heun", num_steps=8)
    near = ods.encode(MODEL, x + 0.01, solver="heun", num_steps=8)
    back = ods.decode(MODEL, near).x
    want = near.x + encoded.x - ods.encode(MODEL, back, solver="heun", num_steps=8).x
    polished = ods.polish(MODEL, x, near, sweeps=1, tolerance=0.0)
    torch.testing.assert_close(polished.x, want, rtol=0, atol=1e-9)
    assert (polished.nfe - near.nfe).tolist() == [4 * 2 * 8] * 6, "two decodings, two encodings, and none to no end"
    polished = ods.polish(MODEL, x, near, sweeps=2, tolerance=0.0)
    assert (polished.nfe - near.nfe).tolist() == [6 * 2 * 8] * 6, "the image is encoded once"


def test_the_defect_is_what_decoding_misses_and_those_that_miss_too_much_are_named():
    latent = ods.encode(MODEL, images(), solver="ddim", num_steps=6)
    tolerance = missed(MODEL, latent, images()).median().item()
    with pytest.warns(RuntimeWarning, match=r"of 6 samples did not converge \(sample .*more sweeps"):
        measured = ods.polish(MODEL, images(), latent, sweeps=0, tolerance=tolerance)
    assert torch.allclose(measured.x, latent.x, atol=1e-12)
    assert torch.equal(measured.nfe, 2 * latent.nfe)
    assert torch.allclose(measured.defect, missed(MODEL, latent, images()), atol=1e-9)
    assert torch.equal(measured.converged, measured.defect <= tolerance)
    assert 0 < measured.converged.sum() < 6


@pytest.mark.filterwarnings("ignore:.*did not converge:RuntimeWarning")
@pytest.mark.parametrize("sweeps", [1, 2, 5])
def test_no_sample_becomes_worse(sweeps):
    """Two steps of DDIM are so coarse that corrections lead astray."""
    latent = ods.encode(MODEL, images(20), solver="ddim", num_steps=2)
    before = missed(MODEL, latent, images(20))
    polished = ods.polish(MODEL, images(20), latent, sweeps=sweeps, tolerance=1e-9)
    assert (missed(MODEL, polished, images(20)) <= before + 1e-9).all()
    assert not polished.converged.all()


def test_a_sample_that_decodes_well_is_left_alone_and_no_longer_asked_about():
    x = images()
    exact = ods.encode(MODEL, x, solver="heun", num_steps=8, convention=ods.Implicit(tolerance=1e-10))
    naive = ods.encode(MODEL, x, solver="heun", num_steps=8)
    mixed = torch.where(torch.arange(6)[:, None] < 3, exact.x, naive.x)
    latent = ods.Latent(mixed, naive.recipe)
    polished = ods.polish(MODEL, x, latent, sweeps=20, tolerance=1e-7)
    assert polished.nfe[:3].tolist() == [2 * 8] * 3, "one decoding"
    assert polished.nfe[3:].min() >= 2 * 8 * 4
    assert torch.allclose(polished.x[:3], exact.x[:3], atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*did not converge:RuntimeWarning")
def test_no_sample_depends_on_its_batch_mates():
    latent = ods.encode(MODEL, images(), solver="ddim", num_steps=10)
    together = ods.polish(MODEL, images(), latent, tolerance=1e-4)
    for i in (0, 4):
        alone = ods.polish(MODEL, images()[[i]], latent.select([i]), tolerance=1e-4)
        assert alone.nfe[0] == together.nfe[i]
        assert torch.allclose(alone.x[0], together.x[i], atol=1e-8)


def test_memory_is_left_out_and_one_tensor_is_enough(tmp_path):
    latent = ods.encode(MODEL, images(), solver="reversible", num_steps=12)
    polished = ods.polish(MODEL, images(), latent, sweeps=20, tolerance=1e-7)
    assert polished.memory == ()
    polished.save(tmp_path / "z.safetensors")
    back = ods.decode(MODEL, ods.Latent.load(tmp_path / "z.safetensors")).x
    assert (back - images()).abs().max() < 1e-7


def test_a_better_encoder_needs_fewer_sweeps():
    latent = ods.encode(MODEL, images(), solver="heun", num_steps=10)
    own = ods.polish(MODEL, images(), latent, sweeps=30, tolerance=1e-9)
    for encoder in ("rk4", ods.Adaptive(ods.Dopri5(), 1e-6, 1e-6)):
        other = ods.polish(MODEL, images(), latent, sweeps=30, tolerance=1e-9, encoder=encoder)
        assert missed(MODEL, other, images()).max() < 1e-9
        assert not torch.equal(other.nfe, own.nfe)


def test_an_encoder_that_does_not_arrive_corrects_nothing_and_breaks_nothing():
    latent = ods.encode(MODEL, images(), solver="heun", num_steps=10)
    late = ods.Adaptive(ods.Dopri5(), 1e-9, 1e-9, max_steps=2)
    with pytest.warns(RuntimeWarning, match="6 of 6 samples did not converge"):
        polished = ods.polish(MODEL, images(), latent, encoder=late, tolerance=1e-9)
    assert torch.allclose(polished.x, latent.x, atol=1e-12)
    assert torch.allclose(polished.defect, missed(MODEL, latent, images()), atol=1e-9)


@pytest.mark.parametrize("solver", ["multistep", "heun", "dpmpp_2m"])
def test_digits_in_8_bits_come_back_byte_by_byte_from_20_steps_and_one_tensor(solver):
    model, x = ods.load("digits"), ods.images.to_bytes(ods.held_out("digits").images[:24])
    latent = ods.encode(model, ods.images.to_float(x), solver=solver, num_steps=20)
    polished = ods.polish(model, ods.images.to_float(x), latent, sweeps=10)
    assert polished.converged.all()
    assert torch.equal(ods.images.to_bytes(ods.decode(model, polished).x), x)
    assert not torch.equal(ods.images.to_bytes(ods.decode(model, latent).x), x)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"latent": torch.zeros(6, 2)}, TypeError, "polish takes a Latent"),
        ({"images": torch.zeros(5, 2)}, ValueError, "the images that were encoded"),
        ({"images": torch.full((6, 2), math.nan)}, ValueError, "finite"),
        ({"sweeps": -1}, ValueError, "sweeps must be a whole number"),
        ({"sweeps": 1.5}, ValueError, "sweeps must be a whole number"),
        ({"tolerance": math.inf}, ValueError, "tolerance must be a finite number"),
        ({"encoder": "ddpm"}, ValueError, "draws noise"),
        ({"encoder": "huen"}, ValueError, "unknown solver"),
        ({"model": mixture().model(sigma_min=0.2)}, ValueError, "was made with"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_called(change, kind, message):
    def never(x_t, t):
        assert not armed, "the model was called"
        return MODEL.network(x_t, t)

    armed: list[bool] = []
    model = ods.Model(never, MODEL.schedule, sigma_min=0.1, sigma_max=20.0, data_shape=(2,))
    latent = ods.encode(model, images(), solver="heun", num_steps=3)
    armed.append(True)
    arguments = {"model": model, "images": images(), "latent": latent, **change}
    with pytest.raises(kind, match=message):
        ods.polish(**arguments)


def test_an_encoder_whose_ends_are_others_is_refused():
    latent = ods.encode(MODEL, images(), solver="heun", grid=[15.0, 3.0, 0.5])
    with pytest.raises(ValueError, match=r"the latent.s grid from 0\.5 to 15"):
        ods.polish(MODEL, images(), latent, encoder=ods.Adaptive(ods.Dopri5()))


@pytest.mark.parametrize("solver", [None, "deis_tab", "fixed_point", "heun"])
def test_a_loaded_latent_is_polished_as_a_fresh_one(solver, tmp_path):
    latent = ods.encode(MODEL, images(), solver=solver, num_steps=12)
    latent.save(tmp_path / "z.safetensors")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*did not converge", RuntimeWarning)
        fresh, loaded = (
            ods.polish(MODEL, images(), one, sweeps=2) for one in (latent, ods.Latent.load(tmp_path / "z.safetensors"))
        )
    assert torch.equal(fresh.x, loaded.x)
    assert torch.allclose(loaded.defect, missed(MODEL, loaded, images()), atol=1e-9)


def test_a_residual_does_not_outlive_the_latent_that_it_belongs_to():
    latent = ods.encode(MODEL, images(), solver="ddim", num_steps=30, exact="residual")
    polished = ods.polish(MODEL, images(), latent, sweeps=40, tolerance=1e-3)
    assert polished.sidecar is None
    assert torch.allclose(polished.defect, missed(MODEL, polished, images()), atol=1e-9)
