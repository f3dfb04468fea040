"""Fréchet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500).

sFID (Nash et al. 2021, arXiv 2103.03841) is the same distance over spatial features. Biased upwards at finite N, by
more for smaller N: compare equal N only, and read it beside the floor.
"""

from __future__ import annotations

import numpy as np

from .statistics import Array, Moments


def frechet(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """|mean_a - mean_b|² + tr(cov_a + cov_b - 2 (cov_a cov_b)^½).

    The trace of the root is that of (A^½ B A^½)^½, a symmetric matrix: no complex root, no offset for singular ones.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    crossed = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    root_trace = np.sqrt(np.clip(crossed, 0, None)).sum()
    apart = mean_a - mean_b
    return float(apart @ apart + np.trace(cov_a) + np.trace(cov_b) - 2 * root_trace)


def fid(a: Moments, b: Moments) -> float:
    """Fréchet distance between two sets of features; symmetric, 0 for equal moments.

    Raises:
        ValueError: the widths differ, or a set has fewer than two samples.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of widths {len(a.mean)} and {len(b.mean)} cannot be compared")
    return frechet(a.mean, a.covariance, b.mean, b.covariance)
