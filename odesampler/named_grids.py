"""Grids by name: `karras(rho=5)` is the function `karras` below, called with what it has to span and rho = 5.

A named grid returns the falling sigmas of the whole grid, from sigma_max to 0 (sampling) or to sigma_min (encoding:
sigma = 0 cannot be left). Adding one is one function under `@named()`: its name, parameters with their defaults, and
the first line of its docstring are what users type and what `ods.grids()` shows.
Knows schedules (for grids on a model's clock), neither solvers nor networks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from odesampler.schedule import VP
from odesampler.spacing import (
    ANGLE,
    LOG,
    VARIABLES,
    Elementwise,
    Span,
    Variable,
    angle_of_sigma,
    asinh_of_sigma,
    check_finite,
    flow_time,
    power_of_sigma,
    spaced,
)

NamedGrid: TypeAlias = Callable[..., list[float]]
F = TypeVar("F", bound=NamedGrid)
NAMED: dict[str, NamedGrid] = {}

AYS = {  # noise levels of the schedules of ten steps: arXiv:2404.14507, Table 3
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def parameters(function: NamedGrid) -> dict[str, Any]:
    """What a named grid takes besides its span, with defaults."""
    return {p.name: p.default for p in list(inspect.signature(function).parameters.values())[1:]}


def named(*aliases: str) -> Callable[[F], F]:
    """Make the function below it a grid by its own name, and by `aliases`."""

    def decorate(function: F) -> F:
        NAMED.update(dict.fromkeys((function.__name__, *aliases), function))
        return function

    return decorate


@named()
def leading(span: Span) -> list[float]:
    """t = 0, k, 2k, ... with k = T // n: diffusers' "leading", the DDIM code's "uniform". Does not reach sigma_max."""
    stride = _table(span) // span.nodes
    return _on_clock(span, [float(i * stride) for i in range(span.nodes)])


@named()
def trailing(span: Span) -> list[float]:
    """t = T - 1, T - 1 - T/n, ... rounded: diffusers' "trailing". Starts at sigma_max, ends above sigma_min."""
    size, n = _table(span), span.nodes
    return _on_clock(span, [round(size - i * size / n) - 1.0 for i in range(n)])


@named()
def linspace(span: Span) -> list[float]:
    """Equal distances on the model's clock, both ends included; on a table, rounded to it as diffusers does."""
    if isinstance(span.schedule, VP):
        ts = torch.linspace(_table(span) - 1, 0, span.nodes, dtype=torch.float64)  # one alone: the noisy end
        return _on_clock(span, ts.round().tolist())
    return spaced(span, VARIABLES["t"](span.schedule))


@named()
def quadratic(span: Span) -> list[float]:
    """t = floor(c i^2), i = 0 .. n - 1, up to 0.8 T: the DDIM paper's sub-sequence for CIFAR-10, as its code has it.

    Song, Meng, Ermon 2021, arXiv:2010.02502, D.2. Indices that it would repeat, near t = 0, go up to the next free one.
    """
    size, n = _table(span), span.nodes
    root = math.sqrt(0.8 * size) / max(n - 1, 1)
    ts: list[int] = []
    for i in range(n):
        ts.append(max(int((root * i) ** 2), ts[-1] + 1 if ts else 0))
    if n == 1:
        ts = [int(0.8 * size)]
    return _on_clock(span, [float(min(t, size - n + i)) for i, t in enumerate(ts)])


@named()
def karras(span: Span, rho: float = 7.0, last: float | None = None) -> list[float]:
    """Equal distances in sigma^(1/rho). Karras et al. 2022, arXiv:2206.00364, eq. 5."""
    return spaced(span, power_of_sigma(_positive(span, rho=rho)), last=last)


@named("exponential", "lu")
def log_snr(span: Span, last: float | None = None) -> list[float]:
    """Equal distances in log sigma, so in the log signal-to-noise ratio; `last` ends them above sigma_min.

    Called exponential in k-diffusion and diffusers. Lu et al. 2022, arXiv:2206.00927, Section 3.4, take equal distances
    in lambda = -log sigma, which are the same; diffusers' `use_lu_lambdas` has a rho besides, fixed to 1.
    """
    return spaced(span, LOG, last=last)


