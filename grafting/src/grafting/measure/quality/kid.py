"""Kernel inception distance: unbiased squared MMD, kernel (x·y / F + 1)³ (Bińkowski et al. 2018, 1801.01401)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from ...random import generator
from .statistics import Array


@dataclass(frozen=True, kw_only=True)
class Kid:
    """``value``, the mean over blocks, with the standard error and the 95 % interval of that mean."""

    value: float
    standard_error: float
    low: float
    high: float


def mmd(a: Array, b: Array) -> float:
    """Unbiased squared MMD of (M, F) and (N, F); 0 on average for equal distributions, so at times negative."""
    m, n = len(a), len(b)
    aa, bb, ab = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    within_a = (aa.sum() - np.trace(aa)) / (m * (m - 1))
    within_b = (bb.sum() - np.trace(bb)) / (n * (n - 1))
    return float(within_a + within_b - 2 * ab.mean())


def _kernel(a: Array, b: Array) -> Array:
    return (a @ b.T / a.shape[1] + 1) ** 3


def kid(a: ArrayLike, b: ArrayLike, *, block: int = 100, seed: int = 0) -> Kid:
    """KID of features (M, F) and (N, F) over disjoint random blocks of both sets.

    Disjoint blocks are independent, so the spread of their values gives an honest interval (a t interval); the usual
    overlapping subsets would understate it.

    Raises:
        ValueError: widths differ, or fewer than two blocks fit into the smaller set.
    """
    return _interval(_blocks(a, b, block, seed))


def paired_kid_difference(a: ArrayLike, b: ArrayLike, reference: ArrayLike, *, block: int = 100, seed: int = 0) -> Kid:
    """KID of ``a`` minus KID of ``b``, the k-th sample of both being drawn from the same noise and label.

    Both fall into the same blocks, so what the shared noise does to both cancels in the interval.

    Raises:
        ValueError: the numbers of samples differ; else as :func:`kid`.
    """
    x, y = np.asarray(a), np.asarray(b)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} samples: a paired difference needs the same seeds and number")
    return _interval(_blocks(x, reference, block, seed) - _blocks(y, reference, block, seed))


def _blocks(a: ArrayLike, b: ArrayLike, block: int, seed: int) -> Array:
    """Squared MMD of every block."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features of shapes {x.shape} and {y.shape}: give (M, F) and (N, F)")
    blocks = min(len(x), len(y)) // block if block > 1 else 0
    if blocks < 2:
        raise ValueError(
            f"KID in blocks of {block}: give sets of at least two blocks of at least 2, not of {len(x)} and {len(y)}"
        )
    order_x = torch.randperm(len(x), generator=generator(seed, "kid", 0)).numpy()
    order_y = torch.randperm(len(y), generator=generator(seed, "kid", 1)).numpy()
    parts = [slice(k * block, (k + 1) * block) for k in range(blocks)]
    return np.array([mmd(x[order_x[part]], y[order_y[part]]) for part in parts])


def _interval(values: Array) -> Kid:
    from scipy.stats import t as student

    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    half = float(student.ppf(0.975, len(values) - 1)) * error
    value = float(values.mean())
    return Kid(value=value, standard_error=error, low=value - half, high=value + half)
