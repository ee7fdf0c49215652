"""Which class of diffusers a config is of, and which classes can be read.

    saved       its `_class_name`
    in memory   none, but the arguments of its class, in their order, stand before all other keys

Needs diffusers for what only diffusers makes, configs in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

_STABLE = {"beta_start": 0.00085, "beta_end": 0.012}
_LEADING = {"timestep_spacing": "leading"}
_CLIPPED = {**_LEADING, "clip_sample": True}
TABLES: dict[str, dict[str, Any]] = {  # classes with a beta table, with what each takes for what is not said
    "DDPMScheduler": _CLIPPED,
    "DDPMParallelScheduler": _CLIPPED,
    "DDIMScheduler": _CLIPPED,
    "DDIMParallelScheduler": _CLIPPED,
    "DDIMInverseScheduler": _CLIPPED,
    "PNDMScheduler": _LEADING,
    "LMSDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": _STABLE,
    "KDPM2DiscreteScheduler": _STABLE,
    "KDPM2AncestralDiscreteScheduler": _STABLE,
    "DPMSolverMultistepScheduler": {},
    "DPMSolverMultistepInverseScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DPMSolverSDEScheduler": _STABLE,
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "SASolverScheduler": {},
}
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
KNOWN = (*TABLES, *FLOWS, *EDM)
IN_SIGMA = frozenset(  # those after k-diffusion, whose samples are x0 + sigma noise, and whose times need not be whole
    {
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DPMSolverSDEScheduler",
    }
)
APART = frozenset(  # those that lay out one time more, and leave out the last
    {
        "DPMSolverMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "SASolverScheduler",
    }
)
PLAIN = "a table"  # the kind of a mapping that says its betas and no more
_TELLING = {  # of mappings written by hand: the first key that is there
    "sigma_schedule": EDM[0],
    "predictor_order": "SASolverScheduler",
    "solver_order": "DPMSolverMultistepScheduler",
    "beta_schedule": PLAIN,
    "shift": FLOWS[0],
}
_OURS = ("solver", "grid", "rising", "convention")  # keys of an `OdeScheduler`


def facts_of(config: Any, name: str = "scheduler") -> tuple[Mapping[str, Any], str]:
    """A scheduler's configuration as a mapping, and the name of the class that can be read, or `PLAIN`.

    Args:
        config: A scheduler, or its configuration.
        name: What to call it in messages.

    Raises:
        TypeError: Neither a scheduler nor a mapping.
        ValueError: A class that cannot be read, or a mapping that does not say enough, or says what nobody knows.
    """
    if isinstance(config, Mapping):
        given, kinds = config, [str(config.get("_class_name", ""))]
    elif isinstance(getattr(config, "config", None), Mapping):
        given, kinds = config.config, [base.__name__ for base in type(config).__mro__]
    else:
        raise TypeError(f"{name} must be a scheduler of diffusers or its config; got {type(config).__name__}")
    if "config_of" in given and kinds[0] in ("", "OdeScheduler"):  # ours, which say whose config they have
        kinds = [str(given["config_of"])]
    if unnamed := not kinds[0]:
        kinds = [_in_memory(given) or _by_hand(given, name)]
    if kind := next((k for k in kinds if k in (*KNOWN, PLAIN)), ""):
        return given, kind
    said = f"its keys are those of {kinds[0]}, which" if unnamed else f"_class_name={kinds[0]!r}"
    raise ValueError(
        f"{name} config: {said} is not a scheduler of one Gaussian diffusion or flow that can be "
        f"read; give the one that the network was trained with, known are {', '.join(sorted(KNOWN))}"
    )


def _in_memory(given: Mapping[str, Any]) -> str | None:
    """The class whose arguments the keys begin with; of several the longest, which is the most that can be known."""
    keys, arguments = tuple(key for key in given if key[0] != "_"), _arguments()
    found = [kind for kind, names in arguments.items() if len(names) > 1 and keys[: len(names)] == names]
    return max(found, key=lambda kind: (len(arguments[kind]), kind in KNOWN), default=None)


def _by_hand(given: Mapping[str, Any], name: str) -> str:
    """The kind of a mapping of no class; raises `ValueError` if it does not say enough, or too much."""
    kind = next((kind for key, kind in _TELLING.items() if key in given), "")
    if not kind or (kind in TABLES and "beta_schedule" not in given):
        raise ValueError(
            f"{name} config: neither _class_name nor beta_schedule is there, nor sigma_schedule or shift, to say of "
            "what it is: give config_of, the class of diffusers that the network was trained with"
        )
    heard = {key for kind, names in _arguments().items() if kind in KNOWN for key in (*names, *_OURS)}
    if strange := [key for key in given if key[0] != "_" and key not in heard] if heard else []:
        raise ValueError(
            f"{name} config: {strange[0]!r} is a key of no scheduler that can be read, and no _class_name says whose "
            "it is: leave it out if it says nothing of the model, or give config_of, the class of diffusers"
        )
    return kind


@cache
def _arguments() -> dict[str, tuple[str, ...]]:
    """What each scheduler of diffusers takes, in order; nothing where diffusers is not there."""
    try:
        module = import_module("diffusers.schedulers")
    except ImportError:
        return {}
    kinds = {kind: getattr(module, kind) for kind in dir(module) if kind.endswith("Scheduler")}
    return {
        kind: tuple(p.name for p in list(inspect.signature(made.__init__).parameters.values())[1:])
        for kind, made in kinds.items()
        if inspect.isclass(made)
    }
