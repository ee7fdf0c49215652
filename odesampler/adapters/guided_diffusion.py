"""Networks of OpenAI's improved-diffusion and guided-diffusion (ADM): out = network(x_t, timesteps, y=...).

    eps = out[:, :C]                                         the rest becomes a variance, of which an ODE has no use
    eps' = eps - std * scale * grad_x log p(y | x_t)         classifier guidance

The table is DDPM's linear one, stretched to any number of steps, or the cosine one. Files hold state dictionaries,
which `adapters.checkpoints` reads; the network itself is made by the code that it came with.

References:
    Nichol & Dhariwal 2021, Improved DDPM, arXiv:2102.09672, section 3.1 (learned variance) and equation 17 (cosine).
    Dhariwal & Nichol 2021, Diffusion Models Beat GANs, arXiv:2105.05233, Algorithm 2 (classifier guidance).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odesampler.adapters.labels import checked_label, refuse_label
from odesampler.model import Model
from odesampler.prediction import Prediction
from odesampler.schedule import VP

CLOCK = 1000.0  # with rescaled timesteps every table counts to about here
TABLES = ("linear", "cosine")


def from_network(
    network: Callable[..., Tensor],
    *,
    schedule: VP | str = "linear",
    num_train_timesteps: int = 1000,
    rescale_timesteps: bool = False,
    prediction: Prediction = "eps",
    num_classes: int | None = None,
    null_label: int | None = None,
    classifier: Callable[..., Tensor] | None = None,
    classifier_scale: float = 1.0,
    **options: Any,
) -> Model:
    """A model of a network of guided-diffusion or improved-diffusion.

    Its condition, if it has classes, is "label", which it gets as `y`; other conditions go by their own names.

    Args:
        network: Called as `network(x_t, timesteps, y=label)`. Answers in as many channels as x_t has, or twice as many.
            Read are its attributes `in_channels`, `out_channels`, `image_size` and `num_classes`.
        schedule: The table: "linear" or "cosine" (`noise_schedule` in its settings), or a `VP`.
        num_train_timesteps: `diffusion_steps` in its settings.
        rescale_timesteps: As in its settings: let timesteps run to 1000 whatever the table's length.
        prediction: "eps", or "denoised" for `predict_xstart`.
        num_classes: Number of classes, where it does not say.
        null_label: The label that means "no class", if it was trained with one: it can then be guided.
        classifier: A classifier of noisy images, called as `classifier(x_t, timesteps)`, which answers with the
            logarithms of probabilities (batch, num_classes), up to a constant.
        classifier_scale: How strongly it guides.
        options: As for `Model`: data_shape, name, round_t, sigma_min, ...

    Raises:
        TypeError: Nothing to call.
        ValueError: An unknown table, an attribute or a setting that does not fit.

    Examples:
        >>> def network(x_t, timesteps, y=None):  # answers with eps and a variance
        ...     return torch.cat([torch.zeros_like(x_t)] * 2, 1)
        >>> model = ods.adapters.guided_diffusion.from_network(network, num_classes=10, data_shape=(3, 8, 8))
        >>> tuple(ods.sample(model, 2, cond={"label": 3}, num_steps=5).x.shape)
        (2, 3, 8, 8)
    """
    if not callable(network):
        raise TypeError(f"a network is called as network(x_t, timesteps, y=...); got {network!r}")
    table = _table(schedule, num_train_timesteps)
    _check_channels(network)
    classes = getattr(network, "num_classes", None) if num_classes is None else num_classes
    if null_label is not None and classes is None:
        raise ValueError(f"null_label={null_label}, but the network's num_classes is None: it knows no labels")
    if classifier is not None and (classes is None or prediction != "eps"):
        raise ValueError(
            "a classifier guides a network that predicts eps, towards a label: prediction must be 'eps', and "
            f"num_classes a number; got prediction={prediction!r}, num_classes={classes!r}"
        )
    known: dict[str, Any] = {"name": type(network).__name__}
    if hasattr(network, "in_channels") and hasattr(network, "image_size"):
        known["data_shape"] = (network.in_channels, network.image_size, network.image_size)
    if classes is not None:
        known["labels"] = tuple(map(str, range(classes)))
    if null_label is not None:
        known["null_cond"] = {"label": null_label}
    scale = CLOCK / len(table.alpha_bar) if rescale_timesteps else 1.0
    asked: nn.Module = _Asked(network, scale, classes, null_label)
    if classifier is not None:
        asked = _Classified(asked, classifier, classifier_scale, table, scale, null_label)
    return Model(asked, table, prediction, **{**known, **options})


class _Asked(nn.Module):
    """The network, its labels called y, its clock as it was trained, without its variance."""

    def __init__(
        self, network: Callable[..., Tensor], scale: float, classes: int | None, null_label: int | None
    ) -> None:
        super().__init__()
        self.network, self.scale, self.classes, self.null_label = network, scale, classes, null_label

    def odesampler_traits(self) -> Any:
        """What tells it from others with the same weights."""
        return self.network, self.scale, self.classes, self.null_label

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None, **cond: Any) -> Tensor:
        timesteps = t if self.scale == 1 else t * self.scale
        out = self.network(x_t, timesteps, **self._named(label), **cond)
        return out[:, : x_t.shape[1]] if out.shape[1] == 2 * x_t.shape[1] else out

    def _named(self, label: Tensor | None) -> dict[str, Tensor]:
        if self.classes is None:
            refuse_label(label, "num_classes = None")
            return {}
        return {"y": checked_label(label, f"num_classes = {self.classes}", self.classes - 1, self._exist)}

    def _exist(self, label: Tensor) -> Tensor:
        assert self.classes is not None
        known = (label >= 0) & (label < self.classes)
        return known if self.null_label is None else known | (label == self.null_label)


class _Classified(nn.Module):
    """An eps-network guided by a classifier; rows without a class are not."""

    def __init__(
        self,
        network: nn.Module,
        classifier: Callable[..., Tensor],
        strength: float,
        schedule: VP,
        scale: float,
        null_label: int | None,
    ) -> None:
        super().__init__()
        self.network, self.classifier, self.strength = network, classifier, strength
        self.schedule, self.scale, self.null_label = schedule, scale, null_label

    def odesampler_traits(self) -> Any:
        """What tells it from others with the same weights."""
        return self.classifier, self.strength, self.scale, self.null_label

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None, **cond: Any) -> Tensor:
        eps: Tensor = self.network(x_t, t, label=label, **cond)
        assert label is not None  # else the network has refused
        std = self.schedule.std(self.schedule.sigma(t.to(torch.promote_types(t.dtype, torch.float32))))
        gradient = self._gradient(x_t, t, label)
        if self.null_label is not None:
            std = torch.where(label == self.null_label, 0, std)
        return eps - self.strength * std.to(eps.dtype).reshape(-1, *[1] * (eps.ndim - 1)) * gradient

    def _gradient(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Of log p(label | x_t) in x_t, (batch, *shape)."""
        further = torch.is_grad_enabled()
        with torch.enable_grad():
            x_t = x_t if x_t.requires_grad else x_t.detach().requires_grad_()
            log_p = self.classifier(x_t, t if self.scale == 1 else t * self.scale).log_softmax(-1)
            at = label.long().clamp(0, log_p.shape[-1] - 1)
            chosen = log_p.gather(-1, at[:, None]).sum()
            return torch.autograd.grad(chosen, x_t, create_graph=further)[0]


def _table(schedule: VP | str, steps: int) -> VP:
    if isinstance(schedule, VP):
        return schedule
    if schedule not in TABLES:
        raise ValueError(f"schedule must be one of {', '.join(TABLES)}, or an ods.VP; got {schedule!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 21:
        raise ValueError(f"num_train_timesteps must be a whole number, 21 or more; got {steps!r}")
    stretch = CLOCK / steps  # the fewer the steps, the larger each
    return VP.cosine(steps) if schedule == "cosine" else VP.linear(steps, 1e-4 * stretch, 0.02 * stretch)


def _check_channels(network: Any) -> None:
    into, out = getattr(network, "in_channels", None), getattr(network, "out_channels", None)
    if isinstance(into, int) and isinstance(out, int) and out not in (into, 2 * into):
        raise ValueError(
            f"the network has in_channels = {into} and out_channels = {out}; expected as many, or twice as many "
            "where it learned the variance; one that is given another image beside x_t needs a module that adds it"
        )
