"""Explicit Runge-Kutta methods: one step from k0, k1, ... = eps at stages inside it.

    x1 = x0 + h * sum_i b_i k_i,    k_i = eps(x0 + h * sum_j a_ij k_j, s0 + c_i h)

Stages with c_i = 1 are asked at s1 itself, not at s0 + h, which rounding may put outside the range. Embedded pairs
return the difference of their two solutions as `error`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from odesampler.frames import plus, times
from odesampler.program import Program, Sigma, Solver, State


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's method. With eta = 0 this is DDIM: the same map, in the variables x and sigma.

    Order 1. Evaluations: 1 a step. Error estimate: none. Memory: none. Exactly invertible: no.
    x1 = x0 + h k0, k0 = eps(x0, s0).

    Examples:
        >>> point = torch.tensor([[3.0, 4.0]])
        >>> model = ods.exact.GaussianMixture(point, 0.0).model()  # of one point: eps does not change on the way to it
        >>> ods.sample(model, 1, solver=ods.Euler(), num_steps=1).x.allclose(point, atol=1e-4)
        True

    References:
        Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502, eq. 13.
    """

    summary = "Euler's method; DDIM with eta = 0"
    names: ClassVar = {"ddim": {}}
    order = 1
    evaluations = 1

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        k0 = yield state.x, s0
        return State(plus(state.x, s1 - s0, k0))


