"""Analyses: measurements of models and solvers, with tables and pictures."""

from odesampler.analysis.compare import compare as compare
from odesampler.analysis.comparison import Comparison as Comparison
from odesampler.analysis.ddim_table2 import DdimTable2 as DdimTable2
from odesampler.analysis.ddim_table2 import ddim_table2 as ddim_table2
from odesampler.analysis.diagnose import Diagnosis as Diagnosis
from odesampler.analysis.diagnose import diagnose as diagnose
from odesampler.analysis.error_sources import error_sources as error_sources
from odesampler.analysis.estimate import Estimate as Estimate
from odesampler.analysis.estimate import estimate_round_trip as estimate_round_trip
from odesampler.analysis.likelihood import log_likelihood as log_likelihood
from odesampler.analysis.likelihoods import Likelihood as Likelihood
from odesampler.analysis.round_trip import round_trip as round_trip
from odesampler.analysis.round_trips import RoundTrip as RoundTrip
from odesampler.analysis.sources import ErrorSources as ErrorSources
