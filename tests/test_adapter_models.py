"""Networks and pipelines of diffusers as models: their own loops as oracle, in float64, and what is refused."""

import sys
from types import SimpleNamespace

import pytest
import torch

import odesampler as ods

adapter = ods.adapters.diffusers
diffusers = pytest.importorskip("diffusers")
from tests import pipelines  # noqa: E402  # needs diffusers

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # their tensors, given to numpy 2


def in_float64(scheduler):
    """A scheduler with the tables that it would have if it did not compute them in float32."""
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    if scheduler.config.get("rescale_betas_zero_snr"):
        scheduler.alphas_cumprod = torch.tensor(adapter.read(scheduler).schedule.alpha_bar, dtype=torch.float64)
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


def their_loop(network, scheduler, x_t, num_steps, **given):
    """As in their pipelines: scaled input, network, step. Starts from N(0, 1)."""
    scheduler.set_timesteps(num_steps, **given)
    x_t = x_t * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else x_t
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x_t, t) if hasattr(scheduler, "scale_model_input") else x_t
            x_t = scheduler.step(network(scaled, t.expand(len(x_t))), t, x_t).prev_sample
    return x_t


def close(ours, theirs, rel):
    assert torch.isfinite(theirs).all()
    assert (ours - theirs).abs().max() <= rel * theirs.abs().max()


@pytest.fixture
def unet():
    """A small U-Net on (3, 16, 16), in float64, and it as their loops call it."""
    return pipelines.ddpm().unet.double()


def asked(unet):
    return lambda x, t: unet(x, t).sample


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddim_is_theirs(unet, prediction, spacing):
    config = {"prediction_type": prediction, "timestep_spacing": spacing, "clip_sample": False}
    scheduler, x = in_float64(diffusers.DDIMScheduler(**config)), noise(2, 3, 16, 16)
    model = adapter.from_unet(unet, scheduler)
    ours = ods.sample(model, x=x, solver="ddim", grid=adapter.grid_of(scheduler, 8), state_dtype=torch.float64)
    close(ours.x, their_loop(asked(unet), scheduler, x, 8), 1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dpmpp_2m_is_theirs(unet, prediction):
    scheduler, x = diffusers.DPMSolverMultistepScheduler(prediction_type=prediction), noise(2, 3, 16, 16)
    model = adapter.from_unet(unet, scheduler)
    ours = ods.sample(model, x=x, solver="dpmpp_2m", grid=adapter.grid_of(scheduler, 8), state_dtype=torch.float64)
    close(ours.x, their_loop(asked(unet), scheduler, x, 8), 1e-5)


def test_clipping_is_theirs_with_the_bound_that_is_read(unet):
    """clip_sample is on by default there, and off here until one asks."""
    scheduler, x = in_float64(diffusers.DDIMScheduler()), noise(2, 3, 16, 16)
    model, bound = adapter.from_unet(unet, scheduler), adapter.read(scheduler).clip_denoised
    how = {"solver": "ddim", "grid": adapter.grid_of(scheduler, 8), "state_dtype": torch.float64}

    # Their epsilon stays what the network said where the image is cut off; ours points at the bounded image.
    def loop(network, use):
        scheduler.set_timesteps(8)
        x_t = x
        with torch.no_grad():
            for t in scheduler.timesteps:
                x_t = scheduler.step(network(x_t, t.expand(2)), t, x_t, use_clipped_model_output=use).prev_sample
        return x_t

    close(ods.sample(model, x=x, clip_denoised=bound, **how).x, loop(asked(unet), True), 1e-6)
    assert ods.sample(model, x=x, **how).x.abs().max() > 10


def test_zero_snr_starts_at_infinity_as_theirs(unet):
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    scheduler, x = in_float64(diffusers.DDIMScheduler(clip_sample=False, **config)), noise(2, 3, 16, 16)
    model, grid = adapter.from_unet(unet, scheduler), adapter.grid_of(scheduler, 8)
    assert grid[0] == float("inf")
    ours = ods.sample(model, x=x, solver="ddim", grid=grid, state_dtype=torch.float64)
    close(ours.x, their_loop(asked(unet), scheduler, x, 8), 1e-6)


@pytest.mark.parametrize("shift", [0.2, 0.9, 1.0, 3.0])
def test_a_flow_is_theirs(unet, shift):
    """With the model's own grid, which is the scheduler's; their step computes in float32."""
    scheduler, x = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), noise(2, 3, 16, 16)
    model = adapter.from_unet(unet, scheduler)
    ours = ods.sample(model, x=x, solver="ddim", num_steps=8, state_dtype=torch.float64)
    close(ours.x, their_loop(asked(unet), scheduler, x, 8), 1e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("EDMEulerScheduler", {}),
        ("EDMEulerScheduler", {"sigma_data": 1.3, "prediction_type": "v_prediction"}),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
            | {"sigma_min": 0.01, "sigma_max": 50.0},
        ),
    ],
)
def test_a_preconditioned_network_is_theirs(unet, name, config):
    """Their step computes in float32, where the noise is 80 times the image."""
    scheduler, x = getattr(diffusers, name)(**config), noise(2, 3, 16, 16)
    model, grid = adapter.from_unet(unet, scheduler), adapter.grid_of(scheduler, 8)
    scheduler.set_timesteps(8)
    start = x * scheduler.init_noise_sigma
    ours = ods.sample(model, x=start, solver="ddim", grid=grid, state_dtype=torch.float64)
    close(ours.x, their_loop(asked(unet), scheduler, x, 8), 1e-4)


