"""What every operator is: a module with validated options, a reference form, formulas, and a last linear layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from grafting.operators.arithmetic import Arithmetic, OperatorError

Grid = Sequence[int]
Weights = tuple[Tensor, Tensor | None]  # weight (out, in) and bias (out,) of a linear layer
QKV = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None]  # wq, bq, wk, bk, wv, bv


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where tokens stand, as rotary positions say it (Su et al. 2021, arXiv 2104.09864): cosines and sines (L + N, C),
    the text's rows first, of which every two channels share an angle."""

    cosines: Tensor
    sines: Tensor

    def of_text(self, x: Tensor) -> Tensor:
        """Queries or keys (B, L, H, C) of the text, turned by their angles."""
        return turned(x, self.cosines[: x.shape[1]], self.sines[: x.shape[1]])

    def of_picture(self, x: Tensor) -> Tensor:
        """The same of the picture's (B, N, H, C)."""
        return turned(x, self.cosines[-x.shape[1] :], self.sines[-x.shape[1] :])


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """x (B, n, H, C or a multiple) with every two channels as a point of the plane, turned by an angle; angles (n, C)
    go round where there are more channels. In float32, as diffusers does it."""
    times = x.shape[-1] // cosines.shape[-1]
    cosines, sines = (t.to(x.device).repeat(1, times)[:, None] for t in (cosines, sines))
    across, up = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (full(x) * cosines + full(torch.stack([-up, across], dim=-1).flatten(-2)) * sines).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Text:
    """Keys and values of text tokens that stand beside the picture's, each (B, L, H, C), and what queries and keys of
    the picture are normed by before they meet them; None where they are not.

    queries: of the text itself, where it asks; of the same shape. places: of the tokens of both, where these are told
    by turning queries and keys; the text's are not turned yet.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor | None = None
    norm_q: nn.Module | None = None
    norm_k: nn.Module | None = None
    places: Places | None = None

    @property  # and not cached, which torch.compile cannot enter: text is short
    def seen(self) -> Tensor:
        """The keys as queries that are placed meet them: turned."""
        return self.keys if self.places is None else self.places.of_text(self.keys)

    @property
    def asked(self) -> Tensor | None:
        """The text's own queries, turned."""
        turns = self.queries is not None and self.places is not None
        return self.places.of_text(self.queries) if turns else self.queries  # type: ignore[union-attr, arg-type]

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, N, H, C) of the picture, normed."""
        return q if self.norm_q is None else self.norm_q(q), k if self.norm_k is None else self.norm_k(k)

    def placed(self, x: Tensor) -> Tensor:
        """Queries or keys (B, N, H, C) of the picture, turned."""
        return x if self.places is None else self.places.of_picture(x)


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
        layer: nn.Linear = getattr(self, self.out_name)  # or an adapter's, which has the same sizes and weight
        return layer

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        """What the last linear layer reads: (B, N, D) → (B, N, F)."""
        raise NotImplementedError

    def lending(self, x: Tensor, *, grid: Grid | None = None) -> tuple[Tensor, Tensor | None]:
        """The features, and, of an operator that lends them, the values (B, N, D) of each token by itself."""
        return self.features(x, grid=grid), None

    def joint(self, x: Tensor, text: Text, *, grid: Grid | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Within joint attention: the features (B, N, F), and the keys and values (B, N, H, C) that text may see of
        tokens x; None of what it has not."""
        features, values = self.lending(x, grid=grid)
        return features, None, None if values is None else values.unflatten(2, (text.keys.shape[2], -1))

    def regression(
        self, x: Tensor, y: Tensor, *, grid: Grid | None, call: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the last layer reads of x (B, N, D), and what it should give where the site gives y.

        call: what else the site was given, of which these operators read nothing.
        """
        return self.features(x, grid=grid), y

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        """The definition written out, slow and plain: the reference for `forward`."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, *, grid: Grid | None = None, context: Tensor | None = None, text: Text | None = None
    ) -> Tensor | tuple[Tensor, Tensor | None, Tensor | None]:
        """Map tokens x (B, N, D) to (B, N, D); beside a `text`, to what `joint` gives, before the last layer.

        `grid` is (height, width) or (time, height, width) of the tokens, needed by two-dimensional operators unless
        the tokens form a square; `context` belongs to hosts with text tokens and is not read by these operators.
        """
        self.check_input(x, grid)
        if text is not None:  # here, and not of its own: what offloads weights brings them for calls of the module
            return self.joint(x, text, grid=grid)
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

    @classmethod
    def start_version(cls, init: str) -> int:
        """Of what the operator begins with by that ``init``, raised wherever that changes: a result that was kept of
        another version is none of this one."""
        return 1

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


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Where products of what is in float32, as ``x`` is or was, stay in it."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


@torch.no_grad()
def assign(layer: nn.Linear, weight: Tensor, bias: Tensor | None, rows: slice = slice(None)) -> None:
    """Write weight (and bias, zero where the source has none) into some rows of a linear layer."""
    layer.weight[rows] = weight.to(layer.weight)
    if layer.bias is not None:
        layer.bias[rows] = 0.0 if bias is None else bias.to(layer.bias)
