"""Linear multistep methods: one family, frame x variable x orders x rule.

    predict    x1 = carried * x0 + sum_j weights_j g_j        g at s0 and at `predictor` - 1 earlier sigmas
    correct    the last step anew, as soon as g at its end is known, through that and `corrector` - 1 earlier ones

`frames` says what g is, `weights` how it is integrated. The corrector costs no evaluation: the model is asked at the
predicted point, the point is corrected with the answer, the answer is kept (PEC). Near the start, where less is known,
orders are lower. Adams-Bashforth, DEIS, iPNDM, PLMS, DPM-Solver(++) 2M and 3M, their stochastic forms and UniPC are
settings of this class, listed in its `names`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor

from odesampler.combine import remembering
from odesampler.frames import FRAMES, VARIABLES, DataFrame, Frame, Variable, plus
from odesampler.program import Course, Draw, Program, Sigma, Solver, State
from odesampler.solvers.bases import checked_base
from odesampler.solvers.runge_kutta import RK4, Heun
from odesampler.solvers.stochastic import refuse_rising
from odesampler.solvers.weights import RULES, Weights, combined

MOST_NOISE = 10.0  # beyond, powers of sigma leave the range of floats
_LMS = {"frame": "noise", "variable": "sigma", "predictor": 4, "corrector": 0, "full_end": True}
_PLMS = {"frame": "noise", "predictor": 4, "corrector": 0, "rule": "equal", "starter": Heun(), "full_end": True}


@dataclass(frozen=True)
class Multistep(Solver):
    """A linear multistep method in any frame and variable, with or without a corrector.

    Order: 3 by default; in general min(predictor + 1, corrector), or `predictor` without a corrector, but 2 at most for
    the rules "dpm" and "equal", and, by the first step of order 1, 3 at most with and 2 without a corrector unless a
    `starter` does better; with noise 2 at most, in law, and 1 on a path. Evaluations: 1 a step. Error estimate: none.
    Memory: g at earlier sigmas, and with a corrector what the last step carried. Exactly invertible: no.

    Args:
        frame: What is interpolated: "noise", "data", "v" or "flow" (see `frames`).
        variable: In what: "sigma", "log_sigma", "log1p" (log(1 + sigma / 0.1)), "phi" (arctan sigma), "flow"
            (sigma / (1 + sigma)), or "t", the clock of the model that it is used for.
        predictor: Points through which the explicit formula goes, 1 to 4.
        corrector: Points through which a step is done anew, 0 (never) to 5.
        rule: How the polynomial is integrated: "exact", or as published: "bh1", "bh2", "dpm", "equal" (see `weights`).
        starter: A one-step method for the first steps, as many as its order less one; None begins with order 1.
        full_end: Take the step into sigma = 0 by the formula too, instead of returning the denoised image.
        eta: Strength of the noise that is drawn anew, in the data frame; 0 solves the ODE, 1 is the usual SDE.
        data_scale: Standard deviation of the data, for the v frame.

    Raises:
        ValueError: An unknown frame, variable or rule; orders out of range; what does not go together.

    Examples:
        >>> model = ods.load("digits")
        >>> ods.sample(model, 2, solver=ods.Multistep(), num_steps=10).nfe.tolist()  # correcting is free
        [10, 10]
        >>> solver = ods.Multistep("data", predictor=2, corrector=0, rule="dpm")
        >>> found = ods.sample(model, 2, solver=solver, num_steps=10).x
        >>> found.equal(ods.sample(model, 2, solver="dpmpp_2m", num_steps=10).x)
        True

    References:
        Hairer, Norsett, Wanner 1993, Solving Ordinary Differential Equations I, III.1 and III.5, on variable steps
        (lms, adams_bashforth, v_adams, adams_pc). Zhang, Chen 2023, DEIS, arXiv:2204.13902 (deis, deis_tab, ipndm,
        ipndm_v). Liu et al. 2022, Pseudo Numerical Methods, arXiv:2202.09778 (plms). Lu et al. 2022, DPM-Solver,
        arXiv:2206.00927 (dpm_solver_2m, dpm_solver_3m). Lu et al. 2022, DPM-Solver++, arXiv:2211.01095 (dpmpp_2m,
        dpmpp_3m, dpmpp_2m_sde, dpmpp_3m_sde, dpm_solver_2m, dpm_solver_3m). Xue et al. 2023, SA-Solver,
        arXiv:2309.05019 (sa_solver). Zhao et al. 2023, UniPC, arXiv:2302.04867 (unipc, unipc_bh1, unipc_3).
    """

    frame: str = "flow"
    variable: str = "log_sigma"
    predictor: int = 2
    corrector: int = 3
    rule: str = "exact"
    starter: Solver | None = None
    full_end: bool = False
    eta: float = 0.0
    data_scale: float = 1.0
    clock: Variable | None = field(default=None, repr=False, compare=False)  # of the model, told by `prepared`

    evaluations = 1
    names: ClassVar = {
        "lms": _LMS,
        "ipndm_v": _LMS,
        "adams_bashforth": {**_LMS, "starter": RK4()},
        "ipndm": {"frame": "noise", "predictor": 4, "corrector": 0, "rule": "equal", "full_end": True},
        "plms": _PLMS,
        "pndm": _PLMS,
        "deis": {"frame": "noise", "predictor": 3, "corrector": 0},
        "deis_tab": {"frame": "noise", "variable": "t", "predictor": 3, "corrector": 0},
        "dpm_solver_2m": {"frame": "noise", "corrector": 0, "rule": "dpm"},
        "dpm_solver_3m": {"frame": "noise", "predictor": 3, "corrector": 0, "rule": "dpm"},
        "dpmpp_2m": {"frame": "data", "corrector": 0, "rule": "dpm"},
        "dpmpp_3m": {"frame": "data", "predictor": 3, "corrector": 0, "rule": "dpm"},
        "dpmpp_2m_sde": {"frame": "data", "corrector": 0, "rule": "dpm", "eta": 1.0},
        "dpmpp_3m_sde": {"frame": "data", "predictor": 3, "corrector": 0, "rule": "dpm", "eta": 1.0},
        "sa_solver": {"frame": "data", "corrector": 2, "rule": "bh1", "eta": 1.0},
        "unipc": {"frame": "data", "rule": "bh2"},
        "unipc_bh2": {"frame": "data", "rule": "bh2"},
        "unipc_bh1": {"frame": "data", "rule": "bh1"},
        "unipc_3": {"frame": "data", "predictor": 3, "corrector": 4, "rule": "bh2"},
        "v_adams": {"frame": "v", "variable": "phi", "predictor": 3, "corrector": 0},
        "adams_pc": {"frame": "v", "variable": "phi", "predictor": 4, "corrector": 5},
    }

    def __post_init__(self) -> None:
        for what, known in (("frame", FRAMES), ("variable", {*VARIABLES, "t"}), ("rule", RULES)):
            if getattr(self, what) not in tuple(known):
                raise ValueError(f"{what} must be one of {', '.join(sorted(known))}; got {getattr(self, what)!r}")
        for what, low, high in (("predictor", 1, 4), ("corrector", 0, 5)):
            if type(getattr(self, what)) is not int or not low <= getattr(self, what) <= high:
                raise ValueError(f"{what} must be a whole number from {low} to {high}; got {getattr(self, what)!r}")
        published = self.variable == "log_sigma" and self.frame in ("data", "noise")
        if self.rule in ("bh1", "bh2", "dpm") and not published:
            raise ValueError(f'the rule {self.rule!r} belongs to the frames "data" and "noise" and to log_sigma')
        if self.full_end and self.rule != "equal" and (self.frame == "data" or self.variable in ("log_sigma", "t")):
            raise ValueError("full_end: the data frame, and the variables log_sigma and t, have no end at sigma = 0")
        if not 0 <= self.eta <= MOST_NOISE:
            raise ValueError(f"eta must be from 0 (no noise) to {MOST_NOISE:g}; got {self.eta!r}")
        if self.eta and self.frame != "data":
            raise ValueError(f'noise is drawn in the frame "data" only; got eta={self.eta!r} in {self.frame!r}')
        if not 0 < self.data_scale < math.inf:
            raise ValueError(f"data_scale must be above 0 and finite; got {self.data_scale!r}")
        if self.starter is not None:
            checked_base("starter", self.starter)

    @property
    def summary(self) -> str:  # type: ignore[override]  # a fact of the setting here, not of the class
        corrector = f" + corrector {self.corrector}" if self.corrector else ""
        rule = "" if self.rule == "exact" else f", rule {self.rule}"
        how = f"{self.frame} frame in {self.variable}, order {self.predictor}{corrector}{rule}"
        noise = f", noise of eta {self.eta:g}" if self.eta else ""
        return f"multistep: {how}{noise}" + (f", started by {type(self.starter).__name__}" if self.starter else "")

    @property
    def order(self) -> int:
        formula = min(self.predictor + 1, self.corrector) if self.corrector else self.predictor
        start = (3 if self.corrector else 2) if self.starter is None else self.starter.order + 1
        return min(formula, start, 2 if self.rule in ("dpm", "equal") or self.eta else formula)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]  # likewise
        return self.eta > 0

    @property
    def start_evaluations(self) -> int:  # type: ignore[override]  # likewise
        return self.cost(self._starts) - self._starts

    def cost(self, num_steps: int) -> int:
        extra = 0 if self.starter is None else min(num_steps, self._starts) * (self.starter.evaluations - 1)
        return num_steps + extra

    def prepared(self, course: Course) -> Multistep:
        if self.variable != "t":
            return self

        def clock(sigma: Any) -> Any:
            return course.clock(sigma) if isinstance(sigma, Tensor) else course.clock(torch.as_tensor(sigma)).numpy()

        return replace(self, clock=clock)

    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        if self.starter is not None and len(state.sigmas) < self._starts:
            after, k0 = yield from remembering(self.starter.step(State(state.x), s0, s1))
            return self._kept(after.x, *self._known(state, k0, s0))
        if self.eta:
            refuse_rising(self, s0, s1)
        k0 = yield state.x, s0
        g, sigmas = self._known(state, k0, s0)
        carried = self._frame.carried(s0, s1)
        ahead = self._weights(s0, s1, sigmas[: self.predictor])
        x1 = combined(carried, state.x, _sum(ahead, self._correction(sigmas), carried), g)
        if self.eta:
            z = yield Draw(x1, span=(s0 ** (-2 * self.eta), s1 ** (-2 * self.eta)))
            x1 = plus(x1, DataFrame(self.eta).drawn(s0, s1), z)
        return self._kept(x1, g, sigmas)

    def into_zero(self, state: State, s0: Sigma) -> Program[State]:
        k0 = yield state.x, s0
        g, sigmas = self._known(state, k0, s0)
        carried, correction = self._frame.carried(s0, 0.0), self._correction(sigmas)
        if self.full_end:
            ahead = self._weights(s0, 0.0, sigmas[: self.predictor])
            return State(combined(carried, state.x, _sum(ahead, correction, carried), g))
        return State(combined(1, state.x - s0 * k0, _sum([], correction, carried), g))

    def _known(self, state: State, k0: Tensor, s0: Sigma) -> tuple[tuple[Tensor, ...], tuple[Sigma, ...]]:
        """g at s0 and before, and where that is."""
        return (self._frame.seen(k0, state.x, s0), *state.memory), (s0, *state.sigmas)

    def _correction(self, sigmas: tuple[Sigma, ...]) -> Weights:
        """What each g counts more in the step that led to `sigmas[0]`, now that the first of them is known.

        Corrected x = predicted x + sum_j correction_j g_j: it is added up with the next step, at no operation more.
        """
        if not self.corrector or len(sigmas) - 1 <= self._starts:  # nothing yet, or the starter did better
            return []
        now, before = sigmas[:2]
        predicted = self._weights(before, now, sigmas[1 : 1 + self.predictor])
        return _sum(self._weights(before, now, sigmas[: self.corrector]), [0.0, *predicted], -1.0)

    def _kept(self, x1: Tensor, g: tuple[Tensor, ...], sigmas: tuple[Sigma, ...]) -> State:
        """The state at s1, with as much of the past as later steps look at."""
        keep = max(self.predictor, self.corrector - 1, self._starts + 1) if self.corrector else self.predictor - 1
        return State(x1, g[:keep], sigmas=sigmas[:keep])

    def _weights(self, s0: Sigma, s1: Sigma, points: tuple[Sigma, ...]) -> Weights:
        u = self.clock if self.variable == "t" else VARIABLES[self.variable]
        if u is None:
            raise ValueError('variable="t" needs the clock of a model: use a verb, or Solver.prepared(course)')
        return RULES[self.rule](self._frame, u, s0, s1, points)

    @property
    def _frame(self) -> Frame:
        return FRAMES[self.frame](self.eta, self.data_scale)

    @property
    def _starts(self) -> int:
        """Steps that the starter takes."""
        return 0 if self.starter is None else min(self.starter.order, self.predictor) - 1


def _sum(weights: Weights, others: Weights, factor: Any) -> Weights:
    """weights + factor * others, the shorter filled up with 0."""
    return [w + factor * other for w, other in zip_longest(weights, others, fillvalue=0.0)]
