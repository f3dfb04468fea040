"""The encoders of a MODEL, found without loading its transformer: the autoencoder, and what embeds captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..files import read_json
from ..graft import tensors_hash
from ..hosts import host_for
from ..hosts.shapes import SIGMA_TEXT, TEXT_TOKENS
from ..store.configs import HUB_ID, ModelError, config_of, home_of, hub_file, pipeline_of
from ..store.models import AUTOENCODERS
from ..teachers import PROMPTS
from ..text import LIMIT, Embedded, TextEncoder, minilm


class Embedder(Protocol):
    """Gives the states (L, D) of each caption's own tokens, without padding, and how many captions were cut."""

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data that says which encoder it is."""
        ...

    def __call__(self, captions: Sequence[str]) -> tuple[list[torch.Tensor], int]: ...


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """name: of the model. config: its transformer's. autoencoder, text: load them; the first gives None where the
    transformer works on pixels."""

    name: str
    config: Mapping[str, Any]
    autoencoder: Callable[[], nn.Module | None]
    text: Callable[[torch.device], Embedder]

    @property
    def condition(self) -> str:
        """What the transformer is conditioned on: ``labels`` or ``captions``."""
        return "labels" if host_for(self.config).family == "DiT" else "captions"


def encoders_of(model: Any, *, vae: str | None, text: str | None, tokens: int | None) -> Encoders:
    """Of a MODEL's name, or of a live pipeline of diffusers with ``transformer`` and ``vae``.

    vae, text: a folder or hub id to take that encoder from, where the model brings none. tokens: of a caption at most;
    the pipeline's own number by default. Raises ModelError where nothing of that name is a model.
    """
    if not isinstance(model, (str, Path)):
        pipe: Any = model
        return Encoders(
            name=type(pipe).__name__,
            config={**pipe.transformer.config, "_class_name": type(pipe.transformer).__name__},
            autoencoder=lambda: getattr(pipe, "vae", None),
            text=lambda device: PipelineText(pipe, tokens, device),
        )
    name, home = str(model), home_of(str(model))
    return Encoders(
        name=name,
        config=config_of(name),
        autoencoder=lambda: _autoencoder(vae, given=True) if vae else _autoencoder(home, given=False),
        text=lambda device: _text(text or home, tokens, device),
    )


class PipelineText:
    """Captions as diffusers' PixArt pipelines embed them, by the pipeline's own ``encode_prompt``.

    pipe: one with tokenizer and text encoder. Raises ModelError where it has none.
    """

    def __init__(self, pipe: Any, tokens: int | None, device: torch.device) -> None:
        if getattr(pipe, "text_encoder", None) is None or getattr(pipe, "tokenizer", None) is None:
            raise ModelError(f"{type(pipe).__name__} has no text encoder to embed captions with")
        self.pipe, self.device = pipe, device
        self.tokens = tokens or TEXT_TOKENS.get(type(pipe).__name__, SIGMA_TEXT)
        pipe.text_encoder.to(device).eval()

    @property
    def identity(self) -> dict[str, Any]:
        """Of the weights, the vocabulary and the pipeline."""
        words = getattr(self.pipe.tokenizer, "backend_tokenizer", None)
        return {
            "pipeline": type(self.pipe).__name__,
            "class": type(self.pipe.text_encoder).__name__,
            "sha256": tensors_hash(self.pipe.text_encoder.state_dict()),
            "tokenizer": None if words is None else _digest(words.to_str()),
            "tokens": self.tokens,
        }

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> tuple[list[torch.Tensor], int]:
        """See :class:`Embedder`; what an embedding is padded with is left out, as the mask says."""
        states, mask, _, _ = self.pipe.encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.tokens,
        )
        whole = self.pipe.tokenizer([caption.lower().strip() for caption in captions])["input_ids"]
        own = [row[kept.bool()].cpu() for row, kept in zip(states, mask, strict=True)]
        return own, sum(len(ids) > self.tokens for ids in whole)


class BundledText:
    """Captions as the bundled text-to-image teacher's encoder embeds them; lines are joined by spaces.

    kept: states that the teacher brings; the encoder is loaded for the first caption that is not among them.
    """

    def __init__(self, kept: Embedded | None, device: torch.device) -> None:
        self.kept, self.device = kept, device

    @cached_property
    def encoder(self) -> TextEncoder:
        """MiniLM. Raises ModelError where the states that are kept are another encoder's."""
        made = minilm()
        if self.kept is not None and self.kept.encoder != made.identity:
            raise ModelError("the states of prompts beside the teacher were made by another encoder than MiniLM")
        made.model.to(self.device)
        return made

    @property
    def identity(self) -> dict[str, Any]:
        """Of the weights."""
        made = self.encoder.identity if self.kept is None else self.kept.encoder
        return {"class": "MiniLM", "sha256": made, "tokens": LIMIT}

    def __call__(self, captions: Sequence[str]) -> tuple[list[torch.Tensor], int]:
        """See :class:`Embedder`."""
        lines, cut = [" ".join(caption.split()) for caption in captions], 0
        kept = self.kept
        if kept is None or not all(line in kept.places for line in lines):
            kept = self.encoder.embed(lines)
            cut = sum(len(ids) > LIMIT for ids in self.encoder.tokenizer(lines)["input_ids"])
        starts = kept.offsets.tolist()
        return [kept.values[starts[place] : starts[place + 1]] for place in kept.indices(lines).tolist()], cut


def _autoencoder(home: str, *, given: bool) -> nn.Module | None:
    from diffusers import AutoencoderKL

    parts = [*AUTOENCODERS, *([""] if given else [])]
    for part in parts:
        config = Path(home) / part / "config.json"
        if config.is_file():
            if read_json(config, error=ModelError).get("_class_name") != "AutoencoderKL":
                raise ModelError(f"{config} is no AutoencoderKL")
            return _frozen(AutoencoderKL.from_pretrained(config.parent))
    if not Path(home).exists() and HUB_ID.fullmatch(home) and hub_file(home, "vae/config.json"):
        return _frozen(AutoencoderKL.from_pretrained(home, subfolder="vae"))
    if given:
        raise ModelError(f"autoencoder {home}: no AutoencoderKL there, nor in a subfolder {' or '.join(AUTOENCODERS)}")
    return None


def _frozen(network: nn.Module) -> nn.Module:
    return network.float().eval().requires_grad_(False)


def _text(home: str, tokens: int | None, device: torch.device) -> Embedder:
    import diffusers

    folder = Path(home)
    if (folder / "teacher.json").is_file() and not (folder / "text_encoder").is_dir():
        prompts = folder / PROMPTS
        return BundledText(Embedded.load(prompts) if prompts.is_file() else None, device)
    kind = pipeline_of(home)
    if kind not in TEXT_TOKENS:
        raise ModelError(
            f"{home} is {kind or 'no pipeline'}, which brings no text encoder that is known here: "
            f"name the folder of a {' or '.join(TEXT_TOKENS)} as text"
        )
    # What is None is neither read nor fetched.
    pipe = getattr(diffusers, kind).from_pretrained(home, vae=None, transformer=None, scheduler=None)
    _frozen(pipe.text_encoder)
    return PipelineText(pipe, tokens, device)


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
