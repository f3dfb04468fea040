"""Captions as the pipelines of joint attention embed them, each by its own ``encode_prompt``: rows of a condition."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from ..conditions import POOLED, TEXT
from ..hashes import tensors_hash
from ..hosts.shapes import FLUX_TEXT, SD3_TEXT
from ..store.configs import ModelError

SD3_PIPELINE, FLUX_PIPELINE = "StableDiffusion3Pipeline", "FluxPipeline"
CLIPS, T5, T5_WORDS = ("text_encoder", "text_encoder_2"), "text_encoder_3", "tokenizer_3"
"""Parts of SD3's pipeline; the CLIPs' tokenizers are called as theirs are."""
CLIP_TOKENS, T5_MOST = 77, 512
"""Of a prompt of SD3: those that both CLIPs share, and T5's at most, in diffusers."""


class SD3Text:
    """Captions as diffusers' StableDiffusion3Pipeline embeds them, by its own ``encode_prompt``: rows of a condition,
    with states (1, L, D) of the CLIPs' tokens and then T5's, and pooled projections (1, P). What they are padded with
    is read by the transformer, and stays. Without T5 its part is zeros.

    pipe: with both CLIPs; where it has no T5, with a transformer, whose width the zeros have. tokens: L. Raises
    ModelError where a part is missing, or for tokens that leave T5 none or more than it takes.
    """

    def __init__(self, pipe: Any, tokens: int | None, device: torch.device) -> None:
        self.has_t5 = getattr(pipe, T5, None) is not None
        self.encoders = [*CLIPS, T5] if self.has_t5 else [*CLIPS]
        self.tokenizers = [part.replace("text_encoder", "tokenizer") for part in self.encoders]
        lacks = [part for part in (*self.encoders, *self.tokenizers) if getattr(pipe, part, None) is None]
        if lacks:
            raise ModelError(f"{type(pipe).__name__} has no {' and no '.join(lacks)}: only T5 may be left out of it")
        self.pipe, self.tokens, self.device = pipe, sd3_tokens(tokens), device
        for part in self.encoders:
            getattr(pipe, part).to(device).eval()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Of the weights and vocabularies, the pipeline and the length; without T5 of the zeros' width."""
        weights = [tensors_hash(getattr(self.pipe, part).state_dict()) for part in self.encoders]
        words = [_vocabulary(getattr(self.pipe, part)) for part in self.tokenizers]
        found = {
            "pipeline": type(self.pipe).__name__,
            "sha256": digest("\n".join(f"{part} {told}" for part, told in zip(self.encoders, weights, strict=True))),
            "tokenizer": digest("\n".join(f"{part} {told}" for part, told in zip(self.tokenizers, words, strict=True))),
            "tokens": self.tokens,
        }
        return found if self.has_t5 else found | {"zeros": self.pipe.transformer.config.joint_attention_dim}

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> tuple[list[dict[str, torch.Tensor]], int]:
        """See :class:`Embedder`. A caption is cut where no encoder reads all of it."""
        log = logging.getLogger(type(self.pipe).__module__)
        before = log.level
        log.setLevel(logging.ERROR)  # it prints what CLIP cuts of every longer caption, which T5 reads
        try:
            states, pooled = self.encoded(list(captions))
        finally:
            log.setLevel(before)
        rows = [{TEXT: text[None].cpu(), POOLED: sums[None].cpu()} for text, sums in zip(states, pooled, strict=True)]
        whole = getattr(self.pipe, self.tokenizers[-1])(list(captions))["input_ids"]
        return rows, sum(len(ids) > self.room for ids in whole)

    @property
    def room(self) -> int:
        """Tokens that the encoder reads that reads most."""
        return self.tokens - CLIP_TOKENS if self.has_t5 else int(self.pipe.tokenizer_max_length)

    def encoded(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """States (n, L, D) and pooled projections (n, P)."""
        states, _, pooled, _ = self.pipe.encode_prompt(
            captions,
            None,
            None,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.tokens - CLIP_TOKENS,
        )
        return states, pooled


def sd3_tokens(asked: int | None) -> int:
    """Tokens of a prompt of SD3, the CLIPs' and T5's. Raises ModelError where T5 would have none or too many."""
    if asked is not None and not CLIP_TOKENS < asked <= CLIP_TOKENS + T5_MOST:
        raise ModelError(
            f"tokens {asked}: a prompt of {SD3_PIPELINE} has {CLIP_TOKENS} of CLIP and 1 to {T5_MOST} of T5, "
            f"so {CLIP_TOKENS + 1} to {CLIP_TOKENS + T5_MOST} in all"
        )
    return asked or SD3_TEXT


class FluxText(SD3Text):
    """By the pipeline's own ``encode_prompt``: rows of a condition, with states (1, L, D) of T5's tokens, of which the
    transformer reads the padding too, and what CLIP pools (1, P).

    pipe: with both. tokens: L; by default as its transformer was trained. Raises ModelError where a part is missing, or
    for tokens that T5 does not take.
    """

    def __init__(self, pipe: Any, tokens: int | None, device: torch.device) -> None:
        self.has_t5, self.encoders = True, [*CLIPS]  # the second of which is T5 here
        self.tokenizers = [part.replace("text_encoder", "tokenizer") for part in self.encoders]
        lacks = [part for part in (*self.encoders, *self.tokenizers) if getattr(pipe, part, None) is None]
        if lacks:
            raise ModelError(f"{type(pipe).__name__} has no {' and no '.join(lacks)}, and embeds no captions without")
        transformer = getattr(pipe, "transformer", None)
        config = {} if transformer is None else transformer.config
        self.pipe, self.tokens, self.device = pipe, flux_tokens(tokens, config), device
        for part in self.encoders:
            getattr(pipe, part).to(device).eval()

    @property
    def room(self) -> int:
        return self.tokens

    def encoded(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        states, pooled, _ = self.pipe.encode_prompt(captions, None, device=self.device, max_sequence_length=self.tokens)
        return states, pooled


def flux_tokens(asked: int | None, config: Mapping[str, Any]) -> int:
    """Tokens of a prompt of the Flux of ``config``: by default dev's 512 where it is told a guidance, schnell's 256
    elsewhere. Raises ModelError for more than T5 takes, or none."""
    if asked is not None and not 1 <= asked <= T5_MOST:
        raise ModelError(f"tokens {asked}: a prompt of {FLUX_PIPELINE} has 1 to {T5_MOST}, of T5")
    return asked or FLUX_TEXT[bool(config.get("guidance_embeds"))]


def digest(text: str) -> str:
    """SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()


def _vocabulary(tokenizer: Any) -> str:
    """A vocabulary and what it is padded with, whatever was last asked of the tokenizer."""
    words = getattr(tokenizer, "backend_tokenizer", None)
    told = {} if words is None else json.loads(words.to_str()) | {"truncation": None, "padding": None}
    return json.dumps([told, tokenizer.pad_token, tokenizer.model_max_length], sort_keys=True)
