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
from odesampler.adapters.diffusers.kinds import APART, FLOWS, IN_SIGMA
from odesampler.adapters.diffusers.schedules import SPACED, SPACINGS, Reading
from odesampler.adapters.diffusers.terms import sigma_of
from odesampler.grid import Grid, check_num_steps, make_grid
from odesampler.program import Solver
from odesampler.schedule import VE, RectifiedFlow

OURS = "default"  # as a grid's name: that which verbs take where none is given
CLOSE = 1e-2  # sigmas that are given may miss the ends of a schedule by so much: those of published tables do


def walked_grid(
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
    if config.grid is not None and not isinstance(config.grid, str):
        return _own(config.grid, num_steps, end)
    if config.grid is not None:
        ours = config.grid == OURS
        name = defaults.grid_for(reading.schedule, low, high, num_steps, solver) if ours else config.grid
        return make_grid(name, reading.schedule, num_steps, into_zero=not end, sigma_min=low, sigma_max=high)

    if isinstance(reading.schedule, RectifiedFlow):
        levels = _flow(config, num_steps, mu)
    elif reading.grid in SPACINGS and reading.preconditioning is None:
        ts = torch.tensor(_spaced(config, reading, num_steps), dtype=torch.float64)
        levels = [_within(s, low, high) for s in sigma_of(reading, ts).tolist()]
    else:
        made = make_grid(reading.grid, reading.schedule, num_steps, into_zero=True, sigma_min=low, sigma_max=high)
        levels = list(made.sigmas[:-1])
    if end and levels[-1] <= end * (1 + 1e-9):
        levels = levels[:-1]  # the last time is the end itself, from which there is no step
    if not levels:
        raise ValueError(
            f"num_inference_steps={num_steps} of {reading.grid!r} is the time of sigma_min alone, so there is no step "
            "between it and sigma_min: take 2 or more"
        )
    return Grid((*levels, end), reading.grid)


def _own(given: Sequence[Any], num_steps: int, end: float) -> Grid:
    """The sigmas of a config, without their step into 0 where the image is the point before it."""
    sigmas = tuple(float(s) for s in given)
    steps = len(sigmas) - 1
    if num_steps != steps:
        raise ValueError(f"num_inference_steps={num_steps}, but the grid of the config has {steps} transitions")
    return Grid(sigmas[:-1] if end and not sigmas[-1] else sigmas, "own")


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


def _within(sigma: float, low: float, high: float) -> float:
    """`sigma`, or the end of [low, high] that it misses, or meets but for rounding."""
    near = next((e for e in (low, high) if math.isclose(sigma, e, rel_tol=1e-12)), sigma)
    return min(max(near, low), high)


def _spaced(config: Any, reading: Reading, count: int) -> list[float]:
    """Their times on a table of T entries, of which the first S are in use; n = count, or n = count + 1 less the last.

    leading     i (S // n) + offset
    linspace    i (S - 1) / (n - 1), rounded but by those after k-diffusion; one alone: the noisy end
    trailing    S - i T / n rounded, - 1
    """
    size, kind, spacing = reading.num_train_timesteps, config.config_of, reading.grid
    used = size
    if (clipped := config.get("lambda_min_clipped")) is not None and clipped > -math.inf:
        table = reading.schedule.sigma(torch.arange(size, dtype=torch.float64))
        used = int((table <= math.exp(-clipped)).sum())
    if kind == "DPMSolverSinglestepScheduler":
        spacing = "linspace"  # it knows no other
    whole = count + (kind in APART and spacing != "trailing")
    if whole > used:
        raise ValueError(f"num_inference_steps={count} is more than the {used} timesteps of the table")
    steps = range(count)
    if spacing == "leading":
        ts = [float((whole - 1 - i) * (used // whole) + config.steps_offset) for i in steps]
    elif spacing == "trailing":
        ts = [round(used - i * size / whole) - 1.0 for i in steps if used - i * size / whole > 0]
    else:
        stride = (used - 1) / max(whole - 1, 1)  # multiplied as they do: a half is rounded up or down by its last bit
        ts = [min((whole - 1 - i) * stride, used - 1.0) for i in steps] if whole > 1 else [used - 1.0]
        ts = ts if kind in IN_SIGMA else [float(round(t)) for t in ts]
    if ts[0] > size - 1 or ts[-1] < 0:
        raise ValueError(
            f"scheduler config: steps_offset={config.steps_offset} moves times to {ts[0]:g} .. {ts[-1]:g}, outside 0 "
            f".. {size - 1}"
        )
    return ts


def _flow(config: Any, count: int, mu: float | None) -> list[float]:
    """Their times of a flow, evenly from u = 1 to that of the last entry of their table, and shifted.

    Without dynamic shifting that last one has been shifted before, once more than the others.
    """
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
    if config.shift_terminal:
        rests = [1 / (1 + s) for s in sigmas]  # 1 - u
        if not rests[-1]:
            raise ValueError(
                f"scheduler config: shift_terminal={config.shift_terminal!r} stretches times between pure noise and "
                "the last, and there is one time only: take two steps or more"
            )
        scale = (1 - config.shift_terminal) / rests[-1]
        sigmas = [math.inf if rest == 0 else 1 / (rest * scale) - 1 for rest in rests]
    return _respaced(config, sigmas)


def _respaced(config: Any, sigmas: list[float]) -> list[float]:
    """`sigmas` of a flow, or as many between their ends where the config has them spaced: in u, as if u were sigma."""
    key = next((key for key in SPACED if config[key]), None)
    if key is None:
        return sigmas
    if config.config_of not in FLOWS:
        raise ValueError(
            f"scheduler config: {key}=True with use_flow_sigmas=True means another thing in every scheduler: set it to "
            "False, and choose a grid, such as grid='karras'"
        )
    us = [1.0 if math.isinf(s) else s / (1 + s) for s in sigmas]
    if len(us) == 1:
        return sigmas
    levels = make_grid(SPACED[key], VE(us[-1], us[0]), len(us), into_zero=True).sigmas[:-1]
    return [math.inf if u == 1 else u / (1 - u) for u in levels]
