"""Problems whose answers are known, and instruments to watch a solver at work."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import odesampler.solvers
from odesampler.exact import Gaussian, GaussianMixture
from odesampler.model import Model
from odesampler.noise import Streams
from odesampler.program import Course, Draw, Program, Solver, State, column
from odesampler.schedule import VE, ContinuousVP
from odesampler.solvers import (
    ALF,
    EDICT,
    RK4,
    Ancestral,
    Charted,
    Churn,
    Dopri5,
    Euler,
    FixedPoint,
    Heun,
    Midpoint,
    Multistep,
    Reversible,
    ReversibleHeun,
    Singlestep,
    StochasticMidpoint,
    TwoStep,
)

HIGH, LOW = 3.0, 0.2  # the range in which all is smooth


def mixture() -> GaussianMixture:
    means = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [-0.2, -1.1]])
    return GaussianMixture(means, torch.tensor([0.3, 0.2, 0.4]), torch.tensor([1.0, 2.0, 1.0]))


def gaussian(variance: float = 0.5) -> Gaussian:
    return Gaussian(torch.tensor([0.5, -1.0]), variance)


def labelled(calls: list[list[float]] | None = None) -> Model:
    """The mixture, whose eps a label shifts; notes the labels of each call."""

    def network(x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        if calls is not None:
            calls.append(label.tolist())
        return mixture()(x_t, t) + label[:, None]

    return Model(network, VE(), null_cond={"label": 0.0}, name="labelled")


def noise(batch: int = 6, *, scale: float = HIGH, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Where solves begin, (batch, 2)."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(batch, 2, generator=generator, dtype=torch.float64)).to(dtype)


def geometric(num_steps: int, high: float = HIGH, low: float = LOW) -> list[float]:
    """Equal steps in log sigma, ends exact."""
    inner = [high * (low / high) ** (i / num_steps) for i in range(1, num_steps)]
    return [high, *inner, low]


def uniform(num_steps: int, high: float = HIGH, low: float = LOW) -> list[float]:
    """Equal steps in sigma, ends exact."""
    return [high, *(high + (low - high) * i / num_steps for i in range(1, num_steps)), low]


def solved_by_scipy(eps: Callable[..., Tensor], x: Tensor, s0: float, s1: float) -> Tensor:
    """`x` at `s0` carried to `s1` by scipy's DOP853 at rounding: a truth that owes nothing to our code."""

    def f(sigma: float, y: Any) -> Any:
        return eps(torch.from_numpy(y.copy()).reshape(x.shape), float(sigma)).flatten().numpy()

    found = solve_ivp(f, (s0, s1), x.flatten().numpy(), method="DOP853", rtol=1e-13, atol=1e-14)
    assert found.success
    return torch.from_numpy(found.y[:, -1].copy()).reshape(x.shape)


@lru_cache
def mixture_ends(batch: int = 6) -> tuple[Tensor, Tensor]:
    """Two ends of the same trajectories of the mixture: at HIGH, and at LOW."""
    return noise(batch), solved_by_scipy(mixture(), noise(batch), HIGH, LOW)


def slope(errors: list[float], steps: list[int]) -> float:
    """Order at which errors fall with the number of steps, from the first to the last."""
    return math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])


class Spy:
    """A model that remembers what it was asked."""

    def __init__(self, eps: Callable[..., Tensor]) -> None:
        self.eps, self.sigmas, self.rows, self.dtypes = eps, [], [], set()

    def __call__(self, x: Tensor, sigma: float | Tensor, **cond: Tensor) -> Tensor:
        self.sigmas += column(sigma, x).flatten().tolist()
        self.rows.append(len(x))
        self.dtypes.add(x.dtype)
        return self.eps(x, sigma, **cond)

    @property
    def calls(self) -> int:
        return len(self.rows)

    def asked_outside(self, low: float, high: float) -> list[float]:
        return [s for s in self.sigmas if not low <= s <= high]


