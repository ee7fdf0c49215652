"""The asynchronous leapfrog on a lattice: whole numbers that are undone to the bit.

    Y, V = 2^bits y, 2^bits v        M = Y0 + R(h/2 V0),    V1 = R(kappa V0) + G,    Y1 = M + R(h/2 V1)
                                     G = R((1 - kappa) 2^bits F(M))

R rounds. Each line adds something that the next state still knows, so it can be taken away again exactly, however badly
R and the network compute, so long as they do the same in both passes. kappa is a fraction of 2^20: whole numbers are
multiplied and divided by it without error. For |kappa| < 1 (damping) decode(encode) is exact, encode(decode) is not.

References:
    Levesque, Verlet 1993, Molecular dynamics and time reversibility, J. Stat. Phys. 72, 519 (leapfrog in integers).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from odesampler.coordinates import Coordinate
from odesampler.precision import finest_dtype
from odesampler.program import Course, Invertible, Program, Sigma, State
from odesampler.solvers.alf import ALF

MOST = 2.0**61  # a sum of two such numbers is still one of 64 bits
FRACTION = 20  # bits of kappa


@dataclass(frozen=True)
class FixedPoint(Invertible):
    """The asynchronous leapfrog in whole numbers: what it encodes it decodes to the same bits.

    Order 2. Evaluations: as its base. Error estimate: none. Memory: point and slope, int64, of which x is
    only a view. Exactly invertible: yes, to the bit, if the network answers the same question with the same bits.

    Args:
        base: The leapfrog and its coordinate.
        bits: Of the fraction: the lattice has the spacing 2^-bits, and ends at 2^(61 - bits).

    Raises:
        TypeError: A base that is no ALF.
        ValueError: bits outside 8 .. 52.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:2]
        >>> latent = ods.encode(model, images, solver=ods.FixedPoint(), num_steps=10)
        >>> {memory.dtype for memory in latent.memory}
        {torch.int64}
        >>> bool((ods.decode(model, latent).x - images).abs().max() < 1e-10)  # the lattice has a spacing of 2^-40
        True

    References:
        Zhuang et al. 2021, MALI, arXiv:2102.04668. Levesque, Verlet 1993, J. Stat. Phys. 72, 519.
    """

    base: ALF = field(default_factory=ALF)
    bits: int = 40

    summary = "asynchronous leapfrog in whole numbers: invertible to the bit"
    order = 2
    evaluations = 1
    start_evaluations = 1
    differentiable = False

    def __post_init__(self) -> None:
        if not isinstance(self.base, ALF):
            raise TypeError(f"FixedPoint takes an ALF such as ods.ALF(damping=3); got {self.base!r}")
        if type(self.bits) is not int or not 8 <= self.bits <= 52:
            raise ValueError(f"bits must be a whole number from 8 to 52; got {self.bits!r}")

    def prepared(self, course: Course) -> FixedPoint:
        return replace(self, base=self.base.prepared(course))

    def init(self, x: Tensor, sigma: Sigma) -> Program[State]:
        point = self._lattice(self._chart.inward(x, sigma))
        state = yield from self.base.init(self.shown(point, sigma, x.dtype), sigma)
        return State(state.x, (point, self._lattice(state.memory[0])))

    def cost(self, num_steps: int) -> int:
        return self.base.cost(num_steps)

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        point, slope = state.memory
        half, middle, kappa = self._facts(s0, s1)
        point = point + self._moved(half, slope)
        slope = _times(kappa, slope) + (yield from self._slope(point, middle, state.x.dtype, 1 + kappa / 2**FRACTION))
        return self._state(point + self._moved(half, slope), slope, s1, state.x.dtype)

    def unstep(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        point, slope = state.memory
        half, middle, kappa = self._facts(s0, s1)
        point = point - self._moved(half, slope)
        asked = yield from self._slope(point, middle, state.x.dtype, 1 + kappa / 2**FRACTION)
        slope = _over(kappa, slope - asked, self.bits)
        return self._state(point - self._moved(half, slope), slope, s0, state.x.dtype)

    def into_zero(self, state: State, s0: Sigma) -> Program[State]:
        v = tuple(self._float(m, state.x.dtype) for m in state.memory[1:])
        return (yield from self.base.into_zero(State(state.x, v), s0))

    def snapped(self, x: Tensor, sigma: float) -> Tensor:
        """The nearest to `x` (batch, *shape) that the lattice holds, which is what comes back."""
        return self.shown(self._lattice(self._chart.inward(x, sigma)), sigma, x.dtype)

    def shown(self, point: Tensor, sigma: Sigma, dtype: torch.dtype) -> Tensor:
        """x, of the lattice point (batch, *shape), int64."""
        return self._chart.outward(self._float(point, dtype), sigma)

    def _facts(self, s0: Sigma, s1: Sigma) -> tuple[Sigma, Sigma, Any]:
        """Half the step in tau, the sigma in its middle, and -kappa in units of 2^-20, of the step from s0 to s1."""
        chart = self._chart
        t0, t1 = chart.time(s0), chart.time(s1)
        half, kappa = (t1 - t0) / 2, -self.base.kappa(t1 - t0) * 2**FRACTION
        whole = kappa.round().clamp(min=1).long() if isinstance(kappa, Tensor) else max(round(kappa), 1)
        return half, chart.sigma(t0 + half), whole

    def _slope(self, point: Tensor, sigma: Sigma, dtype: torch.dtype, factor: Any) -> Program[Tensor]:
        """factor * dy/dtau on the lattice."""
        slope = yield from self._chart.slope(self._float(point, dtype), sigma)
        return self._lattice(slope.to(finest_dtype(slope.device)) * factor)

    def _state(self, point: Tensor, slope: Tensor, sigma: Sigma, dtype: torch.dtype) -> State:
        return State(self.shown(_inside(point, self.bits), sigma, dtype), (point, slope))

    def _moved(self, half: Sigma, slope: Tensor) -> Tensor:
        """R(h/2 V). A slope beyond the lattice stays beyond it."""
        values = slope.to(finest_dtype(slope.device))
        return _whole(torch.where(values.abs() < MOST, values * half, values), self.bits)

    def _lattice(self, values: Tensor) -> Tensor:
        return _whole(values.to(finest_dtype(values.device)) * 2.0**self.bits, self.bits)

    def _float(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """y or dy/dtau of numbers on the lattice; NaN beyond it, which the driver finds."""
        values = numbers.to(finest_dtype(numbers.device))
        return (values.where(values.abs() < MOST, torch.nan) * 2.0**-self.bits).to(dtype)

    @property
    def _chart(self) -> Coordinate:
        return self.base.chart


def _times(kappa: Any, slope: Tensor) -> Tensor:
    """R(-kappa / 2^20 * slope), without an intermediate result beyond 64 bits."""
    high, low = slope >> FRACTION, slope & (2**FRACTION - 1)  # kappa <= 2^20: nothing is beyond 64 bits
    product: Tensor = high * kappa + ((low * kappa + 2 ** (FRACTION - 1)) >> FRACTION)
    return -product


def _over(kappa: Any, slope: Tensor, bits: int) -> Tensor:
    """R(slope / (-kappa / 2^20)), likewise."""
    beyond = slope.to(finest_dtype(slope.device)) * (2.0**FRACTION / kappa)  # so large that it would not have 64 bits
    _inside(beyond, bits)
    whole = torch.div(slope, kappa, rounding_mode="floor")
    rest = ((slope - whole * kappa) << (FRACTION + 1)) + kappa
    quotient = (whole << FRACTION) + torch.div(rest, 2 * kappa, rounding_mode="floor")
    return torch.where(beyond.abs() < MOST, -quotient, int(2 * MOST))


def _whole(values: Tensor, bits: int) -> Tensor:
    """`values` rounded to int64. Beyond the lattice: an error on the CPU; elsewhere, without waiting, 2 * MOST."""
    return _inside(values, bits).where(values.abs() < MOST, 2 * MOST).round().long()


def _inside(values: Tensor, bits: int) -> Tensor:
    """`values`, looked at on the CPU. Elsewhere that would wait; what is beyond the lattice is NaN in the end.

    Raises:
        OverflowError: Beyond the lattice; names the samples.
    """
    if values.device.type == "cpu" and not bool((values.abs() < MOST).all()):
        rows = torch.nonzero(~(values.abs() < MOST).flatten(1).all(1)).flatten().tolist()
        raise OverflowError(
            f"samples {rows[:8]} left the lattice, which ends at {2.0 ** (61 - bits):g}: take fewer bits than {bits} "
            "(ods.FixedPoint(bits=32)), more steps, less damping or less guidance"
        )
    return values
