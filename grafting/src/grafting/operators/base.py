"""What every operator is: a module with validated options, a reference form, formulas, and a last linear layer."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Grid = Sequence[int]
Weights = tuple[Tensor, Tensor | None]  # weight (out, in) and bias (out,) of a linear layer
QKV = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None]  # wq, bq, wk, bk, wv, bv


class OperatorError(ValueError):
    """A name, size or option that no operator accepts; the message names every problem at once."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of an operator: its default, its test, and in words what is allowed."""

    default: Any
    allowed: str
    valid: Callable[[Any], bool]

    @staticmethod
    def integer(default: int, *, least: int = 1, odd: bool = False) -> Option:
        """A whole number of at least `least`; an odd one where a centred filter asks for it."""
        return Option(
            default=default,
            allowed=f"an {'odd ' if odd else ''}integer of at least {least}",
            valid=lambda v: type(v) is int and v >= least and (not odd or v % 2 == 1),
        )

    @staticmethod
    def positive(default: float) -> Option:
        """A positive finite number."""
        return Option(
            default=default,
            allowed="a positive number",
            valid=lambda v: type(v) in (int, float) and math.isfinite(v) and v > 0,
        )

    @staticmethod
    def choice(default: str, *others: str) -> Option:
        """One of a few names."""
        names = (default, *others)
        return Option(default=default, allowed=" or ".join(names), valid=lambda v: v in names)


def nearest(given: str, allowed: Sequence[str]) -> str:
    """The words that end an error about a misspelt name."""
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}? allowed: {', '.join(allowed)}" if close else "none is allowed"


class Operator(nn.Module):
    """Base of all operators.

    A subclass sets the class variables, makes its layers in `make_layers`, computes `features` and, as its reference,
    `naive`. `forward` is always the last linear layer of the features, so that its weights have a closed-form
    least-squares solution. `count_parameters` and `count_flops` may be replaced by formulas.
    """

    name: ClassVar[str] = ""
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"
    needs_heads: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    option_table: ClassVar[Mapping[str, Option]] = {}
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

    @classmethod
    def resolve(cls, *, width: int, heads: int | None, tokens: int | None, **options: Any) -> dict[str, Any]:
        """The options with their defaults filled in.

        Raises:
            OperatorError: naming all problems at once.
        """
        problems = [
            f"unknown option {given!r} ({nearest(given, list(cls.option_table))})"
            for given in options
            if given not in cls.option_table
        ]
        resolved = {key: options.get(key, option.default) for key, option in cls.option_table.items()}
        for key, option in cls.option_table.items():
            if not option.valid(resolved[key]):
                problems.append(f"{key} is {resolved[key]!r}, must be {option.allowed}")
        for label, value, needed in (
            ("width", width, True),
            ("heads", heads, cls.needs_heads),
            ("tokens", tokens, cls.needs_tokens),
        ):
            if value is None and not needed:
                continue
            if type(value) is not int or value < 1:
                problems.append(f"{label} is {value!r}, must be an integer of at least 1")
        if not problems:
            problems += cls.size_problems(width, heads, resolved)
        if problems:
            raise OperatorError(f"operator {cls.name!r}: " + "; ".join(problems))
        return resolved

    @classmethod
    def size_problems(cls, width: int, heads: int | None, options: Mapping[str, Any]) -> list[str]:
        """Problems of sizes and options that are valid one by one but not together."""
        if cls.needs_heads and heads is not None and width % heads:
            return [f"width {width} is not divisible by heads {heads}"]
        return []

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

    @classmethod
    def parameters_count(cls, width: int, heads: int | None = None, tokens: int | None = None, **options: Any) -> int:
        """Number of trained parameters, without making them.

        Raises:
            OperatorError: as on construction.
        """
        resolved = cls.resolve(width=width, heads=heads, tokens=tokens, **options)
        return cls.count_parameters(width, heads, tokens, resolved)

    @classmethod
    def flops(cls, width: int, heads: int | None, tokens: int, **options: Any) -> int:
        """Floating-point operations of one forward pass of one sample (2 per multiply-add of products and filters).

        Raises:
            OperatorError: as on construction.
        """
        resolved = cls.resolve(width=width, heads=heads, tokens=tokens, **options)
        return cls.count_flops(width, heads, tokens, resolved)

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


@torch.no_grad()
def assign(layer: nn.Linear, weight: Tensor, bias: Tensor | None, rows: slice = slice(None)) -> None:
    """Write weight (and bias, zero where the source has none) into some rows of a linear layer."""
    layer.weight[rows] = weight.to(layer.weight)
    if layer.bias is not None:
        layer.bias[rows] = 0.0 if bias is None else bias.to(layer.bias)