class Float64:
    """torch, for a module of a peer's, where its float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class SameNoise:
    """In place of streams: the same noise for every sample, so that samples may change their rows."""

    def draw(self, like: Tensor, rows: Tensor | None = None, span: Any = None) -> Tensor:
        return torch.full_like(like, 0.3)


def by_hand(program: Program[Any], eps: Callable[..., Tensor], streams: Streams | SameNoise | None = None) -> Any:
    """Answer a program without the driver, which the driver is then compared with."""
    answer = None
    try:
        while True:
            asked = program.send(answer)
            answer = streams.draw(*asked) if isinstance(asked, Draw) else eps(asked[0], asked[1])
    except StopIteration as stop:
        return stop.value


def concrete_solvers() -> list[type[Solver]]:
    """Every solver that the package defines, also in modules that nothing imports."""
    for module in iter_modules(odesampler.solvers.__path__, "odesampler.solvers."):
        import_module(module.name)

    def below(kind: type) -> Iterator[type[Solver]]:
        for sub in kind.__subclasses__():
            if sub.__module__.startswith("odesampler.") and not inspect.isabstract(sub):
                yield sub
            yield from below(sub)

    return sorted(dict.fromkeys(below(Solver)), key=lambda kind: kind.__name__)


def draws_noise(solver: Solver) -> bool:
    """Whether a step of this solver asks for noise, found out by trying."""
    step = solver.step(by_hand(solver.init(noise(1), 1.0), gaussian()), 1.0, 0.5)
    asked = [step.send(None)]
    while True:
        if isinstance(asked[-1], Draw):
            return True
        try:
            asked.append(step.send(torch.zeros(1, 2, dtype=torch.float64)))
        except StopIteration:
            return False


COURSE = Course(ContinuousVP().t, (HIGH, LOW))
VARIANTS = [
    ALF("angle", damping=3.0),
    ALF("data", damping=3.0),
    FixedPoint(ALF("angle", damping=3.0)),
    ALF("asinh", delta=2.0),
    TwoStep("sigma", rule="leapfrog"),
    TwoStep("angle", rule="bdia"),
    TwoStep("data", rule="belm"),
    TwoStep("angle", rule="leapfrog", gamma=0.7),
    Charted(Heun(), "angle"),
    Charted(Dopri5(), "flow_asinh", delta=2.0),
    Charted(Midpoint(), "data"),
    ReversibleHeun("sigma"),
    ReversibleHeun("angle"),
    ReversibleHeun("flow"),
    EDICT(1.0),
    Reversible(Euler()),
    Reversible(RK4(), coordinate="angle"),
    Reversible(Midpoint(), coordinate="data"),
    Reversible(Heun(), 0.9, "sigma"),
    Reversible(Singlestep("flow", (1.0,)), coordinate="sigma"),
    Ancestral(eta=0.0),
    Ancestral(eta=0.5),
    Ancestral(eta=0.5, base=Midpoint()),
    Churn(RK4(), s_churn=5.0, s_tmin=0.5, s_tmax=2.0),
    Churn(s_churn=0.0),
    StochasticMidpoint(eta=0.5),
    Multistep("noise", "sigma", 4, 0, starter=RK4()),
    Multistep("noise", "log_sigma", 3, 0, starter=RK4()),
    Multistep("data", "log_sigma", 3, 4, starter=RK4()),
    Multistep("data", "log_sigma", 2, 2, eta=0.5),
    Multistep("flow", "flow", 4, 3, full_end=True),
    Multistep("v", "t", 1, 2, data_scale=0.5),
    Singlestep("v", (0.5, 2 / 3), "dpm", data_scale=0.5),
    Singlestep("flow", (1.0,)),
    Singlestep("data", (0.25,)),
    Singlestep("noise", (0.5, 0.9)),
]
NAMED = [kind(**arguments) for kind in concrete_solvers() for arguments in kind.names.values()]
SOLVERS: list[Solver] = [
    s.prepared(COURSE) for s in dict.fromkeys([*(kind() for kind in concrete_solvers()), *NAMED, *VARIANTS])
]
DRAWING = [s for s in SOLVERS if draws_noise(s)]
DETERMINISTIC = [s for s in SOLVERS if s not in DRAWING]
BOTH_WAYS = [s for s in DETERMINISTIC if not s.stochastic]


def start(solver: Solver, x: Tensor, sigma: float, eps: Callable[..., Tensor]) -> State:
    """The state in which `solver` starts its first step."""
    return by_hand(solver.init(x, sigma), eps)
