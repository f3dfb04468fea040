"""Every metric over one set of samples, each figure with its protocol, its interval and its floor.

The reference is what FID compares to (training images); the floor is the same figure for held-out real images of the
same number, which no generator can be expected to beat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from ...random import generator
from ...sampling import Sampling
from .features import Features
from .fid import fid
from .inception_score import inception_score
from .kid import kid
from .precision_recall import precision_recall
from .recognition import recognition
from .statistics import Moments

_Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How samples were drawn and judged; figures under different protocols must not be compared."""

    n: int
    sampling: Sampling
    labels: Literal["uniform", "balanced"]
    extractor: str
    extractor_label: str
    reference: str
    seed: int

    def describe(self) -> str:
        """One line for a table."""
        return (
            f"N = {self.n}, {self.sampling.describe()}, {self.labels} labels, seed {self.seed}, "
            f"features of {self.extractor} ({self.extractor_label}) against {self.reference}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``results.json``."""
        return asdict(self) | {"text": self.describe()}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    def minus(self, constant: float) -> Estimate:
        """The same interval about another origin."""
        shift = [None if x is None else x - constant for x in (self.low, self.high)]
        return Estimate(value=self.value - constant, low=shift[0], high=shift[1])


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures by name (``fid``, ``fid_minus_floor``, ``sfid``, ``kid`` …), the floors by name, and the protocol."""

    figures: dict[str, Estimate]
    floors: dict[str, float]
    protocol: Protocol

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``results.json``."""
        figures = {name: asdict(figure) for name, figure in self.figures.items()}
        return {"figures": figures, "floors": dict(self.floors), "protocol": self.protocol.to_dict()}


def evaluate(
    samples: Features,
    reference: Features,
    floor: Features,
    protocol: Protocol,
    *,
    labels: torch.Tensor | None = None,
    bootstraps: int = 100,
    kid_block: int = 100,
) -> Quality:
    """All metrics of ``samples`` against ``reference``, with ``floor`` as held-out real images of the same number.

    Intervals: FID and sFID from the bootstrap's standard error over the samples (its percentiles would be shifted, for
    resampling repeats samples and so raises FID by itself); KID from its blocks. ``labels`` are the asked classes and
    add ``recognised``. ``bootstraps=0`` leaves the FID without interval: with 2,048 features a round takes seconds.

    Raises:
        ValueError: the number of samples is not that of the protocol, or the floor's differs from it.
    """
    if not len(samples) == len(floor) == protocol.n:
        raise ValueError(
            f"{len(samples)} samples, {len(floor)} floor images and a protocol of {protocol.n}: FID depends on the "
            "number, so the three must be equal"
        )
    figures: dict[str, Estimate] = {}
    floors: dict[str, float] = {}
    for name, pick in (("fid", _pool), ("sfid", _spatial)):
        x, y, z = pick(samples), pick(reference), pick(floor)
        if x is None or y is None or z is None:
            continue
        target = Moments.of(y)
        figures[name] = _bootstrapped(partial(_fid_of_rows, x, target), len(x), bootstraps)
        floors[name] = fid(Moments.of(z), target)
        figures[f"{name}_minus_floor"] = figures[name].minus(floors[name])
    if min(len(samples), len(reference)) >= 2 * kid_block:
        distance = kid(samples.pool, reference.pool, block=kid_block, seed=protocol.seed)
        figures["kid"] = Estimate(value=distance.value, low=distance.low, high=distance.high)
        floors["kid"] = kid(floor.pool, reference.pool, block=kid_block, seed=protocol.seed).value
    # Manifolds of unequal size are not comparable, so the reference is cut to N.
    real = reference.pool[: len(samples)]
    for name, generated in (("", samples.pool), ("floor", floor.pool)):
        pair = dict(zip(("precision", "recall"), precision_recall(real, generated), strict=True))
        if name:
            floors |= pair
        else:
            figures |= {key: Estimate(value=value) for key, value in pair.items()}
    if samples.logits is not None:
        figures["inception_score"] = Estimate(value=inception_score(samples.logits))
        if floor.logits is not None:
            floors["inception_score"] = inception_score(floor.logits)
        if labels is not None:
            share = recognition(samples.logits, labels).share
            half = _Z95 * (share * (1 - share) / len(labels)) ** 0.5
            figures["recognised"] = Estimate(value=share, low=max(share - half, 0.0), high=min(share + half, 1.0))
    return Quality(figures=figures, floors=floors, protocol=protocol)


def paired_fid_difference(a: Features, b: Features, reference: Features, *, bootstraps: int = 100) -> Estimate:
    """FID of ``a`` minus FID of ``b``, the k-th sample of both being drawn from the same noise and label.

    Both are resampled by the same rows, so what the shared noise does to both cancels in the interval.

    Raises:
        ValueError: the numbers of samples differ.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} samples: a paired difference needs the same seeds and number")
    target, x, y = Moments.of(reference.pool), _pool(a), _pool(b)
    return _bootstrapped(
        lambda rows: fid(Moments.of(x[rows]), target) - fid(Moments.of(y[rows]), target), len(a), bootstraps
    )


def _bootstrapped(statistic: Callable[[np.ndarray], float], n: int, rounds: int) -> Estimate:
    value = statistic(np.arange(n))
    if rounds < 2:
        return Estimate(value=value)
    draws = [torch.randint(0, n, (n,), generator=generator(0, "bootstrap", k)).numpy() for k in range(rounds)]
    half = _Z95 * float(np.std([statistic(rows) for rows in draws], ddof=1))
    return Estimate(value=value, low=value - half, high=value + half)


def _fid_of_rows(x: np.ndarray, target: Moments, rows: np.ndarray) -> float:
    return fid(Moments.of(x[rows]), target)


def _pool(features: Features) -> np.ndarray:
    return features.pool.double().numpy()


def _spatial(features: Features) -> np.ndarray | None:
    return None if features.spatial is None else features.spatial.double().numpy()
