"""Latents that are there already, into the folder that :func:`grafting.encode` writes, to be learnt from as such.

Shapes: latents (B, C, h, w); states of a caption (L, D), of an empty one (L, D); what is pooled of it (P,) or (1, P).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..claims import ClaimError
from ..conditions import MASK, POOLED, TEXT
from ..files import read_json
from .encode_config import DTYPES
from .shards import MANIFEST, NULL, Encoded
from .writing import ShardFolder, autoencoder_facts, caption_tensors, file_entry, versions

Caption = torch.Tensor | Mapping[str, torch.Tensor]
"""States, or what a text-to-image model is called with: ``encoder_hidden_states``, and what else there is of
``encoder_attention_mask`` and ``pooled_projections``; with or without a dimension for the one sample."""


def write_latents(
    folder: Path | str,
    z: torch.Tensor | Iterable[torch.Tensor],
    *,
    labels: torch.Tensor | Iterable[int] | None = None,
    classes: int | None = None,
    captions: Iterable[Caption] | None = None,
    null: Caption | None = None,
    told_size: tuple[int, int] | None = None,
    vae: nn.Module | None = None,
    dtype: str = "float32",
    shard: int = 512,
) -> Encoded:
    """Write latents to the new ``folder``, which is there as a whole or not at all; the same ones again change nothing.

    Args:
        z: (n, C, h, w), or batches (B, C, h, w) of them, read one by one; scaled as the transformer takes them:
            (latents of diffusers' autoencoder - shift_factor) * scaling_factor. Without labels and captions all are of
            the null class.
        labels: n of them, from 0. classes: how many the model knows; needed beside labels.
        captions: n of them, read as the latents are: the states of each one's own tokens, of any length, for a model
            with a mask, which leaves the others out; for SD3 and Flux, which read their padding, all tokens with what
            is pooled. null: the same of the empty prompt; needed beside captions.
        told_size: (H, W) in pixels of a picture, for a model that is told it, as PixArt-alpha is.
        vae: that the latents are of; a model that brings another one refuses them.
        dtype: of what is stored. shard: samples of one file.

    Raises:
        ValueError: latents, labels or captions that do not go together, or a label that is no class.
        ClaimError: ``folder`` holds anything else.
    """
    out = Path(folder)
    _check(labels, classes, captions, null, dtype, shard)
    there = _there(out)
    new = out.parent / f".{out.name}.new"
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
    condition = "labels" if labels is not None else "none" if captions is None else "captions"
    settings = {"source": "latents", "condition": condition, "dtype": dtype, "shard": shard}
    shards = ShardFolder(new, settings, count=0, shard=shard)
    given = _Given(z, labels, classes, captions, null, DTYPES[dtype], shard)
    try:
        listed: list[dict[str, Any]] = []
        for k, (tensors, texts) in enumerate(given.shards()):
            shards.count += len(tensors["latents"])
            tensors["items"] = torch.tensor(shards.items(k), dtype=torch.int64)
            shards.write("latents", k, tensors, samples=len(tensors["latents"]))
            if texts:
                shards.write("captions", k, caption_tensors(texts, starts=True))
            listed.append(shards.listed(k, captions=bool(texts)))
            if there is not None and there["shards"][k : k + 1] != listed[-1:]:
                raise _claimed(out)
        if not shards.count:
            raise ValueError("no latents: at least one")
        if given.null is not None:
            shards.write_null(caption_tensors([given.null]))
        shards.finish(_manifest(shards, listed, condition, given, classes, told_size, vae))
        if there is None:
            out.parent.mkdir(parents=True, exist_ok=True)
            new.replace(out)  # over an empty folder, if there is one
        elif _without_versions(read_json(new / MANIFEST)) != _without_versions(there):
            raise _claimed(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return Encoded(out)


def _check(labels: Any, classes: int | None, captions: Any, null: Any, dtype: str, shard: int) -> None:
    """Raises ValueError naming all that does not go together."""
    problems = []
    if labels is not None and captions is not None:
        problems.append("labels and captions: a model is asked for one of them")
    if (labels is None) != (classes is None):
        problems.append("labels and classes, how many the model knows: give both or neither")
    if (captions is None) != (null is None):
        problems.append("captions and null, the empty prompt's states: give both or neither")
    if dtype not in DTYPES:
        problems.append(f"dtype {dtype!r}: {', '.join(DTYPES)}")
    if shard < 1:
        problems.append(f"shard {shard}: at least 1")
    if problems:
        raise ValueError("; ".join(problems))


def _there(out: Path) -> dict[str, Any] | None:
    """The manifest of a folder that is finished, to be compared with. Raises ClaimError for one of other things."""
    if (out / MANIFEST).is_file():
        return read_json(out / MANIFEST, ("shards",))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ClaimError(f"{out} is no folder of latents, and is not empty: name another folder or remove it")
    return None


def _claimed(out: Path) -> ClaimError:
    return ClaimError(f"{out} holds other latents, or of another condition: name another folder or remove it")


class _Given:
    """Latents and what goes with each, sample by sample, checked as they are read."""

    def __init__(
        self,
        z: torch.Tensor | Iterable[torch.Tensor],
        labels: torch.Tensor | Iterable[int] | None,
        classes: int | None,
        captions: Iterable[Caption] | None,
        null: Caption | None,
        dtype: torch.dtype,
        size: int,
    ) -> None:
        if isinstance(z, torch.Tensor):
            z = z.split(size) if z.ndim == 4 else [z]
        self.batches = iter(z)
        self.labels = None if labels is None else iter(_whole(labels))
        self.classes, self.dtype, self.size = classes or 0, dtype, size
        self.null: dict[str, torch.Tensor] | None = None
        if null is not None:
            self.null = self._row(null, "null")
        self.captions = None if captions is None else iter(captions)
        self.shape: tuple[int, ...] = ()
        self.read = 0

    def shards(self) -> Iterator[tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]]:
        """As many samples at a time as one file has: latents and labels, and the rows of their captions."""
        waiting, size = torch.empty(0), self.size
        for batch in self.batches:
            if batch.ndim != 4 or (self.shape and tuple(batch.shape[1:]) != self.shape):
                wanted = self.shape or "(C, h, w)"
                raise ValueError(
                    f"latents of {tuple(batch.shape)}: a batch of {wanted} after {self.read + len(waiting)} samples"
                )
            self.shape = tuple(batch.shape[1:])
            batch = batch.detach().cpu().to(self.dtype)
            waiting = torch.cat([waiting, batch]) if len(waiting) else batch
            while len(waiting) >= size:
                yield self._with_condition(waiting[:size])
                waiting = waiting[size:]
        if len(waiting):
            yield self._with_condition(waiting)
        for name, rest in (("labels", self.labels), ("captions", self.captions)):
            if rest is not None and next(rest, None) is not None:
                raise ValueError(f"more {name} than the {self.read} latents: one for each")

    def _with_condition(self, z: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
        tensors, texts = {"latents": z}, list[dict[str, torch.Tensor]]()
        if self.labels is not None:
            tensors["labels"] = torch.tensor(self._of(self.labels, len(z), "labels"), dtype=torch.int64)
            if len(wrong := tensors["labels"][(tensors["labels"] < 0) | (tensors["labels"] >= self.classes)]):
                raise ValueError(f"label {int(wrong[0])}: the model knows 0 to {self.classes - 1}")
        if self.captions is not None:
            for k, caption in enumerate(self._of(self.captions, len(z), "captions"), start=self.read):
                texts.append(self._row(caption, f"caption {k}"))
        self.read += len(z)
        return tensors, texts

    def _of(self, source: Iterator[Any], count: int, name: str) -> list[Any]:
        found = list(islice(source, count))
        if len(found) < count:
            raise ValueError(f"{self.read + len(found)} {name} for more latents: one for each")
        return found

    def _row(self, caption: Caption, what: str) -> dict[str, torch.Tensor]:
        """As it is stored, (1, L, D) and (1, P), without what its mask leaves out; such as the empty prompt's is."""
        given = {TEXT: caption} if isinstance(caption, torch.Tensor) else dict(caption)
        if TEXT not in given or (unknown := sorted(set(given) - {TEXT, MASK, POOLED})):
            lacks = f"no {TEXT}" if TEXT not in given else f"{', '.join(unknown)}, which is not stored"
            raise ValueError(f"{what} has {lacks}: states, or a mapping with {TEXT} and of {MASK} and {POOLED} what is")
        states = given[TEXT].detach().cpu()
        states = states[0] if states.ndim == 3 and len(states) == 1 else states
        if states.ndim != 2:
            raise ValueError(f"{what} has states of {tuple(given[TEXT].shape)}: (L, D), of one caption")
        if given.get(MASK) is not None:
            states = states[given[MASK].detach().cpu().flatten().bool()]
        found = {TEXT: states[None].to(self.dtype)}
        if given.get(POOLED) is not None:
            found[POOLED] = given[POOLED].detach().cpu().reshape(1, -1).to(self.dtype)
        if self.null is not None and (mine := _sizes(found)) != (theirs := _sizes(self.null)):
            raise ValueError(f"{what} has {mine}, the empty prompt {theirs}: all are of one text encoder")
        return found


def _whole(labels: torch.Tensor | Iterable[int]) -> list[int]:
    """Plain numbers. Raises ValueError for labels that are none."""
    found = torch.as_tensor(labels if isinstance(labels, torch.Tensor) else list(labels))
    if found.ndim != 1 or found.is_floating_point() or found.dtype == torch.bool:
        raise ValueError(f"labels of {found.dtype} and shape {tuple(found.shape)}: (n,) whole numbers")
    return [int(label) for label in found.tolist()]


def _sizes(row: Mapping[str, torch.Tensor]) -> str:
    """What all captions of one encoder have in common, in words; without a mask their length too."""
    length, width = row[TEXT].shape[1:]
    if POOLED not in row:
        return f"states of width {width}"
    return f"{length} states of width {width} and {row[POOLED].shape[1]} pooled"


def _manifest(
    shards: ShardFolder,
    listed: list[dict[str, Any]],
    condition: str,
    given: _Given,
    classes: int | None,
    told_size: tuple[int, int] | None,
    vae: nn.Module | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "condition": condition,
        "samples": shards.count,
        "pictures": shards.count,
        "listed": shards.count,
        "shape": list(given.shape),
        "mirrored": False,
        **autoencoder_facts(vae),
        "shards": listed,
        "versions": versions(),
    }
    if classes is not None:
        found["known_classes"] = classes
    if given.null is not None:
        found["null"] = file_entry(shards.out / NULL)
    return found | ({} if told_size is None else {"told_size": list(told_size)})


def _without_versions(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key != "versions"}
