"""Autoencoders of diffusers as codecs: against formulas written by hand, and against what pipelines decode."""

import pytest
import torch
from diffusers import AutoencoderTiny, VQModel

import odesampler as ods
from odesampler.adapters.diffusers import Autoencoder, text_model
from tests import pipelines

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
LATENTS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
BY_CHANNEL = {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [2.0, 0.5, 1.0, 3.0], "scaling_factor": 0.5}


def vae(**config):
    torch.manual_seed(0)
    return pipelines.vae(**config)


def test_latents_are_the_mode_shifted_then_scaled():
    model = vae(shift_factor=0.25, scaling_factor=1.5)
    with torch.no_grad():
        wanted = (model.encode(IMAGES).latent_dist.mode() - 0.25) * 1.5
        images = model.decode(LATENTS / 1.5 + 0.25).sample
    codec = Autoencoder(model)
    torch.testing.assert_close(codec.encode(IMAGES), wanted)
    torch.testing.assert_close(codec.decode(LATENTS), images)
    assert torch.equal(codec.encode(IMAGES), codec.encode(IMAGES)), "it is drawn, not the mode"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2
def test_means_and_deviations_by_channel_are_those_of_the_pipeline():
    pipe = pipelines.sdxl()
    pipe.vae.register_to_config(**BY_CHANNEL)
    how = {"height": 16, "width": 16, "num_inference_steps": 2, "generator": torch.Generator()}
    latents, images = (
        pipe("a cat", output_type=kind, **{**how, "generator": torch.Generator().manual_seed(0)}).images
        for kind in ("latent", "pt")
    )
    codec = Autoencoder(pipe.vae)
    torch.testing.assert_close((codec.decode(latents) / 2 + 0.5).clamp(0, 1), images, rtol=0, atol=1e-5)
    with torch.no_grad():
        mode = pipe.vae.encode(IMAGES).latent_dist.mode()
    mean, std = (torch.tensor(BY_CHANNEL[key]).reshape(1, 4, 1, 1) for key in ("latents_mean", "latents_std"))
    torch.testing.assert_close(codec.encode(IMAGES), (mode - mean) * 0.5 / std)


def test_batches_are_taken_in_parts_and_come_out_as_one():
    model, sizes = vae(), []
    model.encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    model.decoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    parts, whole = Autoencoder(model, max_batch=2), Autoencoder(model, max_batch=3)
    torch.testing.assert_close(parts.encode(IMAGES), whole.encode(IMAGES))
    torch.testing.assert_close(parts.decode(LATENTS), whole.decode(LATENTS))
    assert sizes == [2, 1, 3, 2, 1, 3]


@pytest.mark.parametrize("upcast", [True, False])
def test_half_precision_that_overflows_is_brought_to_float32_and_back(upcast):
    model, dtypes = vae(force_upcast=upcast).half(), []
    model.encoder.register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
    codec = Autoencoder(model)
    assert codec.encode(IMAGES).dtype is torch.float32
    assert dtypes == [torch.float32 if upcast else torch.float16]
    assert model.dtype is torch.float16
    with pytest.raises(RuntimeError):
        codec.encode(IMAGES[:, :1])
    assert model.dtype is torch.float16, "an error should not leave it in float32"
    if upcast:
        exact = Autoencoder(vae().half().float())
        torch.testing.assert_close(codec.decode(LATENTS), exact.decode(LATENTS))


def test_images_and_latents_of_any_dtype_are_taken_in_that_of_the_autoencoder():
    codec = Autoencoder(vae())
    torch.testing.assert_close(codec.encode(IMAGES.double()), codec.encode(IMAGES))
    torch.testing.assert_close(codec.decode(LATENTS.double()), codec.decode(LATENTS))
    assert Autoencoder(vae().bfloat16()).encode(IMAGES).dtype is torch.float32


def test_gradients_flow_where_they_are_asked_for_and_nowhere_else():
    codec = Autoencoder(vae())
    assert not codec.decode(LATENTS).requires_grad
    free = LATENTS.clone().requires_grad_()
    codec.decode(free).square().sum().backward()
    assert free.grad.abs().sum() > 0
    with torch.no_grad():
        assert not codec.decode(free).requires_grad


def test_a_tiny_autoencoder_is_taken_too():
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    layers = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    model = AutoencoderTiny(**blocks, **layers, latent_channels=4).eval()
    codec = Autoencoder(model)
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(IMAGES), model.encode(IMAGES).latents)
    assert codec.decode(LATENTS).shape == (3, 3, 16, 16)


def test_autoencoders_that_cannot_be_taken_are_refused_by_name():
    with pytest.raises(TypeError, match=r"vae must be one of AutoencoderKL, .*; got VQModel"):
        Autoencoder(VQModel(block_out_channels=(8,), norm_num_groups=4))
    with pytest.raises(ValueError, match=r"vae config: latents_mean=\[0\.5.*latents_std=None go together"):
        Autoencoder(vae(latents_mean=BY_CHANNEL["latents_mean"]))
    with pytest.raises(ValueError, match=r"vae config: shift_factor=0\.25 and latents_mean"):
        Autoencoder(vae(shift_factor=0.25, **BY_CHANNEL))
    with pytest.raises(ValueError, match="max_batch must be a whole number"):
        Autoencoder(vae(), max_batch=0)


def test_a_model_takes_images_and_gives_images():
    model = text_model(pipelines.sd(), prompt="a cat")
    latent = ods.encode(model, IMAGES, solver="ddim", num_steps=4)
    assert latent.x.shape == (3, 4, 8, 8)
    back = ods.decode(model, latent)
    assert torch.equal(back.images, model.codec.decode(back.x))
    with pytest.raises(ValueError, match=r"\(3, 16, 16\)"):
        ods.encode(model, torch.zeros(1, 3, 8, 8), num_steps=2)


def test_latents_keep_the_precision_of_an_autoencoder_that_is_finer():
    assert Autoencoder(vae().double()).encode(IMAGES).dtype == torch.float64


def test_a_shift_of_nothing_beside_means_by_channel_is_none():
    assert torch.equal(
        Autoencoder(vae(**BY_CHANNEL, shift_factor=0.0)).encode(IMAGES), Autoencoder(vae(**BY_CHANNEL)).encode(IMAGES)
    )
