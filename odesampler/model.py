"""Model: a network in the equation's variables, eps(x, sigma).

    x_t = alpha * x,    out = network(x_t, t(sigma), **cond),    eps = what `out` says about the noise

The only place that knows the model's clock, its scale, its prediction type and its dtype. It never sees a solver.
Guidance (`guidance`) and clipping (`threshold`) wrap it: each has the same call, eps(x, sigma, **cond).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from odesampler import networks
from odesampler import prediction as predictions
from odesampler.answers import Answers
from odesampler.codec import Codec
from odesampler.compiled import Compile, check_compile, compiled, wants_padding
from odesampler.data_range import check_data_range, check_data_shape
from odesampler.grid import parsed_grid
from odesampler.precision import at_least_single, autocasting, check_dtypes, finest_dtype, is_number
from odesampler.prediction import Prediction
from odesampler.room import Room
from odesampler.schedule import Schedule
from odesampler.standing import Standing, check_values
from odesampler.traits import traits

Cond: TypeAlias = Mapping[str, Tensor]  # model inputs beside x and sigma, each (batch, ...)


class Place(NamedTuple):
    """Where a network is asked, in its own terms. Scales are numbers, or broadcast against x_t, in its dtype."""

    x_t: Tensor  # (batch, *shape)
    t: float | Tensor  # the model's clock: of the batch, or (batch,)
    alpha: float | Tensor
    std: float | Tensor
    pure_noise: bool | Tensor  # alpha = 0, sigma = infinity: for the batch, or sample by sample


@dataclass(frozen=True, eq=False)
class Model:
    """A network as eps(x, sigma, **cond).

    Args:
        network: Called as `network(x_t, t, **cond)`: x_t (batch, *shape) in the network's dtype, t (batch,) the model's
            clock. Returns (batch, *shape).
        schedule: The noise schedule that it was trained with.
        prediction: What it puts out: "eps", "denoised", "v" or "flow".
        sigma_min, sigma_max: The range in which it may be asked; the schedule's by default.
        data_shape: Shape of one sample, (channels, height, width), if known: lets `sample` start from noise.
        null_cond: What to give for each condition to mean "none", one value without a batch dimension. Missing
            conditions are filled with it, and guidance needs it.
        round_t: Give the network the nearest integer `t` (int64), as diffusers does. By default t is continuous.
        dtype: The dtype the network is called with; that of its parameters by default, else that of the state. The
            parameters stay as they are: for a network in half precision give `network.to(torch.bfloat16)`.
        autocast: Run the network under torch.autocast with this dtype, torch.bfloat16 or torch.float16.
        name: For reports and recipes.
        labels: Names of the classes, where `cond` has a "label".
        data_range: The least and the greatest value of its data, (-1, 1) for most, if known: images outside are noticed
            before they are encoded. No part of the fingerprint.
        compile: Compile the network with torch.compile, when it is first asked. True, or options of torch.compile:
            {"mode": "reduce-overhead"} lets it use CUDA graphs. Calls are padded to powers of two or `max_batch`, so
            that it is not compiled for every size; with {"dynamic": True} it is compiled once for all, and none is.
        codec: Images to what the network is about and back, where that is not images: the autoencoder of a latent
            diffusion model. Verbs that take images take either; `Solution.images` are images.
        cond: What verbs take for conditions that they are not given, one value without a batch dimension, like
            `null_cond`: a prompt.
        guidance_scale: What `sample`, `sample_many` and `compare` take where none is given. Encoding stays unguided.
        grid: The named grid that verbs take where none is given: that of a flow model with its shift, for example.
        channels_last: Store the network's weights, and the images that it is given, with channels last, as convolutions
            in half precision on GPUs want them. On a CPU it may cost more than it gains. The network itself is changed,
            as by `to`, and so for other models that hold it: its answers are the same but for rounding.

    Raises:
        TypeError: A network that cannot be called, no schedule, or a dtype that is none.
        ValueError: An unknown prediction or grid, a range that the schedule does not cover, a data range that is none,
            or a dtype that no network computes in.

    Examples:
        >>> def network(x_t, t):
        ...     return torch.zeros_like(x_t)  # whatever it sees, it expects the image that is 0 everywhere
        >>> model = ods.Model(network, ods.VP.linear(), "denoised", data_shape=(3, 8, 8))
        >>> model(torch.ones(1, 3, 8, 8), 2.0).unique().tolist()  # eps = (x - denoised) / sigma
        [0.5]
        >>> bool(ods.sample(model, 2, num_steps=5).x.abs().max() < 1e-6)
        True
    """

    network: Callable[..., Tensor]
    schedule: Schedule
    prediction: Prediction = "eps"
    sigma_min: float | None = None
    sigma_max: float | None = None
    data_shape: tuple[int, ...] | None = None
    null_cond: Mapping[str, Any] = field(default_factory=dict)
    round_t: bool = False
    dtype: torch.dtype | None = None
    autocast: torch.dtype | None = None
    name: str = "model"
    labels: tuple[str, ...] = ()
    data_range: tuple[float, float] | None = None
    compile: Compile = False
    channels_last: bool = False
    codec: Codec | None = field(default=None, repr=False)
    cond: Mapping[str, Any] = field(default_factory=dict, repr=False)
    guidance_scale: float = 1.0
    grid: str | None = None
    room: Room = field(default_factory=Room, init=False, repr=False)  # for max_batch="auto"
    standing: Standing = field(default_factory=Standing, init=False, repr=False)  # null_cond and cond, on the device
    answers: Answers = field(default_factory=Answers, init=False, repr=False)  # whether they are to be copied

    def __post_init__(self) -> None:
        if not callable(self.network) or not isinstance(self.schedule, Schedule):
            raise TypeError(
                "Model takes a network to call and a schedule such as ods.VP.linear(); "
                f"got {type(self.network).__name__} and {self.schedule!r}"
            )
        predictions.check(self.prediction)
        check_data_range(self.data_range)
        check_data_shape(self.data_shape)
        check_values("null_cond", self.null_cond)
        check_values("cond", self.cond)
        check_compile(self.compile)
        check_dtypes(self.dtype, self.autocast)
        if self.grid is not None:
            parsed_grid(self.grid)
        if not is_number(self.guidance_scale) or not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, 1 for off; got {self.guidance_scale!r}")
        self._lay_out()
        low, high = self.range
        top = self.schedule.sigma_max
        if not (0 < low < high <= top):
            raise ValueError(
                f"sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max <= {top:g}, the schedule's largest; "
                f"got sigma_min={low:g}, sigma_max={high:g}"
            )
        if self.prediction == "eps" and math.isinf(high):
            raise ValueError(
                "an eps-network says nothing about the image at sigma = infinity (alpha = 0), where this schedule "
                "starts; use a v, flow or denoised network, or give a finite sigma_max"
            )

    @cached_property
    def range(self) -> tuple[float, float]:
        """(sigma_min, sigma_max): outside it no network is asked."""
        low = self.schedule.sigma_min if self.sigma_min is None else self.sigma_min
        return low, self.schedule.sigma_max if self.sigma_max is None else self.sigma_max

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape of one image, if known: `data_shape`, or what the codec takes."""
        return self.data_shape if self.codec is None else self.codec.image_shape

    @property
    def base(self) -> Model:
        """Itself: what wraps a model shows it under this name."""
        return self

    @property
    def pads(self) -> bool:
        """Whether the driver should pad calls to a few sizes."""
        return wants_padding(self.compile)

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are; the CPU for a plain function."""
        return networks.device_of(self.network)

    @property
    def network_dtype(self) -> torch.dtype | None:
        """What the network is called with; None: the dtype of the state."""
        if self.dtype is not None or self._weight is None:
            return self.dtype
        owner, name = self._weight
        dtype: torch.dtype = getattr(owner, name).dtype
        return dtype

    @cached_property
    def _weight(self) -> tuple[nn.Module, str] | None:
        """Where the first floating-point tensor of the network is kept: to search for it takes long for every call."""
        return networks.first_weight(self.network)

    @property
    def answers_by_chance(self) -> bool:
        """Whether the network has layers that, as it stands, answer the same question in other ways each time."""
        return networks.answers_by_chance(self.network)

    def to(self, device: str | torch.device) -> Model:
        """This model with its network on `device` (the network itself is moved, as torch does)."""
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        return self

    def __call__(
        self, x: Tensor, sigma: float | Tensor, told: float | Tensor | None = None, /, **cond: Tensor
    ) -> Tensor:
        """Predicted noise at `x` (batch, *shape), `sigma` (a number, or one a sample, (batch,)): dx/dsigma.

        At sigma = infinity `x` is x_t itself, its eps is known without asking, and the answer is the denoised image.
        The network is told the clock of `sigma`, or that of another level, `told`: all else is taken at `sigma`.

        Raises:
            TypeError: The network's answer is no tensor of floating-point numbers.
            ValueError: It has not the shape of its question, or the question was changed in place.
        """
        place = self.place(x, sigma, told)
        return self.eps(self.ask(place.x_t, place.t, cond), place)

    def place(self, x: Tensor, sigma: float | Tensor, told: float | Tensor | None = None) -> Place:
        """`x` in the model's scale, and where that is; arguments as for a call."""
        if told is not None:
            return self.place(x, sigma)._replace(t=self.place(x, told).t)
        if not isinstance(sigma, Tensor):
            alpha, std, t = _levels(self.schedule, sigma)
            return Place(x if alpha == 0 else alpha * x, t, alpha, std, alpha == 0)
        s = sigma.to(finest_dtype(sigma.device)).flatten()
        shape = (-1,) + (1,) * (x.ndim - 1)
        alphas, stds = (f(s).to(x.device, x.dtype).reshape(shape) for f in (self.schedule.alpha, self.schedule.std))
        pure_noise = alphas == 0
        x_t = torch.where(pure_noise, x, alphas * x)
        return Place(x_t, self.schedule.t(s).to(x.device), alphas, stds, pure_noise)

    def eps(self, out: Tensor, place: Place) -> Tensor:
        """What `out` (batch, *shape), in the network's own prediction type, says about the noise at `place`."""
        x_t, _, alpha, std, pure_noise = place
        if isinstance(pure_noise, Tensor):
            eps = predictions.to_eps(self.prediction, out, x_t, alpha, std)
            if not math.isinf(self.range[1]):  # nearly every model: nowhere pure noise
                return eps
            return torch.where(pure_noise, predictions.to_denoised(self.prediction, out, x_t, alpha, std), eps)
        to = predictions.to_denoised if pure_noise else predictions.to_eps
        return to(self.prediction, out, x_t, alpha, std)

    def nothing(self, batch: int) -> dict[str, Tensor]:
        """The null conditions for `batch` samples; of those that have none, the usual ones."""
        return self.standing.repeated({**self.cond, **self.null_cond}, batch, self.device)

    def usual(self, batch: int) -> dict[str, Tensor]:
        """What verbs take for `batch` samples where they are given no conditions."""
        return self.standing.repeated({**self.null_cond, **self.cond}, batch, self.device)

    def fingerprint(self) -> str:
        """A short hash of schedule, prediction, range and weights, by which a latent knows its model.

        Of modules their weights, of functions their code and the modules and functions that they name. What a module's
        method `odesampler_traits()` gives, numbers, words, tensors, functions, in tuples or mappings, belongs to it.
        """
        facts = [self.schedule.describe(), self.prediction, self.range, self.data_shape, self.round_t]
        digest = hashlib.sha256(json.dumps(facts, default=str).encode())
        for trait in traits(self.network):
            digest.update(trait)
        return digest.hexdigest()[:16]

    def ask(self, x_t: Tensor, t: float | Tensor, cond: Cond) -> Tensor:
        """The network's answer (batch, *shape) to x_t (batch, *shape) at t, one or (batch,), in the dtype of `x_t`."""
        dtype = self.network_dtype or x_t.dtype
        clock = self._clock(t, x_t, at_least_single(dtype))
        whole = cond.keys() >= self.null_cond.keys() and cond.keys() >= self.cond.keys()
        given = cond if whole else {**self.nothing(x_t.shape[0]), **cond}
        plain = dtype == x_t.dtype and self._format is None  # a change to what it is would still be a call of torch
        if self.compile is not False:
            given = {k: v.contiguous() if isinstance(v, Tensor) else v for k, v in given.items()}  # for one layout
        asked = x_t if plain else x_t.to(dtype, memory_format=self._format or torch.preserve_format)
        before = None if self.prediction == "eps" or x_t.is_inference() else x_t._version
        out = self._called(asked, clock, **given)
        if not isinstance(out, Tensor) or (shape := out.shape) != x_t.shape:
            self._refuse(out, x_t, t)
        if before is not None and x_t._version != before:  # eps alone does not read it again
            raise ValueError(f"{self.name} changed its question x_t in place: let the network work on a copy of it")
        if plain and out.dtype == dtype:
            return out if shape in self.answers.fresh else self.answers.own(out)
        if not out.is_floating_point():
            self._refuse(out, x_t, t)
        own = torch.contiguous_format if self.channels_last else torch.preserve_format  # states stay contiguous
        answer = out.to(x_t.dtype, copy=self.compile is not False, memory_format=own)  # compiled: perhaps CUDA graphs
        return self.answers.own(answer) if answer is out else answer

    def _refuse(self, out: Any, x_t: Tensor, t: float | Tensor) -> NoReturn:
        if not isinstance(out, Tensor) or not out.is_floating_point():
            kind = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"{self.name} answered with {kind}; a network must answer with a tensor of floats")
        sigma = self.schedule.sigma(torch.as_tensor(t).flatten()[0]).item()
        raise ValueError(
            f"{self.name} was asked at sigma = {sigma:g} with x of shape {tuple(x_t.shape)} "
            f"and answered with {tuple(out.shape)}; "
            "a network must answer in the shape of its question (drop a learned variance first)"
        )

    def _clock(self, t: float | Tensor, x_t: Tensor, dtype: torch.dtype) -> Tensor:
        """(batch,) t as the network takes it; one number in one operation."""
        if isinstance(t, Tensor):
            return t.round().long() if self.round_t else t.to(dtype)
        value, kind = (round(t), torch.int64) if self.round_t else (t, dtype)
        return x_t.new_full((x_t.shape[0],), value, dtype=kind)

    @cached_property
    def _called(self) -> Callable[..., Tensor]:
        called = compiled(self.network, self.compile)
        return called if self.autocast is None else autocasting(called, self.autocast)

    @cached_property
    def _format(self) -> torch.memory_format | None:
        """How the network wants what it is given laid out; None: as it comes. What is compiled is so for one layout."""
        if self.channels_last:
            return torch.channels_last
        return None if self.compile is False else torch.contiguous_format

    def _lay_out(self) -> None:
        if not self.channels_last:
            return
        if self.data_shape is not None and len(self.data_shape) != 3:
            raise ValueError(f"channels_last is for images, (channels, height, width); got data of {self.data_shape}")
        if isinstance(self.network, nn.Module):
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's types


@lru_cache(maxsize=8192)
def _levels(schedule: Schedule, sigma: float) -> tuple[float, float, float]:
    """(alpha, std, t) at one sigma, on the host: the same few sigmas come back at every call."""
    at = torch.tensor(sigma, dtype=torch.float64)
    return schedule.alpha(at).item(), schedule.std(at).item(), schedule.t(at).item()
