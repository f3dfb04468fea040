"""What a feature extractor is, and collecting its features over many images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ...classifier import Classifier

NOT_INCEPTION = "not Inception FID"


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of B images. pool: (B, F); spatial: (B, F2), flattened, for sFID; logits: (B, K)."""

    pool: torch.Tensor
    spatial: torch.Tensor | None = None
    logits: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pool)

    def at(self, rows: torch.Tensor) -> Features:
        """The features of some of the images."""
        return replace(
            self,
            pool=self.pool[rows],
            spatial=None if self.spatial is None else self.spatial[rows],
            logits=None if self.logits is None else self.logits[rows],
        )


class Extractor(Protocol):
    """Images (B, C, H, W) in [-1, 1] to features; ``label`` says what figures over it must not be taken for."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    def __call__(self, images: torch.Tensor) -> Features: ...


@dataclass(frozen=True)
class ClassifierExtractor:
    """The bundled judge as an extractor. Spatial features are the first ``spatial_channels`` maps, as sFID takes 7."""

    classifier: Classifier
    name: str = "fashion-classifier"
    label: str = NOT_INCEPTION
    spatial_channels: int = 8

    def __call__(self, images: torch.Tensor) -> Features:
        pool, maps = self.classifier.features(images.to(next(self.classifier.parameters()).device))
        spatial = maps[:, : self.spatial_channels].flatten(1)
        return Features(pool=pool, spatial=spatial, logits=self.classifier.head(pool))


@torch.no_grad()
def checked(extractor: Extractor, images: Iterable[torch.Tensor]) -> Iterator[Features]:
    """Features of each batch (B, C, H, W), float32 on the CPU. Raises ValueError where an image is not finite."""
    done = 0
    for part in images:
        broken = int((~torch.isfinite(part.flatten(1))).any(1).sum())
        if broken:
            raise ValueError(f"{broken} of images {done} to {done + len(part) - 1} hold values that are not finite")
        done += len(part)
        found = extractor(part)
        spatial, logits = (None if x is None else x.float().cpu() for x in (found.spatial, found.logits))
        yield Features(pool=found.pool.float().cpu(), spatial=spatial, logits=logits)


def collect(
    extractor: Extractor,
    images: torch.Tensor | Iterable[torch.Tensor],
    *,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Features of all images, float32 on the CPU.

    images: (N, C, H, W), or batches of them in turn, of which one at a time is held. progress: gets the number done and
    that of all, 0 where it is not known.

    Raises:
        ValueError: no images, or some not finite.
    """
    total = len(images) if isinstance(images, torch.Tensor) else 0
    batches = images.split(batch_size) if isinstance(images, torch.Tensor) else images
    parts: list[Features] = []
    done = 0
    for part in checked(extractor, batches if total or not isinstance(images, torch.Tensor) else ()):
        parts.append(part)
        done += len(part)
        if progress is not None:
            progress(done, total)
    if not parts:
        raise ValueError("there are no images to extract features from")

    def join(tensors: list[torch.Tensor | None]) -> torch.Tensor | None:
        kept = [x for x in tensors if x is not None]
        return torch.cat(kept) if kept else None

    pool = torch.cat([part.pool for part in parts])
    return Features(pool=pool, spatial=join([p.spatial for p in parts]), logits=join([p.logits for p in parts]))
