"""The schedule that a teacher was trained under, noise's or a flow's, its draws, and the bound of a learned variance.

Shapes: z (B, C, H, W) latents; t (B,) int64 levels as the model is told them, T of them, from 0 for noise prediction
and from 1 for a flow; y (B,) class labels, or as in :mod:`grafting.conditions`. Ho et al. 2020 (arXiv 2006.11239) for
the forward process, Nichol & Dhariwal 2021 (arXiv 2102.09672) for the learned variance, Peebles & Xie 2022 (arXiv
2212.09748) for the two together; Liu et al. 2022 (arXiv 2209.03003) and Esser et al. 2024 (arXiv 2403.03206) for flows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch

from .conditions import count, replaced
from .random import generator

Denoiser = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]
"""(z_t, t, y) -> (B, C or 2C, H, W): the noise, or of a flow the velocity, and, in the second half, where the variance
lies in its range."""
FLOW: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "beta_start": None,
    "beta_end": None,
    "beta_schedule": None,
    "trained_betas": None,
}
"""What a flow's schedule in diffusers' keys must say, where it says it, beside its shift."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Where training spends its draws of the noise level: the log of signal over noise is normal, but for a share.

    centre, deviation: of that logarithm, log(alpha_bar / (1 - alpha_bar)), of a flow 2 log((1 - sigma) / sigma); 0 and
    2 are the logit-normal draw of Esser et al. 2024 (arXiv 2403.03206). uniform: the share spread over all levels
    alike, so that none is left out.
    """

    centre: float = 0.0
    deviation: float = 2.0
    uniform: float = 0.25

    def __post_init__(self) -> None:
        if not math.isfinite(self.centre) or not 0 < self.deviation < math.inf or not 0 <= self.uniform <= 1:
            raise ValueError(
                f"centre {self.centre}, deviation {self.deviation}, uniform {self.uniform}: "
                "a finite centre, a deviation above 0, a share from 0 to 1"
            )


class Schedule(ABC):
    """How data become noise over ``steps`` levels, of which ``first`` is the lowest, and what a model learns of it.

    Tables (T,) by level begin with that of ``first``.
    """

    first: ClassVar[int] = 0

    @property
    @abstractmethod
    def steps(self) -> int:
        """T, how many levels there are."""

    @abstractmethod
    def add_noise(self, z: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """z_t (B, C, H, W) at the levels t (B,), in the type of z."""

    @abstractmethod
    def target(self, z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) what the first C channels of a model's output learn to be."""

    @abstractmethod
    def level_weights(self, most: float, power: float = 1.0) -> torch.Tensor:
        """(T,) weights of the target's squared error, of strength ``power``, up to ``most``."""

    @abstractmethod
    def level_shares(self, levels: Levels | None) -> torch.Tensor | None:
        """(T,) the shares of training that ``levels`` spends on each level; None where it draws all alike."""

    def at(self, table: torch.Tensor, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """(B, 1, 1, 1) the entries of ``table`` (T,) at the levels ``t``, on the device and in the type of ``like``;
        float32 at least, below which one minus alpha_bar is lost."""
        entries = table.to(like.device)[t - self.first]
        return entries.to(torch.promote_types(like.dtype, torch.float32))[:, None, None, None]


@dataclass(frozen=True)
class Diffusion(Schedule):
    """Noise prediction over ``steps`` levels, linear in beta; buffers are float64."""

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    alphas_bar: torch.Tensor = field(init=False, repr=False, compare=False)
    betas: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        betas = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "alphas_bar", torch.cumprod(1 - betas, 0))

    def add_noise(self, z: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """z_t = sqrt(a) z + sqrt(1 - a) noise, with a = alpha_bar at t."""
        a = self.at(self.alphas_bar, t, z)
        return (a.sqrt() * z + (1 - a).sqrt() * noise).to(z.dtype)

    def target(self, z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The noise."""
        return noise

    def posterior(self, z: torch.Tensor, zt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean of q(z_{t-1} | z_t, z)."""
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_bar[:-1]])
        c0 = self.betas * before.sqrt() / (1 - self.alphas_bar)
        ct = (1 - before) * (1 - self.betas).sqrt() / (1 - self.alphas_bar)
        return self.at(c0, t, z) * z + self.at(ct, t, z) * zt

    def level_weights(self, most: float, power: float = 1.0) -> torch.Tensor:
        """(T,) weights of the noise's squared error: one over alpha_bar to the ``power``, up to ``most``.

        What a picture shows is decided where noise is nearly all there is, and there the noise's own error is small
        whatever is painted. With 1 the error is the velocity's (Salimans & Ho 2022, arXiv 2202.00512), alike at every
        level; but the gradient, the weight times the noise's error, then grows without bound towards pure noise, and
        what it says there drowns what it says of shapes. With 0.5 gradients are alike, with 0 errors are plain.
        """
        return self.alphas_bar.pow(-power).clamp(max=most)

    def level_shares(self, levels: Levels | None) -> torch.Tensor | None:
        """(T,) the shares of training that ``levels`` spends on each level; None where it draws all alike."""
        if levels is None:
            return None
        ratio = torch.logit(self.alphas_bar)
        width = -torch.gradient(ratio)[0]  # of a step of the schedule, along the logarithm
        # By its logarithm, which no centre beyond the schedule makes vanish.
        focused = torch.softmax(width.log() - 0.5 * ((ratio - levels.centre) / levels.deviation).square(), 0)
        return (1 - levels.uniform) * focused + levels.uniform / self.steps

    def log_variance_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(T,) log of the smallest (the posterior's) and the largest (beta's) variance of a reverse step."""
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_bar[:-1]])
        smallest = self.betas * (1 - before) / (1 - self.alphas_bar)
        smallest[0] = smallest[1]  # zero at t = 0; the original clips its logarithm so
        return smallest.log(), self.betas.log()

    def bound(
        self, z: torch.Tensor, zt: torch.Tensor, t: torch.Tensor, noise_hat: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """(B,) variational-bound term in bits per dimension; the variance lies at ``v`` in [-1, 1] of its log range.

        At t = 0 it is the negative log-likelihood of the discretised decoder as the original computes it (bins of
        2/255 on latents too).
        """
        a = self.at(self.alphas_bar, t, z)
        low, high = (self.at(x, t, z) for x in self.log_variance_range())
        share = (v + 1) / 2
        log_variance = share * high + (1 - share) * low
        start_hat = (zt - (1 - a).sqrt() * noise_hat) / a.sqrt()
        mean, mean_hat = self.posterior(z, zt, t), self.posterior(start_hat, zt, t)
        kl = 0.5 * (
            log_variance
            - low
            - 1
            + torch.exp(low - log_variance)
            + (mean - mean_hat).square() * torch.exp(-log_variance)
        )
        nll = -_discretised_log_likelihood(z, mean_hat, 0.5 * log_variance)
        per_sample = torch.where(t == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1))
        return per_sample / math.log(2)


@dataclass(frozen=True, kw_only=True)
class BySize:
    """A shift that grows with the tokens of a picture, by diffusers' names: its logarithm lies on the line from
    ``base_shift`` at ``base_image_seq_len`` tokens to ``max_shift`` at ``max_image_seq_len``; by default FLUX.1-dev's.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096

    def __post_init__(self) -> None:
        if not self.base_image_seq_len < self.max_image_seq_len:
            raise ValueError(
                f"base_image_seq_len {self.base_image_seq_len}, max_image_seq_len {self.max_image_seq_len}: the first "
                "is less"
            )

    def at(self, tokens: int) -> float:
        """The shift of a picture of so many tokens."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return math.exp(self.base_shift + slope * (tokens - self.base_image_seq_len))


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: z_t = (1 - sigma) z + sigma noise with sigma = t / ``steps``, t from 1, and a model that returns
    the velocity dz_t / dsigma.

    shift: where a sampler stays longer at much noise (:meth:`shifted`); 3 is SD3's, and SANA's but for 4K, whose is 6;
    Flux's is by size. How often training draws a level is said by :class:`Levels`, so that ``repr``, by which what was
    trained is known, leaves the shift out, and what else is a sampler's. even: whether the steps of a sampler are of
    one length before the shift, the last, to the sample, among them, as Flux is walked; else they go from noise to the
    lowest level.
    """

    steps: int = 1000
    shift: float | BySize = field(default=3.0, repr=False)
    even: bool = field(default=False, repr=False)
    first: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or not (isinstance(self.shift, BySize) or 0 < self.shift < math.inf):
            raise ValueError(f"steps {self.steps}, shift {self.shift}: at least 1 level, and a finite shift above 0")

    def add_noise(self, z: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """z_t = (1 - sigma) z + sigma noise; t may lie between levels."""
        sigma = (t.to(z.device, torch.promote_types(z.dtype, torch.float32)) / self.steps)[:, None, None, None]
        return ((1 - sigma) * z + sigma * noise).to(z.dtype)

    def target(self, z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The velocity, the same all along the line from z to its noise."""
        return noise - z

    def level_weights(self, most: float, power: float = 1.0) -> torch.Tensor:
        """(T,) ones.

        Raises ValueError for another power than 0: the weights of noise prediction are there to make its error the
        velocity's, which a flow's is.
        """
        if power:
            raise ValueError(f"weight_power {power:g}: a flow's error is the velocity's already, so it takes 0 alone")
        return torch.ones(self.steps, dtype=torch.float64)

    def level_shares(self, levels: Levels | None) -> torch.Tensor | None:
        """(T,) the mass of each level's step of sigma, of which the lowest and the highest reach to 0 and to 1."""
        if levels is None:
            return None
        inner = (torch.arange(1, self.steps, dtype=torch.float64) + 0.5) / self.steps
        ratio = -2 * torch.logit(torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)]))  # infinite at the ends
        upto = torch.special.ndtr((ratio - levels.centre) / levels.deviation)
        return (1 - levels.uniform) * (upto[:-1] - upto[1:]) + levels.uniform / self.steps

    def shifted(self, sigma: torch.Tensor) -> torch.Tensor:
        """Where a sampler is that would be at ``sigma`` without the shift (Esser et al. 2024, eq. 23).

        Of a flow of one size: :meth:`of_size`.
        """
        assert not isinstance(self.shift, BySize)
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def of_size(self, tokens: int) -> Flow:
        """This flow with the one shift that it has for pictures of so many tokens."""
        return replace(self, shift=self.shift.at(tokens)) if isinstance(self.shift, BySize) else self

    def told(self, scheduler: Mapping[str, Any]) -> Flow:
        """This flow as a scheduler in diffusers' keys describes it: with its shift, where it has one; of a family that
        is walked evenly, also with one by size.

        Raises ValueError for another flow, or noise of another kind.
        """
        by_size = self.even and bool(scheduler.get("use_dynamic_shifting"))
        fits = {**FLOW, **({"use_dynamic_shifting": True, "time_shift_type": "exponential"} if by_size else {})}
        odd = [f"{key} {scheduler[key]}" for key, value in fits.items() if scheduler.get(key) not in (None, [], value)]
        if odd:
            shift = "one shift for all sizes" + (", or one that grows as diffusers' mu," if self.even else "")
            raise ValueError(f"{', '.join(odd)}: of flows only those of 1000 levels with {shift} are known here")
        if by_size:
            names = [one.name for one in fields(BySize)]
            return replace(self, shift=BySize(**{name: scheduler[name] for name in names if name in scheduler}))
        return replace(self, shift=float(scheduler["shift"])) if "shift" in scheduler else self


