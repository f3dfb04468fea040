"""What samples are conditioned on: class labels (B,), or a dictionary of tensors with one row per sample.

The dictionary is what a text-to-image host takes: ``encoder_hidden_states`` (B, L, D_text) and
``encoder_attention_mask`` (B, L), 1 where a token counts; and, where the model asks for them, ``added_cond_kwargs``, a
dictionary of rows itself: the sizes of the pictures. Captions of other lengths are padded with zeros that the mask
leaves out. SD3 and Flux have ``pooled_projections`` (B, D_pooled) of the prompt as a whole, and no mask: what their
encoders pad a prompt with is read, so all are of one length and nothing is padded here. FLUX.1-dev may be told a
``guidance`` (B,), which is a number that the model reads and no second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

Condition: TypeAlias = "torch.Tensor | Mapping[str, Any]"
TEXT, MASK, SIZES = "encoder_hidden_states", "encoder_attention_mask", "added_cond_kwargs"
POOLED, GUIDANCE = "pooled_projections", "guidance"


def picture_sizes(batch: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """What PixArt-alpha is told of ``batch`` pictures of ``height`` x ``width`` pixels, as diffusers' pipeline tells
    it: ``resolution`` (B, 2) in pixels and ``aspect_ratio`` (B, 1), height over width."""
    return {
        "resolution": torch.tensor([[float(height), float(width)]]).repeat(batch, 1),
        "aspect_ratio": torch.tensor([[height / width]]).repeat(batch, 1),
    }


def each(condition: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same condition with every tensor changed; what is no tensor stays."""
    if isinstance(condition, Mapping):
        return {key: each(value, change) for key, value in condition.items()}
    return change(condition) if isinstance(condition, torch.Tensor) else condition


def lengths(condition: Any) -> set[int]:
    """How many rows its tensors have: one number, where they fit together."""
    if isinstance(condition, Mapping):
        return set().union(*map(lengths, condition.values()))
    return {len(condition)} if isinstance(condition, torch.Tensor) else set()


def count(condition: Condition) -> int:
    """Samples B. Raises ValueError where tensors have other numbers of rows, or there is none."""
    found = lengths(condition)
    if len(found) != 1:
        raise ValueError(f"a condition of {sorted(found) or 'no'} rows: every tensor has one row per sample")
    return found.pop()


def rows(condition: Condition, index: Any) -> Any:
    """The rows at ``index``: a slice, or positions (k,) wherever these are."""
    if isinstance(index, torch.Tensor):
        return each(condition, lambda tensor: tensor[index.to(tensor.device)])
    return each(condition, lambda tensor: tensor[index])


def to(condition: Condition, device: torch.device | str) -> Any:
    """The same condition on ``device``."""
    return each(condition, lambda tensor: tensor.to(device))


def as_row(caption: torch.Tensor | Mapping[str, Any]) -> dict[str, Any]:
    """The condition of one caption: of its states (L, D), or what is a row already."""
    return {TEXT: caption[None]} if isinstance(caption, torch.Tensor) else dict(caption)


def padded(condition: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Text of ``tokens`` tokens or as many as it has, if these are more; masked, whether it had a mask or not.

    With pooled projections there is no mask. Raises ValueError where such a text is shorter: the model would read what
    it were padded with.
    """
    text = condition[TEXT]
    if POOLED in condition:
        if tokens > text.shape[1]:
            raise ValueError(f"prompts of {text.shape[1]} and of {tokens} tokens: without a mask all have one length")
        return dict(condition)
    mask = condition.get(MASK)
    mask = torch.ones(text.shape[:2], dtype=torch.int64, device=text.device) if mask is None else mask
    more = max(0, tokens - text.shape[1])
    return {**condition, TEXT: F.pad(text, (0, 0, 0, more)), MASK: F.pad(mask, (0, more))}


def together(parts: Sequence[Condition]) -> Any:
    """The rows of all parts in turn, texts padded to the longest."""
    if all(isinstance(part, torch.Tensor) for part in parts):
        return torch.cat(list(parts))  # type: ignore[arg-type]
    texts: list[Any] = list(parts)
    longest = max((part[TEXT].shape[1] for part in texts if TEXT in part), default=0)
    texts = [padded(part, longest) if TEXT in part else part for part in texts]
    return {
        key: together([part[key] for part in texts])
        if isinstance(value, (Mapping, torch.Tensor))
        else value  # what is no tensor is the same for all
        for key, value in texts[0].items()
    }


def replaced(condition: Condition, chosen: torch.Tensor, null: Any) -> Any:
    """``null`` in the rows that are ``chosen`` (B,): a class, or a dictionary with one row.

    Of a dictionary what ``null`` lacks stays, such as the picture's size.
    """
    if isinstance(condition, torch.Tensor):
        if not isinstance(null, torch.Tensor):
            return torch.where(chosen.to(condition.device), torch.full_like(condition, null), condition)
        picked = chosen.to(condition.device).view(-1, *[1] * (condition.ndim - 1))
        return torch.where(picked, null.to(condition), condition)
    if TEXT in condition:
        longest = max(condition[TEXT].shape[1], null[TEXT].shape[1])
        condition, null = padded(condition, longest), padded(null, longest)
    return {
        key: replaced(value, chosen, null[key]) if key in null and value is not None else value
        for key, value in condition.items()
    }
