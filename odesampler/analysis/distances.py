"""Distances of two sets of points: of their Gaussian fits, of their projections, of each point to its nearest.

    frechet^2       |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))
    sliced(p = 2)   mean over directions u of the integral over q of |F_a^-1(q) - F_b^-1(q)|^2, F of the values u.x

All take plain arrays and know no model. None means anything alone: put beside it the same between two halves of the
real data, as `ods.quality` does.

References:
    Heusel et al. 2017, arXiv:1706.08500 (with Inception features the Frechet distance is the FID).
    Rabin et al. 2011, Wasserstein barycenter and its application to texture mixing, section 2 (sliced).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

DIRECTIONS = 256


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Frechet distance between Gaussian fits to two sets of features; as the FID it is a squared distance.

    Args:
        a: Features, (n, d), with n well above d: it grows as the sets shrink.
        b: Features, (m, d).

    Returns:
        The distance, in squared units of the features.

    Raises:
        ValueError: The sets are not two-dimensional with equal d.
    """
    a, b = _features(a, b)
    root_a = _root(np.cov(a, rowvar=False))
    cov_b = np.atleast_2d(np.cov(b, rowvar=False))
    # trace((A B)^(1/2)) = trace((A^(1/2) B A^(1/2))^(1/2)), whose argument is symmetric: no complex rounding.
    cross = np.trace(_root(root_a @ cov_b @ root_a))
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(shift @ shift + np.trace(root_a @ root_a) + np.trace(cov_b) - 2 * cross)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root of a symmetric positive semi-definite matrix; eigenvalues below zero are rounding, and dropped."""
    values, vectors = np.linalg.eigh(np.atleast_2d(matrix))
    root: NDArray[np.float64] = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def sliced_wasserstein(a: ArrayLike, b: ArrayLike, *, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """Sliced Wasserstein distance (p = 2): root of the mean square of those along random directions.

    Args:
        a: Points, (n, d).
        b: Points, (m, d); n and m may differ.
        directions: How many, uniform on the sphere.
        seed: Of the directions.

    Returns:
        The distance, in units of the points: |shift| / sqrt(d) for a shift alone, but for the draw of the directions.

    Raises:
        ValueError: The sets are not two-dimensional with equal d.
    """
    a, b = _features(a, b)
    u = np.random.default_rng(seed).standard_normal((a.shape[1], directions))
    u /= np.linalg.norm(u, axis=0)
    # Quantile functions are steps, at i / n and j / m: between two of these edges both are constant.
    edges = np.union1d(np.arange(len(a) + 1) / len(a), np.arange(len(b) + 1) / len(b))
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    quantiles = [np.sort(x @ u, axis=0)[(middles * len(x)).astype(int)] for x in (a, b)]
    return float(np.sqrt((widths @ (quantiles[0] - quantiles[1]) ** 2).mean()))


def nearest_distance(samples: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Euclidean distance from each sample to the nearest member of a reference set.

    Args:
        samples: (n, *shape).
        reference: (m, *shape); must not contain the samples themselves.

    Returns:
        Distances, (n,), in units of the data.
    """
    flat = [np.asarray(x, dtype=np.float64).reshape(len(np.asarray(x)), -1) for x in (samples, reference)]
    distance: NDArray[np.float64] = cKDTree(flat[1]).query(flat[0])[0]
    return distance


def _features(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected features (n, d) and (m, d), got {a.shape} and {b.shape}")
    return a, b
