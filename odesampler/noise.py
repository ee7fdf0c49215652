"""Noise: one stream of random numbers a sample.

Sample i of seed s is the same picture whatever batch, chunk or process it was made in, because all that is random about
it comes from its own generator: first its latent, then the noise of each stochastic step. Drawn in float32 on the CPU,
so that devices and state dtypes agree too.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

LIMIT = 2**63


class Streams:
    """One generator a sample. Advances as it is drawn from; make a new one to repeat.

    Args:
        seeds: One whole number a sample, 0 <= seed < 2**63.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self, like: Tensor, rows: Tensor | None = None) -> Tensor:
        """Standard normal noise of the shape, dtype and device of `like`, (n, *shape), for the samples `rows`."""
        chosen = range(len(self._generators)) if rows is None else rows.tolist()
        noise = torch.empty((len(chosen), *like.shape[1:]), dtype=torch.float32, device="cpu")
        for one, i in zip(noise, chosen, strict=True):
            one.normal_(generator=self._generators[i])  # in float32 on the CPU, whatever torch's defaults are set to
        return noise.to(like.device, like.dtype)


def seeds_for(seed: int | Sequence[int], num_samples: int) -> list[int]:
    """One seed a sample: an int s means s, s + 1, s + 2, ...; so `seed=5` makes the sixth sample of `seed=0` first.

    Raises:
        TypeError: A seed that is no whole number.
        ValueError: Not as many seeds as samples, or a seed outside 0 .. 2**63 - 1.
    """
    seeds = [index(s) for s in seed] if isinstance(seed, Sequence) else [index(seed) + i for i in range(num_samples)]
    if len(seeds) != num_samples:
        raise ValueError(f"seed must be one int, or one a sample: {num_samples} samples, got {len(seeds)} seeds")
    for s in seeds:
        if not 0 <= s < LIMIT:
            raise ValueError(f"a seed must be a whole number from 0 to 2**63 - 1; got {s}")
    return seeds
