"""Qualities found: each measure of the samples, what real data get, and where the two do not meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from odesampler.analysis.errors import quantile
from odesampler.analysis.report import Report, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VALUES = ("samples", "low", "high", "real", "real_low", "real_high")
ENDS = (0.05, 0.95)  # of the intervals
ENOUGH = 2  # images for each feature, below which a Frechet distance is mostly bias
BLIND = 0.5  # of the data's variance: where halves of real data are as far apart, a Frechet distance tells nothing


class _Kind(NamedTuple):
    what: str  # for tables and axes
    worse: int  # 1: more is worse, -1: less is
    said: str  # of what is worse than real data


KINDS = {
    "frechet": _Kind("Frechet distance (squared units of the features)", 1, "mean or spread differs"),
    "sliced": _Kind("sliced Wasserstein distance (units of the features)", 1, "distribution differs"),
    "nearest real": _Kind("distance to nearest real image (units of the data)", 1, "far from all real"),
    "copies": _Kind("share that nearly is one of all real images", 1, "copies"),
    "nearest other": _Kind("distance to nearest other sample (units of the data)", -1, "less varied"),
    "nearer to training": _Kind("share nearer to training than to data", 1, "leans to training"),
    "accuracy": _Kind("share of the class asked for", -1, "wrong classes"),
}


@dataclass(frozen=True, eq=False)
class Mark:
    """One measure, over the halves that were drawn."""

    name: str
    samples: Tensor  # (splits,)
    real: Tensor  # (splits,), of one half of the data against the other; NaN: not known

    @property
    def kind(self) -> _Kind:
        """What it measures."""
        return KINDS[self.name]

    @property
    def interval(self) -> tuple[float, float]:
        """Between which nine tenths of the samples' values are."""
        return quantile(self.samples, ENDS[0]), quantile(self.samples, ENDS[1])

    @property
    def floor(self) -> tuple[float, float]:
        """Likewise of the real data's."""
        return quantile(self.real, ENDS[0]), quantile(self.real, ENDS[1])

    @property
    def bad(self) -> bool:
        """Whether the samples' interval lies wholly on the bad side of the real data's."""
        (low, high), (least, most) = self.interval, self.floor
        return low > most if self.kind.worse > 0 else high < least  # False for NaN


@dataclass(frozen=True, repr=False, eq=False)
class Quality(Report):
    """How good samples are, beside what real data get; prints as a table and draws itself.

    Examples:
        >>> real = ods.held_out("digits").images
        >>> ods.quality(real[:60], real[60:]).doubts()
        []
        >>> ods.quality(0.5 * real[:60], real[60:]).doubts()[0]
        'frechet: mean or spread differs'
    """

    marks: tuple[Mark, ...]
    half: int  # images in each set that was measured
    dimensions: int  # of the features
    features: str  # of what the Frechet distance is
    variance: float  # of these over the data, all together: the Frechet distance of their mean, again and again
    nearest: tuple[Tensor, Tensor]  # (shown, *shape): samples nearest to a real image, and these images
    seed: int  # of the halves
    sizes: tuple[int, ...]  # samples, data, and training images where they were given

    def __getitem__(self, name: str) -> Mark:
        """The mark of that name, such as "frechet"."""
        return next(mark for mark in self.marks if mark.name == name)

    @property
    def too_few(self) -> bool:
        """Whether there are too few images for the Frechet distance: for so many features, or to tell anything."""
        return self.half < ENOUGH * self.dimensions or self._blind

    @property
    def _blind(self) -> bool:
        return self["frechet"].floor[1] > BLIND * self.variance

    def doubts(self) -> list[str]:
        """What speaks against the samples, or against these numbers, a line each."""
        said = [f"{mark.name}: {mark.kind.said}" for mark in self.marks if mark.bad]
        if self._blind:
            said.append(
                f"too few images: real halves of {self.half} have Frechet distances of up to "
                f"{self['frechet'].floor[1]:.2g}, and their mean again and again is at {self.variance:.2g}; give more"
            )
        elif self.too_few:
            said.append(
                f"too few images: a Gaussian fit in {self.dimensions} dimensions needs {ENOUGH * self.dimensions} or "
                f"more, and these halves have {self.half}; give more, or fewer features"
            )
        return said

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Quality of {self.sizes[0]} samples beside {self.sizes[1]} real ones"

    def sections(self) -> Sequence[Section]:
        """A row for each measure; the figure; the samples that are nearest to real images."""
        head = ("measure", "samples", "5 %", "95 %", "real", "real 5 %", "real 95 %", "verdict")
        rows = [
            (
                r["measure"],
                *("-" if r[k] is None else f"{r[k]:.3g}" for k in VALUES),
                self._verdict(mark),
            )
            for r, mark in zip(self.records(), self.marks, strict=True)
        ]
        how = (
            f"{len(self.marks[0].samples)} halves of {self.half} images, seed={self.seed}; Frechet distance of "
            f"{self.dimensions} dimensions, {self.features}; copies are looked for among all real images"
        )
        parts = [
            Section(
                self.title,
                "Each measure of samples against real images, beside the same of real ones: a good sampler meets it.",
                Table(head, rows, [how, *self.doubts()]),
                self.plot,
            )
        ]
        if self.nearest[0].ndim == 4:
            words = (
                "The samples that come nearest to a real image, and that image below each: no copies should be here."
            )
            parts.append(Section("Nearest real images", words, draw=self.plot_nearest))
        return parts

    def _verdict(self, mark: Mark) -> str:
        if mark.bad:
            return mark.kind.said
        if mark.name == "frechet" and self.too_few:
            return "too few images"
        return "-" if bool(mark.real.isnan().any()) else "as real"

    def records(self) -> list[dict[str, Any]]:
        """A record for each measure: the median over the halves, and the interval; of the samples, of real data."""
        made = []
        for mark in self.marks:
            ends = [quantile(mark.samples, 0.5), *mark.interval, quantile(mark.real, 0.5), *mark.floor]
            known = [None if value != value else value for value in ends]
            made.append({"measure": mark.name, **dict(zip(VALUES, known, strict=True)), "worse": mark.bad})
        return made

    def plot(self) -> Figure:
        """Each measure: the interval of the samples, and that of real data."""
        from odesampler.analysis.quality_pictures import quality_figure

        return quality_figure(self)

    def plot_nearest(self) -> Figure:
        """The samples that come nearest to a real image, above that image.

        Raises:
            ValueError: These are no images.
        """
        from odesampler.analysis.quality_pictures import nearest_figure

        if self.nearest[0].ndim != 4:
            raise ValueError(f"only images can be shown, (n, channels, height, width); got {self.nearest[0].shape}")
        return nearest_figure(self)
