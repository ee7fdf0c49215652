"""Every trained diffusion or flow model as one ordinary differential equation, dx / dsigma = eps(x, sigma), solved.

    >>> import torch
    >>> import odesampler as ods
    >>> model = ods.load("digits")  # an embedded, really trained model
    >>> images = ods.sample(model, 4, cond={"label": 3}).x  # sigma falls: sampling
    >>> latent = ods.encode(model, images, cond={"label": 3})  # sigma rises: inversion
    >>> back = ods.decode(model, latent).x  # and down again
    >>> bool((back - images).abs().max() < 1e-9)
    True
    >>> found = ods.compare(model, ["ddim", "multistep"], 20, num_samples=4, reference_steps=100)
    >>> found.best(nfe=20).solver  # nearest to the exact solution
    'multistep'
    >>> ods.solvers()  # all of them; ods.grids() likewise
    name ...

Examples in docstrings begin where the two imports have been made. Names are imported when first used, so that
`odesampler --help` answers without waiting for torch.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from odesampler.version import __version__ as __version__

if TYPE_CHECKING:
    from odesampler import adapters as adapters
    from odesampler import exact as exact
    from odesampler import images as images
    from odesampler.adaptive import Adaptive as Adaptive
    from odesampler.adaptive import Status as Status
    from odesampler.analysis.compare import compare as compare
    from odesampler.analysis.comparison import Comparison as Comparison
    from odesampler.analysis.consistency import Consistency as Consistency
    from odesampler.analysis.consistency import consistency as consistency
    from odesampler.analysis.diagnose import Diagnosis as Diagnosis
    from odesampler.analysis.diagnose import diagnose as diagnose
    from odesampler.analysis.error_maps import ErrorMaps as ErrorMaps
    from odesampler.analysis.error_maps import error_maps as error_maps
    from odesampler.analysis.error_sources import error_sources as error_sources
    from odesampler.analysis.estimate import Estimate as Estimate
    from odesampler.analysis.estimate import estimate_round_trip as estimate_round_trip
    from odesampler.analysis.grid_picture import GridPicture as GridPicture
    from odesampler.analysis.grid_picture import grid_picture as grid_picture
    from odesampler.analysis.interpolation_grid import interpolation_grid as interpolation_grid
    from odesampler.analysis.interpolation_grids import InterpolationGrid as InterpolationGrid
    from odesampler.analysis.likelihood import log_likelihood as log_likelihood
    from odesampler.analysis.likelihoods import Likelihood as Likelihood
    from odesampler.analysis.qualities import Quality as Quality
    from odesampler.analysis.quality import quality as quality
    from odesampler.analysis.round_trip import round_trip as round_trip
    from odesampler.analysis.round_trips import RoundTrip as RoundTrip
    from odesampler.analysis.sources import ErrorSources as ErrorSources
    from odesampler.analysis.trajectory_plane import TrajectoryPlane as TrajectoryPlane
    from odesampler.analysis.trajectory_plane import trajectory_plane as trajectory_plane
    from odesampler.captured import Captured as Captured
    from odesampler.captured import capture as capture
    from odesampler.citation import cite as cite
    from odesampler.grid import Grid as Grid
    from odesampler.grid import concatenate as concatenate
    from odesampler.grid import grids as grids
    from odesampler.grid import make_grid as make_grid
    from odesampler.guidance import Guidance as Guidance
    from odesampler.implicit import Implicit as Implicit
    from odesampler.interpolation import interpolate as interpolate
    from odesampler.interpolation import slerp as slerp
    from odesampler.inversion import decode as decode
    from odesampler.inversion import encode as encode
    from odesampler.latent import Latent as Latent
    from odesampler.latent import Recipe as Recipe
    from odesampler.model import Model as Model
    from odesampler.null_inversion import null_text as null_text
    from odesampler.observe import Trajectory as Trajectory
    from odesampler.polishing import polish as polish
    from odesampler.program import Invertible as Invertible
    from odesampler.program import Solver as Solver
    from odesampler.program import State as State
    from odesampler.registry import register as register
    from odesampler.registry import solvers as solvers
    from odesampler.sampling import Solution as Solution
    from odesampler.sampling import sample as sample
    from odesampler.schedule import VE as VE
    from odesampler.schedule import VP as VP
    from odesampler.schedule import ContinuousVP as ContinuousVP
    from odesampler.schedule import RectifiedFlow as RectifiedFlow
    from odesampler.schedule import Schedule as Schedule
    from odesampler.solvers import ALF as ALF
    from odesampler.solvers import EDICT as EDICT
    from odesampler.solvers import RK4 as RK4
    from odesampler.solvers import Ancestral as Ancestral
    from odesampler.solvers import Bosh3 as Bosh3
    from odesampler.solvers import Charted as Charted
    from odesampler.solvers import Churn as Churn
    from odesampler.solvers import Dopri5 as Dopri5
    from odesampler.solvers import Euler as Euler
    from odesampler.solvers import Fitted as Fitted
    from odesampler.solvers import FixedPoint as FixedPoint
    from odesampler.solvers import Heun as Heun
    from odesampler.solvers import Midpoint as Midpoint
    from odesampler.solvers import Multistep as Multistep
    from odesampler.solvers import Ralston as Ralston
    from odesampler.solvers import Reversible as Reversible
    from odesampler.solvers import ReversibleHeun as ReversibleHeun
    from odesampler.solvers import Scipy as Scipy
    from odesampler.solvers import Singlestep as Singlestep
    from odesampler.solvers import StochasticMidpoint as StochasticMidpoint
    from odesampler.solvers import Torchdiffeq as Torchdiffeq
    from odesampler.solvers import TwoStep as TwoStep
    from odesampler.spacing import flow_mu as flow_mu
    from odesampler.streaming.encode_many import encode_many as encode_many
    from odesampler.streaming.sample_many import sample_many as sample_many
    from odesampler.threshold import DynamicThreshold as DynamicThreshold
    from odesampler.tuned import Tuned as Tuned
    from odesampler.tuning.tune import tune as tune
    from odesampler.zoo.models import held_out as held_out
    from odesampler.zoo.models import load as load
    from odesampler.zoo.models import models as models

_MODULES = ("adapters", "exact", "images")
_HOMES = {
    "adaptive": ("Adaptive", "Status"),
    "analysis.compare": ("compare",),
    "analysis.comparison": ("Comparison",),
    "analysis.consistency": ("Consistency", "consistency"),
    "analysis.diagnose": ("Diagnosis", "diagnose"),
    "analysis.error_maps": ("ErrorMaps", "error_maps"),
    "analysis.error_sources": ("error_sources",),
    "analysis.estimate": ("Estimate", "estimate_round_trip"),
    "analysis.grid_picture": ("GridPicture", "grid_picture"),
    "analysis.interpolation_grid": ("interpolation_grid",),
    "analysis.interpolation_grids": ("InterpolationGrid",),
    "analysis.likelihood": ("log_likelihood",),
    "analysis.likelihoods": ("Likelihood",),
    "analysis.qualities": ("Quality",),
    "analysis.quality": ("quality",),
    "analysis.round_trip": ("round_trip",),
    "analysis.round_trips": ("RoundTrip",),
    "analysis.sources": ("ErrorSources",),
    "analysis.trajectory_plane": ("TrajectoryPlane", "trajectory_plane"),
    "tuning.tune": ("tune",),
    "citation": ("cite",),
    "captured": ("Captured", "capture"),
    "grid": ("Grid", "concatenate", "grids", "make_grid"),
    "guidance": ("Guidance",),
    "implicit": ("Implicit",),
    "interpolation": ("interpolate", "slerp"),
    "inversion": ("decode", "encode"),
    "latent": ("Latent", "Recipe"),
    "model": ("Model",),
    "spacing": ("flow_mu",),
    "null_inversion": ("null_text",),
    "observe": ("Trajectory",),
    "polishing": ("polish",),
    "program": ("Invertible", "Solver", "State"),
    "registry": ("register", "solvers"),
    "sampling": ("Solution", "sample"),
    "schedule": ("ContinuousVP", "RectifiedFlow", "Schedule", "VE", "VP"),
    "solvers": (
        "Ancestral",
        "Charted",
        "Churn",
        "Euler",
        "Multistep",
        "Reversible",
        "Singlestep",
        "StochasticMidpoint",
    ),
    "solvers.alf": ("ALF",),
    "solvers.charted": ("Charted",),
    "solvers.edict": ("EDICT",),
    "solvers.fitted": ("Fitted",),
    "solvers.fixed_point": ("FixedPoint",),
    "solvers.reversible_heun": ("ReversibleHeun",),
    "solvers.two_step": ("TwoStep",),
    "solvers.runge_kutta": ("Bosh3", "Dopri5", "Heun", "Midpoint", "RK4", "Ralston"),
    "solvers.external": ("Scipy", "Torchdiffeq"),
    "streaming.encode_many": ("encode_many",),
    "streaming.sample_many": ("sample_many",),
    "threshold": ("DynamicThreshold",),
    "tuned": ("Tuned",),
    "zoo.models": ("held_out", "load", "models"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_MODULES, *_HOME]  # the same names as above; a test compares them


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _import_module(f"odesampler.{name}")
    if name in _HOME:
        return getattr(_import_module(f"odesampler.{_HOME[name]}"), name)
    raise AttributeError(f"module 'odesampler' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