@named()
def polyexponential(span: Span, rho: float = 1.0, last: float | None = None) -> list[float]:
    """log sigma falls as (1 - i/(n-1))^rho, as in k-diffusion; rho = 1 is log_snr, above 1 denser near sigma_min."""
    return spaced(span, LOG, warp=_power(span, rho), last=last)


@named()
def beta(
    span: Span, alpha: float = 0.6, beta: float = 0.6, variable: str = "sigma", last: float | None = None
) -> list[float]:
    """Quantiles of a beta distribution, in sigma as in diffusers; variable='t': on the clock, as paper and ComfyUI.

    In sigma they stop at sigma_min; on the clock the step into 0 is one of them, and times are not rounded.

    References:
        Lee et al. 2024, Beta Sampling is All You Need, arXiv:2407.12173.
    """
    from scipy.special import betaincinv  # late: importing odesampler does not wait for scipy

    a, b = _positive(span, alpha=alpha), _positive(span, beta=beta)
    chosen = _variable(span, variable, ("sigma", "t"))

    def quantiles(r: Tensor) -> Tensor:
        return torch.from_numpy(betaincinv(a, b, r.numpy()))

    return spaced(span, chosen, warp=quantiles, aims=variable == "t", last=last)


@named()
def phi(span: Span, last: float | None = None) -> list[float]:
    """Equal distances in the angle atan(sigma), the step into 0 one of them; can start at infinity."""
    return spaced(span, ANGLE, aims=True, last=last)


@named()
def power(span: Span, rho: float = 2.0, variable: str = "flow", last: float | None = None) -> list[float]:
    """v = v_max (1 - i/N)^rho, v: 'flow' = sigma/(1 + sigma), 'phi' = atan(sigma), 't' (the clock) or 'sigma'.

    The last sigma above 0 is never below sigma_min: from the step number where it would be, the whole is lifted. In
    flow and phi it can start at infinity, and on the clock of a model that does.
    """
    return spaced(span, _variable(span, variable, tuple(VARIABLES)), warp=_power(span, rho), aims=True, last=last)


@named()
def asinh(span: Span, delta: float = 0.02, rho: float = 1.0, last: float | None = None) -> list[float]:
    """asinh(sigma/delta) falls as (1 - i/(n-1))^rho: even in log sigma above delta, in sigma itself below."""
    return spaced(span, asinh_of_sigma(_positive(span, delta=delta)), warp=_power(span, rho), last=last)


@named()
def angle(span: Span, scale: float = 2.0, last: float | None = None) -> list[float]:
    """atan(sigma/scale) falls as (1 - i/N)^k, k such that half a step before the end is at sigma_min.

    For solvers that ask in the middles of their steps, where eps is smooth at high noise. Can start at infinity.
    """
    c = _positive(span, scale=scale)
    k = math.log(math.atan(span.high / c) / math.atan(span.low / c)) / math.log(2 * span.num_steps)
    return spaced(span, angle_of_sigma(c), warp=_power(span, k), aims=True, last=last)


@named()
def shift(
    span: Span,
    shift: float | None = None,
    mu: float | None = None,
    kind: str = "exponential",
    terminal: float | None = None,
    last: float | None = None,
) -> list[float]:
    """Flow models' shifted time: u = 1 - i/N, u' = shift u / (1 + (shift - 1) u), sigma = u' / (1 - u'), shift = 3.

    It multiplies sigma by `shift`. Dynamic shifting is the same with shift = exp(mu), or mu if kind='linear'; mu from
    the size of the image: `ods.flow_mu`. `terminal` stretches 1 - u' so that the last u' before the end is `terminal`.

    References:
        Esser et al. 2024, Scaling Rectified Flow Transformers, arXiv:2403.03206, eq. 23.
    """
    sigmas = spaced(span, flow_time(_shift(span, shift, mu, kind)), aims=True, last=last)
    if terminal is None or span.num_steps == 1:
        return sigmas
    u_low, u_high = (1 / (1 + 1 / s) for s in (span.low, span.high))
    if last is not None or not u_low < _positive(span, terminal=terminal) < u_high:
        raise ValueError(
            f"terminal, of the {span.name} grid, is the last sigma/(1 + sigma) before its end, between {u_low:g} and "
            f"{u_high:g}, and instead of last; got terminal={terminal!r}, last={last!r}"
        )
    rest = [1 / (1 + s) for s in sigmas[:-1]]  # 1 - u', rising from that of sigma_max
    scale = (1 - terminal - rest[0]) / (rest[-1] - rest[0])
    inner = [1 / (rest[0] + (r - rest[0]) * scale) - 1 for r in rest[1:-1]]
    return [span.high, *inner, terminal / (1 - terminal), span.end]


