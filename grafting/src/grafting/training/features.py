"""What blocks return, matched between student and teacher in stage 2: a closer teacher than the output alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .team import Team

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


def match_features(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], team: Team | None = None
) -> torch.Tensor:
    """Mean over blocks of :func:`unexplained`."""
    return unexplained(student, teacher, team).mean()


def unexplained(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], team: Team | None = None
) -> torch.Tensor:
    """(blocks,) squared distances of the student's (B, N, D) from the teacher's, as shares of the variance that the
    latter have over samples and tokens: what is left unexplained.

    The variance is summed over channels, since some of a deep block's channels hardly vary. team: processes that hold
    rows of one batch; the variance is that of all of them, so that together they find what one would.
    """
    exact = [wanted.double() for wanted in teacher]
    means, squares = [wanted.mean((0, 1)) for wanted in exact], [wanted.square().mean() for wanted in exact]
    if team is not None:
        team.average([*means, *squares])
    shares = []
    for given, wanted, mean, square in zip(student, teacher, means, squares, strict=True):
        spread = (square - mean.square().mean()).clamp(min=1e-12).float()
        shares.append((given.float() - wanted.float()).square().mean() / spread)
    return torch.stack(shares)
