"""What a study learns from: pictures of an npz, or a folder of encoded ones, of the model that learns.

Shapes: images (n, C, H, W) in [-1, 1], latents (n, C', h, w), labels (n,) int64.
"""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import Batches, LabelledImages, read_subset
from ..data.encode import scaled
from ..data.encoders import misfit
from ..data.shards import Encoded, Rows, is_encoded
from ..files import sha256
from ..hashes import is_of, tensors_hash
from ..hosts import host_for
from ..hosts.shapes import shape_of
from ..store.configs import ModelError
from ..store.models import Model
from ..training.pretrain import encode


def null_class(model: nn.Module) -> int:
    """The label that stands for "no class". Raises ModelError for a model that is not class-conditional."""
    config: Any = model.config
    classes = host_for(model).classes(dict(config))
    if classes is None:
        raise ModelError(f"{type(model).__name__} is conditioned on text: this works on models of classes")
    return int(classes)


class Material:
    """What a study learns from: images of an npz, encoded when first asked for, or a folder of encoded pictures.

    Raises ModelError where neither the model nor ``data`` has any, or they do not fit the model.
    """

    def __init__(self, model: Model, data: Path | str | None = None) -> None:
        path = Path(data) if data else model.images
        if path is None:
            raise ModelError(
                f"{model.name} brings no images: name as data a folder of grafting encode "
                "or grafting.write_latents, or an npz of grafting.data.write_subset"
            )
        if not path.exists():
            raise ModelError(f"data {path}: no such file or folder")
        if path.is_dir() and not is_encoded(path):
            raise ModelError(f"data {path}: a folder of pictures is encoded by grafting encode first")
        self.model, self.path = model, path
        self.learnt: int | None = None
        self.encoded = Encoded(path) if path.is_dir() else None
        self._images: dict[bool, LabelledImages] = {}
        self._latents: dict[bool, torch.Tensor | Rows] = {}
        self._conditions: dict[bool, Any] = {}
        if self.encoded is not None:
            self._check(self.encoded)

    def _check(self, encoded: Encoded) -> None:
        config: Any = self.model.transformer.config
        wanted = host_for(self.model.transformer).condition
        if encoded.condition not in (wanted, "none"):
            raise ModelError(f"data {self.path} has {encoded.condition}, {self.model.name} is conditioned on {wanted}")
        if encoded.condition == "captions" and (problem := misfit(encoded.null, config, "captions")) is not None:
            raise ModelError(
                f"data {self.path} has {problem[0]}, {self.model.name} takes {problem[1]}: "
                "they were embedded for another model"
            )
        if encoded.condition == "labels" and (there := encoded.manifest.get("known_classes")) is not None:
            classes = null_class(self.model.transformer)
            if there != classes:
                raise ModelError(
                    f"data {self.path} was made for a model of {there} classes, {self.model.name} knows {classes}"
                )
        shape = shape_of(self.model.transformer)
        if encoded.shape[0] != shape.channels or (shape.square and encoded.shape[1:] != shape.latents):
            raise ModelError(
                f"{self.path}: latents of {encoded.shape}, the transformer takes {(shape.channels, *shape.latents)}"
            )
        made, network = encoded.manifest["encoders"]["autoencoder"], self.model.autoencoder
        # Older manifests do not say what the autoencoder's roundings to half precision are called.
        if made and network is not None and not is_of(network, made["sha256"], made.get("rounded", {})):
            raise ModelError(f"data {self.path} was encoded by another autoencoder than {self.model.name} brings")

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """Hashes of the images, or of the shards' manifest, and of the autoencoder."""
        autoencoder = self.model.autoencoder
        hashed = None if autoencoder is None else tensors_hash(autoencoder.state_dict())
        return {"images": self.encoded.identity if self.encoded else sha256(self.path), "autoencoder": hashed}

    @property
    def null(self) -> Any:
        """What stands for no condition: a class, or the empty prompt. Raises ModelError where no caption is known."""
        if host_for(self.model.transformer).condition == "labels":
            return null_class(self.model.transformer)
        if self.encoded is None or self.encoded.condition != "captions":
            raise ModelError(f"{self.path} has no captions, and {self.model.name} is conditioned on text")
        return self.encoded.null

    def images(self, *, train: bool) -> LabelledImages:
        """The training half or the held-out half, in pixels. Raises ModelError where latents are all there is."""
        if self.encoded is not None:
            raise ModelError(f"{self.path} holds latents and no pictures: name these as reference and floor")
        if train not in self._images:
            found = read_subset(self.path, train=train)
            classes = null_class(self.model.transformer)
            if int(found.labels.max()) >= classes:
                raise ModelError(f"{self.path}: label {int(found.labels.max())}, the model knows 0 to {classes - 1}")
            self._images[train] = found
        return self._images[train]

    def count(self, *, train: bool) -> int:
        """Samples of a half."""
        return len(self.encoded.half(train=train)) if self.encoded else len(self.images(train=train).labels)

    def latents(self, *, train: bool) -> Any:
        """Scaled latents (n, C, h, w); the images themselves where there is no autoencoder.

        The training half of an encoded folder is read row by row; all else is a tensor.
        """
        if train not in self._latents:
            if self.encoded is not None:
                rows = self.encoded.latents(self.encoded.half(train=train))
                self._latents[train] = rows if train else rows.all()
                return self._latents[train]
            images, autoencoder = self.images(train=train).images, self.model.autoencoder
            z = images if autoencoder is None else scaled(autoencoder, encode(autoencoder, images))
            shape = shape_of(self.model.transformer)
            wanted = (shape.channels, *shape.latents)
            if tuple(z.shape[1:]) != wanted:
                raise ModelError(f"{self.path}: latents of {tuple(z.shape[1:])}, the transformer takes {wanted}")
            self._latents[train] = z
        return self._latents[train]

    def conditions(self, *, train: bool) -> Any:
        """Labels (n,), or captions as :mod:`grafting.conditions` has them; read as :meth:`latents` are.

        Pictures that were encoded without are all of the null condition.
        """
        if self.encoded is None:
            return self.images(train=train).labels
        if train not in self._conditions:
            half = self.encoded.half(train=train)
            if self.encoded.condition == "none":
                self._conditions[train] = torch.full((len(half),), int(self.null))
            else:
                rows = self.encoded.conditions(half)
                self._conditions[train] = rows if train else rows.all()
        return self._conditions[train]

    def first(self, count: int | None) -> Material:
        """The same images, of which training sees the first ``count`` alone (None: all); all else sees all of them."""
        fewer = copy.copy(self)  # shares what was read and encoded
        fewer.learnt = count
        return fewer

    def batches(self, size: int, seed: int, *, train: bool = True) -> Batches:
        """Latents and conditions by step."""
        z, y = self.latents(train=train), self.conditions(train=train)
        if train:
            z, y = z[: self.learnt], y[: self.learnt]
        return Batches(inputs=z, labels=y, size=size, seed=seed)
