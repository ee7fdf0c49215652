"""Networks of diffusers as a model calls them: network(x_t, t, **cond), tensors in and a tensor out.

    UNet2DModel               label, where it knows classes
    UNet2DConditionModel      text (tokens, width); in Stable Diffusion XL pooled (width,) and size (6,) besides
    DiTTransformer2DModel     label
    SD3Transformer2DModel     text and pooled
    FluxTransformer2DModel    text and pooled; guidance, a number, where the network was distilled to be told it

Conditions have these names of ours, batch first. Of twice as many channels out as in, the first half is the prediction
and the second a learned variance, which no equation needs: it is dropped. What a network wants besides cannot be given
and is refused, by the key of its configuration. Knows neither schedules nor pipelines, and imports no diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from odesampler.adapters.diffusers.schedules import Preconditioning, Reading
from odesampler.adapters.edm_scales import edm_scales
from odesampler.schedule import RectifiedFlow

SIDE = 2  # of the squares of latents that Flux sees as one token
CLOCK = 1000.0  # what Flux multiplies time by


class ByLabel(nn.Module):
    """A U-Net or transformer on images or latents, by class or without conditions."""

    def __init__(self, network: nn.Module, needs: Sequence[str]) -> None:
        super().__init__()
        self.network, self.needs = network, tuple(needs)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        _check(cond, self.needs)
        out: Tensor = self.network(x_t, t, class_labels=cond.get("label"), return_dict=False)[0]
        return out[:, : x_t.shape[1]]


class TextUNet(nn.Module):
    """A UNet2DConditionModel of Stable Diffusion."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        _check(cond, ("text",))
        out: Tensor = self.unet(x_t, t, encoder_hidden_states=cond["text"].to(x_t.dtype), return_dict=False)[0]
        return out


class TextAndSizeUNet(nn.Module):
    """A UNet2DConditionModel of Stable Diffusion XL.

    `size` is height and width of the picture before it was cropped, top and left of the crop, height and width now.

    References:
        Podell et al. 2023, SDXL, arXiv:2307.01952, section 2.2.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        _check(cond, ("text", "pooled", "size"))
        # Not in half precision, where sizes have no room.
        added = {"text_embeds": cond["pooled"], "time_ids": cond["size"]}
        text = cond["text"].to(x_t.dtype)
        out: Tensor = self.unet(x_t, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]
        return out


class JointTransformer(nn.Module):
    """An SD3Transformer2DModel."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        _check(cond, ("text", "pooled"))
        out: Tensor = self.transformer(
            hidden_states=x_t,
            timestep=t,
            encoder_hidden_states=cond["text"].to(x_t.dtype),
            pooled_projections=cond["pooled"].to(x_t.dtype),
            return_dict=False,
        )[0]
        return out


class PackedTransformer(nn.Module):
    """A FluxTransformer2DModel, on latents as the autoencoder has them.

    It sees squares of 2 x 2 as one token with four times the channels, and is told where each is. Its clock is u, as
    1000 times which a flow of diffusers counts.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        _check(cond, ("text", "pooled"), may=("guidance",))
        squares = functional.pixel_unshuffle(x_t, SIDE)  # (batch, channels * 4, height / 2, width / 2)
        high, wide = squares.shape[-2:]
        out = self.transformer(
            hidden_states=squares.flatten(2).transpose(1, 2),
            timestep=t / CLOCK,
            guidance=cond.get("guidance"),
            encoder_hidden_states=cond["text"].to(x_t.dtype),
            pooled_projections=cond["pooled"].to(x_t.dtype),
            txt_ids=torch.zeros(cond["text"].shape[1], 3, device=x_t.device),
            img_ids=places(high, wide, x_t.device),
            return_dict=False,
        )[0]
        return functional.pixel_shuffle(out.transpose(1, 2).unflatten(2, (high, wide)), SIDE)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 3) float32: 0, row and column of each square, row by row."""
    rows = torch.arange(height, device=device, dtype=torch.float32).repeat_interleave(width)
    columns = torch.arange(width, device=device, dtype=torch.float32).repeat(height)
    return torch.stack([torch.zeros_like(rows), rows, columns], 1)