@dataclass(frozen=True)
class Midpoint(Solver):
    """The explicit midpoint rule.

    Order 2. Evaluations: 2 a step. Error estimate: none. Memory: none. Exactly invertible: no.
    x1 = x0 + h k1, k0 = eps(x0, s0), k1 = eps(x0 + h/2 k0, s0 + h/2).
    Also called modified Euler. k-diffusion's dpm_2 is this with the middle taken in log sigma.

    Examples:
        >>> step = ods.Midpoint().step(ods.State(torch.ones(1, 1)), 4.0, 1.0)
        >>> x, sigma = next(step)
        >>> x, sigma = step.send(torch.tensor([[0.2]]))  # the answer, k0; then the second question, in the middle
        >>> round(x.item(), 6), sigma
        (0.7, 2.5)

    References:
        Runge 1895, Ueber die numerische Aufloesung von Differentialgleichungen, Math. Ann. 46.
    """

    summary = "explicit midpoint rule"
    order = 2
    evaluations = 2

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        h = s1 - s0
        k0 = yield state.x, s0
        k1 = yield plus(state.x, h / 2, k0), s0 + h / 2
        return State(plus(state.x, h, k1))


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method (explicit trapezoidal rule).

    Order 2. Evaluations: 2 a step. Error estimate: embedded Euler. Memory: none. Exactly invertible: no.
    x1 = x0 + h/2 (k0 + k1), k0 = eps(x0, s0), k1 = eps(x0 + h k0, s1): Euler's point and its error, h/2 (k1 - k0).
    Also called improved Euler; not Heun's third-order method. On a Karras grid: the deterministic sampler of EDM.

    Examples:
        >>> ods.sample(ods.load("digits"), 2, solver=ods.Heun(), num_steps=10).nfe.tolist()  # into 0 by Euler
        [19, 19]
        >>> step = ods.Heun().step(ods.State(torch.ones(1, 1)), 4.0, 1.0)
        >>> x, sigma = next(step)
        >>> x, sigma = step.send(torch.tensor([[0.2]]))  # the answer, k0; then the second question, at the end
        >>> round(x.item(), 6), sigma
        (0.4, 1.0)

    References:
        Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364, Algorithm 1.
    """

    summary = "Heun's method; the sampler of EDM"
    order = 2
    evaluations = 2
    error_order = 1

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        h = s1 - s0
        k0 = yield state.x, s0
        euler = plus(state.x, h, k0)
        k1 = yield euler, s1
        error = times(h / 2, k1 - k0)
        return State(euler + error, error=error)


@dataclass(frozen=True)
class Ralston(Solver):
    """Ralston's method: the two-stage rule with the least bound on its local error.

    Order 2. Evaluations: 2 a step. Error estimate: none. Memory: none. Exactly invertible: no.
    x1 = x0 + h/4 (k0 + 3 k1), k0 = eps(x0, s0), k1 = eps(x0 + 2h/3 k0, s0 + 2h/3).

    Examples:
        >>> step = ods.Ralston().step(ods.State(torch.ones(1, 1)), 4.0, 1.0)
        >>> x, sigma = next(step)
        >>> x, sigma = step.send(torch.tensor([[0.2]]))  # the answer, k0; then the second question, at two thirds
        >>> round(x.item(), 6), round(sigma, 6)
        (0.6, 2.0)

    References:
        Ralston 1962, Runge-Kutta methods with minimum error bounds, Math. Comp. 16, 431.
    """

    summary = "Ralston's two-stage method"
    order = 2
    evaluations = 2

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        h = s1 - s0
        k0 = yield state.x, s0
        k1 = yield plus(state.x, 2 / 3 * h, k0), s0 + 2 / 3 * h
        return State(plus(state.x, h / 4, plus(k0, 3, k1)))


@dataclass(frozen=True)
class RK4(Solver):
    """The classical Runge-Kutta method.

    Order 4. Evaluations: 4 a step. Error estimate: none. Memory: none. Exactly invertible: no.
    x1 = x0 + h/6 (k0 + 2 k1 + 2 k2 + k3), two stages in the middle, one at the end.
    Not torchdiffeq's "rk4", which is Kutta's 3/8 rule.

    Examples:
        >>> data, x = ods.exact.Gaussian(torch.zeros(1), 1.0), torch.tensor([[3.0]], dtype=torch.float64)
        >>> def missed(n):
        ...     how = {"grid": torch.linspace(2, 1, n + 1).tolist(), "state_dtype": torch.float64}
        ...     return ods.sample(data.model(ods.VE()), x=x, solver=ods.RK4(), **how).x - data.trajectory(x, 2.0, 1.0)
        >>> round((missed(4) / missed(8)).item())  # half the step, a sixteenth of the error
        16

    References:
        Kutta 1901, Beitrag zur naeherungsweisen Integration totaler Differentialgleichungen, Z. Math. Phys. 46.
    """

    summary = "the classical Runge-Kutta method"
    order = 4
    evaluations = 4

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        x, h = state.x, s1 - s0
        k0 = yield x, s0
        k1 = yield plus(x, h / 2, k0), s0 + h / 2
        k2 = yield plus(x, h / 2, k1), s0 + h / 2
        k3 = yield plus(x, h, k2), s1
        return State(plus(x, h / 6, plus(k0 + k3, 2, k1 + k2)))


@dataclass(frozen=True)
class Bosh3(Solver):
    """Bogacki and Shampine's pair 3(2); scipy's RK23.

    Order 3. Evaluations: 3 a step, and 1 to start. Error estimate: embedded order 2. Memory: the last eps, which is the
    first of the next step. Exactly invertible: no.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> bosh3 = ods.sample(model, 4, solver=ods.Bosh3(), rtol=1e-2, atol=1e-2)
        >>> dopri5 = ods.sample(model, 4, solver=ods.Dopri5(), rtol=1e-2, atol=1e-2)
        >>> bool(bosh3.nfe.sum() < dopri5.nfe.sum())  # the cheaper one where little is asked for
        True

    References:
        Bogacki, Shampine 1989, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2, 321.
    """

    summary = "Bogacki-Shampine 3(2); RK23"
    names: ClassVar = {"rk23": {}}
    order = 3
    evaluations = 3
    start_evaluations = 1
    error_order = 2
    adaptive = True

    def init(self, x: Tensor, sigma: Sigma) -> Program[State]:
        k0 = yield x, sigma
        return State(x, (k0,))

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        x, (k0,), h = state.x, state.memory, s1 - s0
        k1 = yield plus(x, h / 2, k0), s0 + h / 2
        k2 = yield plus(x, 3 / 4 * h, k1), s0 + 3 / 4 * h
        x1 = plus(x, 2 / 9 * h, _weighted((1, 3 / 2, 2), (k0, k1, k2)))
        k3 = yield x1, s1
        return State(x1, (k3,), error=times(h / 8, _weighted((-5 / 9, 2 / 3, 8 / 9, -1), (k0, k1, k2, k3))))


@dataclass(frozen=True)
class Dopri5(Solver):
    """Dormand and Prince's pair 5(4); scipy's RK45, MATLAB's ode45, torchdiffeq's dopri5.

    Order 5. Evaluations: 6 a step, and 1 to start. Error estimate: embedded order 4. Memory: the last eps, which is the
    first of the next step. Exactly invertible: no.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> coarse = ods.sample(model, 2, solver=ods.Dopri5(), rtol=1e-3, atol=1e-3)
        >>> fine = ods.sample(model, 2, solver=ods.Dopri5(), rtol=1e-6, atol=1e-6)
        >>> bool((coarse.nfe < fine.nfe).all()), bool((coarse.x - fine.x).abs().max() < 1e-2)
        (True, True)

    References:
        Dormand, Prince 1980, A family of embedded Runge-Kutta formulae, J. Comp. Appl. Math. 6, 19.
    """

    summary = "Dormand-Prince 5(4); RK45"
    names: ClassVar = {"rk45": {}}
    order = 5
    evaluations = 6
    start_evaluations = 1
    error_order = 4
    adaptive = True

    def init(self, x: Tensor, sigma: Sigma) -> Program[State]:
        k0 = yield x, sigma
        return State(x, (k0,))

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        x, k, h = state.x, [*state.memory], s1 - s0
        for c, a in _DOPRI5_STAGES:
            k.append((yield plus(x, h, _weighted(a, k)), s1 if c == 1 else s0 + c * h))
        x1 = plus(x, h, _weighted(_DOPRI5_SOLUTION, k))
        k.append((yield x1, s1))
        return State(x1, (k[-1],), error=times(h, _weighted(_DOPRI5_ERROR, k)))


_DOPRI5_STAGES = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
)
_DOPRI5_SOLUTION = (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_DOPRI5_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _weighted(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """sum_i weights_i k_i, one operation a stage that counts."""
    counting = [(w, ki) for w, ki in zip(weights, k, strict=True) if w]
    (first, total), *rest = counting
    total = total if first == 1 else times(first, total)
    for w, ki in rest:
        total = plus(total, w, ki)
    return total
