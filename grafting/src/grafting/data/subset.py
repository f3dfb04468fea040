"""The images that ship beside a bundled teacher: a class-balanced training subset and held-out test images."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from ..files import write_bytes_atomic
from ..random import generator
from .fashion import LabelledImages


def balanced(labels: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """(count,) indices with equally many of every class, shuffled by counter.

    Raises ValueError if ``count`` is no multiple of the number of classes, or a class is too small.
    """
    classes = torch.unique(labels)
    each, rest = divmod(count, len(classes))
    if rest:
        raise ValueError(f"{count} images over {len(classes)} classes: give a multiple of {len(classes)}")
    picked = []
    for label in classes.tolist():
        members = torch.nonzero(labels == label)[:, 0]
        if len(members) < each:
            raise ValueError(f"class {label} has {len(members)} images, {each} are asked for")
        picked.append(members[torch.randperm(len(members), generator=generator(seed, "balanced", label))[:each]])
    together = torch.cat(picked)
    return together[torch.randperm(count, generator=generator(seed, "balanced order"))]


def write_subset(path: Path | str, train: LabelledImages, test: LabelledImages) -> None:
    """Write both halves as one compressed npz, images as bytes and labels as int64, atomically.

    Raises ValueError where a label is negative.
    """
    arrays = {}
    for half, data in (("train", train), ("test", test)):
        if len(data.labels) and int(data.labels.min()) < 0:
            raise ValueError(f"{half} label {int(data.labels.min())}: labels count from 0")
        arrays[f"{half}_images"] = ((data.images + 1) * 127.5).round().byte().numpy()
        arrays[f"{half}_labels"] = data.labels.long().numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes_atomic(Path(path), buffer.getvalue())


def read_subset(path: Path | str, *, train: bool = True) -> LabelledImages:
    """Read one half of what :func:`write_subset` wrote: images (n, C, H, W) in [-1, 1], labels (n,).

    Raises ValueError for another file, or for arrays of other types and sizes.
    """
    half = "train" if train else "test"
    wanted = f"an npz with {half}_images (n, C, H, W) of bytes and {half}_labels (n,) of integers, n at least 1"
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays[f"{half}_images"], arrays[f"{half}_labels"]
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not {wanted}") from error
    fits = images.dtype == np.uint8 and images.ndim == 4 and np.issubdtype(labels.dtype, np.integer)
    if not (fits and labels.shape == (len(images),) and len(images)):
        found = f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
        raise ValueError(f"{path} holds {found}, it must be {wanted}")
    return LabelledImages(
        images=torch.from_numpy(images).float() / 127.5 - 1, labels=torch.from_numpy(labels.astype(np.int64))
    )