def _discretised_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Log-probability of bins of width 2/255 around x under a Gaussian; the end bins are open."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    upper = torch.special.ndtr(inverse * (centred + 1 / 255))
    lower = torch.special.ndtr(inverse * (centred - 1 / 255))
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return mass.clamp(min=1e-12).log()


def drop_labels(y: Any, rate: float, null: Any, seed: int, step: int) -> Any:
    """Replace a share ``rate`` of the conditions y by the null one: once, outside the model, from a counter.

    y: labels (B,) and ``null`` a class, or a dictionary of rows and ``null`` one with a single row.
    """
    drawn = torch.rand(count(y), generator=generator(seed, "drop", step))
    return replaced(y, drawn < rate, null)


def draw(
    shape: torch.Size, schedule: Schedule, seed: int, step: int, shares: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise, t) of a training step: standard normal of ``shape``; levels t uniform or by ``shares`` (T,).

    By shares the levels of a batch are stratified, one from each of its equal parts of the distribution, so that the
    loss varies less between batches (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
    """
    source = generator(seed, "noise", step)
    noise = torch.randn(shape, generator=source)
    if shares is None:
        return noise, torch.randint(schedule.first, schedule.first + schedule.steps, (shape[0],), generator=source)
    at = (torch.arange(shape[0]) + torch.rand(shape[0], generator=source, dtype=torch.float64)) / shape[0]
    upto = torch.cumsum(shares, 0)
    places = torch.searchsorted(upto / upto[-1], at, right=True).clamp(max=len(shares) - 1)
    return noise, schedule.first + places
