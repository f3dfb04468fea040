"""Inception score: exp of the mean KL from each sample's class probabilities to their mean (Salimans et al. 2016)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def inception_score(logits: ArrayLike) -> float:
    """Score of (N, K) logits, between 1 and K: 1 if all samples look alike, K if all classes are sure and even.

    Over the whole set; the customary split into ten is left to the caller.

    Raises:
        ValueError: not (N, K) with at least one row.
    """
    x = np.asarray(logits, dtype=np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"logits of shape {x.shape}: give (N, K) with at least one row")
    x = x - x.max(axis=1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    log_mean = np.log(np.maximum(mean, np.finfo(np.float64).tiny))
    return float(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))
