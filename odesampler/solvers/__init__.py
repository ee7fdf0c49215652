"""Solvers: one step each, as programs. `external` holds loops of other libraries.

`odesampler.solvers()` lists them all by name: this package and that function share a name, so the package is callable.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from odesampler.solvers.alf import ALF as ALF
from odesampler.solvers.charted import Charted as Charted
from odesampler.solvers.edict import EDICT as EDICT
from odesampler.solvers.exponential import Singlestep as Singlestep
from odesampler.solvers.external import Scipy as Scipy
from odesampler.solvers.external import Torchdiffeq as Torchdiffeq
from odesampler.solvers.fitted import Fitted as Fitted
from odesampler.solvers.fixed_point import FixedPoint as FixedPoint
from odesampler.solvers.multistep import Multistep as Multistep
from odesampler.solvers.reversible import Reversible as Reversible
from odesampler.solvers.reversible_heun import ReversibleHeun as ReversibleHeun
from odesampler.solvers.runge_kutta import RK4 as RK4
from odesampler.solvers.runge_kutta import Bosh3 as Bosh3
from odesampler.solvers.runge_kutta import Dopri5 as Dopri5
from odesampler.solvers.runge_kutta import Euler as Euler
from odesampler.solvers.runge_kutta import Heun as Heun
from odesampler.solvers.runge_kutta import Midpoint as Midpoint
from odesampler.solvers.runge_kutta import Ralston as Ralston
from odesampler.solvers.stochastic import Ancestral as Ancestral
from odesampler.solvers.stochastic import Churn as Churn
from odesampler.solvers.stochastic import StochasticMidpoint as StochasticMidpoint
from odesampler.solvers.two_step import TwoStep as TwoStep

if TYPE_CHECKING:
    from odesampler.registry import SolverList


class _Callable(ModuleType):
    def __call__(self) -> "SolverList":
        from odesampler.registry import solvers

        return solvers()


sys.modules[__name__].__class__ = _Callable
