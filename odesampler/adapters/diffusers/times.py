"""What `set_timesteps` is told, as a grid of sigmas.

    tables      sigma = sqrt(1 - alpha_bar) / sqrt(alpha_bar) at their times
    flows       u' = s u / (1 + (s - 1) u), sigma' = u' / (1 - u') = s sigma, s the shift

In diffusers the `sigmas` of a flow are u, those of anything else sigma. Knows no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from odesampler import defaults
from odesampler.adapters.diffusers.schedules import FLOWS, Reading
from odesampler.adapters.diffusers.terms import sigma_of
from odesampler.grid import Grid, check_num_steps, make_grid
from odesampler.program import Solver
from odesampler.schedule import RectifiedFlow

OURS = "default"  # as a grid's name: that which verbs take where none is given
SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
CLOSE = 1e-2  # sigmas that are given may miss the ends of a schedule by so much: those of published tables do


def grid_of(
    config: Any,
    reading: Reading,
    solver: Solver,
    *,
    num_steps: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> Grid:
    """The falling grid that a scheduler walks, in either direction.

    Args:
        config: Of an `OdeScheduler`.
        reading: What it says about the model.
        solver: On which the default grid depends.
        num_steps: How many times to lay out, one a step into sigma = 0.
        timesteps: Or these times themselves.
        sigmas: Or these levels, as diffusers counts them; a last 0 may be there.
        mu: The shift of a flow with `use_dynamic_shifting`.

    Raises:
        ValueError: Not exactly one of the first three, or what a config key makes impossible; names it.
    """
    low, high = ends_of(reading)
    end = low if config.rising or config.final_sigmas_type == "sigma_min" else 0.0
    given = _given(config, num_steps, timesteps, sigmas)
    if given is not None:
        if timesteps is not None:
            levels = sigma_of(reading, torch.tensor(given, dtype=torch.float64)).tolist()
        else:
            levels = _shifted(config, given, mu) if isinstance(reading.schedule, RectifiedFlow) else given
        levels = [_moved(s, low, high) for s in sorted(levels, reverse=True)]
        return Grid((*levels, *([] if levels[-1] <= end else [end])), "given")
    assert num_steps is not None
    if config.grid is not None:
        ours = config.grid == OURS
        name = defaults.grid_for(reading.schedule, low, high, num_steps, solver) if ours else config.grid
        return make_grid(name, reading.schedule, num_steps, into_zero=not end, sigma_min=low, sigma_max=high)

    def nodes(count: int) -> list[float]:
        if isinstance(reading.schedule, RectifiedFlow):
            return _flow(config, count, mu)
        if reading.grid == "leading" and config.steps_offset:
            return sigma_of(reading, torch.tensor(_leading(config, count), dtype=torch.float64)).tolist()
        made = make_grid(reading.grid, reading.schedule, count, into_zero=True, sigma_min=low, sigma_max=high)
        return list(made.sigmas[:-1])

    levels = nodes(num_steps)
    if end and levels[-1] <= end * (1 + 1e-9):
        return Grid((*nodes(num_steps + 1)[:-1], end), reading.grid)
    return Grid((*levels, end), reading.grid)


def ends_of(reading: Reading) -> tuple[float, float]:
    """The range of sigma in which the network may be asked."""
    low, high = reading.sigma_min, reading.sigma_max
    schedule = reading.schedule
    return schedule.sigma_min if low is None else low, schedule.sigma_max if high is None else high


def _given(
    config: Any, num_steps: int | None, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
) -> list[float] | None:
    """The times or levels that are given, if any."""
    if timesteps is not None and sigmas is not None:
        raise ValueError("set_timesteps takes timesteps or sigmas, not both: they would say the same")
    given = sigmas if timesteps is None else timesteps
    if given is None:
        if num_steps is None:
            raise ValueError("set_timesteps needs num_inference_steps, timesteps or sigmas")
        check_num_steps(num_steps)
        return None
    what = "sigmas" if timesteps is None else "timesteps"
    if config.grid is not None:
        raise ValueError(
            f"{what} are given, and the config of this scheduler has grid={config.grid!r}: leave one out; pipelines of "
            "flows that always give sigmas need OdeScheduler.from_config(scheduler.config, grid=None)"
        )
    values = [float(v) for v in given]
    if what == "sigmas" and values and values[-1] == 0:
        values = values[:-1]
    if not values:
        raise ValueError(f"{what} must hold at least one value above 0; got {list(given)}")
    if num_steps not in (None, len(values)):
        raise ValueError(f"num_inference_steps={num_steps}, but {len(values)} {what} are given: leave it out")
    return values


def _moved(sigma: float, low: float, high: float) -> float:
    """`sigma`, at an end of the range if it misses it by little. What misses it by more, the solver's walk refuses."""
    near = next((e for e in (low, high) if math.isclose(sigma, e, rel_tol=CLOSE)), sigma)
    return near if sigma < low or sigma > high else sigma


def _leading(config: Any, count: int) -> list[float]:
    """t = i (T // n) + offset."""
    size = config.num_train_timesteps
    ts = [i * (size // count) + config.steps_offset for i in reversed(range(count))]
    if ts[0] > size - 1 or ts[-1] < 0:
        raise ValueError(
            f"scheduler config: steps_offset={config.steps_offset} moves times to {ts[0]} .. {ts[-1]}, outside 0 .. "
            f"{size - 1}"
        )
    return [float(t) for t in ts]


def _flow(config: Any, count: int, mu: float | None) -> list[float]:
    """Their times of a flow, evenly from u = 1 to that of the last entry of their table, and shifted.

    Without dynamic shifting that last one has been shifted before, once more than the others.
    """
    for key in SPACED:
        if config[key]:
            raise ValueError(
                f"scheduler config: {key}=True of a flow is even in u, which no grid here is: set it to False, and "
                "choose a grid, such as grid='karras', which is in sigma"
            )
    size = config.num_train_timesteps
    if config.config_of not in FLOWS:
        return _shifted(config, [1 - i / count for i in range(count)], mu)
    first = 1 / (size - 1) * (1.0 if config.use_dynamic_shifting else config.shift)
    last = first / (1 + first)
    return _shifted(config, [1 + (last - 1) * i / max(count - 1, 1) for i in range(count)], mu)


def _shifted(config: Any, us: Sequence[float], mu: float | None) -> list[float]:
    """Sigmas of a flow's times `us` (1 is pure noise), shifted as the config says."""
    if bad := [u for u in us if not 0 < u <= 1]:
        raise ValueError(f"sigmas of a flow are times from 1, pure noise, down to 0; got {bad[0]:g}")
    if config.use_dynamic_shifting:
        if mu is None:
            raise ValueError("scheduler config: use_dynamic_shifting=True needs set_timesteps(..., mu=...)")
        shift = math.exp(mu) if config.time_shift_type == "exponential" else mu
    else:
        shift = config.shift if config.config_of in FLOWS else config.flow_shift
    sigmas = [math.inf if u == 1 else shift * u / (1 - u) for u in us]
    if not config.shift_terminal:
        return sigmas
    rests = [1 / (1 + s) for s in sigmas]  # 1 - u
    scale = (1 - config.shift_terminal) / rests[-1]
    return [math.inf if rest == 0 else 1 / (rest * scale) - 1 for rest in rests]
