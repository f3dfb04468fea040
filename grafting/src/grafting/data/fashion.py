"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747; MIT licence) from its original IDX files."""

from __future__ import annotations

import gzip
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images (n, C, H, W) float32 in [-1, 1]; labels (n,) int64."""

    images: torch.Tensor
    labels: torch.Tensor


def _idx(path: Path) -> np.ndarray:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        content = file.read()
    magic, count = struct.unpack(">II", content[:8])
    if magic == 2049:
        shape: tuple[int, ...] = (count,)
    elif magic == 2051:
        shape = (count, *struct.unpack(">II", content[8:16]))
    else:
        raise ValueError(f"{path}: magic number {magic}; an IDX file of bytes has 2049 (labels) or 2051 (images)")
    return np.frombuffer(content, np.uint8, offset=8 + 4 * (len(shape) - 1)).reshape(shape)


def load_fashion(folder: Path | str | None = None, *, train: bool = True) -> LabelledImages:
    """Read the training or the test half.

    folder: where the original files lie, gzipped or not; else ``$GRAFTING_FASHION_MNIST``, else where Debian's package
    ``dataset-fashion-mnist`` puts them. Raises FileNotFoundError with the places that were looked at.
    """
    named = os.environ.get("GRAFTING_FASHION_MNIST")
    root = Path(folder or named or DEBIAN_FOLDER)
    half = "train" if train else "t10k"

    def find(kind: str) -> Path:
        for name in (f"{half}-{kind}-ubyte.gz", f"{half}-{kind}-ubyte"):
            if (root / name).is_file():
                return root / name
        raise FileNotFoundError(
            f"no {half}-{kind}-ubyte[.gz] in {root}: install Debian's dataset-fashion-mnist, or name a folder of the "
            "original files in GRAFTING_FASHION_MNIST"
        )

    images = torch.from_numpy(_idx(find("images-idx3")).copy())[:, None]
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    labels = torch.from_numpy(_idx(find("labels-idx1")).astype(np.int64))
    return LabelledImages(images=padded.float() / 127.5 - 1, labels=labels)
