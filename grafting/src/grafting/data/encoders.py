"""The encoders of a MODEL, found without loading its transformer: the autoencoder, and what embeds captions."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn

from ..conditions import POOLED, TEXT
from ..files import read_json, sha256
from ..graft import tensors_hash
from ..hosts import host_for
from ..hosts.shapes import (
    ALPHA_TEXT,
    PIPELINES,
    SANA_TEXT,
    SD3_TEXT,
    SIGMA_TEXT,
    TEXT_TOKENS,
    class_of,
    told_sizes,
)
from ..store.configs import ModelError, config_of, home_of, hub_file, pipeline_of
from ..store.models import given_autoencoder, own_autoencoder
from ..teachers import PROMPTS
from ..text import LIMIT, Embedded, TextEncoder, minilm

UNREAD: dict[str, Any] = {"vae": None, "transformer": None, "scheduler": None}
"""Parts of a pipeline that embed no text: what is None is neither read nor fetched."""
NEEDED = {"transformers": "transformers", "sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
"""Packages that read a T5 and a tokenizer as it is published, by module."""
(SANA_PIPELINE,), (SD3_PIPELINE,) = PIPELINES["SANA"], PIPELINES["SD3"]
CLIPS, T5, T5_WORDS = ("text_encoder", "text_encoder_2"), "text_encoder_3", "tokenizer_3"
"""Parts of SD3's pipeline; the CLIPs' tokenizers are called as theirs are."""
CLIP_TOKENS, T5_MOST = 77, 512
"""Of a prompt of SD3: those that both CLIPs share, and T5's at most, in diffusers."""
UNKNOWN = "which brings no text encoder that is known here"


class Embedder(Protocol):
    """Gives the states (L, D) of each caption's own tokens, without padding, and how many captions were cut.

    Where there is more to a caption than its states, the row of a condition in their place.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data that says which encoder it is, and how many tokens it takes; known before any weights are read."""
        ...

    def __call__(self, captions: Sequence[str]) -> tuple[Sequence[torch.Tensor | Mapping[str, Any]], int]: ...


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

    @property
    def told_sizes(self) -> bool:
        """Whether the transformer is told the size of its pictures, as some of PixArt are."""
        return host_for(self.config).family == "PixArt" and told_sizes(self.config)


