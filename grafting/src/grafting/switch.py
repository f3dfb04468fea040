"""What stands at a grafted site: the pretrained module and its stand-in, one of which runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .operators import Operator


class Nothing(nn.Module):
    """The control *none*: the site's output is zero."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Zeros of the input's shape (B, N, D), still on the graph of the input."""
        return hidden_states * 0


class Switch(nn.Module):
    """A site that holds the original and its stand-in, and runs one of them.

    original: the pretrained module, never copied; None once the student has its own copy of the model.
    operator: an :class:`~grafting.operators.Operator`, or a control that is called as the original is.
    """

    def __init__(self, original: nn.Module | None, operator: nn.Module, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.original = original
        self.operator = operator
        self.grid = grid
        self.grafted = True

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, N, D) to (B, N, D) through the chosen side; further arguments reach modules of the host's own kind."""
        if not self.grafted:
            assert self.original is not None
            result: torch.Tensor = self.original(hidden_states, *args, **kwargs)
            return result
        return self.stand_in(hidden_states, *args, **kwargs)

    def stand_in(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The new operator's output, whatever the switch says."""
        if isinstance(self.operator, Operator):
            # Another size than the model's own has another grid, which square hosts need not be told.
            height, width = self.grid[-2:]
            grid = self.grid if height * width == hidden_states.shape[1] else None
            result: torch.Tensor = self.operator(hidden_states, grid=grid)
        else:
            result = self.operator(hidden_states, *args, **kwargs)
        return result
