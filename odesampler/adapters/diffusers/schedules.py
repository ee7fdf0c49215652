"""Schedules of diffusers: what the configuration of a scheduler says about the model, and not about the solver.

    tables      betas -> alpha_bar = cumprod(1 - beta)                                  VP
    flows       x_t = (1 - u) x0 + u noise, told t = u T                                RectifiedFlow
    EDM         x_t = x0 + sigma noise, told log(sigma) / 4, the network preconditioned VE

A scheduler of theirs is a solver, a grid and a model's schedule in one. `read` takes the last two; which solver it is,
and the solver's settings, are not asked. The shift of a flow is a matter of the grid: it moves the times that are
asked, and changes no path. Knows no network, and needs no diffusers: a configuration is a mapping.

References:
    Nichol, Dhariwal 2021, arXiv:2102.09672, eq. 17 (squaredcos_cap_v2). Lin et al. 2023, arXiv:2305.08891, Algorithm 1
    (rescale_betas_zero_snr). Karras et al. 2022, arXiv:2206.00364, Table 1 (EDM).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from odesampler.adapters.diffusers.kinds import EDM, FLOWS, TABLES, facts_of
from odesampler.named_grids import flow_mu
from odesampler.prediction import Prediction
from odesampler.schedule import VE, VP, RectifiedFlow, Schedule
from odesampler.threshold import AnyThreshold, DynamicThreshold

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "eps",
    "sample": "denoised",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
}


@dataclass(frozen=True)
class Preconditioning:
    """EDM's: denoised = c_skip x + c_out network(c_in x, log(sigma) / 4), for data of standard deviation `data`."""

    data: float
    sign: float  # of c_out: -1 where the network was trained to predict v


@dataclass(frozen=True)
class Reading:
    """What a scheduler's configuration says about its model."""

    schedule: Schedule
    prediction: Prediction  # of the network; with `preconditioning`, of the preconditioned one
    num_train_timesteps: int
    grid: str  # what it would walk, as near as a named grid comes
    clip_denoised: AnyThreshold  # its clip_sample or thresholding: what a verb takes under that name. Ours is off
    sigma_min: float | None = None  # a range that is narrower than the schedule's
    sigma_max: float | None = None
    preconditioning: Preconditioning | None = None


class _Config:
    """A configuration with its defaults; knows how to complain."""

    def __init__(self, given: Mapping[str, Any], kind: str, name: str) -> None:
        self.given, self.kind, self.name = {**_DEFAULTS, **TABLES.get(kind, {}), **given}, kind, name

    def __getitem__(self, key: str) -> Any:
        return self.given.get(key)

    def get(self, key: str, default: Any) -> Any:
        """What is given for `key`; `default` also for None."""
        value = self.given.get(key)
        return default if value is None else value

    def refuse(self, key: str, why: str) -> NoReturn:
        """Raises: ValueError: always."""
        raise ValueError(f"{self.name} config: {key}={self[key]!r} {why}")


def read(config: Any, name: str = "scheduler", *, tokens: int | None = None) -> Reading:
    """What a scheduler of diffusers says about the model that it was trained for.

    Args:
        config: A scheduler, or its configuration: a mapping, as `scheduler.config` and scheduler_config.json are.
        name: What to call it in messages.
        tokens: For flows with `use_dynamic_shifting`: how many the network sees of an image, on which the shift of the
            grid depends. Those of the smallest image, `base_image_seq_len`, by default.

    Returns:
        A `Reading`.

    Raises:
        TypeError: Neither a scheduler nor a mapping.
        ValueError: A class that does not solve this equation, or a setting that is not known; names the key.
    """
    given, kind = facts_of(config, name)
    facts = _Config(given, kind, name)
    if kind in EDM or (facts["timestep_type"], facts["prediction_type"]) == ("continuous", "v_prediction"):
        return _edm(facts)
    if kind in FLOWS or facts["use_flow_sigmas"]:
        return _flow(facts, tokens)
    return _table(facts)


def _table(config: _Config) -> Reading:
    schedule = VP.from_betas(_betas(config))
    if config["rescale_betas_zero_snr"]:
        schedule = schedule.with_zero_snr()
    prediction = _prediction(config)
    if prediction == "flow":
        config.refuse("prediction_type", "goes with use_flow_sigmas=True, or a FlowMatch scheduler, only")
    low, high = config["sigma_min"], config["sigma_max"]
    for key, value in (("sigma_min", low), ("sigma_max", high)):
        if value is not None and not schedule.sigma_min <= value <= schedule.sigma_max:
            config.refuse(key, f"is not within its table, {schedule.sigma_min:g} to {schedule.sigma_max:g}")
    if (clipped := config.get("lambda_min_clipped", -math.inf)) > -math.inf:  # lambda = -log sigma
        high = min(schedule.sigma_max, math.exp(-clipped))
    return Reading(
        schedule, prediction, len(schedule.alpha_bar), _grid(config), _clip(config), sigma_min=low, sigma_max=high
    )


