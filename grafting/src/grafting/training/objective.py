"""The objective that a DiT teacher was trained on: noise-prediction MSE and the bound term of the learned variance."""

from __future__ import annotations

from typing import Any

import torch

from ..diffusion import Denoiser, Diffusion


def teacher_objective(
    model: Denoiser,
    diffusion: Diffusion,
    z: torch.Tensor,
    t: torch.Tensor,
    y: Any,
    noise: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """``mse`` and, if the model has a variance half, ``bound``, as scalars; the training loss is their sum.

    weights: (T,), of the squared error by noise level; all 1 by default. What minimises it is the same for any.
    """
    zt = diffusion.add_noise(z, t, noise)
    out = model(zt, t, y).float()
    noise_hat = out[:, : z.shape[1]]
    error = (noise_hat - noise).square()
    if weights is not None:
        error = error * diffusion.at(weights, t, error)
    losses = {"mse": error.mean()}
    if out.shape[1] == 2 * z.shape[1]:
        losses["bound"] = diffusion.bound(z, zt, t, noise_hat.detach(), out[:, z.shape[1] :]).mean()
    return losses
