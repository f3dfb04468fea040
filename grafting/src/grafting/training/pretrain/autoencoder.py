"""Autoencoders: their training, and what they make of pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...precision import autocast
from ...random import normal
from ..loop import StepLosses
from ..team import Team
from .pictures import by_step
from .recipe import PretrainRecipe

ENCODED = 500 * 64**2
"""Pixels that are encoded at once: 500 pictures of 64 x 64, 31 of 256 x 256, whose first activation in Stable
Diffusion's encoder takes 1 GB."""


def autoencoder(recipe: PretrainRecipe, team: Team) -> tuple[nn.Module, StepLosses]:
    """L1 + L2 reconstruction with a small KL term; the latents' scale is measured at the end."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(**recipe.model).to(device=team.device, memory_format=torch.channels_last)
    batches = by_step(recipe)

    def losses(step: int) -> dict[str, torch.Tensor]:
        x = team.rows(batches(step))
        with autocast(team.device, recipe.precision):
            posterior = model.encode(x).latent_dist
            # Drawn for the whole batch, so that every process takes what it would get alone.
            noise = normal((recipe.batch, *posterior.mean.shape[1:]), recipe.seed, "posterior", step)
            z = posterior.mean + posterior.std * team.rows(noise).to(posterior.mean.dtype)
            y = model.decode(z).sample.float()
        error = y - x
        kl = posterior.kl().float().mean() / z[0].numel()
        return {"l1": error.abs().mean(), "l2": error.square().mean(), "kl": recipe.kl_weight * kl}

    return model, losses


@torch.no_grad()
def encode(autoencoder: nn.Module, images: torch.Tensor, batch: int = 500) -> torch.Tensor:
    """(n, C, h, w) float32 posterior means of ``images``, unscaled, on the CPU; computed where the autoencoder is.

    batch: of a pass at most, and of large pictures no more than :data:`ENCODED` has pixels.
    """
    like, height, width = next(autoencoder.parameters()), *images.shape[-2:]
    batch = min(batch, max(1, ENCODED // (height * width)))
    parts = [autoencoder.encode(x.to(like)).latent_dist.mean.float().cpu() for x in images.split(batch)]  # type: ignore[operator]
    # An autoencoder may work in channels_last; latents read from a file do not, and rounding follows the layout.
    return torch.cat(parts).contiguous()


def set_latent_scale(autoencoder: Any, images: torch.Tensor) -> None:
    """Set ``scaling_factor`` to one over the latents' deviation on ``images``, as latent diffusion expects."""
    autoencoder.register_to_config(scaling_factor=1 / encode(autoencoder, images).std().item())
