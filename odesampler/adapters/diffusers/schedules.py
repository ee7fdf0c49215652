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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odesampler.adapters.diffusers.kinds import EDM, FLOWS, TABLES, facts_of
from odesampler.adapters.diffusers.settings import Settings
from odesampler.prediction import Prediction
from odesampler.schedule import VE, VP, RectifiedFlow, Schedule
from odesampler.spacing import flow_mu
from odesampler.threshold import AnyThreshold, DynamicThreshold

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "eps",
    "sample": "denoised",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
SPACINGS = ("leading", "trailing", "linspace")  # of times on a table
SPACED = {  # of sigmas between its ends: the key that asks for it, and what it is called here
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "log_snr",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "log_snr",
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
    """What a scheduler's configuration says about its model.

    Examples:
        >>> reading = ods.adapters.diffusers.read({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
        >>> type(reading.schedule).__name__, reading.prediction, reading.clip_denoised
        ('RectifiedFlow', 'flow', None)
    """

    schedule: Schedule
    prediction: Prediction  # of the network; with `preconditioning`, of the preconditioned one
    num_train_timesteps: int
    grid: str  # what it would walk, as near as a named grid comes
    clip_denoised: AnyThreshold  # its clip_sample or thresholding: what a verb takes under that name. Ours is off
    sigma_min: float | None = None  # a range that is narrower than the schedule's
    sigma_max: float | None = None
    preconditioning: Preconditioning | None = None


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

    Examples:
        >>> config = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
        >>> reading = ods.adapters.diffusers.read(config)
        >>> reading.prediction, reading.grid, type(reading.schedule).__name__
        ('v', 'leading', 'VP')
    """
    given, kind = facts_of(config, name)
    facts = Settings({**_DEFAULTS, **TABLES.get(kind, {}), **given}, kind, name)
    if kind in EDM or (facts["timestep_type"], facts["prediction_type"]) == ("continuous", "v_prediction"):
        return _edm(facts)
    if kind in FLOWS or facts["use_flow_sigmas"]:
        return _flow(facts, tokens)
    return _table(facts)


def _table(config: Settings) -> Reading:
    schedule = _vp(config)
    if config["rescale_betas_zero_snr"]:
        schedule = schedule.with_zero_snr()
    prediction = _prediction(config)
    if prediction == "flow":
        config.refuse("prediction_type", "goes with use_flow_sigmas=True, or a FlowMatch scheduler, only")
    grid, ends = _grid(config), dict.fromkeys(("sigma_min", "sigma_max"))
    if grid != config["timestep_spacing"]:  # these two bound sigmas that are spaced out, not the times of a table
        ends = {key: None if config[key] is None else config.number(key) for key in ends}
    for key, value in ends.items():
        if value is not None and not schedule.sigma_min <= value <= schedule.sigma_max:
            config.refuse(key, f"is not within its table, {schedule.sigma_min:g} to {schedule.sigma_max:g}")
    low, high = ends.values()
    if config["lambda_min_clipped"] not in (None, -math.inf):  # lambda = -log sigma
        high = min(schedule.sigma_max if high is None else high, math.exp(-config.number("lambda_min_clipped")))
    return Reading(schedule, prediction, len(schedule.alpha_bar), grid, _clip(config), sigma_min=low, sigma_max=high)


def _flow(config: Settings, tokens: int | None) -> Reading:
    if config["invert_sigmas"]:
        config.refuse("invert_sigmas", "counts time from noise to image, which is not supported")
    steps = config.whole("num_train_timesteps", least=2)
    prediction: Prediction = "flow" if config.kind in FLOWS else _prediction(config)
    grid, least = _flow_grid(config, steps, tokens)
    return Reading(_flow_down_to(least, steps), prediction, steps, grid, _clip(config))


def _flow_down_to(least: float, steps: int) -> RectifiedFlow:
    """Of a table of `steps` times u = i / T, to `least` times the sigma of its first, 1 / (T - 1)."""
    return RectifiedFlow(float(steps), u_min=least / (steps - 1 + least))


def _edm(config: Settings) -> Reading:
    """Also Euler's `timestep_type="continuous"`: its scale, clock and v are EDM's for data of deviation 1."""
    signs = {"epsilon": 1.0, "v_prediction": -1.0}
    sign = signs[config.one_of("prediction_type", signs)]
    if config.kind in EDM:
        data, low, high = config.number("sigma_data", 0.5, above=0), 0.002, 80.0
        karras = config.one_of("sigma_schedule", ("karras", "exponential"), "karras") == "karras"
        grid = f"karras(rho={config.number('rho', 7.0, above=0)!r})" if karras else "log_snr"
    else:
        table = _vp(config)
        data, low, high = 1.0, table.sigma_min, table.sigma_max
        grid = _grid(config)
        grid = "karras" if grid == config["timestep_spacing"] else grid  # there is no table to space times on
    low = config.number("sigma_min", low, above=0)
    high = config.number("sigma_max", high, above=0)
    if not low < high < math.inf:
        config.refuse("sigma_min", f"must be below sigma_max={high:g}, and that finite")
    return Reading(
        VE(low, high),
        "denoised",
        config.whole("num_train_timesteps", least=1),
        grid,
        _clip(config),
        preconditioning=Preconditioning(data, sign),
    )


def _prediction(config: Settings) -> Prediction:
    return PREDICTIONS[config.one_of("prediction_type", PREDICTIONS)]


def _vp(config: Settings) -> VP:
    betas = _betas(config)
    try:
        return VP.from_betas(betas)
    except ValueError as error:
        config.refuse("beta_schedule" if config["trained_betas"] is None else "trained_betas", f"is no table: {error}")


def _betas(config: Settings) -> Tensor:
    """(T,) float64, where diffusers has float32."""
    steps = config.whole("num_train_timesteps", least=2)
    if config["trained_betas"] is not None:
        try:
            trained = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            config.refuse("trained_betas", "must be a row of numbers")
        if trained.shape != (steps,):
            config.refuse("num_train_timesteps", f"but trained_betas has {trained.numel()} entries")
        return trained
    kind = config.one_of("beta_schedule", ("linear", "scaled_linear", "sigmoid", *_SIGNAL))
    if kind in _SIGNAL:
        power = _SIGNAL[kind](torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        betas: Tensor = 1 - power[1:] / power[:-1]
        return betas.clamp(max=0.999)
    start, end = (config.number(key, above=0, below=1) for key in ("beta_start", "beta_end"))
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    return torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start


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


def _clip(config: Settings) -> AnyThreshold:
    """Thresholding goes before clipping, as in all of their schedulers that have both."""
    if config["thresholding"]:
        ratio, largest = config.number("dynamic_thresholding_ratio", 0.995), config.number("sample_max_value", 1.0)
        if not 0 < ratio <= 1:
            config.refuse("dynamic_thresholding_ratio", "must be a fraction above 0, 1 at most")
        if largest < 1:
            config.refuse("sample_max_value", "must be 1 or more, since data lie in [-1, 1]")
        return DynamicThreshold(ratio, largest=largest)
    return config.number("clip_sample_range", 1.0, above=0) if config["clip_sample"] else None


def _grid(config: Settings) -> str:
    for key, grid in SPACED.items():
        if config[key]:
            return grid
    if config["interpolation_type"] == "log_linear":
        config.refuse("interpolation_type", "takes levels of one grid and times of another: choose use_karras_sigmas")
    return config.one_of("timestep_spacing", SPACINGS)


def _flow_grid(config: Settings, steps: int, tokens: int | None) -> tuple[str, float]:
    """The grid, and by what the least sigma of the table, 1 / (T - 1), is multiplied at most on the way down.

    Their karras, exponential and beta sigmas of flows are even in u, which no named grid is: the shift alone.
    """
    terminal = ""
    if config["shift_terminal"]:
        terminal = f", terminal={config.number('shift_terminal', above=0, below=1)!r}"
    if config["use_dynamic_shifting"]:
        return _dynamic_shift(config, tokens, terminal)
    key = "shift" if config.kind in FLOWS else "flow_shift"
    shift = config.number(key, 1.0, above=0)
    if terminal or config.kind not in FLOWS:
        return f"shift(shift={shift!r}{terminal})", min(1.0, shift)
    # Its last time is that of a table, shifted once, and set_timesteps shifts it once more.
    least = min(1.0, shift**2)
    last = max(shift**2 / (steps - 1), _flow_down_to(least, steps).sigma_min)  # which are one but for rounding
    return f"shift(shift={shift!r}, last={last!r})", least


def _dynamic_shift(config: Settings, tokens: int | None, terminal: str) -> tuple[str, float]:
    """As `_flow_grid`, by the number of tokens; what is least is so for any number between the two of the config."""
    kind = config.one_of("time_shift_type", ("exponential", "linear"), "exponential")
    first, last = (config.whole(f"{k}_image_seq_len", n, least=1) for k, n in (("base", 256), ("max", 4096)))
    if first == last:
        config.refuse("base_image_seq_len", "must be another number than max_image_seq_len")
    least = -math.inf if kind == "exponential" else 0.0  # the linear one is the shift itself
    ends = [config.number(f"{k}_shift", mu, above=least) for k, mu in (("base", 0.5), ("max", 1.15))]
    mu = flow_mu(
        first if tokens is None else tokens,
        base_tokens=first,
        most_tokens=last,
        base_shift=ends[0],
        max_shift=ends[1],
    )
    if not mu > least:
        config.refuse(
            "max_shift", f"with base_shift={ends[0]:g} makes the shift of {tokens} tokens {mu:g}, not above 0"
        )
    shifts = [math.exp(m) if kind == "exponential" else m for m in (*ends, mu)]
    return f"shift(mu={mu!r}, kind={kind!r}{terminal})", min(1.0, *shifts)