def test_a_preconditioned_network_in_half_precision_is_scaled_in_single():
    """c_skip x at sigma = 80 in half precision would leave a twentieth of an image's range."""
    unet, scheduler = pipelines.ddpm().unet, diffusers.EDMEulerScheduler()
    x = 80 * noise(2, 3, 16, 16).float()
    fine = adapter.from_unet(unet, scheduler)(x, 80.0)
    half = adapter.from_unet(unet.bfloat16(), scheduler)
    assert half.network_dtype == torch.float32
    assert (half(x, 80.0) - fine).abs().max() < 1e-3


def test_the_pipeline_itself_makes_what_the_library_makes():
    """DDPMPipeline with DDIM, an image-predicting network: its pictures are not saturated."""
    pipe = pipelines.ddpm(prediction_type="sample")
    pipe.unet.double()
    pipe.scheduler = in_float64(diffusers.DDIMScheduler(clip_sample=False, prediction_type="sample"))
    pictures = pipe(2, generator=torch.Generator().manual_seed(3), num_inference_steps=6, output_type="np").images
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grid = adapter.grid_of(pipe.scheduler, 6)
    ours = ods.sample(adapter.from_pipeline(pipe), x=x, solver="ddim", grid=grid, state_dtype=torch.float64)
    theirs = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
    assert 0.1 < theirs.std() < 0.9
    close(ours.x.clamp(-1, 1), theirs, 1e-6)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_dit_is_theirs_with_guidance_and_without(monkeypatch, guidance_scale):
    """All channels of the prediction are guided, as that pipeline does; the learned variance is dropped."""
    pipe, latents = pipelines.dit(), []
    pipe.transformer.double()
    in_float64(pipe.scheduler)

    def decode(z):
        latents.append(z * pipe.vae.config.scaling_factor)
        return SimpleNamespace(sample=torch.zeros(2, 3, 16, 16))

    monkeypatch.setattr(pipe.vae, "decode", decode)
    given = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": 6}
    pipe(class_labels=[7, 400], guidance_scale=guidance_scale, output_type="pt", **given)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model = adapter.from_pipeline(pipe, guidance_scale=guidance_scale)
    assert (model.data_shape, model.null_cond, model.labels[7]) == ((4, 8, 8), {"label": 1000}, "class 7")
    how = {"solver": "ddim", "grid": adapter.grid_of(pipe.scheduler, 6), "state_dtype": torch.float64}
    close(ods.sample(model, x=x, cond={"label": torch.tensor([7, 400])}, **how).x, latents[0], 1e-6)
    asked_for = adapter.from_pipeline(pipe, label="class 7", guidance_scale=guidance_scale)
    close(ods.sample(asked_for, x=x[:1], **how).x, latents[0][:1], 1e-6)


