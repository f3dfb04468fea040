"""Streaming mean and covariance of features, in float64.

Shapes: features (N, F). Chan, Golub & LeVeque 1983 for the pairwise update, which loses no digits to a large mean.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...files import write_bytes_atomic

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean (F,) and scatter (F, F), the sum of outer products of deviations from the mean."""

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features: ArrayLike) -> Moments:
        """Moments of (N, F) features, N >= 1.

        Raises:
            ValueError: not two-dimensional, empty, or not finite.
        """
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or len(x) == 0:
            raise ValueError(f"features of shape {x.shape}: give (N, F) with at least one row")
        if not np.isfinite(x).all():
            raise ValueError(f"{int((~np.isfinite(x)).any(axis=1).sum())} of {len(x)} feature rows are not finite")
        mean = x.mean(axis=0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together, whatever the order.

        Raises:
            ValueError: the feature widths differ.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments of {len(self.mean)} and of {len(other.mean)} features cannot be merged")
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    @property
    def covariance(self) -> Array:
        """(F, F) unbiased covariance.

        Raises:
            ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, not {self.count}")
        return self.scatter / (self.count - 1)

    def save(self, path: Path) -> None:
        """Write an ``.npz`` of three plain arrays, atomically."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, count=np.int64(self.count), mean=self.mean, scatter=self.scatter)
        write_bytes_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what :meth:`save` wrote; pickled arrays are refused."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(int(stored["count"]), stored["mean"], stored["scatter"])
