"""Families of text pipelines: what differs between Stable Diffusion, SDXL, SD3 and Flux, one class each.

A family knows which component is the network, how text becomes conditions, and which configurations it cannot take;
`networks` knows how to ask the network. What they share, `text_model` does. It knows the pipelines of diffusers by the
names of their classes and components only, so that diffusers need not be there.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from odesampler.adapters.diffusers.schedules import Reading, read
from odesampler.precision import is_number
from odesampler.schedule import RectifiedFlow

Conditions = dict[str, Tensor]  # each (batch, ...)


class Family(ABC):
    """One kind of pipeline; `pipe` is one of it."""

    pipelines: ClassVar[tuple[str, ...]]  # classes of diffusers
    part: ClassVar[str]  # the component that is the network
    encoders: ClassVar[tuple[str, ...]]  # the components without which no text is read
    flows: ClassVar[bool] = False  # whether it has to be a flow
    packing: ClassVar[int] = 1  # side of the squares of latents that become channels before the network sees them

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    @abstractmethod
    def embedded(
        self, prompts: list[str], negative: list[str] | None, guided: bool, encoding: Mapping[str, Any]
    ) -> tuple[Conditions, Conditions]:
        """The conditions of prompts, and of as many negative ones: nothing, where not `guided`.

        No negative prompts are what the pipeline takes for none. `encoding`: more arguments of `pipe.encode_prompt`.
        """

    def told(self, height: int, width: int) -> dict[str, Any]:
        """What the network is told besides text, with or without a prompt, for images of that many pixels."""
        return {}

    def scales(self, guidance_scale: float | None, true_cfg_scale: float | None) -> tuple[float, dict[str, Any]]:
        """The scale of classifier-free guidance, and what the network is told of guidance.

        Raises: ValueError: a scale that this pipeline does not take.
        """
        if true_cfg_scale is not None:
            raise ValueError(
                f"true_cfg_scale={true_cfg_scale} is for Flux, where guidance_scale is a condition; for "
                f"{type(self.pipe).__name__} it is guidance_scale"
            )
        scale = self.usual_scale if guidance_scale is None else guidance_scale
        return checked_scale("guidance_scale", scale), {}

    @property
    def usual_scale(self) -> float:
        """The guidance scale that the pipeline takes where none is given."""
        return usual_scale(self.pipe)

    @property
    def net(self) -> Any:
        """The component that is the network, as the pipeline has it."""
        return getattr(self.pipe, self.part)

    @property
    def channels(self) -> int:
        """Of the latents."""
        return int(self.net.config.in_channels) // self.packing**2

    @property
    def sample_size(self) -> Any:
        """Height and width, or both in one number, of the latents that the network was trained on."""
        return getattr(self.net.config, "sample_size", None)

    @property
    def patch(self) -> int:
        """Side of the squares of latents that are one token; 1 where the network has none."""
        return self.packing * int(getattr(self.net.config, "patch_size", 1))

    def reading(self, tokens: int) -> Reading:
        """Of the scheduler; `grid` is that of the pipeline, for images of so many tokens.

        Raises: ValueError: as `read`, and for one that is of no flow, where the network is.
        """
        scheduler = self.pipe.scheduler
        found = read(scheduler, tokens=tokens)
        if self.flows and not isinstance(found.schedule, RectifiedFlow):
            raise ValueError(
                f"scheduler config: _class_name={type(scheduler).__name__!r} is of no flow, but the network is one: "
                "take FlowMatchEulerDiscreteScheduler, or use_flow_sigmas=True"
            )
        return found

    def check(self) -> None:
        """Raises: ValueError: a component or a configuration that this cannot take; names it."""
        config = self.net.config
        vae = self.pipe.vae
        channels = self.channels if vae is None else int(vae.config.latent_channels)
        if self.channels != channels or config.in_channels % self.packing**2:
            self.refuse(
                "in_channels",
                f"where the latents have {channels} channels{' in squares' if self.packing > 1 else ''}: what this "
                "network is given besides (a mask, an image) is not supported; take the text-to-image checkpoint",
            )
        if getattr(self.net, "is_cache_enabled", False):
            raise ValueError(
                f"{self.part}: enable_cache() makes answers depend on earlier ones, which solvers and inversion must "
                f"not; call pipe.{self.part}.disable_cache() first"
            )
        if getattr(self.net, "_hf_hook", None) is not None:
            raise ValueError(
                f"{self.part}: it is moved from device to device by hooks (enable_model_cpu_offload, device_map); call "
                "pipe.remove_all_hooks() and pipe.to(device) first"
            )

    def conditions(
        self,
        prompts: list[str],
        negative: list[str] | None = None,
        guided: bool = False,
        encoding: Mapping[str, Any] | None = None,
    ) -> tuple[Conditions, Conditions]:
        """As `embedded`, but without a graph.

        Raises: ValueError: a text encoder is missing.
        """
        for name in self.encoders:
            if getattr(self.pipe, name, None) is None:
                raise ValueError(
                    f"pipeline component: {name}=None, so no text can be read; give the embeddings themselves, "
                    "text_model(pipe, prompt=None, cond={...}, null_cond={...}), or load the pipeline with it"
                )
        with torch.no_grad():
            return self.embedded(prompts, negative, guided, encoding or {})

    def refuse(self, key: str, why: str) -> None:
        """Raises: ValueError: always."""
        raise ValueError(f"{self.part} config: {key}={getattr(self.net.config, key)!r} {why}")


def named(keys: Sequence[str], values: Sequence[Tensor | None]) -> Conditions:
    """Conditions by name, of those that there are."""
    return {key: value for key, value in zip(keys, values, strict=True) if value is not None}


def usual_scale(pipe: Any) -> float:
    """The guidance scale that a pipeline takes where none is given."""
    return float(inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default)


def checked_scale(name: str, scale: float) -> float:
    """A scale of guidance, 1 where diffusers takes it for off. Raises as `checked_number`."""
    return max(1.0, checked_number(name, scale))


def checked_number(name: str, scale: float) -> float:
    """A scale of guidance. Raises: ValueError: not a finite number."""
    if not is_number(scale) or not math.isfinite(scale):
        raise ValueError(
            f"{name} must be a finite number, in diffusers 1 or below for off; got {scale!r}. An ods.Guidance goes to "
            "the verb: ods.sample(model, guidance_scale=...)"
        )
    return float(scale)
