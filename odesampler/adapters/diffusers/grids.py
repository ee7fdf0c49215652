"""Grids that schedulers of diffusers walk, as they are: `grid=grid_of(pipe.scheduler, 50)`.

    sigma_i = sigma(timestep_i)   or   their own sigmas (u / (1 - u) of those of flows), then the end that they say

For comparing, and for pictures that must stay as they were. Named grids are nearer to what their papers mean: steps
here come in float32 and rounded to whole timesteps, and may leave out the noisiest ("leading").
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

from odesampler.adapters.diffusers.schedules import read
from odesampler.grid import Grid
from odesampler.schedule import RectifiedFlow


def grid_of(scheduler: Any, num_steps: int, **given: Any) -> Grid:
    """The grid that a scheduler of diffusers walks in so many steps, by its own `set_timesteps`.

    A sigma that it names twice, as those with two evaluations a step do, is there once. Where a `DDIMScheduler` steps
    to other levels than its own list says ("linspace", "trailing"), the list is followed.

    Args:
        scheduler: A scheduler; it is left as it is.
        num_steps: What its pipeline is called with as num_inference_steps.
        given: What `set_timesteps` takes besides, `mu` or `sigmas`. In place of num_steps, if that is None.

    Raises:
        ValueError: A scheduler that cannot be read, or one that walks upward.

    Examples:
        >>> from diffusers import DDIMScheduler
        >>> grid = ods.adapters.diffusers.grid_of(DDIMScheduler(), 10)
        >>> grid.num_steps, grid.name, grid[10]
        (10, "DDIMScheduler's", 0.0)
    """
    reading, walker = read(scheduler), copy.deepcopy(scheduler)
    walker.set_timesteps(num_steps, **given)
    table = getattr(walker, "sigmas", None)
    if table is not None:
        sigmas = table.double()
        if isinstance(reading.schedule, RectifiedFlow):
            sigmas = reading.schedule.sigma(sigmas * reading.num_train_timesteps)
        listed = sigmas.tolist()
    else:
        clock = walker.timesteps.double()
        to_zero = walker.config.get("set_alpha_to_one", True)
        listed = [*reading.schedule.sigma(clock).tolist(), 0.0 if to_zero else reading.schedule.sigma_min]
    low, high = reading.sigma_min or reading.schedule.sigma_min, reading.sigma_max or reading.schedule.sigma_max
    listed = [_within(s, low, high) for s in listed]
    walked = [s for i, s in enumerate(listed) if i == 0 or s != listed[i - 1]]
    if any(a < b for a, b in pairwise(walked)):
        raise ValueError(f"{type(scheduler).__name__} walks upward: give the scheduler that comes down")
    return Grid(tuple(walked), f"{type(scheduler).__name__}'s")


def _within(sigma: float, low: float, high: float) -> float:
    """`sigma`, or the end of [low, high] that it misses by the rounding of a table in float32."""
    if low * (1 - 1e-3) < sigma < low:
        return low
    return high if high < sigma < high * (1 + 1e-3) else sigma
