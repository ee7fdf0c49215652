"""The loop of diffusers' pipelines, in one place for all benchmarks."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.counting import on_device


def denoised(scheduler: Any, network: Callable[[Tensor, Tensor, int], Tensor], x: Tensor) -> Tensor:
    """`x`, in the scheduler's scale, through all timesteps; `network` is given x_t, t and the number of the call.

    The timesteps count as being on the device, where their pipelines have them.
    """
    for i, t in enumerate(on_device(scheduler.timesteps)):
        out = network(scheduler.scale_model_input(x, t), t, i)
        x = scheduler.step(out, t, x).prev_sample
    return x
