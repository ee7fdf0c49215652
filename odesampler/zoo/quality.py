"""Two measures of samples against real data.

`frechet_distance` asks whether the samples are spread as the data are; `nearest_distance` whether they are copies.
Both work on plain arrays of features and know no model. Neither means anything alone: put beside it the same measure
between two halves of the real data.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Frechet distance between Gaussian fits to two sets of features.

        |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))

    With Inception features this is the FID; there and here it is a squared distance, and grows as the sets shrink.

    Args:
        a: Features, (n, d), with n well above d.
        b: Features, (m, d).

    Returns:
        The distance, in squared units of the features.

    Raises:
        ValueError: The sets are not two-dimensional with equal d.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected features (n, d) and (m, d), got {a.shape} and {b.shape}")
    root_a = _root(np.cov(a, rowvar=False))
    cov_b = np.cov(b, rowvar=False)
    # trace((A B)^(1/2)) = trace((A^(1/2) B A^(1/2))^(1/2)), whose argument is symmetric: no complex rounding.
    cross = np.trace(_root(root_a @ cov_b @ root_a))
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(shift @ shift + np.trace(root_a @ root_a) + np.trace(cov_b) - 2 * cross)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root of a symmetric positive semi-definite matrix; eigenvalues below zero are rounding, and dropped."""
    values, vectors = np.linalg.eigh(np.atleast_2d(matrix))
    root: NDArray[np.float64] = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


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
