"""Mean, variance, kurtosis and extremes of activations, in one pass, whatever the order and the chunks they come in.

Central moments of parts are merged exactly, as Chan, Golub and LeVeque (1979) do for the variance and Pébay (2008,
Sandia report SAND2008-6212) for higher orders: no power sums, which cancel where the mean is large beside the spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

CHUNK = 1 << 20
"""Elements brought to float64 at a time."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The distribution of ``count`` elements: sums of powers 2 to 4 of deviations from ``mean``, and the extremes."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def of(cls, x: torch.Tensor) -> Spread:
        """Of all elements of a tensor, in float64. Raises ValueError where one is not finite."""
        whole = cls()
        for part in x.detach().flatten().split(CHUNK):
            values = part.double()
            mean = values.mean()
            apart = values - mean
            square = apart.square()
            sums = torch.stack(
                [mean, apart @ apart, apart @ square, square @ square, values.min(), values.max()]
            ).tolist()
            if not all(map(math.isfinite, sums)):
                raise ValueError("activations that are not finite: their moments mean nothing")
            whole = whole + cls(
                count=len(values), mean=sums[0], m2=sums[1], m3=sums[2], m4=sums[3], low=sums[4], high=sums[5]
            )
        return whole

    def __add__(self, other: Spread) -> Spread:
        """Of both together."""
        if not (self.count and other.count):
            return self if self.count else other
        a, b, n = self.count, other.count, self.count + other.count
        d = other.mean - self.mean
        return Spread(
            count=n,
            mean=self.mean + d * b / n,
            m2=self.m2 + other.m2 + d**2 * a * b / n,
            m3=self.m3 + other.m3 + d**3 * a * b * (a - b) / n**2 + 3 * d * (a * other.m2 - b * self.m2) / n,
            m4=self.m4
            + other.m4
            + d**4 * a * b * (a**2 - a * b + b**2) / n**3
            + 6 * d**2 * (a**2 * other.m2 + b**2 * self.m2) / n**2
            + 4 * d * (a * other.m3 - b * self.m3) / n,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
        )

    @property
    def variance(self) -> float:
        """Of the elements as they are, not of a population that they were drawn from."""
        return self.m2 / self.count if self.count else math.nan

    @property
    def skewness(self) -> float:
        """0 where deviations to both sides balance; nan where nothing varies."""
        return self.m3 / self.count / self.variance**1.5 if self.m2 > 0 else math.nan

    @property
    def kurtosis(self) -> float:
        """Excess: 0 for a Gaussian, 3 for a Laplace distribution; nan where nothing varies."""
        return self.m4 / self.count / self.variance**2 - 3 if self.m2 > 0 else math.nan

    @property
    def extreme(self) -> float:
        """The largest deviation from the mean, in standard deviations; nan where nothing varies."""
        if not self.m2 > 0:
            return math.nan
        return max(self.high - self.mean, self.mean - self.low) / math.sqrt(self.variance)


def merged(parts: Iterable[Spread]) -> Spread:
    """Of all parts together."""
    return sum(parts, Spread())
