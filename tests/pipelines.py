"""Tiny random pipelines of diffusers, made here: nothing is downloaded. As theirs, but for size and sense.

Each is made anew at every call, from a fixed seed, with networks in evaluation mode. Text goes byte by byte through
tokenizers that know no merges.
"""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def ddpm(**config):
    """Unconditional, in pixels, (3, 16, 16)."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    return quiet(DDPMPipeline(unet, DDPMScheduler(**config)))


def dit(**config):
    """By class, in latents of (4, 8, 8), with a learned variance; class 1000 means none, as the pipeline has it."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=4,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    ).eval()
    names = {str(i): f"class {i}" for i in range(1000)}
    return quiet(DiTPipeline(transformer, vae(), DDIMScheduler(clip_sample=False, **config), id2label=names))


def sd(**config):
    """Stable Diffusion: text, latents of (4, 8, 8), images of (3, 16, 16)."""
    torch.manual_seed(0)
    return quiet(
        StableDiffusionPipeline(
            vae=vae(),
            text_encoder=clip(),
            tokenizer=clip_tokenizer(),
            unet=unet_of_text(cross_attention_dim=32),
            scheduler=DDIMScheduler(**{**STABLE, "clip_sample": False, "set_alpha_to_one": False, **config}),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sdxl(**config):
    """Stable Diffusion XL: two text encoders, sizes of pictures as conditions."""
    torch.manual_seed(0)
    unet = unet_of_text(
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    return quiet(
        StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=clip(),
            text_encoder_2=clip(projecting=True),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            unet=unet,
            scheduler=EulerDiscreteScheduler(**{**STABLE, **config}),
            add_watermarker=False,
        )
    )


def sd3(**config):
    """Stable Diffusion 3: a flow, three text encoders, latents of (4, 8, 8)."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=4,
    ).eval()
    return quiet(
        StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **config}),
            vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305),
            text_encoder=clip(projecting=True),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip(projecting=True),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5(d_model=64),
            tokenizer_3=t5_tokenizer(),
        )
    )


def flux(guidance_embeds=False, **config):
    """Flux: a flow on packed latents, two text encoders, guidance told to the network."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(
        **{"shift": 3.0, "use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 64, **config}
    )
    return quiet(
        FluxPipeline(
            scheduler=scheduler,
            vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035),
            text_encoder=clip(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5(d_model=32),
            tokenizer_2=t5_tokenizer(),
            transformer=transformer,
        )
    )


def unet_of_text(**more):
    """A U-Net on latents that hears text."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **more,
    ).eval()


def vae(**more):
    """Images of (3, 16, 16) to latents of (4, 8, 8)."""
    return AutoencoderKL(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        **more,
    ).eval()


def clip(projecting=False):
    """A text encoder, 32 wide."""
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return (CLIPTextModelWithProjection if projecting else CLIPTextModel)(config).eval()


def clip_tokenizer():
    """Bytes, each also as the end of a word."""
    symbols = byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def t5(d_model):
    """A text encoder."""
    config = T5Config(vocab_size=260, d_model=d_model, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    return T5EncoderModel(config).eval()


def t5_tokenizer():
    """Letters."""
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?-'"
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in letters)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=77)


def byte_symbols():
    """The 256 signs for bytes of GPT-2's tokenizer: printable bytes stand for themselves, the others for later ones."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def quiet(pipeline):
    """Without a bar of progress."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
