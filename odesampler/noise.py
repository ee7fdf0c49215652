"""Noise: one stream of random numbers, or one Brownian path, a sample.

    z = (W(b) - W(a)) / sqrt(|b - a|),     W(middle of l, r) = (W(l) + W(r)) / 2 + sqrt(r - l) / 2 * z(middle)

Sample i of seed s is the same picture whatever batch, chunk or process it was made in, because all that is random about
it comes from its own generator: first its latent, then the noise of each stochastic step. On a Brownian path it is also
the same picture, up to the solver's error, whatever the steps. Drawn in float32 on the CPU, so that devices and state
dtypes agree too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import blake2b
from operator import index
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odesampler.transfer import to_device

AnySeed: TypeAlias = "int | Sequence[int] | Tensor"  # or an array of numpy's, which has the same methods

LIMIT = 2**63
_BITS = 32  # of a time's mantissa: two times nearer than 2**-32 of themselves are the same


class Streams:
    """One generator a sample. Advances as it is drawn from; make a new one to repeat.

    Args:
        seeds: One whole number a sample, 0 <= seed < 2**63.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)

    @cached_property
    def _generators(self) -> list[torch.Generator]:
        """Made when first drawn from, which few solves do that are given their latents."""
        return [torch.Generator().manual_seed(seed) for seed in self._seeds]

    def draw(self, like: Tensor, rows: Tensor | None = None, span: tuple[Any, Any] | None = None) -> Tensor:
        """Standard normal noise of the shape, dtype and device of `like`, (n, *shape), for the samples `rows`.

        Always new; `span` is of no account here.
        """
        chosen = range(len(self._generators)) if rows is None else rows.tolist()
        noise = torch.empty((len(chosen), *like.shape[1:]), dtype=torch.float32, device="cpu")
        for one, i in zip(noise, chosen, strict=True):
            one.normal_(generator=self._generators[i])  # in float32 on the CPU, whatever torch's defaults are set to
        return to_device(noise, like.device).to(like.dtype)


