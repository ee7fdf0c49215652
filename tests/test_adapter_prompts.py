"""Text pipelines of diffusers as models: against the pipelines themselves, on tiny random ones."""

import gc
import weakref

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)

import odesampler as ods
from odesampler.adapters.diffusers import OdeScheduler, conditions, text_model
from tests import pipelines

PROMPTS = ["a cat", "two dogs"]
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
SIZE = {"height": 16, "width": 16}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
STEPS = 5  # divides 1000: else DDIM of diffusers steps to other times than it asks at next

of_euler = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2


def relative(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def table_grid(pipe, model):
    """The sigmas that a pipeline on a table of betas has just walked."""
    sigmas = model.schedule.sigma(pipe.scheduler.timesteps.double()).tolist()
    return [*sigmas, model.range[0] if isinstance(pipe.scheduler, DDIMScheduler) else 0.0]


def flow_grid(pipe):
    times = pipe.scheduler.sigmas.double()
    return (times / (1 - times)).tolist()


@pytest.mark.parametrize("config", [{}, {"prediction_type": "v_prediction"}, ZERO_SNR], ids=["eps", "v", "zero_snr"])
def test_stable_diffusion_is_sampled_as_by_its_pipeline(config):
    pipe = pipelines.sd(**config)
    how = {"negative_prompt": ["bad"] * 2, "guidance_scale": 6.0, "num_inference_steps": STEPS}
    wanted = pipe(PROMPTS, latents=NOISE, output_type="latent", **how).images
    model = text_model(pipe, negative_prompt="bad", guidance_scale=6.0)
    found = ods.sample(model, x=NOISE, solver="ddim", grid=table_grid(pipe, model), cond=conditions(pipe, PROMPTS))
    assert relative(found.x, wanted) < 1e-5
    images = pipe(PROMPTS, latents=NOISE, output_type="pt", **how).images
    assert relative((found.images / 2 + 0.5).clamp(0, 1), images) < 1e-4


def test_guidance_negative_prompts_and_sizes_are_not_lost():
    """The comparisons of this file would not see it if the tiny networks did not hear them."""
    pipe = pipelines.sdxl()
    how = {"solver": "ddim", "num_steps": STEPS, "x": NOISE}
    model = text_model(pipe, prompt="a cat", guidance_scale=6.0)
    base = ods.sample(model, **how).x
    others = [
        text_model(pipe, prompt="two dogs", guidance_scale=6.0),
        text_model(pipe, prompt="a cat", guidance_scale=5.0),
        text_model(pipe, prompt="a cat", guidance_scale=6.0, negative_prompt=""),
        text_model(pipe, prompt="a cat", guidance_scale=6.0, cond={"size": [64.0, 16, 0, 0, 16, 16]}),
    ]
    for other in others:
        assert relative(ods.sample(other, **how).x, base) > 1e-3


@of_euler
@pytest.mark.parametrize("negative", [None, "", "bad"])
@pytest.mark.parametrize("zeros", [True, False])
def test_stable_diffusion_xl_is_sampled_as_by_its_pipeline(negative, zeros):
    pipe = pipelines.sdxl()
    pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    against = None if negative is None else [negative] * 2
    how = {"negative_prompt": against, "guidance_scale": 6.0, "num_inference_steps": STEPS}
    wanted = pipe(PROMPTS, latents=NOISE, output_type="latent", **SIZE, **how).images
    model = text_model(pipe, negative_prompt=negative, guidance_scale=6.0, **SIZE)
    x = NOISE * pipe.scheduler.init_noise_sigma * model.schedule.alpha(torch.tensor(model.range[1])).item()
    found = ods.sample(model, x=x, solver="ddim", grid=table_grid(pipe, model), cond=conditions(pipe, PROMPTS))
    assert relative(found.x, wanted) < 1e-5


@of_euler
def test_a_size_that_a_verb_is_given_is_told_on_both_sides_of_guidance():
    pipe, how = pipelines.sdxl(), {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent"}
    wanted = pipe("a cat", latents=NOISE[:1], original_size=(64, 32), **SIZE, **how).images
    model = text_model(pipe, prompt="a cat", guidance_scale=3.0, **SIZE)
    x = NOISE[:1] * pipe.scheduler.init_noise_sigma * model.schedule.alpha(torch.tensor(model.range[1])).item()
    size = [[64.0, 32, 0, 0, 16, 16]]
    found = ods.sample(model, x=x, solver="ddim", grid=table_grid(pipe, model), cond={"size": size})
    assert relative(found.x, wanted) < 1e-5


@of_euler
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_network_in_the_scales_of_edm_is_sampled_as_by_its_pipeline(prediction):
    pipe = pipelines.sdxl()
    pipe.scheduler = EDMEulerScheduler(prediction_type=prediction, sigma_max=80.0)
    how = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent"}
    wanted = pipe("a cat", latents=NOISE[:1], **SIZE, **how).images
    model = text_model(pipe, prompt="a cat", guidance_scale=3.0, **SIZE)
    x = NOISE[:1] * pipe.scheduler.init_noise_sigma
    grid = [min(s, model.range[1]) for s in pipe.scheduler.sigmas.tolist()]
    assert relative(ods.sample(model, x=x, solver="ddim", grid=grid).x, wanted) < 1e-5


@of_euler
def test_stable_diffusion_xl_is_told_the_size_of_oblong_pictures():
    pipe, how = pipelines.sdxl(), {"height": 16, "width": 24, "guidance_scale": 3.0}
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(2))
    wanted = pipe("a cat", latents=noise, output_type="latent", num_inference_steps=STEPS, **how).images
    model = text_model(pipe, prompt="a cat", **how)
    x = noise * pipe.scheduler.init_noise_sigma * model.schedule.alpha(torch.tensor(model.range[1])).item()
    assert model.data_shape == (4, 8, 12)
    assert model.codec.image_shape == (3, 16, 24)
    assert relative(ods.sample(model, x=x, solver="ddim", grid=table_grid(pipe, model)).x, wanted) < 1e-5


@pytest.mark.parametrize("config", [{}, {"use_dynamic_shifting": True, "max_image_seq_len": 100}])
def test_stable_diffusion_3_is_sampled_as_by_its_pipeline(config):
    pipe = pipelines.sd3(**config)
    how = {"negative_prompt": ["bad"] * 2, "guidance_scale": 6.0, "num_inference_steps": STEPS, **SIZE}
    wanted = pipe(PROMPTS, latents=NOISE, output_type="latent", **how).images
    model = text_model(pipe, negative_prompt="bad", guidance_scale=6.0, **SIZE)
    found = ods.sample(model, x=NOISE, solver="ddim", grid=flow_grid(pipe), cond=conditions(pipe, PROMPTS))
    assert relative(found.x, wanted) < 1e-5
    images = pipe(PROMPTS, latents=NOISE, output_type="pt", **how).images
    assert relative((found.images / 2 + 0.5).clamp(0, 1), images) < 1e-4


@pytest.mark.parametrize("true_cfg_scale", [None, 4.0])
@pytest.mark.parametrize("guidance_embeds", [False, True])
def test_flux_is_sampled_as_by_its_pipeline(guidance_embeds, true_cfg_scale):
    pipe, noise = pipelines.flux(guidance_embeds), torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    how = {"guidance_scale": 2.5, "num_inference_steps": STEPS, "height": 16, "width": 24}
    if true_cfg_scale is not None:
        how |= {"true_cfg_scale": true_cfg_scale, "negative_prompt": ["bad"] * 2}
    latents = pipe._pack_latents(noise, 2, 4, 8, 12)
    packed = pipe(PROMPTS, latents=latents, output_type="latent", **how).images
    model = text_model(
        pipe,
        negative_prompt=None if true_cfg_scale is None else "bad",
        guidance_scale=2.5 if guidance_embeds else None,
        true_cfg_scale=true_cfg_scale,
        height=16,
        width=24,
    )
    found = ods.sample(model, x=noise, solver="ddim", grid=flow_grid(pipe), cond=conditions(pipe, PROMPTS))
    assert relative(found.x, pipe._unpack_latents(packed, 16, 24, 2)) < 1e-5
    images = pipe(PROMPTS, latents=latents, output_type="pt", **how).images
    assert relative((found.images / 2 + 0.5).clamp(0, 1), images) < 1e-4


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("height", [16, 32])
def test_the_usual_grid_of_flux_is_that_of_its_pipeline(height, static):
    """Shifted by the number of tokens, or once; with even times, not with those of the scheduler."""
    pipe = pipelines.flux(**({"use_dynamic_shifting": False} if static else {}))
    model = text_model(pipe, height=height, width=16)
    pipe("", num_inference_steps=4, height=height, width=16, output_type="latent")
    grid = ods.make_grid(model.grid, model.schedule, 4, into_zero=True)
    torch.testing.assert_close(torch.tensor(grid.sigmas), torch.tensor(flow_grid(pipe)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("config", [{}, {"shift": 0.9}, {"shift_terminal": 0.1}], ids=str)
@pytest.mark.parametrize("ours", [False, True])
def test_the_usual_grid_of_flux_goes_by_the_config_and_not_by_the_class(ours, config):
    """With our own scheduler, or one made from theirs, as with theirs."""
    pipe = pipelines.flux(use_dynamic_shifting=False, **config)
    pipe("", num_inference_steps=4, output_type="latent", **SIZE)
    wanted = flow_grid(pipe)
    kind = OdeScheduler if ours else type("Mine", (FlowMatchEulerDiscreteScheduler,), {})
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    model = text_model(pipe, **SIZE)
    grid = ods.make_grid(model.grid, model.schedule, 4, into_zero=True)
    torch.testing.assert_close(torch.tensor(grid.sigmas), torch.tensor(wanted), rtol=1e-5, atol=0)


def test_flux_refuses_a_guidance_scale_to_be_told_that_is_no_number():
    with pytest.raises(ValueError, match=r"guidance_scale must be a finite number.*got 'a'"):
        text_model(pipelines.flux(True), guidance_scale="a", **SIZE)
    assert text_model(pipelines.flux(True), guidance_scale=0.5, **SIZE).cond["guidance"] == 0.5


def test_the_usual_grid_of_stable_diffusion_3_is_that_of_its_pipeline():
    pipe = pipelines.sd3()
    model = text_model(pipe, **SIZE)
    pipe("", num_inference_steps=4, output_type="latent", **SIZE)
    grid = ods.make_grid(model.grid, model.schedule, 4, into_zero=True)
    torch.testing.assert_close(torch.tensor(grid.sigmas), torch.tensor(flow_grid(pipe)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("sibling", [AutoPipelineForImage2Image, AutoPipelineForInpainting])
def test_pipelines_for_img2img_and_inpainting_give_the_same_model(name, sibling):
    pipe = getattr(pipelines, name)()
    one, other = (text_model(p, prompt="a cat", guidance_scale=None, **SIZE) for p in (pipe, sibling.from_pipe(pipe)))
    assert one.fingerprint() == other.fingerprint()
    assert one.grid == other.grid
    for key, value in one.cond.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other.cond[key])), key


def test_a_prompt_is_what_verbs_take_and_the_scale_is_that_of_the_pipeline():
    pipe = pipelines.sd()
    model = text_model(pipe, prompt="a cat")
    assert model.guidance_scale == 7.5
    told = ods.sample(model, x=NOISE, num_steps=3, cond=conditions(pipe, ["a cat"] * 2), guidance_scale=7.5)
    torch.testing.assert_close(ods.sample(model, x=NOISE, num_steps=3).x, told.x)
    assert text_model(pipe, guidance_scale=0.0).guidance_scale == 1.0  # turbo models are run with 0, which means off


def test_encoding_options_reach_the_text_encoders():
    pipe = pipelines.sdxl()
    plain, skipped = (conditions(pipe, PROMPTS, encoding=e)["text"] for e in (None, {"clip_skip": 1}))
    assert relative(skipped, plain) > 1e-3
    assert torch.equal(text_model(pipe, prompt=PROMPTS[1], encoding={"clip_skip": 1}).cond["text"], skipped[1])
    short = text_model(pipelines.flux(), encoding={"max_sequence_length": 16}, **SIZE)
    assert [len(short.cond["text"]), len(short.null_cond["text"])] == [16, 16]


def test_a_model_keeps_no_text_encoder_alive():
    pipe = pipelines.sd()
    model, encoder = text_model(pipe, prompt="a cat"), weakref.ref(pipe.text_encoder)
    names = {name.split(".")[0] for name, _ in model.network.named_parameters()}
    assert names == {"unet"}
    assert not model.cond["text"].requires_grad
    del pipe
    gc.collect()
    assert encoder() is None
    assert ods.sample(model, 1, num_steps=2).x.isfinite().all()


def test_embeddings_stand_in_for_text_encoders_that_are_not_there():
    pipe = pipelines.sd()
    with_text = text_model(pipe, prompt="a cat")
    pipe.text_encoder = None
    with pytest.raises(ValueError, match=r"text_encoder=None, so no text can be read; .*prompt=None, cond="):
        text_model(pipe, prompt="a cat")
    with pytest.raises(ValueError, match="text_encoder=None"):
        conditions(pipe, PROMPTS)
    model = text_model(pipe, prompt=None, cond=with_text.cond, null_cond=with_text.null_cond)
    how = {"x": NOISE, "num_steps": 3}
    assert torch.equal(ods.sample(model, **how).x, ods.sample(with_text, **how).x)


def test_half_precision_takes_conditions_of_another_dtype():
    pipe = pipelines.sdxl()
    pipe.unet.to(torch.bfloat16)
    model = text_model(pipe, prompt="a cat", **SIZE)
    assert model.cond["text"].dtype is torch.float32
    assert ods.sample(model, 1, num_steps=2).x.isfinite().all()


WANTING = [
    ("sd", {"in_channels": 9}, r"unet config: in_channels=9 where the latents have 4"),
    ("sd", {"in_channels": 8}, r"unet config: in_channels=8"),
    ("sd", {"out_channels": 8}, r"config: in_channels=4 with 8 out"),
    ("sd", {"time_cond_proj_dim": 8}, r"config: time_cond_proj_dim=8"),
    ("sd", {"class_embed_type": "timestep"}, r"config: class_embed_type='timestep'"),
    ("sd", {"num_class_embeds": 10}, r"config: num_class_embeds=10"),
    ("sd", {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 32}, r"config: encoder_hid_dim_type='image_proj'"),
    ("sd", {"addition_embed_type": "image", "encoder_hid_dim": 32}, r"unet config: addition_embed_type='image'"),
    ("sdxl", {"addition_embed_type": None}, r"unet config: addition_embed_type=None must be 'text_time'"),
    ("sdxl", {"time_cond_proj_dim": 8}, r"config: time_cond_proj_dim=8"),
]


@pytest.mark.parametrize(("name", "config", "message"), WANTING)
def test_u_nets_with_other_inputs_are_refused_by_the_key(name, config, message):
    pipe = getattr(pipelines, name)()
    pipe.unet = UNet2DConditionModel(**{**pipe.unet.config, **config})
    with pytest.raises(ValueError, match=message):
        text_model(pipe, **SIZE)


@pytest.mark.parametrize(
    ("name", "kind", "config", "message"),
    [
        ("sd3", SD3Transformer2DModel, {"in_channels": 8}, r"transformer config: in_channels=8"),
        ("flux", FluxTransformer2DModel, {"in_channels": 384}, r"transformer config: in_channels=384 .*in squares"),
        (
            "flux",
            FluxTransformer2DModel,
            {"in_channels": 64, "out_channels": 16},
            r"transformer config: in_channels=64",
        ),
    ],
)
def test_transformers_with_other_inputs_are_refused_by_the_key(name, kind, config, message):
    pipe = getattr(pipelines, name)()
    pipe.transformer = kind(**{**pipe.transformer.config, **config})
    with pytest.raises(ValueError, match=message):
        text_model(pipe, **SIZE)


def test_components_that_are_not_supported_are_refused_by_name():
    pipe = pipelines.sd()
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    controlled = StableDiffusionControlNetPipeline(**parts, controlnet=pipe.unet, requires_safety_checker=False)
    with pytest.raises(ValueError, match="pipeline component: controlnet"):
        text_model(controlled)
    with pytest.raises(TypeError, match=r"one of StableDiffusionPipeline, .*; got DDPMPipeline"):
        text_model(pipelines.ddpm())
    for name, part, message in (("flux", "encoder_hid_proj", "IP-Adapter"), ("sd3", "image_proj", "IP-Adapter")):
        with_adapter = getattr(pipelines, name)()
        setattr(with_adapter.transformer, part, torch.nn.Identity())
        with pytest.raises(ValueError, match=f"{part} is of an {message}"):
            text_model(with_adapter, **SIZE)
    cached = pipelines.flux()
    cached.transformer._cache_config = object()  # as enable_cache does
    assert cached.transformer.is_cache_enabled
    with pytest.raises(ValueError, match=r"transformer: enable_cache\(\) makes answers depend on earlier ones"):
        text_model(cached, **SIZE)
    pipe.unet._hf_hook = object()
    with pytest.raises(ValueError, match=r"unet: .*enable_model_cpu_offload.*remove_all_hooks"):
        text_model(pipe)
    refiner = AutoPipelineForImage2Image.from_pipe(pipelines.sdxl(), requires_aesthetics_score=True)
    refiner.register_to_config(requires_aesthetics_score=True)
    with pytest.raises(ValueError, match="pipeline config: requires_aesthetics_score=True"):
        text_model(refiner)


def test_schedulers_that_cannot_be_read_are_refused_by_the_key():
    pipe = pipelines.flux()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    with pytest.raises(ValueError, match="scheduler config: invert_sigmas=True"):
        text_model(pipe, **SIZE)
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="scheduler config: _class_name='DDIMScheduler' is of no flow"):
        text_model(pipe, **SIZE)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"height": 15}, ValueError, "height must be a multiple of 2 pixels; got 15"),
        ({"width": 16.0}, ValueError, "width must be a multiple of 2 pixels; got 16.0"),
        ({"prompt": PROMPTS}, TypeError, r"prompt must be one text; .*conditions\(pipe, prompts\)"),
        ({"negative_prompt": PROMPTS}, TypeError, "negative_prompt must be one text"),
        ({"prompt": None, "negative_prompt": "bad"}, ValueError, "with prompt=None no text is read"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale must be a finite number"),
        ({"guidance_scale": ods.Guidance(3.0)}, ValueError, r"goes to the verb: ods.sample"),
        ({"true_cfg_scale": 3.0}, ValueError, "true_cfg_scale=3.0 is for Flux"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        text_model(pipelines.sd(), **arguments)


def test_flux_without_a_guidance_embedding_refuses_a_guidance_scale():
    with pytest.raises(ValueError, match=r"transformer config: guidance_embeds=False .*true_cfg_scale"):
        text_model(pipelines.flux(), guidance_scale=3.5, **SIZE)
    with pytest.raises(ValueError, match="multiple of 4 pixels"):
        text_model(pipelines.flux(), height=18, width=16)


@pytest.mark.parametrize("prompts", ["a cat", [], [1]])
def test_conditions_are_of_a_list_of_texts(prompts):
    with pytest.raises(TypeError, match="a list of texts"):
        conditions(pipelines.sd(), prompts)


def test_a_u_net_without_a_size_asks_for_one():
    pipe = pipelines.sd()
    pipe.unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match="unet config: sample_size=None says no height"):
        text_model(pipe)
    assert text_model(pipe, height=16, width=8).data_shape == (4, 8, 4)


def test_a_pipeline_without_an_autoencoder_gives_a_model_of_latents():
    pipe = pipelines.sd()
    pipe.vae = None
    model = text_model(pipe)
    assert model.codec is None
    found = ods.sample(model, x=NOISE, num_steps=2)
    assert torch.equal(found.images, found.x)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_images_come_back_through_latents_and_those_to_the_bit(name):
    """Image -> VAE latent -> x_T -> VAE latent -> image: what the equation is about loses no bit."""
    pipe = getattr(pipelines, name)()
    model = text_model(pipe, prompt="a cat", **SIZE)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1
    z = model.codec.encode(images)
    latent = ods.encode(model, images, num_steps=4, exact="bits")
    back = ods.decode(model, latent)
    assert latent.x.shape == z.shape
    assert torch.equal(back.x.to(z.dtype), z)
    assert torch.equal(back.images, model.codec.decode(z))


def test_null_text_inversion_brings_an_image_nearer_under_guidance():
    """From below sigma = 1: above it a random network bends the way of an image more than five steps can follow."""
    model = text_model(pipelines.sd(), prompt="a cat", guidance_scale=3.0, sigma_max=1.0)
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    z = model.codec.encode(images)
    how = {"guidance_scale": 3.0, "num_steps": 5, "learning_rate": 1.0, "early_stop": 0.0}
    latent = ods.null_text(model, images, cond={}, **how)
    found, lost = ((ods.decode(model, x).x - z).norm() for x in (latent, latent.without_null()))
    assert found < 0.6 * lost


def test_what_a_model_is_named_after_and_where_its_autoencoder_is():
    pipe = pipelines.sd()
    assert text_model(pipe, name="mine").name == "mine"
    assert text_model(pipe).name == "StableDiffusionPipeline"
    assert isinstance(text_model(pipe).codec.vae, AutoencoderKL)


def test_guidance_between_texts_of_different_lengths_is_refused_before_any_call():
    model = text_model(pipelines.sd(), guidance_scale=3.0)
    asked, cond = [], {"text": torch.zeros(20, 32)}
    model.network.register_forward_pre_hook(lambda *_: asked.append(1))
    for guidance in (None, ods.Guidance(3.0, interval=(0.5, 1.0))):
        with pytest.raises(ValueError, match=r"'text'.* a sample's is \(20, 32\), the model's null condition \(77, 32"):
            ods.sample(model, 1, num_steps=3, cond=cond, guidance_scale=guidance)
    assert asked == []
    assert ods.sample(model, 1, num_steps=3, cond=cond, guidance_scale=1.0).x.isfinite().all()


def test_a_grid_that_is_not_known_is_refused_when_the_model_is_made():
    for grid, why in (("nonsense", "unknown grid 'nonsense'"), ("karras(zeta=1)", "the karras grid takes rho")):
        with pytest.raises(ValueError, match=why):
            text_model(pipelines.sd(), grid=grid)
    assert text_model(pipelines.sd(), grid="karras(rho=5)").grid == "karras(rho=5)"
