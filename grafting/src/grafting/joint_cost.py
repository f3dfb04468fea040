"""Parameters and FLOPs of blocks that carry text beside the picture, and of what a site of theirs holds of its original
beside an operator (:mod:`grafting.joint`): by formula, without torch.

Shapes: n tokens of the picture, L of the text, width d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .hosts.shapes import HostShape, kept
from .operators.arithmetic import Arithmetic

Layer = tuple[int, int, int]
"""Inputs, outputs and tokens of a linear layer."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Parameters and FLOPs of a part of a model."""

    parameters: int
    flops: int


def text_ends(shape: HostShape, block: int) -> bool:
    """Whether the text is read in this block, and written no more."""
    return not shape.single and block == shape.depth - 1


def block_flops(shape: HostShape, block: int) -> tuple[int, int, int]:
    """Of attention, the picture's MLP and the rest, of a block in which text goes on. Of a single stream the MLP of
    both, the projection of the output, which is attention's too, and the modulation are rest."""
    n, d, text = shape.tokens, shape.width, shape.context_tokens
    core = 4 * (n + text) ** 2 * d
    if shape.is_single(block):
        return 6 * (n + text) * d * d + core, 0, 18 * (n + text) * d * d + 6 * d * d
    return 8 * (n + text) * d * d + core, 16 * n * d * d, 16 * text * d * d + 24 * d * d


def other_flops(shape: HostShape) -> int:
    """Beside the blocks, the embedding of patches and the last layer: of the second attentions, and of the head's
    modulation, less what the block does without in which text ends."""
    d, text = shape.width, shape.context_tokens
    head = 4 * d * d
    if shape.single:
        return head
    return shape.dual * (second_attention(shape) + 6 * d * d) + head - 18 * text * d * d - 8 * d * d


def second_attention(shape: HostShape) -> int:
    """FLOPs of the second attention of a block that has one, of the picture alone."""
    n, d = shape.tokens, shape.width
    return 8 * n * d * d + 4 * n * n * d


def original(shape: HostShape, block: int) -> Part:
    """Of the attention that a block came with."""
    d, size, (flops, *_) = shape.width, shape.width // shape.heads, block_flops(shape, block)
    if shape.is_single(block):
        return Part(parameters=3 * (d * d + d) + 2 * size, flops=flops)
    ends = text_ends(shape, block)
    parameters = (7 if ends else 8) * (d * d + d) + 4 * shape.normed * size
    return Part(parameters=parameters, flops=flops - (2 * shape.context_tokens * d * d if ends else 0))


def beside(shape: HostShape, block: int, operator: type[Arithmetic] | None, options: Mapping[str, Any]) -> Part:
    """What is there besides ``operator``, of resolved ``options``, which lends the text all, its values or nothing; or
    besides nothing, of the control *none*."""
    n, d, text, heads = shape.tokens, shape.width, shape.context_tokens, shape.heads
    lends = "nothing" if operator is None else operator.lends
    wide = operator is None or operator.count_features(d, options) != d
    last, single = text_ends(shape, block), shape.is_single(block)
    names = kept(lends, wide=wide, last=last, single=single)
    norms = sum(name.startswith("norm") for name in names)
    parameters = (len(names) - norms) * (d * d + d) + norms * (d // heads) * shape.normed
    parameters += heads if lends != "all" else 0
    if single:  # what both share is the operator's, or is kept; the picture's values are not made where these are lent
        products = 3 * text + {"all": 0, "values": 2, "nothing": 3}[lends] * n
    else:
        theirs = sum("add" in name and not name.startswith("norm") for name in names)
        products = theirs * text + (len(names) - norms - theirs) * n
    reading = (operator or Arithmetic).count_text_flops(d, heads, n, text, options)
    flops = 2 * d * d * products + reading + (0 if last else 4 * text * (n + text) * d)
    return Part(parameters=parameters, flops=flops)


def layers(shape: HostShape, block: int, role: str) -> tuple[list[Layer], list[Layer]]:
    """The projections of a ``role`` in a block: those that go where its site gets another operator, and those that
    stay, such as the text's MLP."""
    n, d, text = shape.tokens, shape.width, shape.context_tokens
    hidden, ends = int(shape.mlp_ratio * d), text_ends(shape, block)
    if shape.is_single(block):
        both = n + text
        of_mlp = [(d, hidden, both), (d + hidden, d, both)]
        return {"attn": ([(d, d, both)] * 3, []), "mlp": (of_mlp, [])}.get(role, ([], []))
    if role == "attn":  # in the end text asks nothing
        second = [(d, d, n)] * 4 if block < shape.dual else []
        return [(d, d, n)] * 4 + [(d, d, text)] * (2 if ends else 4), second
    if role == "mlp":
        return [(d, hidden, n), (hidden, d, n)], [] if ends else [(d, hidden, text), (hidden, d, text)]
    return [], []