class BrownianPath:
    """One Brownian path a sample, the same whatever steps are taken along it and in whatever order.

    A virtual Brownian tree: between two powers of 2 the path is halved and halved again until it comes to the time that
    is asked for, and the number z at each middle has a generator of its own, made from the seed and that middle. So
    the path is the same without being kept, increments add up, and their law is exact. A step costs some 32 normal
    numbers a pixel. What belongs to no path, such as a latent, comes from one stream a sample, as from `Streams`.

    Args:
        seeds: One whole number a sample, 0 <= seed < 2**63.

    References:
        Li et al. 2020, Scalable Gradients for Stochastic Differential Equations, arXiv:2001.01328, section 4 (the
        tree). Kidger et al. 2021, arXiv:2105.13493, appendix E.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._streams = Streams(seeds)
        self._latest: dict[int, tuple[Any, Tensor]] = {}  # of each seed: where a step ends, the next one begins

    def draw(self, like: Tensor, rows: Tensor | None = None, span: tuple[Any, Any] | None = None) -> Tensor:
        """The normalised increment over `span`, of the shape, dtype and device of `like`, for the samples `rows`.

        Raises:
            ValueError: A span that is empty, to 32 bits, or not of finite times above 0.
        """
        if span is None:
            return self._streams.draw(like, rows)
        chosen = range(len(self._seeds)) if rows is None else rows.tolist()
        ends = zip(*(_times(end, len(chosen)) for end in span), strict=True)
        drawn = [self._increment(self._seeds[i], a, b, like) for i, (a, b) in zip(chosen, ends, strict=True)]
        return to_device(torch.stack(drawn).to(like.dtype), like.device)

    def _increment(self, seed: int, a: float, b: float, like: Tensor) -> Tensor:
        if a > b:
            return -self._increment(seed, b, a, like)
        if not 0 < a < b < math.inf:
            raise ValueError(f"noise was asked for over ({a:g}, {b:g}): a span runs between two times, finite, above 0")
        before = self._since_power(seed, a, like)
        total = self._since_power(seed, b, like) - before
        for k in range(_power(a), _power(b)):  # whole stretches between powers of 2
            total += _stretch(seed, 2.0**k, like)
        return total / math.sqrt(b - a)

    def _since_power(self, seed: int, time: float, like: Tensor) -> Tensor:
        """W(time) - W(2^k), float64 on the CPU, for the last power of 2 before."""
        asked = (time, like.shape[1:])
        if self._latest.get(seed, (None,))[0] != asked:
            self._latest[seed] = asked, _halved(seed, time, like)
        return self._latest[seed][1]


Noise: TypeAlias = "Streams | BrownianPath"


def noise_for(kind: str, seeds: Sequence[int]) -> Noise:
    """The noise of samples with these seeds: "independent" from step to step, or along one path a sample, "brownian".

    Raises:
        ValueError: Another kind.
    """
    kinds: dict[str, Callable[[Sequence[int]], Noise]] = {"independent": Streams, "brownian": BrownianPath}
    if kind not in kinds:
        raise ValueError(f"noise must be one of {', '.join(kinds)}; got {kind!r}")
    return kinds[kind](seeds)


def seeds_for(seed: AnySeed, num_samples: int) -> list[int]:
    """One seed a sample: an int s means s, s + 1, s + 2, ...; so `seed=5` makes the sixth sample of `seed=0` first.

    Raises: as `seed_row`.
    """
    return [*seed_row(seed, num_samples)]


def seed_row(seed: AnySeed, num_samples: int) -> Sequence[int]:
    """As `seeds_for`; those in sequence are not written out, so that any number of them takes no memory.

    Raises:
        TypeError: A seed that is no whole number.
        ValueError: Not as many seeds as samples, or a seed outside 0 .. 2**63 - 1.
    """
    given: Any = seed.tolist() if hasattr(seed, "tolist") else seed
    try:
        several = [_whole(s) for s in given] if isinstance(given, Sequence) else None
        seeds: Sequence[int] = range(_whole(given), _whole(given) + num_samples) if several is None else several
    except TypeError as error:
        what = "a whole number, or one a sample: a list, or a tensor or array of one dimension"
        raise TypeError(f"seed must be {what}; got {seed!r}") from error
    if len(seeds) != num_samples:
        raise ValueError(f"seed must be one int, or one a sample: {num_samples} samples, got {len(seeds)} seeds")
    for s in (*seeds[:1], *seeds[-1:]) if isinstance(seeds, range) else seeds:
        if not 0 <= s < LIMIT:
            raise ValueError(f"a seed must be a whole number from 0 to 2**63 - 1; got {s}")
    return seeds


def _whole(seed: Any) -> int:
    if isinstance(seed, bool):  # an int to Python, and a mistake here
        raise TypeError(f"{seed} is no whole number")
    return index(seed)


def _times(end: Any, batch: int) -> list[float]:
    """One end of a span for each sample, to 32 bits, so that the halving comes to it."""
    times = end.flatten().tolist() if isinstance(end, Tensor) else [float(end)]
    parts = [math.frexp(t) for t in (times * batch if len(times) == 1 else times)]
    return [math.ldexp(round(math.ldexp(m, _BITS)), e - _BITS) if math.isfinite(m) else m for m, e in parts]


def _power(time: float) -> int:
    """k of the largest 2^k that is not after `time`."""
    return math.frexp(time)[1] - 1


def _halved(seed: int, time: float, like: Tensor) -> Tensor:
    """W(time) - W(2^k): the stretch from 2^k to 2^(k + 1), halved until an end of what is left is `time`."""
    low = 2.0 ** _power(time)
    high, at_high = 2 * low, _stretch(seed, low, like)
    at_low = torch.zeros_like(at_high)
    while low < time:
        middle = (low + high) / 2
        at_middle = (at_low + at_high) / 2 + math.sqrt(high - low) / 2 * _normal(seed, middle, like)
        if middle <= time:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return at_low


def _stretch(seed: int, low: float, like: Tensor) -> Tensor:
    """W(2 low) - W(low) for a power of 2: no other part of the path has a say in it."""
    return math.sqrt(low) * _normal(seed, low, like)


def _normal(seed: int, time: float, like: Tensor) -> Tensor:
    """The number z that belongs to one time, one for each pixel."""
    own = int.from_bytes(blake2b(f"{seed} {time.hex()}".encode(), digest_size=8).digest(), "big") % LIMIT
    drawn = torch.empty(like.shape[1:], dtype=torch.float32, device="cpu")
    return drawn.normal_(generator=torch.Generator().manual_seed(own)).double()
