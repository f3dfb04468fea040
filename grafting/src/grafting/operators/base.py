"""What every operator is: a module with validated options, a reference form, formulas, and a last linear layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from grafting.operators.arithmetic import Arithmetic, OperatorError

Grid = Sequence[int]
Weights = tuple[Tensor, Tensor | None]  # weight (out, in) and bias (out,) of a linear layer
QKV = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None]  # wq, bq, wk, bk, wv, bv


@dataclass(frozen=True, kw_only=True)
class Text:
    """Keys and values of text tokens that stand beside the picture's, each (B, L, H, C), and what queries and keys of
    the picture are normed by before they meet them; None where they are not."""

    keys: Tensor
    values: Tensor
    norm_q: nn.Module | None = None
    norm_k: nn.Module | None = None


class Operator(Arithmetic, nn.Module):
    """Base of all operators.

    A subclass sets the class variables, makes its layers in `make_layers`, computes `features` and, as its reference,
    `naive`. `forward` is always the last linear layer of the features, so that its weights have a closed-form
    least-squares solution. `count_parameters`, `count_flops` and `count_features` may be replaced by formulas; the last
    is the width where it is not.
    """

    out_name: ClassVar[str] = "out_proj"

    def __init__(self, *, width: int, heads: int | None = None, tokens: int | None = None, **options: Any) -> None:
        """Make an operator of `width` D; `heads` H and `tokens` N where it needs them.

        Raises:
            OperatorError: every size or option that is not allowed.
        """
        super().__init__()
        self.options = self.resolve(width=width, heads=heads, tokens=tokens, **options)
        self.width = width
        self.heads = heads
        self.tokens = tokens
        self.make_layers()

    def make_layers(self) -> None:
        """Create the layers from `width`, `heads`, `tokens` and `options`."""
        raise NotImplementedError

    @property
    def out_projection(self) -> nn.Linear:
        """The last linear layer."""
        layer = getattr(self, self.out_name)
        assert isinstance(layer, nn.Linear)
        return layer

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        """What the last linear layer reads: (B, N, D) → (B, N, F)."""
        raise NotImplementedError

    def lending(self, x: Tensor, *, grid: Grid | None = None) -> tuple[Tensor, Tensor | None]:
        """The features, and, of an operator that lends them, the values (B, N, D) of each token by itself."""
        return self.features(x, grid=grid), None

    def regression(self, x: Tensor, y: Tensor, *, grid: Grid | None, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the last layer reads of x (B, N, D), and what it should give where the site gives y."""
        return self.features(x, grid=grid), y

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        """The definition written out, slow and plain: the reference for `forward`."""
        raise NotImplementedError

    def forward(self, x: Tensor, *, grid: Grid | None = None, context: Tensor | None = None) -> Tensor:
        """Map tokens x (B, N, D) to (B, N, D).

        `grid` is (height, width) or (time, height, width) of the tokens, needed by two-dimensional operators unless
        the tokens form a square; `context` belongs to hosts with text tokens and is not read by these operators.
        """
        self.check_input(x, grid)
        return self.out_projection(self.features(x, grid=grid))

    def check_input(self, x: Tensor, grid: Grid | None) -> None:
        """Refuse a tensor or grid of the wrong size with one sentence."""
        if x.ndim != 3 or x.shape[2] != self.width:
            raise OperatorError(f"operator {self.name!r}: input is {tuple(x.shape)}, must be (B, N, {self.width})")
        if self.needs_tokens and x.shape[1] != self.tokens:
            raise OperatorError(f"operator {self.name!r} is tied to {self.tokens} tokens but was given {x.shape[1]}")
        if grid is not None and (len(grid) not in (2, 3) or math.prod(grid) != x.shape[1]):
            raise OperatorError(
                f"operator {self.name!r}: grid {tuple(grid)} does not hold {x.shape[1]} tokens; "
                "it must be (height, width) or (time, height, width)"
            )

    def copy_from_attention(self, qkv: QKV, out: Weights) -> bool:
        """Start from an attention layer's projections; returns whether anything was copied."""
        return False

    def copy_from_mlp(self, fc1: Weights, fc2: Weights) -> bool:
        """Start from an MLP's two layers; returns whether anything was copied."""
        return False

    def copy_from_mix_ffn(self, in_proj: Weights, filters: Weights, out_proj: Weights) -> bool:
        """Start from a Mix-FFN's input (2F, D), filters (2F, 1, K, K) and output (D, F); returns whether anything was
        copied."""
        return False

    @classmethod
    def count_parameters(cls, width: int, heads: int | None, tokens: int | None, options: Mapping[str, Any]) -> int:
        """Counted on a shapes-only copy; built-in operators give a formula instead."""
        with torch.device("meta"):
            made = cls(width=width, heads=heads, tokens=tokens, **options)
        return sum(parameter.numel() for parameter in made.parameters())

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        """Counted on a shapes-only copy; built-in operators give a formula instead."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            made = cls(width=width, heads=heads, tokens=tokens, **options)
            x = torch.empty(1, tokens, width)
        with FlopCounterMode(display=False) as counter:
            made(x)
        return counter.get_total_flops()


def full(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def assign(layer: nn.Linear, weight: Tensor, bias: Tensor | None, rows: slice = slice(None)) -> None:
    """Write weight (and bias, zero where the source has none) into some rows of a linear layer."""
    layer.weight[rows] = weight.to(layer.weight)
    if layer.bias is not None:
        layer.bias[rows] = 0.0 if bias is None else bias.to(layer.bias)