@named()
def ays(span: Span, model: str = "sd15") -> list[float]:
    """Align Your Steps: a schedule optimised for ten steps of 'sd15', 'sdxl', 'deepfloyd' or 'svd', interpolated.

    Linear in log sigma between the published sigmas for other numbers of steps. A model whose ends are the published
    ones within 1 %, as those of these models are, keeps the others as published; for any other range all are stretched
    linearly in log sigma.

    References:
        Sabour et al. 2024, Align Your Steps, arXiv:2404.14507, Table 3.
    """
    if model not in AYS:
        raise ValueError(f"the ays grid was optimised for the models {', '.join(AYS)}; got model={model!r}")
    check_finite(span)
    made_for = AYS[model]
    logs = [math.log(s) for s in made_for]
    low, high = math.log(span.low), math.log(span.high)
    if max(abs(high - logs[0]), abs(low - logs[-1])) > 0.01:
        logs = [low + (v - logs[-1]) / (logs[0] - logs[-1]) * (high - low) for v in logs]
    logs = [high, *logs[1:-1], low]
    at = [i * (len(logs) - 1) / span.num_steps for i in range(1, span.num_steps)]
    inner = [math.exp(logs[int(p)] + (p - int(p)) * (logs[int(p) + 1] - logs[int(p)])) for p in at]
    return [span.high, *inner, span.end]


def _shift(span: Span, shift: float | None, mu: float | None, kind: str) -> float:
    if shift is not None and mu is not None:
        raise ValueError(f"shift and mu, of the {span.name} grid, say the same: give one")
    if kind not in ("exponential", "linear"):
        raise ValueError(f"kind, of the {span.name} grid, is 'exponential' or 'linear'; got {kind!r}")
    if mu is None:
        return _positive(span, shift=3.0 if shift is None else shift)
    if kind == "linear":
        return _positive(span, mu=mu)
    return math.exp(_number(span, mu=mu))


def _power(span: Span, rho: float) -> Elementwise:
    rho = _positive(span, rho=rho)
    return lambda r: r**rho


def _variable(span: Span, name: str, allowed: tuple[str, ...]) -> Variable:
    if name not in allowed:
        raise ValueError(f"variable, of the {span.name} grid, is one of {', '.join(allowed)}; got {name!r}")
    return VARIABLES[name](span.schedule)


def _number(span: Span, **given: float) -> float:
    [(key, value)] = given.items()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key}, of the {span.name} grid, is a finite number; got {value!r}")
    return float(value)


def _positive(span: Span, **given: float) -> float:
    [(key, _)] = given.items()
    value = _number(span, **given)
    if value <= 0:
        raise ValueError(f"{key}, of the {span.name} grid, is above 0; got {value!r}")
    return value


def _table(span: Span) -> int:
    if not isinstance(span.schedule, VP):
        raise ValueError(
            f"the {span.name} grid is defined on a table of timesteps, and {type(span.schedule).__name__} has none; "
            "use linspace, karras or log_snr"
        )
    size = len(span.schedule.alpha_bar)
    if span.nodes > size:
        raise ValueError(
            f"the {span.name} grid has {size} timesteps to choose from; {span.nodes} are too many; "
            "karras and log_snr have no such limit"
        )
    return size


def _on_clock(span: Span, ts: list[float]) -> list[float]:
    """Sigmas at the times `ts`, falling, those outside [low, high] moved to its ends and refused if that repeats one.

    An end is met exactly: the schedule takes a table's logarithm and back.
    """
    sigmas = span.schedule.sigma(torch.tensor(sorted(ts, reverse=True), dtype=torch.float64)).tolist()
    ends = (span.low, span.high)
    inside = [
        next((e for e in ends if math.isclose(s, e, rel_tol=1e-12)), min(max(s, ends[0]), ends[1])) for s in sigmas
    ]
    if any(a == b for a, b in pairwise(inside)):
        outside = sum(not span.low <= s <= span.high for s in sigmas)
        raise ValueError(
            f"{outside} of {len(sigmas)} timesteps fall outside [{span.low:g}, {span.high:g}]; "
            "use karras or log_snr with such ends"
        )
    return span.closed(inside)
