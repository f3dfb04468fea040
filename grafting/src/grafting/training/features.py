"""What blocks return, matched between student and teacher in stage 2: a closer teacher than the output alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..activations import Read, plain
from .team import Team

Pairs = Sequence[tuple[nn.Module, nn.Module]]
"""(student's, teacher's) modules that should return the same; the two may be one module, run in two passes."""


@contextmanager
def returned(modules: Sequence[nn.Module], read: Read = plain) -> Iterator[list[torch.Tensor]]:
    """While open, the list that it gives is filled with what ``modules`` return, (B, N, D) each, in their order.

    read: what of it is whose; the picture's is taken. Each of them runs once meanwhile, in this order; one that stands
    twice in ``modules`` runs twice.
    """
    found: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(read(module, output)[0])

    handles = [module.register_forward_hook(keep) for module in dict.fromkeys(modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def match_features(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], team: Team | None = None
) -> torch.Tensor:
    """Mean over blocks of the squared distance of the student's (B, N, D) from the teacher's, as a share of the
    variance that the latter has over samples and tokens: what is left unexplained.

    The variance is summed over channels, since some of a deep block's channels hardly vary. team: processes that hold
    rows of one batch; the variance is that of all of them, so that together they find what one would.
    """
    means, squares = list[torch.Tensor](), list[torch.Tensor]()
    for wanted in teacher:  # one at a time: in float64 all would be twice what they are
        exact = wanted.double()
        means.append(exact.mean((0, 1)))
        squares.append(exact.square().mean())
    if team is not None:
        team.average([*means, *squares])
    shares = []
    for given, wanted, mean, square in zip(student, teacher, means, squares, strict=True):
        spread = (square - mean.square().mean()).clamp(min=1e-12).float()
        # The difference in float32, of every block at once, would be what a large model takes most memory for.
        shares.append(checkpoint(_apart, given, wanted, use_reentrant=False) / spread)
    return torch.stack(shares).mean()


def _apart(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (given.float() - wanted.float()).square().mean()


class Unexplained:
    """The same of one block without a gradient, over batches that are added one by one, in float64."""

    def __init__(self) -> None:
        self.count, self.error = 0, 0.0
        self.total: torch.Tensor | float = 0.0
        self.square: torch.Tensor | float = 0.0

    @torch.no_grad()
    def add(self, given: torch.Tensor, wanted: torch.Tensor) -> None:
        """One batch of the student's and the teacher's (B, N, D)."""
        mine, theirs = (x.detach().flatten(0, 1).double().cpu() for x in (given, wanted))
        self.count += len(theirs)
        self.error += (mine - theirs).square().sum().item()
        self.total = self.total + theirs.sum(0)
        self.square = self.square + theirs.square().sum(0)

    @property
    def share(self) -> float:
        """Of all that was added."""
        assert isinstance(self.total, torch.Tensor) and isinstance(self.square, torch.Tensor), "nothing was added"
        spread = (self.square - self.total.square() / self.count).sum().clamp(min=1e-12).item()
        return self.error / spread
