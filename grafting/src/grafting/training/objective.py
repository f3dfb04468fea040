"""The objective that a DiT teacher was trained on: noise-prediction MSE and the bound term of the learned variance."""

from __future__ import annotations

import torch

from ..diffusion import Denoiser, Diffusion


def teacher_objective(
    model: Denoiser, diffusion: Diffusion, z: torch.Tensor, t: torch.Tensor, y: torch.Tensor, noise: torch.Tensor
) -> dict[str, torch.Tensor]:
    """``mse`` and, if the model has a variance half, ``bound``, as scalars; the training loss is their sum."""
    zt = diffusion.add_noise(z, t, noise)
    out = model(zt, t, y).float()
    noise_hat = out[:, : z.shape[1]]
    losses = {"mse": (noise_hat - noise).square().mean()}
    if out.shape[1] == 2 * z.shape[1]:
        losses["bound"] = diffusion.bound(z, zt, t, noise_hat.detach(), out[:, z.shape[1] :]).mean()
    return losses
