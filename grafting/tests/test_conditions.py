"""Conditions as rows: labels or dictionaries, taken apart, joined and dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grafting.conditions import MASK, TEXT, count, padded, replaced, rows, together
from grafting.diffusion import drop_labels


def text(*kept: int, tokens: int = 4) -> dict[str, Any]:
    """Captions of so many tokens, row by row."""
    source = torch.Generator().manual_seed(len(kept))
    mask = torch.stack([(torch.arange(tokens) < n).long() for n in kept])
    return {TEXT: torch.randn(len(kept), tokens, 3, generator=source), MASK: mask}


def test_rows_of_every_tensor_nested_ones_too() -> None:
    sized = text(1, 2, 3) | {"added_cond_kwargs": {"resolution": torch.arange(6.0).view(3, 2), "aspect_ratio": None}}
    assert count(sized) == 3 and count(torch.arange(5)) == 5
    picked = rows(sized, torch.tensor([2, 0, 2]))
    assert torch.equal(picked[TEXT], sized[TEXT][[2, 0, 2]]) and picked[MASK].sum(1).tolist() == [3, 1, 3]
    assert picked["added_cond_kwargs"]["resolution"].tolist() == [[4, 5], [0, 1], [4, 5]]
    assert picked["added_cond_kwargs"]["aspect_ratio"] is None
    with pytest.raises(ValueError, match=r"\[2, 3\] rows"):
        count({TEXT: torch.zeros(3, 1, 1), MASK: torch.zeros(2, 1)})


def test_joined_texts_are_padded_and_masked() -> None:
    short, long = text(2, 1, tokens=2), text(4)
    del long[MASK]
    joined = together([short, long])
    assert joined[TEXT].shape == (3, 4, 3) and joined[MASK].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert torch.equal(joined[TEXT][:2, :2], short[TEXT]) and not joined[TEXT][:2, 2:].any()
    assert torch.equal(together([torch.tensor([1]), torch.tensor([2, 3])]), torch.tensor([1, 2, 3]))
    assert padded(long, 3)[TEXT].shape == (1, 4, 3), "nothing is cut"


def test_dropped_captions_are_the_empty_prompt_by_the_counter_of_labels() -> None:
    captions, empty = text(*[3] * 200), text(1, tokens=6)
    dropped = drop_labels(captions, 0.3, empty, 0, 7)
    gone = drop_labels(torch.zeros(200, dtype=torch.long), 0.3, 1, 0, 7).bool()
    assert 30 < gone.sum() < 90 and dropped[TEXT].shape == (200, 6, 3)
    assert torch.equal(dropped[TEXT][gone], empty[TEXT].expand(int(gone.sum()), 6, 3))
    assert torch.equal(dropped[TEXT][~gone][:, :4], captions[TEXT][~gone]) and not dropped[TEXT][~gone][:, 4:].any()
    assert dropped[MASK].sum(1).tolist() == [1 if one else 3 for one in gone]
    sized = captions | {"added_cond_kwargs": {"resolution": torch.ones(200, 2)}}
    kept = replaced(sized, gone, empty)["added_cond_kwargs"]["resolution"]
    assert torch.equal(kept, torch.ones(200, 2)), "the picture's size is no caption"
