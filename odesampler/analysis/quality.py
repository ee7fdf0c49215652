"""Quality: whether samples are spread as real data are, show what they should, and are no copies.

    samples: distance(half of the samples, half B of the data);     real: distance(half A of the data, half B)

Distances of sets are biased, the more the smaller the sets are, so one alone says nothing. Both of these have sets of
the same size, and one of them is what real data get. They are taken again and again for other halves: the spread over
halves is that which the whole sets' distance would have if they were drawn anew, where both sets are equally large; the
halves of unequal ones, of the smaller one's size, are spread wider, so that less is said. What is worse than real data
is said where the two intervals, 5 % to 95 %, do not meet.

References:
    Shao, Wu 1989, A general theory for jackknife variance estimation, Annals of Statistics 17 (halves).
    Meehan, Chaudhuri, Dasgupta 2020, A non-parametric test to detect data-copying, arXiv:2004.05675 (`training`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odesampler.analysis.distances import frechet_distance, sliced_wasserstein
from odesampler.analysis.qualities import Mark, Quality

MOST_FEATURES = 64  # of our own, where none are supplied
SHOWN = 10  # samples beside the real images that they are nearest to
CHUNK = 256  # images that features are taken of at once
COPY = 0.4  # a sample this many median distances from a real image is as good as that image

Array: TypeAlias = NDArray[np.float64]
Pick: TypeAlias = NDArray[np.int64]


def quality(
    samples: Tensor,
    data: Tensor,
    *,
    features: Callable[[Tensor], Any] | None = None,
    labels: Any = None,
    classifier: Any = None,
    data_labels: Any = None,
    training: Tensor | None = None,
    splits: int = 20,
    seed: int = 0,
) -> Quality:
    """How good samples are, each measure beside what real data get.

    Args:
        samples: (n, *shape), such as `sample(...).x`.
        data: Real ones, (m, *shape), best those that the model was not trained on.
        features: Called with batches (n, *shape) of at most 256, returns (n, d), as torch modules do: what the Frechet
            distance and the sliced Wasserstein distance are taken of. By default the values themselves, and for the
            Frechet distance, where there are too many of them, their principal components over `data`.
        labels: What class each sample should be of, (n,); needs `classifier`.
        classifier: Called with a batch, returns labels (n,); or anything with a `predict` that takes arrays
            (n, values), as scikit-learn's do. Needs `labels`.
        data_labels: The classes of `data`, (m,): how often `classifier` is right of real ones.
        training: What the model was trained on, (k, *shape): where copies are looked for, in place of `data`, and
            whether samples are nearer to it than to `data`, more often than real ones are.
        splits: How many halves to draw.
        seed: Of the halves and of the projections.

    Returns:
        A `Quality`.

    Raises:
        ValueError: Sets of other shapes, with NaN, or below 4; labels without a classifier or the other way round;
            features or labels that are not one a sample.

    Examples:
        >>> real = ods.held_out("digits").images
        >>> blurred = torch.nn.functional.avg_pool2d(real[:60], 3, stride=1, padding=1)
        >>> [record["measure"] for record in ods.quality(blurred, real[60:]).records() if record["worse"]]
        ['frechet', 'sliced', 'nearest real', 'nearest other']
    """
    samples, data = _checked(samples, samples, "samples"), _checked(data, samples, "data")
    training = None if training is None else _checked(training, samples, "training")
    if (classifier is None) != (labels is None) or (data_labels is not None and classifier is None):
        raise ValueError("labels and a classifier go together: give both, or neither; data_labels come besides")
    if splits < 2:
        raise ValueError(f"splits must be 2 or more, to have a spread; got {splits}")
    sets = [samples, data] if training is None else [samples, data, training]
    half = min(len(samples), len(data)) // 2
    right = None
    if classifier is not None:
        right = [None if y is None else _right(classifier, x, y) for x, y in ((samples, labels), (data, data_labels))]
    points = [one.flatten(1).numpy() for one in sets]
    supplied = None if features is None else [_features(features, one) for one in (samples, data)]
    narrow = _components(points[0], points[1], half) if supplied is None else supplied
    what = "supplied" if supplied else "pixels" if narrow[0].shape == points[0].shape else "principal components"
    apart = _Apart(points)
    generator, found = np.random.default_rng(seed), []
    for _ in range(splits):
        a_and_b = generator.permutation(len(data))
        s, a, b = generator.permutation(len(samples))[:half], a_and_b[:half], a_and_b[half : 2 * half]
        directions = int(generator.integers(2**31))
        marks = {
            "frechet": [frechet_distance(x, narrow[1][b]) for x in (narrow[0][s], narrow[1][a])],
            "sliced": [
                sliced_wasserstein(x, (supplied or points)[1][b], seed=directions)
                for x in ((supplied or points)[0][s], (supplied or points)[1][a])
            ],
            **apart.marks(s, a, b),
        }
        if right is not None:
            marks["accuracy"] = [
                np.nan if r is None else float(r[i].mean()) for r, i in zip(right, (s, a), strict=True)
            ]
        found.append(marks)
    made = tuple(Mark(name, *(torch.tensor([m[name][i] for m in found]) for i in (0, 1))) for name in found[0])
    pairs = apart.nearest(SHOWN)
    shown, variance = (samples[pairs[0]], data[pairs[1]]), float(narrow[1].var(0, ddof=1).sum())
    return Quality(made, half, narrow[0].shape[1], what, variance, shown, seed, tuple(map(len, sets)))


class _Apart:
    """Distances of single images, all at once, since every split asks for some of them."""

    def __init__(self, points: list[Array]) -> None:
        from scipy.spatial.distance import cdist

        samples, data = points[:2]
        self.to_data, self.of_data, self.of_samples = cdist(samples, data), cdist(data, data), cdist(samples, samples)
        self.to_training = [cdist(x, points[2]).min(1) for x in (samples, data)] if len(points) > 2 else None

    def marks(self, s: Pick, a: Pick, b: Pick) -> Mapping[str, list[float]]:
        """Of the samples `s` and the real images `a`, in this order."""
        to_real = [_least(self.to_data, s, b), _least(self.of_data, a, b)]
        others = [_least(self.of_samples, s, s, own=True), _least(self.of_data, a, a, own=True)]
        medians = {"nearest real": to_real, "nearest other": others}
        found = {name: [float(np.median(d)) for d in both] for name, both in medians.items()}
        if self.to_training is None:  # of all images, not of half of them: a copy of any is one
            real = np.arange(len(self.of_data))
            every = [self.to_data[s].min(1), _least(self.of_data, real, real, own=True)[a]]
            return {**found, "copies": _copies(every)}
        seen = [d[i] for d, i in zip(self.to_training, (s, a), strict=True)]
        nearer = [float((x < y).mean() + (x == y).mean() / 2) for x, y in zip(seen, to_real, strict=True)]
        return {**found, "copies": _copies(seen), "nearer to training": nearer}

    def nearest(self, count: int) -> tuple[Pick, Pick]:
        """The samples nearest to a real image, nearest first, and that image of each."""
        order = self.to_data.min(1).argsort(kind="stable")[:count]
        return order, self.to_data[order].argmin(1)


def _copies(nearest: list[Array]) -> list[float]:
    """Which share of each set is much nearer to another image than real ones, the second set, usually are."""
    near = COPY * np.median(nearest[1])
    return [float((d < near).mean()) for d in nearest]


def _least(distance: Array, rows: Pick, columns: Pick, *, own: bool = False) -> Array:
    """The distance of each of `rows` to the nearest of `columns`; `own`: these are the same, and none its own."""
    chosen = distance[np.ix_(rows, columns)]
    if own:
        np.fill_diagonal(chosen, np.inf)
    least: Array = chosen.min(1)
    return least


def _components(samples: Array, data: Array, half: int) -> list[Array]:
    """As many principal components of the data as sets of `half` bear, twice over; all values where they are fewer."""
    most = max(1, min(MOST_FEATURES, half // 4))
    if data.shape[1] <= max(most, min(MOST_FEATURES, half // 2)):
        return [samples, data]
    centre = data.mean(0)
    axes = np.linalg.svd(data - centre, full_matrices=False)[2][:most].T
    return [(x - centre) @ axes for x in (samples, data)]


def _checked(images: Tensor, like: Tensor, name: str) -> Tensor:
    """In float64 on the CPU."""
    if not isinstance(images, Tensor) or images.ndim < 2 or not images.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor (n, *shape); got {getattr(images, 'shape', images)!r}"
        )
    if images.shape[1:] != like.shape[1:]:
        raise ValueError(f"{name} are of shape {tuple(images.shape[1:])}, the samples of {tuple(like.shape[1:])}")
    if len(images) < 4:
        raise ValueError(f"{name} are {len(images)}: halves of fewer than 4 have no spread; give dozens at least")
    bad = int((~images.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(images)} {name} have NaN or infinity: take those out first")
    return images.detach().to("cpu", torch.float64)


def _features(features: Callable[[Tensor], Any], images: Tensor) -> Array:
    found = []
    for part in torch.split(images.float(), CHUNK):
        with torch.no_grad():
            found.append(_array(features(part)).astype(np.float64))
        if found[-1].ndim != 2 or len(found[-1]) != len(part):
            raise ValueError(f"features must return (n, d) of {len(part)} images; got {found[-1].shape}")
    return np.concatenate(found)


def _array(found: Any) -> NDArray[Any]:
    """What somebody's function returned, from whatever device."""
    return np.asarray(found.detach().cpu() if isinstance(found, Tensor) else found)


def _right(classifier: Any, images: Tensor, labels: Any) -> NDArray[np.bool_]:
    """Which images `classifier` takes for what they should be."""
    wanted = np.asarray(labels)
    if wanted.shape != (len(images),):
        raise ValueError(f"labels must be one an image, ({len(images)},); got {wanted.shape}")
    if hasattr(classifier, "predict"):
        read = classifier.predict(images.float().flatten(1).numpy())
    else:
        with torch.no_grad():
            read = classifier(images.float())
    read = _array(read)
    if read.shape != wanted.shape:
        raise ValueError(f"a classifier must return labels, {wanted.shape}; got {read.shape}: take scores.argmax(1)")
    right: NDArray[np.bool_] = read == wanted
    return right