def test_dit_has_its_pipelines_guidance_and_its_autoencoder():
    pipe = pipelines.dit()
    model = adapter.from_pipeline(pipe, label=3)
    assert (model.guidance_scale, model.image_shape) == (4.0, (3, 16, 16))
    found = ods.sample(model, 1, num_steps=3)
    with torch.no_grad():
        theirs = pipe.vae.decode(found.x / pipe.vae.config.scaling_factor).sample
    close(found.images, theirs, 1e-5)
    pipe.vae = None
    assert adapter.from_pipeline(pipe).codec is None


@pytest.mark.parametrize("make", [pipelines.sd, pipelines.sdxl, pipelines.sd3, pipelines.flux])
def test_text_pipelines_are_models_by_the_same_function(make, tmp_path):
    """And from a folder. What they do is tested with `text_model`."""
    make().save_pretrained(tmp_path / "tiny")
    model = adapter.from_pretrained(tmp_path / "tiny", prompt="a cat")
    same = adapter.text_model(make(), prompt="a cat")
    found, wanted = (ods.sample(m, 1, num_steps=2).x for m in (model, same))
    assert (model.name, model.fingerprint()) == ("tiny", same.fingerprint())
    assert torch.equal(found, wanted)


def test_an_image_comes_back_through_a_pipeline_of_theirs():
    model = adapter.from_pipeline(pipelines.ddpm())
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = ods.encode(model, images, solver="alf", num_steps=10)
    assert (ods.decode(model, latent).x - images).abs().max() < 1e-4
    assert (latent.x - images).abs().max() > 0.1
    assert model.data_range == (-1, 1)


def test_a_unet_that_hears_text_is_told_what_the_pipeline_tells_it():
    pipe = pipelines.sdxl()
    model = adapter.from_unet(pipe.unet, pipe.scheduler)
    x_t, text, pooled = (noise(*shape).float() for shape in ((2, 4, 8, 8), (2, 5, 64), (2, 32)))
    size = torch.tensor([[16.0, 16, 0, 0, 16, 16], [32, 32, 0, 4, 16, 16]])
    cond = {"text": text, "pooled": pooled, "size": size}
    alpha_bar = model.schedule.alpha_bar[500]
    sigma = model.schedule.sigma(torch.tensor(500.0, dtype=torch.float64)).item()
    with torch.no_grad():
        theirs = pipe.unet(
            x_t, 500, encoder_hidden_states=text, added_cond_kwargs={"text_embeds": pooled, "time_ids": size}
        ).sample
        ours = model(x_t / alpha_bar**0.5, sigma, **cond)
    close(ours, theirs, 1e-5)
    with pytest.raises(ValueError, match="takes the conditions text, pooled, size; got text: give cond"):
        model(x_t, sigma, text=text)


def test_a_unet_of_stable_diffusion_needs_its_text():
    pipe = pipelines.sd()
    model = adapter.from_unet(pipe.unet, pipe.scheduler, null_cond={"text": torch.zeros(5, 32)})
    assert ods.sample(model, 1, num_steps=2).x.shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match="takes the conditions text; got none: give cond"):
        ods.sample(adapter.from_unet(pipe.unet, pipe.scheduler), 1, num_steps=2)


@pytest.mark.parametrize("make", [pipelines.sd3, pipelines.flux])
def test_a_transformer_that_hears_text_says_what_it_lacks_and_what_it_does_not_know(make):
    pipe = make()
    network = adapter.from_unet(pipe.transformer, pipe.scheduler).network
    x_t, t = torch.zeros(1, 4, 8, 8), torch.ones(1)
    with pytest.raises(ValueError, match="takes the conditions text, pooled; got text: give cond"):
        network(x_t, t, text=torch.zeros(1, 5, 32))
    with pytest.raises(ValueError, match="takes the conditions text, pooled; got text, pooled, size"):
        network(x_t, t, text=torch.zeros(1, 5, 32), pooled=torch.zeros(1, 32), size=torch.zeros(1, 6))


