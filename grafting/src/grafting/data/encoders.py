"""The encoders of a MODEL, found without loading its transformer: the autoencoder, and what embeds captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..files import sha256
from ..graft import tensors_hash
from ..hosts import host_for
from ..hosts.shapes import ALPHA_TEXT, SIGMA_TEXT, TEXT_TOKENS, told_sizes
from ..store.configs import ModelError, config_of, home_of, hub_file, pipeline_of
from ..store.models import given_autoencoder, own_autoencoder
from ..teachers import PROMPTS
from ..text import LIMIT, Embedded, TextEncoder, minilm

UNREAD: dict[str, Any] = {"vae": None, "transformer": None, "scheduler": None}
"""Parts of a pipeline that embed no text: what is None is neither read nor fetched."""
NEEDED = {"transformers": "transformers", "sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
"""Packages that read a T5 and a tokenizer as it is published, by module."""


class Embedder(Protocol):
    """Gives the states (L, D) of each caption's own tokens, without padding, and how many captions were cut."""

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data that says which encoder it is, and how many tokens it takes; known before any weights are read."""
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
    by default as the transformer was trained. Raises ModelError where nothing of that name is a model; where the text
    encoder is loaded, also where tokens are asked of one that cuts at a length of its own.
    """
    if not isinstance(model, (str, Path)):
        pipe: Any = model
        return Encoders(
            name=type(pipe).__name__,
            config={**pipe.transformer.config, "_class_name": type(pipe.transformer).__name__},
            autoencoder=lambda: _frozen(given_autoencoder(vae)) if vae else getattr(pipe, "vae", None),
            text=lambda device: (
                _text(text, tokens, prompt_tokens(pipe.transformer.config), device)
                if text
                else PipelineText(pipe, tokens, device)
            ),
        )
    name, home = str(model), home_of(str(model))
    config = config_of(name)
    return Encoders(
        name=name,
        config=config,
        autoencoder=lambda: _frozen(given_autoencoder(vae) if vae else own_autoencoder(home)),
        text=lambda device: _text(text or home, tokens, prompt_tokens(config), device),
    )


def prompt_tokens(config: Mapping[str, Any]) -> int | None:
    """Tokens of a prompt at most, as the PixArt of ``config`` was trained; None where it does not say.

    It is an alpha where it is told the size of its pictures, and a Sigma where it says that it is not. Alphas of 512 px
    and below say nothing: there the class of the pipeline that the text encoder comes from has to tell, which elsewhere
    it could not, as the T5 that Sigma's transformers share is published as an alpha's.
    """
    if told_sizes(config):
        return ALPHA_TEXT
    return None if config.get("use_additional_conditions") is None else SIGMA_TEXT


def caption_width(config: Mapping[str, Any]) -> int | None:
    """D of the states that the transformer of ``config`` takes; None where it does not say."""
    return config.get("caption_channels") or config.get("cross_attention_dim")


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


class StoredText:
    """The same from a folder or hub id ``home`` of a pipeline of class ``kind``, which is read for the first caption.

    Raises ModelError where a package is missing that reads it.
    """

    def __init__(self, home: str, kind: str, tokens: int, device: torch.device) -> None:
        self.home, self.kind, self.tokens, self.device = home, kind, tokens, device
        if missing := [package for module, package in NEEDED.items() if not _installed(module)]:
            file = "tokenizer/tokenizer.json"
            there = (Path(home) / file).is_file() if Path(home).exists() else hub_file(home, file) is not None
            if "transformers" in missing or not there:
                raise ModelError(
                    f"the text encoder of {home} needs {' and '.join(missing)}: pip install 'dit-grafting[text]'"
                )

    @cached_property
    def folder(self) -> Path:
        """Where the files lie; those of the hub are fetched."""
        import diffusers

        there = Path(self.home)
        return there if there.exists() else Path(getattr(diffusers, self.kind).download(self.home, **UNREAD))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Of the files, the pipeline and the length."""
        files = [file for part in ("text_encoder", "tokenizer") for file in sorted((self.folder / part).rglob("*"))]
        told = [
            f"{file.relative_to(self.folder).as_posix()} {sha256(file)}"
            for file in files
            if file.is_file() and not file.name.startswith(".")
        ]
        return {"pipeline": self.kind, "sha256": _digest("\n".join(told)), "tokens": self.tokens}

    @cached_property
    def embed(self) -> PipelineText:
        """The pipeline's own, loaded."""
        import diffusers

        pipe = getattr(diffusers, self.kind).from_pretrained(str(self.folder), **UNREAD)
        _frozen(pipe.text_encoder)
        return PipelineText(pipe, self.tokens, self.device)

    def __call__(self, captions: Sequence[str]) -> tuple[list[torch.Tensor], int]:
        """See :class:`Embedder`."""
        return self.embed(captions)


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
        """Of the weights and the length."""
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


def _frozen(network: nn.Module | None) -> nn.Module | None:
    return None if network is None else network.float().eval().requires_grad_(False)


def _text(home: str, asked: int | None, trained: int | None, device: torch.device) -> Embedder:
    folder = Path(home)
    if (folder / "teacher.json").is_file() and not (folder / "text_encoder").is_dir():
        if asked is not None:
            raise ModelError(f"tokens {asked}: {home} takes as many as a caption has, up to {LIMIT}; leave tokens out")
        prompts = folder / PROMPTS
        return BundledText(Embedded.load(prompts) if prompts.is_file() else None, device)
    kind = pipeline_of(home)
    if kind not in TEXT_TOKENS:
        raise ModelError(
            f"{home} is {kind or 'no pipeline'}, which brings no text encoder that is known here: "
            f"name the folder or hub id of a {' or '.join(TEXT_TOKENS)} as text"
        )
    return StoredText(home, kind, asked or trained or TEXT_TOKENS[kind], device)


def _installed(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
