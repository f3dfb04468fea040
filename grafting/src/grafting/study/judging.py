"""What samples are judged by: an extractor, a reference and a floor, each found once and streamed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.stream import ImageStream
from ..hosts import shape_of
from ..measure.quality import (
    KID_LEAST,
    Estimate,
    Extractor,
    Features,
    Protocol,
    collect,
    evaluate,
    paired_fid_difference,
    paired_kid_difference,
    recognition,
)
from ..measure.quality.extractors import extractor_of, identity_of
from ..measure.quality.reference import ROWS, Reference
from ..sampling import pixels_per_latent
from ..store.models import Model
from .material import Material
from .parts import StudyError, key_of
from .recipe import EvaluateStage

BATCH = 256
PUBLISHED_ROWS = 10_000
"""Images of a reference batch of ADM whose features are computed beside its statistics; it has no more."""
MEASURES = 2
"""The version of the figures' definitions: a figure of another one is measured again."""


class Judge:
    """Of one model and its data. out: where a reference is kept once it is computed, if anywhere."""

    def __init__(
        self, config: EvaluateStage, model: Model, material: Material, out: Path | None, device: torch.device
    ) -> None:
        self.config, self.model, self.material, self.out, self.device = config, model, material, out, device

    def problems(self) -> list[str]:
        """Why this many samples cannot be judged, before any is drawn.

        Raises ValueError where what is named as real images is none.
        """
        wanted, found = self.config.samples, []
        if wanted == 0:
            return []
        _ = self.reference_stream
        have = len(self.floor_stream) if self.floor_stream else len(self.material.images(train=False).labels)
        if wanted > have:
            found.append(f"samples {wanted}: the floor needs as many held-out images, and there are {have}")
        if self.config.extractor.kind == "classifier" and self.model.classifier is None:
            found.append(
                f"samples {wanted}: {self.model.name} brings no classifier to judge them; name another "
                "extractor, inception:FILE or python:module:attribute, or ask for 0"
            )
        return found

    @cached_property
    def extractor(self) -> Extractor:
        """The network whose features are compared."""
        name = f"{self.model.name}-classifier"
        return extractor_of(self.config.extractor, self.model.classifier, name=name, device=self.device)

    @cached_property
    def identity(self) -> str:
        """Of the extractor's weights."""
        return identity_of(self.extractor)

    @property
    def settings(self) -> dict[str, Any]:
        """What a figure depends on besides the samples."""
        named = self.floor_stream
        floor = f"{named.identity}, drawn" if named else self.material.identity["images"]
        return {"judge": self.identity, "reference": self.reference.key, "floor": floor, "measures": MEASURES}

    def _stream(self, path: str) -> ImageStream:
        channels, side = pictures_of(self.model)
        return ImageStream(Path(path), side=side, channels=channels)

    @cached_property
    def floor_stream(self) -> ImageStream | None:
        """The held-out real images, where the recipe names some."""
        return None if self.config.floor is None else self._stream(self.config.floor)

    @cached_property
    def reference_stream(self) -> ImageStream | None:
        """The real images, where the recipe names some and not statistics of them."""
        named = self.config.reference
        return None if named is None or _has_statistics(Path(named)) else self._stream(named)

    @cached_property
    def floor(self) -> Features:
        """Features of as many held-out real images as there are samples."""
        n = self.config.samples
        held: Iterable[torch.Tensor]
        held = (
            self.floor_stream.drawn(n)
            if self.floor_stream
            else self.material.images(train=False).images[:n].split(BATCH)
        )
        return collect(self.extractor, held)

    @cached_property
    def reference(self) -> Reference:
        """What FID and KID compare to: shipped beside the teacher, kept from before, or computed now."""
        named, stream, rows = self.config.reference, self.reference_stream, max(ROWS, self.config.samples)
        published = named is not None and stream is None
        images = (
            _hash(Path(str(named))) if published else stream.identity if stream else self.material.identity["images"]
        )
        key = key_of({"images": images, "extractor": self.identity, "rows": rows})
        places = [folder / "reference.npz" for folder in (self.model.folder, self.out) if folder is not None]
        for path in places:
            if (found := Reference.load(path, key)) is not None:
                return found
        if published:
            made = _published(Path(str(named)), self.extractor, self._stream, key)
        else:
            real: Iterable[torch.Tensor] = stream or self.material.images(train=True).images.split(BATCH)
            made = Reference.stream(self.extractor, real, rows=rows, key=key)
        if self.out is not None:
            made.save(self.out / "reference.npz")
        return made

    @property
    def reference_name(self) -> str:
        """What the protocol calls the reference."""
        named = self.config.reference
        if named is None:
            return f"{len(self.reference)} training images"
        return f"{Path(named).name}" + (f", {len(self.reference)} images" if len(self.reference) else "")

    def minus(self, mine: Features, theirs: Features, seed: int) -> dict[str, Estimate]:
        """Paired differences of ``fid`` and, from as many samples on as it takes, ``kid``; both sets are drawn from the
        same noise and labels."""
        found = {"fid": paired_fid_difference(mine, theirs, self.reference, bootstraps=self.config.bootstraps)}
        if min(len(mine), len(self.reference.pool)) >= KID_LEAST:
            kernel = paired_kid_difference(mine.pool, theirs.pool, self.reference.pool, seed=seed)
            found["kid"] = Estimate(value=kernel.value, low=kernel.low, high=kernel.high)
        return found

    def quality(self, features: Features, labels: torch.Tensor | None, seed: int) -> dict[str, Any]:
        """Every figure of one model's samples, as plain data; ``recognised`` where the extractor knows the classes.

        labels: (n,) asked classes; None where held-out captions were asked for.
        """
        config, extractor = self.config, self.extractor
        protocol = Protocol(
            n=len(features),
            sampling=config.sampling,
            labels=None if labels is None else config.labels,
            extractor=extractor.name,
            extractor_label=extractor.label,
            reference=self.reference_name,
            seed=seed,
        )
        known = labels if self.model.classifier is not None and config.extractor.kind == "classifier" else None
        found = evaluate(
            features,
            self.reference,
            self.floor,
            protocol,
            labels=known,
            bootstraps=config.bootstraps,
        )
        outcome = found.to_dict()
        if known is not None and features.logits is not None and self.floor.logits is not None:
            shares = recognition(features.logits, known).per_class
            outcome["per_class"] = {str(label): share for label, share in shares.items()}
            if self.floor_stream is None:
                real = self.material.images(train=False).labels[: len(features)]
                outcome["floors"]["recognised"] = recognition(self.floor.logits, real).share
        return outcome


def pictures_of(model: Model) -> tuple[int, int]:
    """Channels and side, in pixels, of what a model draws."""
    shape = shape_of(model.transformer)
    channels, side = shape.channels, shape.latents[0]
    if model.autoencoder is None:
        return channels, side
    drawn: Any = model.autoencoder.config
    return int(drawn.out_channels), side * pixels_per_latent(model.autoencoder)


def _has_statistics(path: Path) -> bool:
    if path.suffix != ".npz" or not path.is_file():
        return False
    with np.load(path, allow_pickle=False) as stored:
        return "mu" in stored.files


def _hash(path: Path) -> str:
    from ..files import sha256

    return sha256(path)


def _published(path: Path, extractor: Extractor, stream: Any, key: str) -> Reference:
    with np.load(path, allow_pickle=False) as stored:
        images, width = "arr_0" in stored.files, len(stored["mu"])
    try:
        pool = collect(extractor, stream(str(path)).first(PUBLISHED_ROWS)).pool if images else torch.zeros(0, width)
        found = Reference.published(path, pool)
    except ValueError as error:
        raise StudyError(f"reference {path}: {error}") from None
    return Reference(count=found.count, moments=found.moments, spatial=found.spatial, pool=found.pool, key=key)
