"""Every metric over one set of samples, each figure with its protocol, its interval and its floor.

The reference is what FID compares to (training images); the floor is the same figure for held-out real images of the
same number, which no generator can be expected to beat. The reference defines the figures, and FID takes it as it
is; samples and floor images are both a draw, and intervals say what other draws would have given. KID's holds that of
the reference too.
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
from .recognition import recognition, wilson
from .reference import Reference
from .statistics import Moments

KID_LEAST = 100
"""Samples below which there is no KID: its interval would say nothing."""
NEIGHBOUR = 3
"""Whose distance is the radius of a ball of a manifold, as Kynkäänniemi et al. have it."""
_Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How samples were drawn and judged; figures under different protocols must not be compared.

    labels: how classes were asked for; None where held-out captions were.
    """

    n: int
    sampling: Sampling
    labels: Literal["uniform", "balanced"] | None
    extractor: str
    extractor_label: str
    reference: str
    seed: int

    def describe(self) -> str:
        """One line for a table."""
        asked = "held-out captions" if self.labels is None else f"{self.labels} labels"
        return (
            f"N = {self.n}, {self.sampling.describe()}, {asked}, seed {self.seed}, "
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

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two figures of independent draws, none of them exact: variances add."""
        value = self.value - other.value
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return Estimate(value=value)
        half = ((self.high - self.low) ** 2 + (other.high - other.low) ** 2) ** 0.5 / 2
        return Estimate(value=value, low=value - half, high=value + half)


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
    reference: Features | Reference,
    floor: Features,
    protocol: Protocol,
    *,
    labels: torch.Tensor | None = None,
    bootstraps: int = 100,
) -> Quality:
    """All metrics of ``samples`` against ``reference``, with ``floor`` as held-out real images of the same number.

    Intervals: FID and sFID from the bootstrap's standard error over the samples (its percentiles would be shifted, for
    resampling repeats samples and so raises FID by itself); a figure minus its floor from the bootstraps of both, which
    are drawn apart, for the images have nothing to do with each other; KID, from :data:`KID_LEAST` samples on, from its
    jackknife; ``recognised``, which ``labels``, the asked classes, add, is Wilson's. ``bootstraps=0`` leaves the FID
    without interval: with 2,048 features a round takes seconds.

    Raises:
        ValueError: the number of samples is not that of the protocol, or the floor's differs from it.
    """
    if not len(samples) == len(floor) == protocol.n:
        raise ValueError(
            f"{len(samples)} samples, {len(floor)} floor images and a protocol of {protocol.n}: FID depends on the "
            "number, so the three must be equal"
        )
    reference = reference if isinstance(reference, Reference) else Reference.of(reference)
    figures: dict[str, Estimate] = {}
    floors: dict[str, float] = {}
    for name, pick, target in (("fid", _pool, reference.moments), ("sfid", _spatial, reference.spatial)):
        x, z = pick(samples), pick(floor)
        if x is None or z is None or target is None:
            continue
        figures[name] = _bootstrapped(partial(_fid_of_rows, x, target), len(x), bootstraps)
        real_images = _bootstrapped(partial(_fid_of_rows, z, target), len(z), bootstraps, "bootstrap floor")
        floors[name] = real_images.value
        figures[f"{name}_minus_floor"] = figures[name].minus(real_images)
    rows = min(len(samples), len(reference.pool))
    if rows >= KID_LEAST:
        distance = kid(samples.pool, reference.pool, seed=protocol.seed)
        figures["kid"] = Estimate(value=distance.value, low=distance.low, high=distance.high)
        floors["kid"] = kid(floor.pool, reference.pool, seed=protocol.seed).value
    # Manifolds of unequal size are not comparable, so all are cut to the same number.
    real = reference.pool[:rows]
    pairs = (("", samples.pool[:rows]), ("floor", floor.pool[:rows])) if rows > NEIGHBOUR else ()
    for name, generated in pairs:
        pair = dict(zip(("precision", "recall"), precision_recall(real, generated, k=NEIGHBOUR), strict=True))
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
            low, high = wilson(share, len(labels))
            figures["recognised"] = Estimate(value=share, low=low, high=high)
    return Quality(figures=figures, floors=floors, protocol=protocol)


def paired_fid_difference(
    a: Features, b: Features, reference: Features | Reference, *, bootstraps: int = 100
) -> Estimate:
    """FID of ``a`` minus FID of ``b``, the k-th sample of both being drawn from the same noise and label.

    Both are resampled by the same rows, so what the shared noise does to both cancels in the interval; so does the
    floor, whatever it is.

    Raises:
        ValueError: the numbers of samples differ.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} samples: a paired difference needs the same seeds and number")
    target = (reference if isinstance(reference, Reference) else Reference.of(reference)).moments
    x, y = _pool(a), _pool(b)
    return _bootstrapped(
        lambda rows: fid(Moments.of(x[rows]), target) - fid(Moments.of(y[rows]), target), len(a), bootstraps
    )


def _bootstrapped(statistic: Callable[[np.ndarray], float], n: int, rounds: int, stream: str = "bootstrap") -> Estimate:
    value = statistic(np.arange(n))
    if rounds < 2:
        return Estimate(value=value)
    draws = [torch.randint(0, n, (n,), generator=generator(0, stream, k)).numpy() for k in range(rounds)]
    half = _Z95 * float(np.std([statistic(rows) for rows in draws], ddof=1))
    return Estimate(value=value, low=value - half, high=value + half)


def _fid_of_rows(x: np.ndarray, target: Moments, rows: np.ndarray) -> float:
    return fid(Moments.of(x[rows]), target)


def _pool(features: Features) -> np.ndarray:
    return features.pool.double().numpy()


def _spatial(features: Features) -> np.ndarray | None:
    return None if features.spatial is None else features.spatial.double().numpy()
