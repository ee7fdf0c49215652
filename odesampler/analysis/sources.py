"""The report of where the error of a round trip comes from.

dominant = rounding       where it makes a third of the error or more
           tolerance      else, where encoding solved the equations of decoding
           discretisation else
flags                     what should not be as it is: see `ErrorSources.flags`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from odesampler.analysis.errors import quantile, rms
from odesampler.analysis.estimate import Estimate
from odesampler.analysis.growth import Growth
from odesampler.analysis.report import Report, Rows, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDED = 1 / 3  # rounding that makes this part of the error is what makes it
MAGNIFIES = 10.0  # growth on the way down beyond which the model is called badly conditioned
CLEAR = 10.0  # a change of the latent this many times that by rounding tells an order
LATE = 0.5  # an order by this much below the solver's is flagged


class Other(NamedTuple):
    """What another convention brings back."""

    convention: str
    error: Tensor | None  # (batch, *shape); None: it failed
    latent_change: Tensor | None  # (batch, *shape), against the case's own latent, in the model's scale
    evaluations: Tensor | None  # (batch,) both ways
    converged: Tensor | None  # (batch,), where equations were solved
    failure: str = ""


@dataclass(frozen=True, repr=False)
class ErrorSources(Report):
    """What makes the error of one round trip. All tensors of numbers are on the CPU, batch first.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:1]
        >>> found = ods.error_sources(model, images, "alf", 10, conventions=(), iterations=0)
        >>> found.exact, found.dominant, bool((found.error < 1e-10).all())
        (True, 'rounding', True)
    """

    error: Tensor  # (batch, *shape), what came back less the images, in units of the data
    finer: Tensor  # likewise with twice the steps
    # (batch, *shape), the part of `error` that goes away with smaller steps; None: equations were solved to come up
    discretisation: Tensor | None
    latent_change: Tensor  # (batch, *shape), likewise of the latent, in the model's scale
    finer_latent_change: Tensor  # likewise with twice the steps
    latent_rounding: Tensor  # (batch, *shape), by how much a move by a unit in the last place changes the latent
    rounding: Tensor  # (batch, *shape), how much of `error` is chance, by dtypes
    states: Tensor | None  # (batch, *shape), what came back with the state in the other dtype, less what came back
    other_dtype: str
    others: tuple[Other, ...]  # other conventions
    growth: tuple[Growth, Growth] | None  # up and down; None: not measured, for the reason
    why_no_growth: str
    estimate: Estimate | None  # None: there is none, for the reason
    why_no_estimate: str
    grey: float  # what a picture of plain grey misses of the images, rmse
    order: int  # of the solver, along this convention
    exact: bool  # whether the solver can be undone
    dtypes: tuple[str, str]  # of the state, and the coarser of state and network
    how: str  # the case
    settings: str  # what else is not the default in it
    model: str

    @property
    def observed_order(self) -> Tensor:
        """(batch,) at which the error of the latent falls when steps are doubled; NaN where rounding hides it."""
        return _order(self.latent_change, self.finer_latent_change, self.latent_rounding)

    @property
    def trip_order(self) -> Tensor:
        """(batch,) likewise of what does not come back: one more is right where the solver's order is even."""
        return _order(self.error, self.finer, self.rounding)

    @property
    def dominant(self) -> str:
        """What the error is put down to: "rounding" where it makes a third or more; else "tolerance" where equations
        were solved to come up, and missed that; else "discretisation"."""
        if self.exact or _median(self.rounding) >= ROUNDED * _median(self.error):
            return "rounding"
        return "tolerance" if self.discretisation is None else "discretisation"

    @property
    def flags(self) -> tuple[str, ...]:
        """What should not be: "lost": what came back is farther from the images than plain grey; "rounding" makes the
        error; "order": it, or that of the latent, falls more slowly with the steps than is due; "conditioning": the
        model magnifies changes of a latent; "convention": another is twice as good."""
        orders = [o.nanmedian().item() for o in (self.observed_order, self.trip_order)]
        magnified = self.growth is not None and self.growth[1].most.max().item() > MAGNIFIES
        found = {
            "lost": not _median(self.error) <= self.grey,
            "rounding": self.dominant == "rounding" and not self.exact,
            "order": self.dominant == "discretisation" and any(o < self.order - LATE for o in orders),
            "conditioning": magnified,
            "convention": self._better is not None,
        }
        return tuple(name for name, flagged in found.items() if flagged)

    @property
    def _better(self) -> Other | None:
        """The explicit convention that leaves less than half of the error, if there is one."""
        explicit = [o for o in self.others if o.error is not None and o.converged is None]
        best = min(explicit, key=lambda o: _median(_there(o.error)), default=None)
        return best if best is not None and 2 * _median(_there(best.error)) < _median(self.error) else None

    def words(self) -> str:
        """The verdict: what dominates, and what is flagged, with numbers."""
        return " ".join(self._said())

    def _said(self) -> list[str]:
        total, rounding = _median(self.error), _median(self.rounding)
        said = [f"Of the error, {total:.1e} (median rmse), rounding makes {rounding:.1e}"]
        if self.exact:
            said[0] += ": the solver is undone exactly, so rounding is all there is."
        elif self.dominant == "rounding":
            said[0] += f", in {self.dtypes[1]}: more steps do not help, a finer dtype does."
        elif self.discretisation is None:
            said[0] += "; the rest is what the equations that encoding solved may miss: a smaller tolerance helps."
        else:
            order = self.observed_order.nanmedian().item()
            said[0] += (
                f"; the steps make {_median(self.discretisation):.1e}: twice as many leave {_median(self.finer):.1e}"
            )
            told = "hidden by rounding" if math.isnan(order) else f"{order:.1f}"
            said[0] += f". The order of the way up is {told}, where {self.order} is due."
        if "lost" in self.flags:
            said.insert(0, f"The images are lost: plain grey would miss {self.grey:.1e}. Orders say nothing there.")
        if "order" in self.flags:
            said.append("It falls more slowly than it should: too few steps yet, or a wrong coefficient in the solver.")
        if self.growth is not None:
            up, down = (
                f"{'up to' if g.settled[g.most.argmax()] else 'at least'} {g.most.max().item():.1f} times"
                for g in self.growth
            )
            said.append(
                f"A small change of an image grows {up} on its way to the latent, "
                f"one of a latent {down} on its way back"
                + (": the model is badly conditioned there." if "conditioning" in self.flags else ".")
            )
        if self._better is not None:
            left = _median(_there(self._better.error))
            said.append(f"The convention {self._better.convention} leaves half of the error or less, {left:.1e}.")
        if self.estimate is not None:
            at = self.estimate.sigmas[int(self.estimate.arriving.median(1).values.argmax())]
            said.append(f"The step that ends at sigma = {at:.3g} adds most.")
        return said

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Where the error of {self.how} comes from, {self.model}"

    def sections(self) -> Sequence[Section]:
        """The sources; the steps at which the error arises; its growth."""
        rows = [
            (str(r["source"]), f"{r['rmse_median']:.2e}", f"{r['rmse_worst']:.2e}", str(r["note"]))
            for r in self.records()
        ]
        notes = [self.settings] if self.settings else []
        notes += [*self._said(), f"flags: {', '.join(self.flags) or 'none'}"]
        notes += [f"convention {o.convention} failed: {o.failure}" for o in self.others if o.failure]
        if self.estimate is None:
            notes.append(f"not said step by step: {self.why_no_estimate}")
        if self.why_no_growth:
            notes.append(f"growth is not measured: {self.why_no_growth}")
        table = Table(("source", "rmse (median)", "rmse (worst)", "what it is"), rows, notes)
        found = [Section(self.title, "", table, self.plot if self.estimate or self.growth else None)]
        return found if self.estimate is None else [*found, *self.estimate.sections()[:1]]

    def records(self) -> list[dict[str, Any]]:
        """A record for each source; growths are pure numbers, all else in units of the data, or of the latent."""
        order = self.observed_order.nanmedian().item()
        found: list[tuple[str, Tensor, str]] = [("all", rms(self.error), "what did not come back")]
        if self.discretisation is not None and not self.exact:
            note = f"the steps; order of the way up {order:.2f}, where {self.order} is due"
            found.append(("discretisation", rms(self.discretisation), note))
        found += [
            ("twice the steps", rms(self.finer), "what did not come back with them"),
            ("latent", rms(self.latent_change), "error of the latent, by step doubling, in its units"),
            (
                "rounding",
                rms(self.rounding),
                f"state in {self.dtypes[0]}, the coarser of state and network {self.dtypes[1]}",
            ),
        ]
        if self.states is not None:
            found.append((f"state in {self.other_dtype}", rms(self.states), "what comes back otherwise"))
        found += [_convention(o) for o in self.others if o.error is not None]
        if self.growth is not None:
            found += [
                (f"growth {name}", g.most, words if bool(g.settled.all()) else f"{words}; at least")
                for name, g, words in zip(
                    ("up", "down"),
                    self.growth,
                    ("latent / image, worst direction", "image / latent, worst direction"),
                    strict=True,
                )
            ]
        if self.estimate is not None:
            found.append(("estimate", self.estimate.rmse, "of the error, before decoding"))
        return [
            {"source": name, "rmse_median": quantile(values, 0.5), "rmse_worst": values.max().item(), "note": note}
            for name, values, note in found
        ]

    def per_sample(self) -> Rows:
        """The numbers of each image, as a report of its own."""
        columns = {"rmse": rms(self.error), "finer": rms(self.finer), "latent": rms(self.latent_change)}
        if self.discretisation is not None:
            columns |= {"discretisation": rms(self.discretisation), "observed_order": self.observed_order}
        columns |= {"rounding": rms(self.rounding)}
        columns |= {f"convention {o.convention}": rms(o.error) for o in self.others if o.error is not None}
        if self.growth is not None:
            columns |= {"growth_up": self.growth[0].most, "growth_down": self.growth[1].most}
            columns |= {"settled": self.growth[0].settled & self.growth[1].settled}
        if self.estimate is not None:
            columns |= {"estimate": self.estimate.rmse}
        values = zip(*(c.tolist() for c in columns.values()), strict=True)
        rows = [{"sample": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(values)]
        return Rows(f"{self.title}, image by image", rows)

    def plot(self) -> Figure:
        """What each step misses and what of it arrives, and how a small change grows, by sigma."""
        from odesampler.analysis.source_pictures import sources_figure

        return sources_figure(self)


def _convention(other: Other) -> tuple[str, Tensor, str]:
    error, change, evaluations = _there(other.error), _there(other.latent_change), _there(other.evaluations)
    note = f"latent {_median(change):.1e} off this one, {evaluations.double().mean().item():.0f} evaluations"
    if other.converged is not None:
        note += f", {int(other.converged.sum())} of {len(error)} converged"
    return f"convention {other.convention}", rms(error), note


def _order(whole: Tensor, half: Tensor, rounding: Tensor) -> Tensor:
    a, b, least = rms(whole), rms(half), CLEAR * rms(rounding)
    return torch.log2(a / b).where((a > 0) & (b > least), math.nan)


def _there(value: Tensor | None) -> Tensor:
    assert value is not None  # it did not fail
    return value


def _median(difference: Tensor) -> float:
    return quantile(rms(difference), 0.5)