def _flow(config: _Config, tokens: int | None) -> Reading:
    if config["invert_sigmas"]:
        config.refuse("invert_sigmas", "counts time from noise to image, which is not supported")
    steps = int(config["num_train_timesteps"])
    prediction: Prediction = "flow" if config.kind in FLOWS else _prediction(config)
    return Reading(
        RectifiedFlow(float(steps), u_min=1 / steps),
        prediction,
        steps,
        _flow_grid(config, steps, tokens),
        _clip(config),
    )


def _edm(config: _Config) -> Reading:
    """Also Euler's `timestep_type="continuous"`: its scale, clock and v are EDM's for data of deviation 1."""
    signs = {"epsilon": 1.0, "v_prediction": -1.0}
    if config["prediction_type"] not in signs:
        config.refuse("prediction_type", f"is not one of {', '.join(signs)}, which this class knows")
    if config.kind in EDM:
        data, low, high = config.get("sigma_data", 0.5), config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
        karras = config.get("sigma_schedule", "karras") == "karras"
        grid = f"karras(rho={float(config.get('rho', 7.0))!r})" if karras else "log_snr"
    else:
        table = VP.from_betas(_betas(config))
        data, low, high = 1.0, config.get("sigma_min", table.sigma_min), config.get("sigma_max", table.sigma_max)
        grid = _grid(config)
        grid = "karras" if grid == config["timestep_spacing"] else grid  # there is no table to space times on
    return Reading(
        VE(float(low), float(high)),
        "denoised",
        int(config["num_train_timesteps"]),
        grid,
        _clip(config),
        preconditioning=Preconditioning(float(data), signs[config["prediction_type"]]),
    )


def _prediction(config: _Config) -> Prediction:
    kind = config["prediction_type"]
    if kind not in PREDICTIONS:
        config.refuse("prediction_type", f"is not one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[kind]


def _betas(config: _Config) -> Tensor:
    """(T,) float64, where diffusers has float32."""
    steps, start, end = int(config["num_train_timesteps"]), float(config["beta_start"]), float(config["beta_end"])
    if config["trained_betas"] is not None:
        trained = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
        if trained.shape != (steps,):
            config.refuse("num_train_timesteps", f"but trained_betas has {trained.numel()} entries")
        return trained
    kind = config["beta_schedule"]
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    if kind == "sigmoid":
        return torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start
    if kind not in _SIGNAL:
        config.refuse("beta_schedule", f"is not one of linear, scaled_linear, sigmoid, {', '.join(_SIGNAL)}")
    power = _SIGNAL[kind](torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    betas: Tensor = 1 - power[1:] / power[:-1]
    return betas.clamp(max=0.999)


def _laplace(u: Tensor) -> Tensor:
    half = 0.5 - u
    log_snr = -0.5 * torch.copysign(torch.ones_like(u), half) * torch.log(1 - 2 * half.abs() + 1e-6)
    alpha_bar: Tensor = log_snr.sigmoid().sqrt()
    return alpha_bar


_SIGNAL: dict[str, Callable[[Tensor], Tensor]] = {  # alpha_bar, up to a factor, of u = t / T in [0, 1]
    "squaredcos_cap_v2": lambda u: torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2,
    "exp": lambda u: torch.exp(-12 * u),
    "laplace": _laplace,
}


def _clip(config: _Config) -> AnyThreshold:
    """Thresholding goes before clipping, as in all of their schedulers that have both."""
    if config["thresholding"]:
        return DynamicThreshold(
            config.get("dynamic_thresholding_ratio", 0.995), largest=config.get("sample_max_value", 1.0)
        )
    return float(config.get("clip_sample_range", 1.0)) if config["clip_sample"] else None


def _grid(config: _Config) -> str:
    chosen = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "log_snr", "use_beta_sigmas": "beta"}
    for key, grid in {**chosen, "use_lu_lambdas": "log_snr"}.items():
        if config[key]:
            return grid
    if config["interpolation_type"] == "log_linear":
        config.refuse("interpolation_type", "takes levels of one grid and times of another: choose use_karras_sigmas")
    if config["timestep_spacing"] not in ("leading", "trailing", "linspace"):
        config.refuse("timestep_spacing", "is not one of leading, trailing, linspace")
    return str(config["timestep_spacing"])


def _flow_grid(config: _Config, steps: int, tokens: int | None) -> str:
    """Their karras, exponential and beta sigmas of flows are even in u, which no named grid is: the shift alone."""
    terminal = f", terminal={float(config['shift_terminal'])!r}" if config["shift_terminal"] else ""
    if config["use_dynamic_shifting"]:
        first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        mu = flow_mu(
            first if tokens is None else tokens,
            base_tokens=first,
            most_tokens=last,
            base_shift=config.get("base_shift", 0.5),
            max_shift=config.get("max_shift", 1.15),
        )
        kind = config.get("time_shift_type", "exponential")
        return f"shift(mu={mu!r}, kind={kind!r}{terminal})"
    if config.kind not in FLOWS:
        return f"shift(shift={float(config.get('flow_shift', 1.0))!r}{terminal})"
    shift = float(config.get("shift", 1.0))
    if terminal:
        return f"shift(shift={shift!r}{terminal})"
    # Its last time is that of a table, shifted once, and set_timesteps shifts it once more.
    return f"shift(shift={shift!r}, last={shift**2 / (steps - 1)!r})"
