"""Images from a folder or an array, a batch at a time: for references and floors of a size that fits no memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..files import sha256
from ..random import generator
from .pictures import SUFFIXES, PictureError, read_picture

ARRAYS = ("images", "arr_0", "train_images")
"""Names under which an npz may hold images: ours, ADM's sample batches, and the training half of a subset."""


class ImageStream:
    """Images (B, C, side, side) in [-1, 1], in a fixed order, as often as it is iterated over.

    path: a folder, searched through and taken in the order of names; or bytes of shape (N, H, W, 3) or (N, C, H, W), in
    a ``.npy``, which stays on disk, or in an ``.npz``, which is held whole. The pictures of a folder are prepared
    as :mod:`grafting.data.pictures` says.

    Raises:
        ValueError: there is nothing there, or it holds no images, or numbers of another type than bytes; an image of
            other size in an npz.
    """

    def __init__(self, path: Path, *, side: int, channels: int = 3, batch: int = 64) -> None:
        self.path, self.side, self.channels, self.batch = path, side, channels, batch
        if not path.exists():
            raise ValueError(f"images {path}: no such file or folder")
        if len(self) == 0:
            raise ValueError(f"images {path}: neither {', '.join(SUFFIXES)} in it nor an array {' or '.join(ARRAYS)}")
        if not path.is_dir() and self._array.dtype != np.uint8:  # shares in [0, 1] would pass for pictures all black
            raise ValueError(f"images {path}: numbers of type {self._array.dtype}, must be bytes 0 to 255, uint8")

    @cached_property
    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        return sorted(file for file in self.path.rglob("*") if file.suffix.lower() in SUFFIXES)

    @cached_property
    def _array(self) -> np.ndarray:
        if self.path.suffix == ".npy":
            mapped: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
            return mapped
        with np.load(self.path, allow_pickle=False) as stored:
            name = next((name for name in ARRAYS if name in stored.files), None)
            return stored[name] if name else np.zeros((0, 1, 1, 1), np.uint8)

    def __len__(self) -> int:
        return len(self._files) if self.path.is_dir() else len(self._array)

    @cached_property
    def identity(self) -> str:
        """A hash of the file, or of the names and sizes of a folder's images."""
        if not self.path.is_dir():
            return sha256(self.path)
        told = "\n".join(f"{file.relative_to(self.path)} {file.stat().st_size}" for file in self._files)
        return hashlib.sha256(told.encode()).hexdigest()

    def first(self, count: int) -> Iterator[torch.Tensor]:
        """Batches of the first ``count`` images."""
        return self._batches(torch.arange(min(count, len(self))))

    def drawn(self, count: int) -> Iterator[torch.Tensor]:
        """Batches of ``count`` images drawn by counter: a fair share of all, in a folder sorted by class too."""
        order = torch.randperm(len(self), generator=generator(0, "drawn images"))
        return self._batches(order[:count].sort().values)

    def _batches(self, places: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in places.split(self.batch):
            if self.path.is_dir():
                pixels = np.stack([self._read(self._files[place]) for place in part.tolist()])
            else:
                pixels = self._array[part.numpy()]
            if pixels.shape[-1] in (1, 3) and pixels.shape[1] not in (1, 3):
                pixels = pixels.transpose(0, 3, 1, 2)
            if pixels.shape[1:] != (self.channels, self.side, self.side):
                wanted = (self.channels, self.side, self.side)
                raise ValueError(f"images {self.path}: of shape {pixels.shape[1:]}, the model draws {wanted}")
            yield torch.from_numpy(np.array(pixels)).float() / 127.5 - 1

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.first(len(self))

    def _read(self, file: Path) -> np.ndarray:
        """(C, side, side) bytes."""
        try:
            return read_picture(file, channels=self.channels, size=(self.side, self.side))
        except PictureError as error:
            raise ValueError(f"image {file}: {error}") from None
