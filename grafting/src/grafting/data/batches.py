"""Batches by step number: no iterator, hence no iterator state to lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..conditions import Condition, count, rows
from ..random import generator
from .shards import Rows


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Shuffled epochs over tensors held in memory, or over rows that are read from files when they are asked for.

    ``batch(step)`` depends on ``seed`` and ``step`` alone. Every epoch visits each of the n samples once; a batch may
    straddle two epochs, so none is dropped.

    inputs: (n, C, H, W) clean images or latents. labels: (n,) int64, or what else samples are conditioned on.
    """

    inputs: torch.Tensor | Rows
    labels: Condition | Rows
    size: int
    seed: int

    def __post_init__(self) -> None:
        labels = len(self.labels) if isinstance(self.labels, Rows) else count(self.labels)
        if len(self.inputs) != labels or len(self.inputs) == 0:
            raise ValueError(f"{len(self.inputs)} inputs and {labels} labels: give one label per input")
        if self.size < 1:
            raise ValueError(f"batch size {self.size}: it must be at least 1")

    def indices(self, step: int) -> torch.Tensor:
        """(size,) positions of the samples that step ``step`` (from 0) sees."""
        n = len(self.inputs)
        first = step * self.size
        picked = []
        for epoch in range(first // n, (first + self.size - 1) // n + 1):
            order = torch.randperm(n, generator=generator(self.seed, "epoch", epoch))
            picked.append(order[max(first - epoch * n, 0) : first + self.size - epoch * n])
        return torch.cat(picked)

    def __call__(self, step: int) -> dict[str, Any]:
        """``{"z": (size, C, H, W), "y": (size,)}`` for step ``step``; y as in :mod:`grafting.conditions`."""
        picked = self.indices(step)
        return {
            "z": self.inputs[picked],
            "y": self.labels[picked] if isinstance(self.labels, Rows) else rows(self.labels, picked),
        }