def test_dit_takes_a_scale_of_nothing_for_off_as_text_pipelines_do():
    assert adapter.from_pipeline(pipelines.dit(), guidance_scale=0.0).guidance_scale == 1.0
    with pytest.raises(ValueError, match=r"guidance_scale must be a finite number.*got 'a'"):
        adapter.from_pipeline(pipelines.dit(), guidance_scale="a")


def test_dit_refuses_labels_that_it_has_not_where_its_classes_have_no_names():
    pipe = pipelines.dit()
    pipe.labels = {}
    model = adapter.from_pipeline(pipe, guidance_scale=1.0)
    assert model.labels[999] == "999"
    for label in (5000, -1):
        with pytest.raises(ValueError, match=f"label {label} does not exist: DiTPipeline has 0 .. 999"):
            ods.sample(model, 1, num_steps=2, cond={"label": label})
        with pytest.raises(ValueError, match=f"0 to 999 or 1000 for none, or by name; got {label}"):
            adapter.from_pipeline(pipe, label=label)
    with pytest.raises(ValueError, match="labels are whole numbers, one a sample"):
        ods.sample(adapter.from_unet(pipe.transformer, pipe.scheduler, cond={"label": 1.5}), 1, num_steps=2)
    assert adapter.from_pipeline(pipe, label=1000).cond == {"label": 1000}


def unet_by(**more):
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    config = {"sample_size": 8, "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, **kinds}
    return diffusers.UNet2DModel(**{**config, **more}).eval()


def test_a_unet_by_class_is_told_the_class():
    unet, scheduler = unet_by(num_class_embeds=5), diffusers.DDPMScheduler()
    model = adapter.from_unet(unet, scheduler, null_cond={"label": 4})
    x, sigma = noise(2, 3, 8, 8).float(), model.schedule.sigma_max
    labels = torch.tensor([1, 3])
    with torch.no_grad():
        theirs = unet(x * model.schedule.alpha_bar[-1] ** 0.5, 999, class_labels=labels).sample
    close(model(x, sigma, label=labels), theirs, 1e-5)
    close(model(x, sigma), model(x, sigma, label=torch.tensor([4, 4])), 0)
    with pytest.raises(ValueError, match="takes the conditions label; got none"):
        adapter.from_unet(unet, scheduler)(x, sigma)
    with pytest.raises(ValueError, match="this network takes no conditions; got label"):
        adapter.from_unet(unet_by(), scheduler)(x, sigma, label=labels)


@pytest.mark.parametrize(("size", "shape"), [(8, (3, 8, 8)), ((8, 12), (3, 8, 12)), (None, None)])
def test_the_shape_of_the_data(size, shape):
    assert adapter.from_unet(unet_by(sample_size=size), diffusers.DDPMScheduler()).data_shape == shape


def test_a_table_of_times_is_asked_at_whole_times():
    unet = unet_by(time_embedding_type="learned", num_train_timesteps=1000)
    assert torch.isfinite(ods.sample(adapter.from_unet(unet, diffusers.DDPMScheduler()), 1, num_steps=3).x).all()


def test_options_are_those_of_a_model():
    model = adapter.from_unet(unet_by(), diffusers.DDPMScheduler().config, name="mine", sigma_max=50.0)
    assert (model.name, model.range[1]) == ("mine", 50.0)
    assert adapter.from_unet(unet_by(), diffusers.DDPMScheduler()).name == "UNet2DModel"
    narrow = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=0.05, sigma_max=20.0)
    assert adapter.from_unet(unet_by(), narrow).range == (0.05, 20.0)


