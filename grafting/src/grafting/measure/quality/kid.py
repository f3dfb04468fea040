"""Kernel inception distance: unbiased squared MMD, kernel (x·y / F + 1)³ (Bińkowski et al. 2018, 1801.01401)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...random import generator
from .statistics import Array

Places = NDArray[np.intp]
GROUPS = 20
"""Parts of both sets that are left out in turn for the interval."""
WHOLE = 4000
"""The largest set whose kernel is computed over all pairs; larger ones fall into blocks."""
BLOCK = 1000


@dataclass(frozen=True, kw_only=True)
class Kid:
    """``value`` with its standard error and its 95 % t interval."""

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


def kid(a: ArrayLike, b: ArrayLike, *, block: int | None = None, seed: int = 0) -> Kid:
    """KID of features (M, F) and (N, F).

    Sets of up to :data:`WHOLE` rows are compared whole, over all pairs, the least noisy unbiased estimate; the interval
    is that of the jackknife over random groups, left out of both sets in turn. Larger ones, and any where ``block`` is
    given, fall into disjoint random blocks: these are independent, so the spread of their values gives an honest
    interval. The usual overlapping subsets would understate it.

    Raises:
        ValueError: widths differ, or too few rows for two groups or two blocks.
    """
    return _interval(*_estimates(a, b, block, seed))


def paired_kid_difference(
    a: ArrayLike, b: ArrayLike, reference: ArrayLike, *, block: int | None = None, seed: int = 0
) -> Kid:
    """KID of ``a`` minus KID of ``b``, the k-th sample of both being drawn from the same noise and label.

    Both fall into the same groups or blocks, so what the shared noise does to both cancels in the interval.

    Raises:
        ValueError: the numbers of samples differ; else as :func:`kid`.
    """
    x, y = np.asarray(a), np.asarray(b)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} samples: a paired difference needs the same seeds and number")
    mine, other = _estimates(x, reference, block, seed), _estimates(y, reference, block, seed)
    return _interval(mine[0] - other[0], mine[1] - other[1])


def _estimates(a: ArrayLike, b: ArrayLike, block: int | None, seed: int) -> tuple[float, Array]:
    """The value, and values as good as independent whose mean and spread are its own: of blocks, or of a jackknife."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features of shapes {x.shape} and {y.shape}: give (M, F) and (N, F)")
    least, most = min(len(x), len(y)), max(len(x), len(y))
    x = x[torch.randperm(len(x), generator=generator(seed, "kid", 0)).numpy()]
    y = y[torch.randperm(len(y), generator=generator(seed, "kid", 1)).numpy()]
    if block is None and most <= WHOLE:
        if least < 4:
            raise ValueError(f"KID of sets of {len(x)} and {len(y)}: an interval needs at least 4 of each")
        return _left_out(x, y, min(GROUPS, least // 2))
    block = min(BLOCK, least // 2) if block is None else block
    blocks = least // block if block > 1 else 0
    if blocks < 2:
        raise ValueError(
            f"KID in blocks of {block}: give sets of at least two blocks of at least 2, not of {len(x)} and {len(y)}"
        )
    parts = [slice(k * block, (k + 1) * block) for k in range(blocks)]
    values = np.array([mmd(x[part], y[part]) for part in parts])
    return float(values.mean()), values


def _left_out(x: Array, y: Array, groups: int) -> tuple[float, Array]:
    """The squared MMD of all, and the jackknife's pseudo-values (Tukey 1958), one per group left out of both sets."""
    cuts = [np.arange(groups) * len(z) // groups for z in (x, y)]
    m, n = (np.diff([*cut, len(z)]) for cut, z in zip(cuts, (x, y), strict=True))

    def sums(kernel: Array, rows: Places, columns: Places) -> Array:
        """(groups, groups): the kernel summed over each pair of groups."""
        return np.add.reduceat(np.add.reduceat(kernel, rows, 0), columns, 1)

    def within(z: Array, cut: Places, size: Places) -> tuple[float, Array]:
        """The mean over pairs of one set, with nothing and with each group left out."""
        kernel = _kernel(z, z)
        pairs = sums(kernel, cut, cut)
        np.fill_diagonal(pairs, pairs.diagonal() - np.add.reduceat(kernel.diagonal(), cut))
        total, left = pairs.sum(), len(z) - size
        without = total - 2 * pairs.sum(0) + pairs.diagonal()
        return float(total / (len(z) * (len(z) - 1))), without / (left * (left - 1))

    across = sums(_kernel(x, y), cuts[0], cuts[1])
    between = across.sum() - across.sum(0) - across.sum(1) + across.diagonal()
    (aa, aa_left), (bb, bb_left) = within(x, cuts[0], m), within(y, cuts[1], n)
    value = float(aa + bb - 2 * across.sum() / (len(x) * len(y)))
    left = aa_left + bb_left - 2 * between / ((len(x) - m) * (len(y) - n))
    return value, groups * value - (groups - 1) * left


def _interval(value: float, values: Array) -> Kid:
    from scipy.stats import t as student

    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    half = float(student.ppf(0.975, len(values) - 1)) * error
    return Kid(value=value, standard_error=error, low=value - half, high=value + half)
