"""Precision and recall of generated against real features by k-nearest-neighbour manifolds.

Kynkäänniemi et al. 2019 (arXiv 1904.06991): a set's manifold is the union of balls around its samples that reach to
their k-th neighbour. Precision is the share of samples inside the real manifold, recall the share of real images
inside the samples'.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .statistics import Array

_ROWS = 1024  # of a distance matrix at a time: 10,000 x 10,000 would be 800 MB


def precision_recall(real: ArrayLike, generated: ArrayLike, *, k: int = 3) -> tuple[float, float]:
    """(precision, recall) of features (M, F) and (N, F).

    Raises:
        ValueError: widths differ, or a set has no k-th neighbour.
    """
    x, y = np.asarray(real, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features of shapes {x.shape} and {y.shape}: give (M, F) and (N, F)")
    if k < 1 or min(len(x), len(y)) <= k:
        raise ValueError(f"neighbour {k} of sets of {len(x)} and {len(y)}: k is at least 1 and below both sizes")
    return _covered(y, x, k), _covered(x, y, k)


def _covered(points: Array, centres: Array, k: int) -> float:
    """Share of ``points`` within at least one ball around ``centres``."""
    radii = np.concatenate(
        [
            np.partition(_squared(centres[i : i + _ROWS], centres), k, axis=1)[:, k]
            for i in range(0, len(centres), _ROWS)
        ]
    )  # the 0-th neighbour is the point itself
    inside = [(_squared(points[i : i + _ROWS], centres) <= radii).any(axis=1) for i in range(0, len(points), _ROWS)]
    return float(np.concatenate(inside).mean())


def _squared(a: Array, b: Array) -> Array:
    distances = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.maximum(distances, 0.0)