text_unet = {"cross_attention_dim": 32}


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (pipelines.unet_of_text, {**text_unet, "in_channels": 9}, "in_channels=9 with 4 out: it sees more than x_t"),
        (
            pipelines.unet_of_text,
            {**text_unet, "time_cond_proj_dim": 8},
            "time_cond_proj_dim=8 is of a network that was",
        ),
        (pipelines.unet_of_text, {**text_unet, "num_class_embeds": 8}, "num_class_embeds=8 wants a class"),
        (
            pipelines.unet_of_text,
            {**text_unet, "class_embed_type": "timestep"},
            "class_embed_type='timestep' wants a class",
        ),
        (
            pipelines.unet_of_text,
            {**text_unet, "encoder_hid_dim": 8, "encoder_hid_dim_type": "image_proj"},
            "encoder_hid_dim_type='image_proj' wants images",
        ),
        (
            pipelines.unet_of_text,
            {**text_unet, "addition_embed_type": "image", "encoder_hid_dim": 8},
            "addition_embed_type='image' is not one of",
        ),
        (unet_by, {"class_embed_type": "timestep"}, "class_embed_type='timestep' wants more than"),
        (unet_by, {"time_embedding_type": "fourier"}, "time_embedding_type='fourier' is of score networks"),
        (unet_by, {"in_channels": 6}, "in_channels=6 with 3 out"),
        (unet_by, {"out_channels": 9}, "in_channels=3 with 9 out"),
    ],
    ids=lambda x: next(reversed(x)) if isinstance(x, dict) else "",
)
def test_networks_that_want_more_are_refused_by_the_key(make, config, message):
    with pytest.raises(ValueError, match=f"network config: {message}"):
        adapter.from_unet(make(**config), diffusers.DDPMScheduler())


def test_other_networks_and_pipelines_are_refused_by_their_class():
    with pytest.raises(TypeError, match="Linear is not a network of diffusers that is known here"):
        adapter.from_unet(torch.nn.Linear(1, 1), diffusers.DDPMScheduler())
    unknown = type("StrangePipeline", (), {})()
    with pytest.raises(ValueError, match="StrangePipeline is not one of the pipelines that are known: DDPMPipeline"):
        adapter.from_pipeline(unknown)


def test_what_a_pipeline_does_not_take_is_refused():
    with pytest.raises(TypeError, match=r"DDPMPipeline takes the arguments of ods\.Model; got prompt"):
        adapter.from_pipeline(pipelines.ddpm(), prompt="a cat")
    with pytest.raises(
        TypeError, match=r"DiTPipeline takes label, guidance_scale, the arguments of ods\.Model; got lable"
    ):
        adapter.from_pipeline(pipelines.dit(), lable=3)
    with pytest.raises(ValueError, match=r"label 'a cat' is not one of the 1000 classes in pipe\.labels"):
        adapter.from_pipeline(pipelines.dit(), label="a cat")


def test_a_pipeline_for_which_the_scheduler_was_replaced_is_a_pipeline_still():
    """DDIMPipeline makes a DDIMScheduler of any: the same schedule, whatever it was."""
    pipe = diffusers.DDIMPipeline(unet_by(), diffusers.DDPMScheduler(beta_end=0.01))
    assert adapter.from_pipeline(pipe).schedule == ods.VP.linear(beta_end=0.01)


def test_a_folder_is_the_pipeline_that_was_saved_there(tmp_path):
    pipe = pipelines.dit()
    pipe.save_pretrained(tmp_path / "tiny")
    model = adapter.from_pretrained(tmp_path / "tiny", label=3, device="cpu")
    assert model.name == "tiny"
    saved, direct = (ods.sample(m, 2, num_steps=3).x for m in (model, adapter.from_pipeline(pipe, label=3)))
    assert torch.equal(saved, direct)
    half = adapter.from_pretrained(tmp_path / "tiny", load={"dtype": torch.bfloat16})
    assert half.network_dtype == torch.bfloat16


def test_pickled_weights_are_not_read(tmp_path):
    pipelines.ddpm().save_pretrained(tmp_path, safe_serialization=False)
    assert [*tmp_path.glob("unet/*.bin")]
    with pytest.raises(OSError, match="safetensors"):
        adapter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="would let pickled weights in"):
        adapter.from_pretrained(tmp_path, load={"use_safetensors": False})


def test_without_diffusers_one_is_told_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "odesampler.adapters.diffusers.pipelines")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"from_unet needs diffusers: pip install 'odesampler\[diffusers\]'"):
        _ = adapter.from_unet
    with pytest.raises(AttributeError, match="has no attribute 'from_nowhere'"):
        _ = adapter.from_nowhere


def test_a_preconditioned_network_in_double_precision_is_scaled_in_it():
    model = adapter.from_unet(pipelines.ddpm().unet.double(), diffusers.EDMEulerScheduler())
    assert model.network_dtype == torch.float64
