"""The encoders of a MODEL, found without loading its transformer: the autoencoder, and what embeds captions."""

from __future__ import annotations

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
from ..hosts import host_for, shape_of
from ..hosts.registry import HOSTS
from ..hosts.shapes import TEXT_TOKENS, class_of
from ..store.configs import ModelError, config_of, home_of, hub_file, pipeline_of
from ..store.models import given_autoencoder, own_autoencoder
from ..teachers import PROMPTS
from ..text import LIMIT, Embedded, TextEncoder, minilm
from .joint_text import (
    CLIPS,
    FLUX_PIPELINE,
    SD3_PIPELINE,
    T5,
    T5_WORDS,
    FluxText,
    SD3Text,
    digest,
    flux_tokens,
    sd3_tokens,
)
from .masked_text import SANA_PIPELINE, PipelineText, SanaText, instruction_of, prompt_tokens

UNREAD: dict[str, Any] = {"vae": None, "transformer": None, "scheduler": None}
"""Parts of a pipeline that embed no text: what is None is neither read nor fetched."""
NEEDED = {"transformers": "transformers", "sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
"""Packages that read a T5 and a tokenizer as it is published, by module."""
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
        return host_for(self.config).condition

    @property
    def told_sizes(self) -> bool:
        """Whether the transformer is told the size of its pictures, as some of PixArt are."""
        return shape_of(self.config).told_size

    @property
    def classes(self) -> int | None:
        """How many classes the transformer knows, where it is conditioned on them."""
        return host_for(self.config).classes(self.config)


def encoders_of(model: Any, *, vae: str | None, text: str | None, tokens: int | None) -> Encoders:
    """Of a MODEL's name, or of a live pipeline of diffusers with ``transformer`` and ``vae``.

    vae, text: a folder or hub id to take that encoder from, where the model brings none. tokens: of a caption at most;
    by default as the transformer was trained. Raises ModelError where nothing of that name is a model; where the text
    encoder is loaded, also where tokens are asked of one that cuts at a length of its own.
    """
    if not isinstance(model, (str, Path)):
        pipe: Any = model
        config = {**pipe.transformer.config, "_class_name": type(pipe.transformer).__name__}
        own = text_of(*host_for(config).pipelines[:1])
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


def text_of(kind: str = "") -> Callable[[Any, int | None, torch.device], Embedder]:
    """What embeds captions with a live pipeline of class ``kind``."""
    own: dict[str, Any] = {SD3_PIPELINE: SD3Text, FLUX_PIPELINE: FluxText, SANA_PIPELINE: SanaText}
    return own.get(kind, PipelineText)


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


class StoredText:
    """The same from a folder or hub id ``home`` of a pipeline of class ``kind``, which is read for the first caption.

    width: of the zeros that stand for T5 where a pipeline of SD3 has none. Raises ModelError where a package is missing
    that reads it.
    """

    def __init__(self, home: str, kind: str, tokens: int, device: torch.device, width: int | None = None) -> None:
        self.home, self.kind, self.tokens, self.device, self.width = home, kind, tokens, device, width
        if missing := [package for module, package in NEEDED.items() if not _installed(module)]:
            of_t5 = {SD3_PIPELINE: T5_WORDS, FLUX_PIPELINE: "tokenizer_2"}.get(kind, "tokenizer")
            read = of_t5 not in self.parts or self._file(f"{of_t5}/tokenizer.json") is not None
            if "transformers" in missing or not read:
                raise ModelError(
                    f"the text encoder of {home} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
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
            both = ("text_encoder", "tokenizer")
            return both if self.kind != FLUX_PIPELINE else (*both, *(f"{part}_2" for part in both))
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
        found = {"pipeline": self.kind, "sha256": digest("\n".join(told)), "tokens": self.tokens}
        if self.kind == SANA_PIPELINE:
            import diffusers

            found["instruction"] = digest("\n".join(instruction_of(getattr(diffusers, self.kind))))
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
        if self.kind == SD3_PIPELINE:
            # Of the transformer, which is not read, ``encode_prompt`` asks how wide T5's zeros are.
            pipe.__dict__["transformer"] = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=self.width))
        return text_of(self.kind)(pipe, self.tokens, self.device)

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
    folder, known = Path(home), host_for(config).pipelines
    if not known:
        raise ModelError(
            f"captions of {class_of(config)} are embedded by no pipeline that is known here: embed them yourself, for "
            "grafting.write_latents"
        )
    if (
        "PixArtSigmaPipeline" in known
        and (folder / "teacher.json").is_file()
        and not (folder / "text_encoder").is_dir()
    ):
        if asked is not None:
            raise ModelError(f"tokens {asked}: {home} takes as many as a caption has, up to {LIMIT}; leave tokens out")
        prompts = folder / PROMPTS
        return BundledText(Embedded.load(prompts) if prompts.is_file() else None, device)
    kind = pipeline_of(home)
    if kind is None or kind not in known:
        served = any(kind in one.pipelines for one in HOSTS.values())
        lacks = f"whose captions {class_of(config)} does not read" if served else UNKNOWN
        raise ModelError(
            f"{home} is {kind or 'no pipeline'}, {lacks}: name the folder or hub id of a {' or '.join(known)} as text"
        )
    if kind == SD3_PIPELINE:
        return StoredText(home, kind, sd3_tokens(asked), device, config.get("joint_attention_dim"))
    if kind == FLUX_PIPELINE:
        return StoredText(home, kind, flux_tokens(asked, config), device)
    trained = None if kind == SANA_PIPELINE else prompt_tokens(config)
    return StoredText(home, kind, asked or trained or TEXT_TOKENS[kind], device)


def _installed(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True
