"""What blocks return, matched between student and teacher in stage 2: a closer teacher than the output alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Pairs = Sequence[tuple[nn.Module, nn.Module]]
"""(student's, teacher's) modules that should return the same; the two may be one module, run in two passes."""


@contextmanager
def returned(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """While open, the list that it gives is filled with what ``modules`` return, (B, N, D) each, in their order.

    Each of them runs once meanwhile, in this order; one that stands twice in ``modules`` runs twice.
    """
    found: list[torch.Tensor] = []

    def keep(_: nn.Module, args: Any, output: Any) -> None:
        found.append(output if isinstance(output, torch.Tensor) else output[0])

    handles = [module.register_forward_hook(keep) for module in dict.fromkeys(modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def match_features(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over blocks of the squared distance of the student's (B, N, D) from the teacher's, as a share of the
    variance that the latter has over samples and tokens: what is left unexplained.

    The variance is summed over channels, since some of a deep block's channels hardly vary.
    """
    shares = []
    for given, wanted in zip(student, teacher, strict=True):
        wanted = wanted.float()
        spread = (wanted - wanted.mean((0, 1))).square().mean()
        shares.append((given.float() - wanted).square().mean() / spread.clamp(min=1e-12))
    return torch.stack(shares).mean()