class Preconditioned(nn.Module):
    """A network inside EDM's scales: x0 = c_skip x + sign c_out network(c_in x, log(sigma) / 4).

    The scales are taken in the dtype of `x`, the network is asked in its own.

    References:
        Karras et al. 2022, arXiv:2206.00364, Table 1.
    """

    def __init__(self, network: nn.Module, scales: Preconditioning) -> None:
        super().__init__()
        self.network, self.scales = network, scales

    def odesampler_traits(self) -> Any:
        """What tells it from others with the same weights."""
        return self.scales.data, self.scales.sign

    def forward(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        own = dtype_of(self.network) or x.dtype
        s = sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        skip, around, into = edm_scales(s, self.scales.data)
        out: Tensor = self.network((into * x).to(own), sigma.log() / 4, **cond)
        return skip * x + self.scales.sign * around * out.to(x.dtype)


def dtype_of(network: nn.Module) -> torch.dtype | None:
    """What a network computes in, by its parameters."""
    return next((p.dtype for p in network.parameters() if p.dtype.is_floating_point), None)


def adapted(network: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """A network of diffusers as a model calls it, and what else its configuration says: arguments of `ods.Model`.

    Raises:
        TypeError: A class that is not known here.
        ValueError: A configuration that asks for what cannot be given; names its key.
    """
    kinds = [base.__name__ for base in type(getattr(network, "_orig_mod", network)).__mro__]  # as compiled by torch
    for name, adapt in ADAPT.items():
        if name in kinds:
            config: Mapping[str, Any] = network.config  # type: ignore[assignment]  # torch takes it for a module
            return adapt(network, config)
    raise TypeError(
        f"{kinds[0]} is not a network of diffusers that is known here ({', '.join(ADAPT)}); wrap it in "
        "ods.Model(network, schedule), which takes any network(x_t, t, **cond)"
    )


def prepared(network: nn.Module, reading: Reading) -> tuple[nn.Module, dict[str, Any]]:
    """As `adapted`, with what its scheduler says: inside EDM's scales, if it was trained so. Raises as `adapted`."""
    found, facts = adapted(network)
    if reading.preconditioning is not None:
        facts["dtype"] = torch.promote_types(dtype_of(network) or torch.float32, torch.float32)
        found = Preconditioned(found, reading.preconditioning)
    facts |= {"prediction": reading.prediction, "sigma_min": reading.sigma_min, "sigma_max": reading.sigma_max}
    return found, {**facts, "grid": reading.grid if isinstance(reading.schedule, RectifiedFlow) else None}


def _unet(network: nn.Module, config: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    _check_time(config)
    if config.get("class_embed_type") is not None:
        _refuse(config, "class_embed_type", "wants more than the label of a class")
    more: dict[str, Any] = {"data_shape": _data_shape(config)}
    if config.get("time_embedding_type") == "learned":
        more["round_t"] = True  # a table of vectors, one for each whole t
    return ByLabel(network, () if config.get("num_class_embeds") is None else ("label",)), more


def _unet_of_text(network: nn.Module, config: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    _check_time(config)
    for key in ("class_embed_type", "num_class_embeds"):
        if config.get(key) is not None:
            _refuse(config, key, "wants a class or an image besides the text")
    if config.get("time_cond_proj_dim") is not None:
        _refuse(config, "time_cond_proj_dim", "is of a network that was distilled to be told its guidance")
    if config.get("encoder_hid_dim_type") not in (None, "text_proj"):
        _refuse(config, "encoder_hid_dim_type", "wants images besides the text")
    if config.get("addition_embed_type") not in (None, "text_time"):
        _refuse(config, "addition_embed_type", "is not one of None and 'text_time'")
    kind = TextUNet if config.get("addition_embed_type") is None else TextAndSizeUNet
    return kind(network), {"data_shape": _data_shape(config, learned_variance=False)}


def _dit(network: nn.Module, config: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    null = {"label": int(config["num_embeds_ada_norm"])}  # one more than there are classes
    names = tuple(map(str, range(null["label"])))
    return ByLabel(network, ("label",)), {"data_shape": _data_shape(config), "null_cond": null, "labels": names}


def _joint(network: nn.Module, config: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    if getattr(network, "image_proj", None) is not None:
        raise ValueError("network: image_proj is of an IP-Adapter, which wants images: pipe.unload_ip_adapter() first")
    return JointTransformer(network), {"data_shape": _data_shape(config, learned_variance=False)}


def _packed(network: nn.Module, config: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    if getattr(network, "encoder_hid_proj", None) is not None:
        raise ValueError(
            "network: encoder_hid_proj is of an IP-Adapter, which wants images: pipe.unload_ip_adapter() first"
        )
    _data_shape(config, learned_variance=False)  # in squares, and of no size
    return PackedTransformer(network), {}


ADAPT: dict[str, Callable[[nn.Module, Mapping[str, Any]], tuple[nn.Module, dict[str, Any]]]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet_of_text,
    "DiTTransformer2DModel": _dit,
    "SD3Transformer2DModel": _joint,
    "FluxTransformer2DModel": _packed,
}


def _data_shape(config: Mapping[str, Any], learned_variance: bool = True) -> tuple[int, ...] | None:
    """(channels, height, width) of the network's own data; None: it does not say."""
    channels, out = config["in_channels"], config.get("out_channels") or config["in_channels"]
    if out not in (channels, 2 * channels if learned_variance else channels):
        why = f"with {out} out: it sees more than x_t, a mask or another image, or answers with something else"
        _refuse(config, "in_channels", why)
    size = config.get("sample_size")
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def _check_time(config: Mapping[str, Any]) -> None:
    if config.get("time_embedding_type", "positional") not in ("positional", "learned"):
        _refuse(config, "time_embedding_type", "is of score networks, whose output is not noise; not supported")


def _check(cond: Mapping[str, Tensor], needs: Sequence[str], may: Sequence[str] = ()) -> None:
    """Raises: ValueError: a condition is missing, or is one too many."""
    if cond.keys() - {*may} != {*needs}:
        wanted = f"the conditions {', '.join(needs)}" if needs else "no conditions"
        raise ValueError(
            f"this network takes {wanted}; got {', '.join(cond) or 'none'}: give cond={{...}} to the verb, or cond= or "
            "null_cond= to the model"
        )


def _refuse(config: Mapping[str, Any], key: str, why: str) -> NoReturn:
    raise ValueError(f"network config: {key}={config[key]!r} {why}")