def encoders_of(model: Any, *, vae: str | None, text: str | None, tokens: int | None) -> Encoders:
    """Of a MODEL's name, or of a live pipeline of diffusers with ``transformer`` and ``vae``.

    vae, text: a folder or hub id to take that encoder from, where the model brings none. tokens: of a caption at most;
    by default as the transformer was trained. Raises ModelError where nothing of that name is a model; where the text
    encoder is loaded, also where tokens are asked of one that cuts at a length of its own.
    """
    if not isinstance(model, (str, Path)):
        pipe: Any = model
        config = {**pipe.transformer.config, "_class_name": type(pipe.transformer).__name__}
        own = READERS.get(host_for(config).family, PipelineText)
        return Encoders(
            name=type(pipe).__name__,
            config=config,
            autoencoder=lambda: _frozen(given_autoencoder(vae)) if vae else getattr(pipe, "vae", None),
            text=lambda device: _text(text, tokens, config, device) if text else own(pipe, tokens, device),
        )
    name, home = str(model), home_of(str(model))
    config = config_of(name)
    return Encoders(
        name=name,
        config=config,
        autoencoder=lambda: _frozen(given_autoencoder(vae) if vae else own_autoencoder(home)),
        text=lambda device: _text(text or home, tokens, config, device),
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


def misfit(row: Mapping[str, Any], config: Mapping[str, Any], what: str) -> tuple[str, str] | None:
    """What is there and what the transformer of ``config`` takes, in words, where it does not read ``what`` such as the
    caption ``row``; None where it does, or does not say."""
    wanted = {
        TEXT: config.get("caption_channels") or config.get("cross_attention_dim") or config.get("joint_attention_dim"),
        POOLED: config.get("pooled_projection_dim"),
    }
    if wanted[POOLED] is None and POOLED in row:
        return f"{what} with pooled projections", f"{what} without"
    if wanted[POOLED] is not None and POOLED not in row:
        return f"{what} without pooled projections", f"some of width {wanted[POOLED]}"
    for key, named in ((TEXT, what), (POOLED, f"{what} with pooled projections")):
        if key in row and wanted[key] not in (None, row[key].shape[-1]):
            return f"{named} of width {row[key].shape[-1]}", str(wanted[key])
    return None


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
        return super().identity | {"instruction": _digest("\n".join(self.instruction))}

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> tuple[list[torch.Tensor], int]:
        """See :class:`Embedder`."""
        told = [place for place, caption in enumerate(captions) if caption.strip()]
        rest = [place for place, caption in enumerate(captions) if not caption.strip()]
        states, cut = dict[int, torch.Tensor](), 0
        for places, instruction in ((told, self.instruction), (rest, [])):
            if not places:
                continue
            some = [captions[place] for place in places]
            text, mask, _, _ = self.pipe.encode_prompt(
                some,
                do_classifier_free_guidance=False,
                device=self.device,
                max_sequence_length=self.tokens,
                complex_human_instruction=instruction,
            )
            states |= {place: row[kept.bool()].cpu() for place, row, kept in zip(places, text, mask, strict=True)}
            before = "\n".join(instruction)
            # The pipeline's own room: the instruction's tokens and as many more, two of which are counted twice.
            room = len(self.pipe.tokenizer.encode(before)) + self.tokens - 2 if instruction else self.tokens
            whole = self.pipe.tokenizer([before + caption.lower().strip() for caption in some])["input_ids"]
            cut += sum(len(ids) > room for ids in whole)
        return [states[place] for place in range(len(captions))], cut


def instruction_of(pipeline: type) -> list[str]:
    """Lines that a pipeline of SANA puts before a prompt by default, which diffusers may change."""
    return list(inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default)


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
        words = [_words(getattr(self.pipe, part)) for part in self.tokenizers]
        found = {
            "pipeline": type(self.pipe).__name__,
            "sha256": _digest("\n".join(f"{part} {told}" for part, told in zip(self.encoders, weights, strict=True))),
            "tokenizer": _digest(
                "\n".join(f"{part} {told}" for part, told in zip(self.tokenizers, words, strict=True))
            ),
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
            states, _, pooled, _ = self.pipe.encode_prompt(
                list(captions),
                None,
                None,
                do_classifier_free_guidance=False,
                device=self.device,
                max_sequence_length=self.tokens - CLIP_TOKENS,
            )
        finally:
            log.setLevel(before)
        rows = [{TEXT: text[None].cpu(), POOLED: sums[None].cpu()} for text, sums in zip(states, pooled, strict=True)]
        room = self.tokens - CLIP_TOKENS if self.has_t5 else self.pipe.tokenizer_max_length
        whole = getattr(self.pipe, self.tokenizers[-1])(list(captions))["input_ids"]
        return rows, sum(len(ids) > room for ids in whole)


READERS: dict[str, Callable[[Any, int | None, torch.device], Embedder]] = {"SD3": SD3Text, "SANA": SanaText}
"""By family, what embeds captions with a live pipeline, where :class:`PipelineText` does not."""


def sd3_tokens(asked: int | None) -> int:
    """Tokens of a prompt of SD3, the CLIPs' and T5's. Raises ModelError where T5 would have none or too many."""
    if asked is not None and not CLIP_TOKENS < asked <= CLIP_TOKENS + T5_MOST:
        raise ModelError(
            f"tokens {asked}: a prompt of {SD3_PIPELINE} has {CLIP_TOKENS} of CLIP and 1 to {T5_MOST} of T5, "
            f"so {CLIP_TOKENS + 1} to {CLIP_TOKENS + T5_MOST} in all"
        )
    return asked or SD3_TEXT


class StoredText:
    """The same from a folder or hub id ``home`` of a pipeline of class ``kind``, which is read for the first caption.

    width: of the zeros that stand for T5 where a pipeline of SD3 has none. Raises ModelError where a package is missing
    that reads it.
    """

    def __init__(self, home: str, kind: str, tokens: int, device: torch.device, width: int | None = None) -> None:
        self.home, self.kind, self.tokens, self.device, self.width = home, kind, tokens, device, width
        if missing := [package for module, package in NEEDED.items() if not _installed(module)]:
            of_t5 = T5_WORDS if kind == SD3_PIPELINE else "tokenizer"
            read = of_t5 not in self.parts or self._file(f"{of_t5}/tokenizer.json") is not None
            if "transformers" in missing or not read:
                raise ModelError(
                    f"the text encoder of {home} needs {' and '.join(missing)}: pip install 'dit-grafting[text]'"
                )

    def _file(self, name: str) -> Path | None:
        path: Path | None = Path(self.home) / name
        if not Path(self.home).exists():
            path = hub_file(self.home, name)
        return path if path is not None and path.is_file() else None

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Encoders and tokenizers; of SD3 those that the pipeline's index has."""
        if self.kind != SD3_PIPELINE:
            return "text_encoder", "tokenizer"
        path = self._file("model_index.json")
        index = {} if path is None else read_json(path, error=ModelError)
        encoders = [part for part in (*CLIPS, T5) if any(index.get(part) or ())]
        return (*encoders, *(part.replace("text_encoder", "tokenizer") for part in encoders))

    @property
    def has_t5(self) -> bool:
        """Of a pipeline of SD3."""
        return T5 in self.parts

    @cached_property
    def folder(self) -> Path:
        """Where the files lie; those of the hub are fetched."""
        import diffusers

        there = Path(self.home)
        return there if there.exists() else Path(getattr(diffusers, self.kind).download(self.home, **UNREAD))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Of the files, the pipeline and the length."""
        files = [file for part in self.parts for file in sorted((self.folder / part).rglob("*"))]
        told = [
            f"{file.relative_to(self.folder).as_posix()} {sha256(file)}"
            for file in files
            if file.is_file() and not file.name.startswith(".")
        ]
        found = {"pipeline": self.kind, "sha256": _digest("\n".join(told)), "tokens": self.tokens}
        if self.kind == SANA_PIPELINE:
            import diffusers

            found["instruction"] = _digest("\n".join(instruction_of(getattr(diffusers, self.kind))))
        return found | ({"zeros": self.width} if self.kind == SD3_PIPELINE and not self.has_t5 else {})

    @cached_property
    def embed(self) -> Embedder:
        """The pipeline's own, loaded."""
        import diffusers

        left_out = {} if T5 in self.parts or self.kind != SD3_PIPELINE else {T5: None, T5_WORDS: None}
        pipe = getattr(diffusers, self.kind).from_pretrained(str(self.folder), **UNREAD, **left_out)
        for part in self.parts:
            if part.startswith("text_encoder"):
                _frozen(getattr(pipe, part))
        if self.kind != SD3_PIPELINE:
            return (SanaText if self.kind == SANA_PIPELINE else PipelineText)(pipe, self.tokens, self.device)
        # Of the transformer, which is not read, ``encode_prompt`` asks how wide T5's zeros are.
        pipe.__dict__["transformer"] = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=self.width))
        return SD3Text(pipe, self.tokens, self.device)

    def __call__(self, captions: Sequence[str]) -> tuple[Sequence[torch.Tensor | Mapping[str, Any]], int]:
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


