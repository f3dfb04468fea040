"""Class-conditional transformers over the latents of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ...data import Batches, load_fashion
from ...diffusion import Diffusion, draw, drop_labels
from ...files import save_safetensors_atomic
from ...hashes import tensors_hash
from ...precision import autocast
from ..loop import StepLosses
from ..objective import teacher_objective
from ..team import Team
from .autoencoder import encode
from .pictures import identity
from .recipe import PretrainRecipe

LATENTS = "latents.safetensors"
"""What a run's pictures are encoded to, in its folder."""


def transformer(recipe: PretrainRecipe, out: Path, team: Team) -> tuple[nn.Module, StepLosses]:
    """The DiT objective on latents scaled to unit deviation; labels dropped once, the embedders in eval mode."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(**recipe.model)
    _zero_adaln(model)
    model.eval()  # its only training-mode behaviour is each block dropping labels on its own
    model.to(team.device)
    kept, y = latents(trained_autoencoder(recipe, team), recipe, out, team)
    batches = Batches(inputs=kept, labels=y, size=recipe.batch, seed=recipe.seed)
    diffusion, null = Diffusion(), recipe.model["num_embeds_ada_norm"]
    shares = diffusion.level_shares(recipe.levels)

    def losses(step: int) -> dict[str, torch.Tensor]:
        batch = batches(step)
        noise, t = draw(batch["z"].shape, diffusion, recipe.seed, step, shares)
        labels = drop_labels(batch["y"], recipe.label_dropout, null, recipe.seed, step)
        z, t, labels, noise = (team.rows(tensor) for tensor in (batch["z"], t, labels, noise))
        with autocast(team.device, recipe.precision):

            def denoise(zt: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return model(zt, timestep=t, class_labels=y).sample

            return teacher_objective(denoise, diffusion, z, t, labels, noise)

    return model, losses


def trained_autoencoder(recipe: PretrainRecipe, team: Team) -> nn.Module:
    """The autoencoder that the recipe names, in evaluation mode. Raises ValueError where none is named."""
    from diffusers import AutoencoderKL

    if recipe.autoencoder is None:
        raise ValueError("a transformer recipe needs autoencoder: the folder of the trained AutoencoderKL")
    found: Any = AutoencoderKL.from_pretrained(recipe.autoencoder).eval()
    return found.to(device=team.device, memory_format=torch.channels_last)


def latents(autoencoder: nn.Module, recipe: PretrainRecipe, out: Path, team: Team) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled latents and labels of the training images, kept in ``out`` for the next start."""
    made_of = {"autoencoder": tensors_hash(autoencoder.state_dict()), "images": identity(recipe)}
    cache = out / LATENTS
    if (there := kept(cache, made_of)) is not None:
        return there["z"], there["y"]
    source = load_fashion(recipe.folder)
    z = encode(autoencoder, source.images) * autoencoder.config.scaling_factor  # type: ignore[union-attr, operator]
    if team.leads:
        save_safetensors_atomic(cache, {"z": z, "y": source.labels}, made_of)
    return z, source.labels


def kept(cache: Path, made_of: Mapping[str, str]) -> dict[str, torch.Tensor] | None:
    """The tensors in a file of latents; None where there is none, or one that was made of anything else."""
    if not cache.is_file():
        return None
    with safe_open(cache, "pt") as file:
        if file.metadata() != made_of:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _zero_adaln(model: Any) -> None:
    """DiT's adaLN-Zero start: every block begins as the identity and the output as zero (Peebles & Xie 2022, 3.2)."""
    for linear in (*(block.norm1.linear for block in model.transformer_blocks), model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
