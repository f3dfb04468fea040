"""The pictures that pretraining sees: Fashion-MNIST's, shuffled, or scenes drawn from their counter.

Shapes: pictures (n, C, side, side) float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ...data import Batches, load_fashion
from ...hashes import tensors_hash
from .recipe import SCENES, PretrainRecipe

SIDE = 64
"""Pixels of a scene."""

Captioned = tuple[torch.Tensor, list[str]]


def scenes(recipe: PretrainRecipe, indices: Iterable[int], side: int = SIDE) -> Captioned:
    """Pictures (n, 3, side, side) and captions of the recipe's training samples of these ``indices``."""
    from ...scenes.prompts import training_sample
    from ...scenes.world import render

    pictures, captions = [], []
    for index in indices:
        scene, caption = training_sample(recipe.seed, index, world=recipe.world)
        pictures.append(torch.from_numpy(render(scene, side)))
        captions.append(caption)
    return scaled(torch.stack(pictures)), captions


def what_lies_where(recipe: PretrainRecipe, count: int, across: int) -> torch.Tensor:
    """Shape and colour (count, 2, across, across) in each cell of the recipe's first ``count`` scenes, in bytes."""
    from ...scenes.prompts import training_sample
    from ...scenes.world import cells

    drawn = (training_sample(recipe.seed, index, world=recipe.world)[0] for index in range(count))
    return torch.stack([torch.from_numpy(cells(scene, across)) for scene in drawn])


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes (n, side, side, C) as pictures (n, C, side, side) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def by_step(recipe: PretrainRecipe) -> Callable[[int], torch.Tensor]:
    """The batch of pictures of a step, which depends on the recipe and the step alone."""
    if recipe.data == SCENES:
        return lambda step: scenes(recipe, range(step * recipe.batch, (step + 1) * recipe.batch), side(recipe))[0]
    source = load_fashion(recipe.folder)
    batches = Batches(inputs=source.images, labels=source.labels, size=recipe.batch, seed=recipe.seed)
    return lambda step: batches(step)["z"]


def first(recipe: PretrainRecipe, count: int) -> torch.Tensor:
    """The first ``count`` training pictures, or as many as there are."""
    if recipe.data == SCENES:
        return scenes(recipe, range(count), side(recipe))[0]
    return load_fashion(recipe.folder).images[:count]


def side(recipe: PretrainRecipe) -> int:
    """Pixels along an edge of what an autoencoder's recipe is about."""
    return int(recipe.model.get("sample_size", SIDE))


def identity(recipe: PretrainRecipe) -> str:
    """A hash of the pictures, by which a changed data set or a changed world of scenes is noticed."""
    if recipe.data == SCENES:
        pictures, captions = scenes(recipe, range(64))
        return tensors_hash({"images": pictures, "captions": torch.tensor([*"\n".join(captions).encode()])})
    source = load_fashion(recipe.folder)
    return tensors_hash({"images": source.images, "labels": source.labels})
