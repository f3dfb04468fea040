"""Held-out denoising loss on fixed (image, timestep, noise) triples: seconds where FID takes minutes.

The error is that of the model's own target: of the noise, or of a flow's velocity. Every model sees the very same
triples, so the difference between two models is paired: what a hard triple does to both cancels, and models part long
before their FIDs do. Shapes: z (n, C, H, W) clean latents, t (n,) int64, y labels (n,) or as in
:mod:`grafting.conditions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..conditions import count, rows
from ..diffusion import Denoiser, Diffusion, Schedule
from ..modes import evaluating
from ..random import generator
from .quality.evaluate import Estimate


@dataclass(frozen=True, kw_only=True)
class Triples:
    """Held-out samples with the timestep and the noise that each is judged at.

    z, t, noise: a row per triple. image: which sample each is of. conditions: a row per sample, as a prompt's states
    may be megabytes. schedule: whose levels the timesteps are.
    """

    z: torch.Tensor
    conditions: Any
    t: torch.Tensor
    noise: torch.Tensor
    image: torch.Tensor
    schedule: Schedule = field(default_factory=Diffusion)

    @classmethod
    def draw(cls, z: torch.Tensor, y: Any, *, n: int, seed: int = 0, schedule: Schedule | None = None) -> Triples:
        """n triples over the samples in turn, the k-th from the counter (seed, k) alone, so fewer are a prefix of more.

        Timesteps are a shifted low-discrepancy sequence, so that every noise level is seen evenly at any n. schedule:
        of the model that is judged (:func:`grafting.hosts.registry.schedule_of`); a DiT's noise by default.

        Raises:
            ValueError: no samples, conditions of another number, or n below 2.
        """
        if len(z) == 0 or len(z) != count(y):
            raise ValueError(f"{len(z)} samples and {count(y)} labels: give one label per sample, and at least one")
        if n < 2:
            raise ValueError(f"{n} triples: an interval needs at least 2")
        golden = 0.6180339887498949  # fractional parts of its multiples are evenly spread at every n
        sources = [generator(seed, "triple", k) for k in range(n)]
        offset = torch.rand(1, generator=generator(seed, "triples"), dtype=torch.float64)
        schedule = schedule or Diffusion()
        steps = schedule.steps
        place = ((torch.arange(n, dtype=torch.float64) * golden + offset) % 1 * steps).long().clamp(max=steps - 1)
        noise = torch.stack([torch.randn(z.shape[1:], generator=source) for source in sources])
        image = images_of(n, len(z))
        t = schedule.first + place
        return cls(z=z[image], conditions=y, t=t, noise=noise, image=image, schedule=schedule)

    def __len__(self) -> int:
        return len(self.t)

    @property
    def y(self) -> Any:
        """The conditions, a row per triple."""
        return self.asked(slice(None))

    def asked(self, part: slice) -> Any:
        """The conditions of some triples, a row per triple."""
        return rows(self.conditions, self.image[part])


def images_of(triples: int, images: int) -> torch.Tensor:
    """(triples,) int64: which of the held-out images each triple is of."""
    return torch.arange(triples) % images


@torch.no_grad()
def denoising_losses(
    model: Denoiser,
    triples: Triples,
    diffusion: Schedule | None = None,
    *,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """(n,) float64 mean squared error of the predicted noise or velocity per triple; a variance half of the output is
    ignored.

    model: (z_t, t, y) -> (B, C or 2C, H, W). diffusion: the triples' own schedule by default. A module is in evaluation
    mode meanwhile (in training mode DiT's embedders drop labels); what a function closes over is the caller's to put
    there.
    """
    diffusion = diffusion or triples.schedule
    losses = []
    for start in range(0, len(triples), batch_size):
        part = slice(start, start + batch_size)
        z, noise = triples.z[part], triples.noise[part]
        zt, target = diffusion.add_noise(z, triples.t[part], noise), diffusion.target(z, noise)
        with evaluating(model):
            out = model(zt, triples.t[part], triples.asked(part))[:, : noise.shape[1]].cpu()
        losses.append((out.double() - target.double()).square().flatten(1).mean(1))
        if progress is not None:
            progress(min(start + batch_size, len(triples)), len(triples))
    return torch.cat(losses)


def mean_loss(losses: torch.Tensor, image: torch.Tensor | None = None) -> Estimate:
    """Mean of (n,) losses with its 95 % t interval over images: triples of one ``image`` (n,) are no independent draws.

    Without ``image`` each is of another; where all are of one, the interval is over triples and knows of no other
    image. The standard error is that of a mean over clusters, which for one triple an image is the textbook's.

    Raises:
        ValueError: fewer than two losses.
    """
    return _t_interval(losses, image)


def paired_difference(a: torch.Tensor, b: torch.Tensor, image: torch.Tensor | None = None) -> Estimate:
    """Mean of a - b over the same (n,) triples, interval as :func:`mean_loss`; all below 0 means ``a`` is better.

    Raises:
        ValueError: the lengths differ, or fewer than two losses.
    """
    if a.shape != b.shape:
        raise ValueError(f"losses of {len(a)} and {len(b)} triples: a paired difference needs the same triples")
    return _t_interval(a - b, image)


def _t_interval(values: torch.Tensor, image: torch.Tensor | None) -> Estimate:
    from scipy.stats import t as student

    values = values.double()
    mean = values.mean()
    apart = values - mean
    if len(values) < 2:
        raise ValueError(f"{len(values)} losses: an interval needs at least 2")
    if image is not None:
        which = image.unique(return_inverse=True)[1]
        if images := int(which.max()):  # more than one
            apart = torch.zeros(images + 1, dtype=torch.float64).index_add_(0, which, apart)
    groups = len(apart)
    error = (groups / (groups - 1) * apart.square().sum()).sqrt().item() / len(values)
    half = float(student.ppf(0.975, groups - 1)) * error
    return Estimate(value=mean.item(), low=mean.item() - half, high=mean.item() + half)
