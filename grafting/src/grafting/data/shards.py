"""Encoded pictures on disk, read sample by sample from memory-mapped files.

A folder holds ``encoded.json`` (the manifest, written last), ``latents-00000.safetensors`` … with ``latents``
(n, C, h, w), ``items`` (n,) and, for classes, ``labels`` (n,), and for captions ``captions-00000.safetensors`` … with
the ``states`` (tokens of all captions, D), unpadded where the model has a mask, and where each begins, ``starts``
(m + 1,); for SD3 and Flux also what stands for each as a whole, ``pooled`` (m, P). A model that is told the size of its
pictures is told the manifest's ``told_size``, (H, W) in pixels; of labels it says how many classes the model they are
for knows, ``known_classes``. Shard k holds the items k * size … (k + 1) * size - 1 of the source, less the pictures
that could not be read. ``null.safetensors`` has the empty prompt, ``states`` (L, D) and for these ``pooled`` (1, P).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from ..conditions import POOLED, SIZES, TEXT, picture_sizes, together
from ..files import read_json, sha256
from ..random import generator

MANIFEST = "encoded.json"
NULL = "null.safetensors"
NEEDED = ("format", "condition", "samples", "shape", "mirrored", "shards", "settings", "scale", "shift", "encoders")
OPEN = 256
"""Files that are kept open, each mapped and not read."""
HELD_OUT = (0.05, 1000)
"""Pictures that are held out of training: this share, and no more than so many."""
DRAWN = "both halves in drawn order, mirror images to learn from alone"
"""What a half is, for all that depends on it."""


class ShardError(ValueError):
    """A folder that holds no encoded pictures, or not those that its manifest names."""


class Rows:
    """Samples by position, read when they are asked for: what :class:`~grafting.data.Batches` takes for a tensor."""

    def __init__(self, read: Callable[[torch.Tensor], Any], positions: torch.Tensor) -> None:
        self.read, self.positions = read, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: torch.Tensor | slice) -> Any:
        """Positions (k,) or a slice; a slice is read when its rows are."""
        chosen = self.positions[index]
        return Rows(self.read, chosen) if isinstance(index, slice) else self.read(chosen)

    def all(self) -> Any:
        """Every row, in memory."""
        return self.read(self.positions)


class Encoded:
    """What :func:`grafting.encode` wrote to ``folder``. Raises ShardError where there is nothing complete."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise ShardError(f"{self.folder} has no {MANIFEST}: grafting encode writes it, when it is done")
        self.manifest = read_json(self.folder / MANIFEST, NEEDED, error=ShardError)
        for entry in self._files():
            path = self.folder / entry["name"]
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise ShardError(f"{path} is missing or has another size than {MANIFEST} says: encode it again")
        counts = [shard["samples"] for shard in self.manifest["shards"]]
        self._ends = torch.tensor(counts, dtype=torch.int64).cumsum(0)
        self._opened = lru_cache(maxsize=OPEN)(self._open)

    def __len__(self) -> int:
        return int(self.manifest["samples"])

    @property
    def condition(self) -> str:
        """``labels``, ``captions`` or ``none``."""
        return str(self.manifest["condition"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a sample."""
        c, h, w = self.manifest["shape"]
        return c, h, w

    @cached_property
    def identity(self) -> str:
        """A hash of the manifest, which names the hashes of all files, and of how halves are drawn."""
        return hashlib.sha256(f"{sha256(self.folder / MANIFEST)} {DRAWN}".encode()).hexdigest()

    def verify(self) -> None:
        """Read every file once. Raises ShardError for the first whose hash is not the manifest's."""
        for entry in self._files():
            if sha256(self.folder / entry["name"]) != entry["sha256"]:
                raise ShardError(
                    f"{self.folder / entry['name']} is not the file that {MANIFEST} names: its hash differs"
                )

    def half(self, *, train: bool) -> torch.Tensor:
        """(n,) positions of the samples that are learnt from, or held out: :data:`HELD_OUT` of the pictures.

        They are drawn by counter and stay in the order of the draw, so that the first of them are a fair share of all,
        in folders that are sorted by class too. A mirror image is learnt from beside its picture, and not held out:
        the two are no independent measurements. The only picture there is, is in both halves.
        """
        share, most = HELD_OUT
        each, pictures = self._each, len(self._order)
        held = min(max(1, round(share * pictures)), most)
        if not train:
            return self._order[:held] * each
        learnt = self._order[held if pictures > 1 else 0 :]
        return (learnt[:, None] * each + torch.arange(each)).flatten()

    @property
    def _each(self) -> int:
        """Samples of a picture."""
        return 2 if self.manifest["mirrored"] else 1

    @cached_property
    def _order(self) -> torch.Tensor:
        """(pictures,) all of them, as they are drawn."""
        return torch.randperm(len(self) // self._each, generator=generator(0, "held out"))

    def latents(self, positions: torch.Tensor | None = None) -> Rows:
        """Rows of latents (B, C, h, w) float32, scaled as the transformer takes them."""
        return Rows(self._latents, self._positions(positions))

    def conditions(self, positions: torch.Tensor | None = None) -> Rows:
        """Rows of labels (B,), or of the dictionary of :mod:`grafting.conditions`, padded to the longest of them
        where there is a mask.

        Raises ShardError where the pictures were encoded without.
        """
        if self.condition == "none":
            raise ShardError(f"{self.folder} was encoded without labels and captions")
        read = self._labels if self.condition == "labels" else self._captions
        return Rows(read, self._positions(positions))

    @cached_property
    def null(self) -> dict[str, torch.Tensor]:
        """The empty prompt, one row. Raises ShardError where no captions were encoded."""
        if not (self.folder / NULL).is_file():
            raise ShardError(f"{self.folder} has no {NULL}: no captions were encoded")
        found: dict[str, torch.Tensor] = together([stored_caption(self._opened(NULL))])
        return found

    # -- reading -----------------------------------------------------------------------------------------------------

    def _files(self) -> list[dict[str, Any]]:
        shards = self.manifest["shards"]
        kinds = ("latents", "captions")
        named = [shard[kind] for shard in shards for kind in kinds if kind in shard]
        return [*named, *([self.manifest["null"]] if "null" in self.manifest else [])]

    def _positions(self, positions: torch.Tensor | None) -> torch.Tensor:
        return torch.arange(len(self)) if positions is None else positions

    def _open(self, name: str) -> Any:
        from safetensors import safe_open

        return safe_open(self.folder / name, framework="pt")

    def _places(self, positions: torch.Tensor) -> list[tuple[dict[str, Any], int]]:
        """The shard and the row of each sample."""
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
            raise IndexError(f"positions {int(positions.min())} to {int(positions.max())} of {len(self)} samples")
        shards = torch.searchsorted(self._ends, positions, right=True)
        begins = self._ends[shards] - torch.tensor([s["samples"] for s in self.manifest["shards"]])[shards]
        rows = (positions - begins).tolist()
        return [(self.manifest["shards"][k], row) for k, row in zip(shards.tolist(), rows, strict=True)]

    def _row(self, shard: dict[str, Any], tensor: str, row: int) -> torch.Tensor:
        found: torch.Tensor = self._opened(shard["latents"]["name"]).get_slice(tensor)[row : row + 1]
        return found

    def _latents(self, positions: torch.Tensor) -> torch.Tensor:
        parts = [self._row(shard, "latents", row).float() for shard, row in self._places(positions)]
        return torch.cat(parts) if parts else torch.empty(0, *self.shape)

    def _labels(self, positions: torch.Tensor) -> torch.Tensor:
        parts = [self._row(shard, "labels", row) for shard, row in self._places(positions)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def _captions(self, positions: torch.Tensor) -> dict[str, Any]:
        texts = []
        for shard, row in self._places(positions):
            place = int(self._row(shard, "items", row)) - shard["first"]
            texts.append(stored_caption(self._opened(shard["captions"]["name"]), place))
        told = self.manifest.get("told_size")
        found: dict[str, Any] = together(texts)
        return found | ({} if told is None else {SIZES: picture_sizes(len(texts), *told)})


def stored_caption(file: Any, place: int | None = None) -> dict[str, torch.Tensor]:
    """Caption ``place`` of an opened shard of captions, or the one of an opened ``null.safetensors``, as a row of a
    condition: float32, without a mask."""
    own = slice(None) if place is None else slice(*file.get_slice("starts")[place : place + 2].tolist())
    found = {TEXT: file.get_slice("states")[own].float()[None]}
    if "pooled" in file.keys():  # noqa: SIM118 (an opened file is no mapping)
        found[POOLED] = file.get_slice("pooled")[slice(None) if place is None else slice(place, place + 1)].float()
    return found


def is_encoded(path: Path) -> bool:
    """Whether ``path`` is a folder that :func:`grafting.encode` finished."""
    return (path / MANIFEST).is_file()


def shard_facts(path: Path) -> dict[str, Any] | None:
    """What a shard says of itself; None where it is no whole file of ours."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {})["grafting"])
            return found
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
