"""Conventions: how an image is carried up the grid that its latent will come down.

    source      step(x; s -> s'), the network told the level s that the step starts from: explicit steps upward
    target      the same step, the network told the level mirrored in it, s + s' - sigma: for Euler, s'
    implicit    the w with step(w; s' -> s) = x: the equations that decoding solves (`implicit`)
    exact       the solver's own inverse, where it has one; nothing else makes sense there

References:
    Dhariwal, Nichol 2021, arXiv:2105.05233, appendix F ("source", for Euler). Mokady et al. 2022, Null-text Inversion,
    arXiv:2211.09794, and DDIMInverseScheduler of diffusers ("target", for Euler).
"""

from __future__ import annotations

from dataclasses import fields
from typing import TypeAlias

from odesampler.implicit import Implicit, Implicitly
from odesampler.integrate import BackAlong, Mirrored, OnGrid
from odesampler.names import parsed
from odesampler.program import Invertible, Loop
from odesampler.registry import spec_of

AnyConvention: TypeAlias = "str | Implicit | None"
CONVENTIONS = ("source", "target", "implicit", "exact")


def upward(loop: Loop, convention: AnyConvention) -> tuple[Loop, str]:
    """The loop that carries images up where `loop` carries latents down, and the name of its convention.

    Args:
        loop: The loop that decodes.
        convention: One of the above, also with arguments, "implicit(tolerance=1e-9)", or an `ods.Implicit`. None is
            "exact" where the solver can be undone exactly, else "source".

    Raises:
        ValueError: An unknown convention, or one that does not go with this loop.
    """
    convention = _checked(convention)
    solver = loop.solver if isinstance(loop, OnGrid) else None
    if isinstance(solver, Invertible):
        if convention in (None, "exact"):
            return BackAlong(solver), "exact"
        raise ValueError(
            f"{spec_of(solver)} encodes by undoing its own steps exactly, so convention={str(convention)!r} would only "
            "make it worse: leave it out"
        )
    if convention == "exact":
        raise ValueError(
            f'{spec_of(loop)} has no exact inverse of its own: use an exactly invertible solver such as "reversible"'
        )
    if convention in (None, "source"):
        return loop, "source"
    if solver is None:
        raise ValueError(
            f"convention={str(convention)!r} is about the steps of a grid, and {spec_of(loop)} takes steps of its own "
            'or another library\'s: use one of our solvers with num_steps, or convention="source"'
        )
    if convention == "target":
        return Mirrored(solver), "target"
    assert isinstance(convention, Implicit)
    return Implicitly(solver, convention), str(convention)


def _checked(convention: AnyConvention) -> AnyConvention:
    """A convention that is known; "implicit(tolerance=1e-9)" as what it stands for. Raises as above."""
    if isinstance(convention, str):
        name, arguments = parsed(convention, "convention")
        if name == "implicit":
            takes = {f.name for f in fields(Implicit)}
            if unknown := arguments.keys() - takes:
                raise ValueError(f"implicit takes {', '.join(sorted(takes))}; got {', '.join(sorted(unknown))}")
            return Implicit(**arguments)
    if not isinstance(convention, (Implicit, type(None))) and convention not in CONVENTIONS:
        known = ", ".join(CONVENTIONS)
        raise ValueError(f"convention must be one of {known}, an ods.Implicit, or None; got {convention!r}")
    return convention