def _text(home: str, asked: int | None, config: Mapping[str, Any], device: torch.device) -> Embedder:
    """What embeds captions for the transformer of ``config``, from ``home``; ``asked`` tokens, where any were."""
    folder, family = Path(home), host_for(config).family
    if family == "PixArt" and (folder / "teacher.json").is_file() and not (folder / "text_encoder").is_dir():
        if asked is not None:
            raise ModelError(f"tokens {asked}: {home} takes as many as a caption has, up to {LIMIT}; leave tokens out")
        prompts = folder / PROMPTS
        return BundledText(Embedded.load(prompts) if prompts.is_file() else None, device)
    kind = pipeline_of(home)
    known = PIPELINES[family]
    if kind is None or kind not in known:
        lacks = f"whose captions {class_of(config)} does not read" if kind in TEXT_TOKENS else UNKNOWN
        raise ModelError(
            f"{home} is {kind or 'no pipeline'}, {lacks}: name the folder or hub id of a {' or '.join(known)} as text"
        )
    if family == "SD3":
        return StoredText(home, kind, sd3_tokens(asked), device, config.get("joint_attention_dim"))
    trained = prompt_tokens(config) if family == "PixArt" else None
    return StoredText(home, kind, asked or trained or TEXT_TOKENS[kind], device)


def _installed(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _words(tokenizer: Any) -> str:
    """A vocabulary and what it is padded with, whatever was last asked of the tokenizer."""
    words = getattr(tokenizer, "backend_tokenizer", None)
    told = {} if words is None else json.loads(words.to_str()) | {"truncation": None, "padding": None}
    return json.dumps([told, tokenizer.pad_token, tokenizer.model_max_length], sort_keys=True)


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
