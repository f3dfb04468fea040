"""The objective that a teacher was trained on: the squared error of noise or velocity, and the bound term of a learned
variance."""

from __future__ import annotations

from typing import Any

import torch

from ..diffusion import Denoiser, Diffusion, Schedule


def teacher_objective(
    model: Denoiser,
    diffusion: Schedule,
    z: torch.Tensor,
    t: torch.Tensor,
    y: Any,
    noise: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """``mse`` and, if the model predicts noise and has a variance half, ``bound``, as scalars; the training loss is
    their sum.

    weights: (T,), of the squared error by noise level; all 1 by default. What minimises it is the same for any.
    """
    zt = diffusion.add_noise(z, t, noise)
    out = model(zt, t, y).float()
    found = out[:, : z.shape[1]]
    error = (found - diffusion.target(z, noise)).square()
    if weights is not None:
        error = error * diffusion.at(weights, t, error)
    losses = {"mse": error.mean()}
    if isinstance(diffusion, Diffusion) and out.shape[1] == 2 * z.shape[1]:
        losses["bound"] = diffusion.bound(z, zt, t, found.detach(), out[:, z.shape[1] :]).mean()
    return losses
