"""EDM's networks: denoisers D(x; sigma), and raw networks F in the preconditioning that they were trained in.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise),      s = sigma, d = sigma_data,

    kind     c_skip             c_out                  c_in                   c_noise
    edm      d^2/(s^2 + d^2)    s d/sqrt(s^2 + d^2)    1/sqrt(s^2 + d^2)      ln(s) / 4
    vp       1                  -s                     1/sqrt(s^2 + 1)        999 t(s)
    ve       1                  s                      1                      ln(s / 2)
    iddpm    1                  -s                     1/sqrt(s^2 + 1)        t of the table's nearest sigma

t(s) is the clock of `ContinuousVP`, the table that of `VP.cosine`: the paper's u_j, backwards. Written from the paper.

References:
    Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364, equation 7 and table 1.
    Karras et al. 2024, Analyzing and Improving the Training Dynamics, arXiv:2312.02696 (EDM2, also of kind edm).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odesampler.adapters.edm_scales import edm_scales
from odesampler.adapters.labels import checked_label, refuse_label
from odesampler.model import Model
from odesampler.precision import finest_dtype
from odesampler.schedule import VE, VP, ContinuousVP

LOWEST, HIGHEST = 0.002, 80.0  # the range of table 1, where a network does not say less


class Coefficients(NamedTuple):
    """What surrounds a raw network at some sigmas, each like sigma."""

    skip: Tensor
    out: Tensor
    into: Tensor  # c_in
    noise: Tensor


def _edm(s: Tensor, d: float) -> Coefficients:
    return Coefficients(*edm_scales(s, d), s.log() / 4)


def _vp(s: Tensor, d: float) -> Coefficients:
    return Coefficients(torch.ones_like(s), -s, (1 + s**2) ** -0.5, 999 * ContinuousVP().t(s))


def _ve(s: Tensor, d: float) -> Coefficients:
    return Coefficients(torch.ones_like(s), s, torch.ones_like(s), (s / 2).log())


def _iddpm(s: Tensor, d: float) -> Coefficients:
    nearest = (s[..., None] - _COSINE.to(s.device, s.dtype)).abs().argmin(-1)
    return Coefficients(torch.ones_like(s), -s, (1 + s**2) ** -0.5, nearest.to(s.dtype))


_COSINE = VP.cosine().sigma(torch.arange(1000, dtype=torch.float64))
KINDS: dict[str, Callable[[Tensor, float], Coefficients]] = {"edm": _edm, "vp": _vp, "ve": _ve, "iddpm": _iddpm}
RANGES = {
    "edm": (LOWEST, HIGHEST),
    "vp": (ContinuousVP().sigma_min, ContinuousVP().sigma_max),
    "ve": (0.02, 100.0),
    "iddpm": (_COSINE[0].item(), _COSINE[999 - 8].item()),  # j_0 = 8 of table 1
}


class Preconditioned(nn.Module):
    """A raw network as a denoiser.

    Args:
        network: F, called as `network(c_in * x, c_noise, **cond)`, c_noise (batch,).
        kind: The preconditioning: "edm", "vp", "ve" or "iddpm".
        sigma_data: Standard deviation of the data, for "edm".

    Raises:
        ValueError: Another kind, or a sigma_data that is not above 0.

    Examples:
        >>> denoiser = ods.adapters.edm.Preconditioned(lambda x, c_noise: torch.zeros_like(x), sigma_data=0.5)
        >>> denoiser(torch.ones(1, 2), torch.tensor([0.5])).tolist()  # c_skip x
        [[0.5, 0.5]]
    """

    def __init__(self, network: Callable[..., Tensor], kind: str = "edm", sigma_data: float = 0.5) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data, the standard deviation of the data, must be above 0; got {sigma_data!r}")
        self.network, self.kind, self.sigma_data = network, kind, float(sigma_data)

    def odesampler_traits(self) -> Any:
        """What tells it from others with the same weights."""
        return self.network, self.kind, self.sigma_data

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """The denoised image (batch, *shape), for x like it and sigma, one or (batch,).

        Of twice as many channels, as improved DDPM's networks put out, the first half is taken.
        """
        s = sigma.to(finest_dtype(sigma.device)).flatten().expand(len(x))
        c = KINDS[self.kind](s, self.sigma_data)
        skip, out, into = (each.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for each in c[:3])
        answer = self.network(into * x, c.noise.to(torch.promote_types(x.dtype, torch.float32)), **cond)
        if self.kind == "iddpm":
            answer = answer[:, : x.shape[1]]
        return skip * x + out * answer


def from_raw(
    network: Callable[..., Tensor],
    *,
    kind: str = "edm",
    sigma_data: float = 0.5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    **options: Any,
) -> Model:
    """A model of a raw network, without its preconditioning.

    Args:
        network: As for `Preconditioned`.
        kind: Likewise.
        sigma_data: Likewise.
        sigma_min: The least sigma at which it may be asked; by default that of the paper for this kind.
        sigma_max: The greatest, likewise.
        options: As for `Model`: data_shape, null_cond, name, ...

    Raises:
        TypeError: A path: no pickle is loaded.
        ValueError: As for `Preconditioned`, or a range that is none.

    Examples:
        >>> def network(x, c_noise):
        ...     return torch.zeros_like(x)
        >>> model = ods.adapters.edm.from_raw(network, data_shape=(3, 8, 8))
        >>> model.range, model.prediction
        ((0.002, 80.0), 'denoised')
        >>> tuple(ods.sample(model, 2, num_steps=5).x.shape)
        (2, 3, 8, 8)
    """
    _refuse_path(network)
    denoiser = Preconditioned(network, kind, sigma_data)
    low, high = RANGES[kind]
    low, high = low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max
    return Model(denoiser, VE(low, high), "denoised", **{"name": f"{kind}-preconditioned", **options})


def from_net(
    net: Callable[..., Tensor],
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    label_dim: int | None = None,
    null_label: bool | None = None,
    **options: Any,
) -> Model:
    """A model of a network of NVLabs' EDM or EDM2, which holds its preconditioning: `net(x, sigma, class_labels)`.

    Its condition, if it has classes, is "label": whole numbers, which become rows of its class_labels.

    Args:
        net: The network. Read are its attributes `sigma_min`, `sigma_max`, `label_dim`, `img_channels` and
            `img_resolution`.
        sigma_min: The least sigma at which it may be asked; by default 0.002, or its own if that is more.
        sigma_max: The greatest; by default 80, or its own if that is less.
        label_dim: Number of classes, where it does not say.
        null_label: Whether a row of zeros means "no class" to it, so that it can be guided: then label_dim is that
            label. By default whether it says that it was trained with `label_dropout`.
        options: As for `Model`: data_shape, name, dtype, ...

    Raises:
        TypeError: A path: no pickle is loaded.
        ValueError: An attribute that is missing, or a range beyond the network's own.

    Examples:
        >>> def net(x, sigma, class_labels=None):  # the denoiser of N(0, 1)
        ...     return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
        >>> model = ods.adapters.edm.from_net(net, label_dim=0, data_shape=(1, 8, 8))
        >>> tuple(ods.sample(model, 2, num_steps=5).x.shape)
        (2, 1, 8, 8)
        >>> ods.adapters.edm.from_net(net)
        Traceback (most recent call last):
            ...
        ValueError: function has no attribute label_dim...
    """
    _refuse_path(net)
    classes = getattr(net, "label_dim", None) if label_dim is None else label_dim
    if classes is None:
        raise ValueError(
            f"{type(net).__name__} has no attribute label_dim: is it one of EDM's networks, called as net(x, sigma, "
            "class_labels)? Then give label_dim, 0 for none; raw ones are for edm.from_raw, others for ods.Model"
        )
    lowest, highest = float(getattr(net, "sigma_min", 0)), float(getattr(net, "sigma_max", HIGHEST))
    low = max(LOWEST, lowest) if sigma_min is None else sigma_min
    high = min(HIGHEST, highest) if sigma_max is None else sigma_max
    if low < lowest or high > highest:
        raise ValueError(
            f"sigma_min={low:g}, sigma_max={high:g} reach beyond the network's own sigma_min={lowest:g}, "
            f"sigma_max={highest:g}"
        )
    known: dict[str, Any] = {"name": type(net).__name__}
    if hasattr(net, "img_channels") and hasattr(net, "img_resolution"):
        known["data_shape"] = (net.img_channels, net.img_resolution, net.img_resolution)
    dropout = [getattr(each, "label_dropout", 0) for each in (net, getattr(net, "model", None))]
    nothing = any(dropout) if null_label is None else null_label
    if classes:
        known["labels"] = tuple(map(str, range(classes)))
        known["null_cond"] = {"label": classes} if nothing else {}
    return Model(_Labelled(net, classes, bool(nothing)), VE(low, high), "denoised", **{**known, **options})


class _Labelled(nn.Module):
    """A network of EDM's whose classes are numbers. Label `classes` is a row of zeros, if it has a null label."""

    def __init__(self, net: Callable[..., Tensor], classes: int, null: bool) -> None:
        super().__init__()
        self.net, self.classes, self.null = net, classes, null

    def odesampler_traits(self) -> Any:
        """What tells it from others with the same weights."""
        return self.net, self.classes, self.null

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        if not self.classes:
            refuse_label(label, "label_dim = 0")
            return self.net(x, sigma)
        most = self.classes - 1 + self.null
        label = checked_label(label, f"label_dim = {self.classes}", most, lambda k: (k >= 0) & (k <= most))
        rows = nn.functional.one_hot(label.long(), self.classes + 1)[:, : self.classes]
        return self.net(x, sigma, rows.to(x.dtype))


def _refuse_path(net: Any) -> None:
    if isinstance(net, (str, os.PathLike)):
        raise TypeError(
            f"got a path, {os.fspath(net)!r}: EDM's files are pickles, which run code of their own when they are "
            "loaded, so none is ever loaded here. Load it with the code that it came with where you trust it, and give "
            "the network; or save its state_dict() as safetensors, and read that by adapters.checkpoints.into"
        )
    if not callable(net):
        raise TypeError(f"a network is called as net(x, sigma, class_labels); got {net!r}")
