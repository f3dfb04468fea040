"""Share of samples that an independent classifier recognises as the class that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """``share`` over all samples and ``per_class`` by class index; divide by the share on real images to judge."""

    share: float
    per_class: dict[int, float]


def recognition(logits: torch.Tensor, labels: torch.Tensor) -> Recognition:
    """Top-1 agreement of (N, K) logits with (N,) asked labels.

    Raises:
        ValueError: the lengths differ or are zero.
    """
    if len(logits) != len(labels) or len(labels) == 0:
        raise ValueError(f"{len(logits)} rows of logits and {len(labels)} labels: give one label per row")
    right = (logits.argmax(1) == labels).double()
    classes = {int(c): float(right[labels == c].mean()) for c in labels.unique()}
    return Recognition(share=float(right.mean()), per_class=classes)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``n`` trials (Wilson 1927), which has a width where all or none are right."""
    from scipy.stats import binomtest

    found = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
