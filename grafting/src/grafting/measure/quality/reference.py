"""What samples are compared to: the moments of many real images' features, and some of the rows.

FID and sFID need the moments alone, which are summed in float64 as the images stream by; KID, precision and recall need
rows, of which an even selection is kept. Shapes: pool (M, F), M at most the number of images.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...files import write_bytes_atomic
from .features import Extractor, Features, checked
from .statistics import Moments

ROWS = 2048
"""Rows kept of a reference unless more samples are compared to it."""
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Features of ``count`` real images. key: of what they depend on, where that is known."""

    count: int
    moments: Moments
    spatial: Moments | None
    pool: torch.Tensor
    key: str = ""

    def __len__(self) -> int:
        return self.count

    @classmethod
    def of(cls, features: Features) -> Reference:
        """All rows of features that are at hand."""
        spatial = None if features.spatial is None else Moments.of(features.spatial.double())
        moments = Moments.of(features.pool.double())
        return cls(count=len(features), moments=moments, spatial=spatial, pool=features.pool)

    @classmethod
    def stream(
        cls, extractor: Extractor, images: Iterable[torch.Tensor], *, rows: int = ROWS, key: str = ""
    ) -> Reference:
        """From batches (B, C, H, W) of images, of which one at a time is held.

        The rows kept are those whose index has the smallest multiples of the golden ratio, modulo one: spread evenly
        over the images, whatever the batches and however many come. They are rounded to half precision, as a file
        keeps them.

        Raises:
            ValueError: no images, or some not finite.
        """
        moments: Moments | None = None
        spatial: Moments | None = None
        kept, keys, count = [], [], 0
        for found in checked(extractor, images):
            part = Moments.of(found.pool.double())
            moments = part if moments is None else moments.merge(part)
            if found.spatial is not None:
                flat = Moments.of(found.spatial.double())
                spatial = flat if spatial is None else spatial.merge(flat)
            kept.append(found.pool)
            keys.append(np.arange(count, count + len(found)) * _GOLDEN % 1)
            count += len(found)
            if sum(map(len, kept)) > 2 * rows + len(found):
                kept, keys = _smallest(kept, keys, rows)
        if moments is None:
            raise ValueError("there are no images to extract features from")
        kept, _ = _smallest(kept, keys, rows)
        return cls(count=count, moments=moments, spatial=spatial, pool=kept[0].half().float(), key=key)

    def save(self, path: Path) -> None:
        """Write an ``.npz`` of plain arrays, the rows in half precision, atomically."""
        arrays = {"mean": self.moments.mean, "scatter": self.moments.scatter, "pool": self.pool.half().numpy()}
        if self.spatial is not None:
            arrays |= {"spatial_mean": self.spatial.mean, "spatial_scatter": self.spatial.scatter}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, count=np.int64(self.count), key=np.array(self.key), **arrays)  # type: ignore[arg-type]
        write_bytes_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, key: str | None = None) -> Reference | None:
        """What :meth:`save` wrote; None where there is no such file, or one of another ``key``."""
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            if key is not None and str(stored["key"]) != key:
                return None
            count = int(stored["count"])
            spatial = None
            if "spatial_mean" in stored:
                spatial = Moments(count, stored["spatial_mean"], stored["spatial_scatter"])
            pool = torch.from_numpy(stored["pool"]).float()
            moments = Moments(count, stored["mean"], stored["scatter"])
            return cls(count=count, moments=moments, spatial=spatial, pool=pool, key=str(stored["key"]))

    @classmethod
    def published(cls, path: Path, pool: torch.Tensor) -> Reference:
        """Statistics as ADM's reference batches publish them: ``mu``, ``sigma`` and, for sFID, ``mu_s``, ``sigma_s``.

        pool: (M, F) features of some of the images, by the same extractor, for KID, precision and recall; (0, F) leaves
        these out. The file does not say how many images its statistics are of.

        Raises:
            ValueError: the file has no statistics, or they are of another width than ``pool``.
        """
        with np.load(path, allow_pickle=False) as stored:
            if "mu" not in stored or "sigma" not in stored:
                raise ValueError(f"{path}: no mu and sigma in it, but {', '.join(stored.files) or 'nothing'}")
            found = [
                _of_statistics(stored[f"mu{end}"], stored[f"sigma{end}"]) if f"mu{end}" in stored else None
                for end in ("", "_s")
            ]
        moments, spatial = found
        assert moments is not None
        if pool.shape[1] != len(moments.mean):
            raise ValueError(f"{path}: statistics of {len(moments.mean)} features, the extractor gives {pool.shape[1]}")
        return cls(count=len(pool), moments=moments, spatial=spatial, pool=pool)


def _of_statistics(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    return Moments(2, mean.astype(np.float64), covariance.astype(np.float64))  # the scatter of two is the covariance


def _smallest(
    kept: list[torch.Tensor], keys: list[np.ndarray], rows: int
) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    key, pool = np.concatenate(keys), torch.cat(kept)
    order = np.argsort(key, kind="stable")[:rows]
    return [pool[torch.from_numpy(order)]], [key[order]]
