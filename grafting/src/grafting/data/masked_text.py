"""Captions as the pipelines of cross-attention embed them, each by its own ``encode_prompt``: the states of a caption's
own tokens, without padding, which a mask leaves out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from ..hashes import tensors_hash
from ..hosts.shapes import ALPHA_TEXT, SANA_TEXT, SIGMA_TEXT, TEXT_TOKENS, told_sizes
from ..store.configs import ModelError
from .joint_text import digest

SANA_PIPELINE = "SanaPipeline"


class PipelineText:
    """Captions as diffusers' PixArt pipelines embed them, by the pipeline's own ``encode_prompt``.

    pipe: one with tokenizer and text encoder. Raises ModelError where it has none.
    """

    def __init__(self, pipe: Any, tokens: int | None, device: torch.device) -> None:
        if getattr(pipe, "text_encoder", None) is None or getattr(pipe, "tokenizer", None) is None:
            raise ModelError(f"{type(pipe).__name__} has no text encoder to embed captions with")
        self.pipe, self.device = pipe, device
        if tokens is None and getattr(pipe, "transformer", None) is not None:
            tokens = prompt_tokens(pipe.transformer.config)
        self.tokens = tokens or TEXT_TOKENS.get(type(pipe).__name__, SIGMA_TEXT)
        pipe.text_encoder.to(device).eval()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Of the weights, the vocabulary, the pipeline and the length."""
        words = getattr(self.pipe.tokenizer, "backend_tokenizer", None)
        return {
            "pipeline": type(self.pipe).__name__,
            "class": type(self.pipe.text_encoder).__name__,
            "sha256": tensors_hash(self.pipe.text_encoder.state_dict()),
            "tokenizer": None if words is None else digest(words.to_str()),
            "tokens": self.tokens,
        }

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> tuple[list[torch.Tensor], int]:
        """See :class:`Embedder`; what an embedding is padded with is left out, as the mask says."""
        return self.embedded(captions, self.tokens)

    def embedded(
        self, captions: Sequence[str], room: int, before: str = "", **more: Any
    ) -> tuple[list[torch.Tensor], int]:
        """The same, where the encoder takes ``room`` tokens, of what it reads ``before`` a caption among them; more:
        for the pipeline's ``encode_prompt``."""
        states, mask, _, _ = self.pipe.encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.tokens,
            **more,
        )
        whole = self.pipe.tokenizer([before + caption.lower().strip() for caption in captions])["input_ids"]
        own = [row[kept.bool()].cpu() for row, kept in zip(states, mask, strict=True)]
        return own, sum(len(ids) > room for ids in whole)


class SanaText(PipelineText):
    """Captions as diffusers' SanaPipeline embeds them: by a language model that reads an instruction before each, of
    which the states are left out. The empty caption, which stands for none, has no instruction."""

    def __init__(self, pipe: Any, tokens: int | None, device: torch.device) -> None:
        super().__init__(pipe, tokens or SANA_TEXT, device)

    @cached_property
    def instruction(self) -> list[str]:
        """Of the pipeline's class."""
        return instruction_of(type(self.pipe))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """With the instruction."""
        return super().identity | {"instruction": digest("\n".join(self.instruction))}

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> tuple[list[torch.Tensor], int]:
        """See :class:`Embedder`."""
        told = [place for place, caption in enumerate(captions) if caption.strip()]
        rest = [place for place, caption in enumerate(captions) if not caption.strip()]
        states, cut = dict[int, torch.Tensor](), 0
        for places, instruction in ((told, self.instruction), (rest, [])):
            if not places:
                continue
            before = "\n".join(instruction)
            # The pipeline's own room: the instruction's tokens and as many more, two of which are counted twice.
            room = len(self.pipe.tokenizer.encode(before)) + self.tokens - 2 if instruction else self.tokens
            some = [captions[place] for place in places]
            own, more = self.embedded(some, room, before, complex_human_instruction=instruction)
            states |= zip(places, own, strict=True)
            cut += more
        return [states[place] for place in range(len(captions))], cut


def instruction_of(pipeline: type) -> list[str]:
    """Lines that a pipeline of SANA puts before a prompt by default, which diffusers may change."""
    return list(inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default)


def prompt_tokens(config: Mapping[str, Any]) -> int | None:
    """Tokens of a prompt at most, as the PixArt of ``config`` was trained; None where it does not say.

    It is an alpha where it is told the size of its pictures, and a Sigma where it says that it is not. Alphas of 512 px
    and below say nothing: there the class of the pipeline that the text encoder comes from has to tell, which elsewhere
    it could not, as the T5 that Sigma's transformers share is published as an alpha's.
    """
    if told_sizes(config):
        return ALPHA_TEXT
    return None if config.get("use_additional_conditions") is None else SIGMA_TEXT
