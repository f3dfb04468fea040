"""Sampling from diffusion transformers conditioned on classes or text, in the original protocol or in diffusers'.

A flow is walked along its velocity, from the noise (sigma 1) to the sample (0).

Shapes: z (B, C, H, W) latents or pixels; labels (B,) int64 in [0, classes), or text as in :mod:`grafting.conditions`;
the model returns (B, C or 2C, H, W), the second half being where the variance of the step lies in its range.

Three things that diffusers' pipelines do otherwise: the learned variance is used, the null class is the number of
classes of the model at hand, and every sample has noise of its own, so that sample i is the same picture whatever
batch it was drawn in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import nn

from .conditions import SIZES, Condition, count, each, picture_sizes, replaced, rows, together
from .diffusion import BySize, Diffusion, Flow, Schedule
from .hosts import Host, HostError, host_for, shape_of
from .hosts.registry import schedule_of
from .modes import evaluating
from .precision import PRECISIONS, autocast, in_half
from .progress import Progress
from .random import generator
from .steps import Stepper, flow_stepper, noise_stepper

Scheduler = Literal["ddpm", "ddim", "dpm++"]
Spacing = Literal["linspace", "leading"]
DECODED = 2**20
"""Pixels that are decoded at once: a decoder takes more memory than the transformer that drew them. One picture of
1,024 x 1,024."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to walk from noise to a sample.

    scheduler: ``ddpm`` (with the learned variance where the model has one), ``ddim`` (deterministic) or ``dpm++``
    (DPM-Solver++, second order); ``ddim`` of a flow is Euler's step along its velocity, the same update, and ``ddpm``
    is of noise prediction alone, as ``clip`` is and every spacing but ``linspace``. spacing: ``linspace`` is the
    original DiT's (999, 995, …, 0), ``leading`` is diffusers' default (996, …, 0). guidance: 1 is off and costs one
    pass instead of two. guided_channels: the original guides the first 3 only; ``None`` guides all. clip: bound the
    predicted clean sample to [-1, 1]; wrong for latents. precision: of the model's matrix products, ``fp32`` or
    ``bf16``, in which DiT's residual stream is then too (its embedding of patches returns what the product gave); the
    walk itself is float32.
    """

    scheduler: Scheduler = "ddim"
    steps: int = 50
    spacing: Spacing = "linspace"
    guidance: float = 1.0
    guided_channels: int | None = None
    clip: bool = False
    precision: str = "fp32"

    def __post_init__(self) -> None:
        problems = []
        if self.scheduler not in get_args(Scheduler):
            problems.append(f"scheduler {self.scheduler!r} is not one of {', '.join(get_args(Scheduler))}")
        if self.spacing not in get_args(Spacing):
            problems.append(f"spacing {self.spacing!r} is not one of {', '.join(get_args(Spacing))}")
        if self.steps < 2:
            # A single step would be spaced at noise level 0, where there is nothing to remove.
            problems.append(f"{self.steps} sampling steps: at least 2 are needed")
        if self.guidance < 0:
            problems.append(f"guidance {self.guidance} is negative; 1 switches it off")
        if self.guided_channels is not None and self.guided_channels < 1:
            problems.append(f"{self.guided_channels} guided channels: give 1 or more, or none to guide all")
        if self.clip and self.scheduler == "dpm++":
            problems.append("clip has no meaning with scheduler 'dpm++'; use ddpm or ddim")
        if self.precision not in PRECISIONS:
            problems.append(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if problems:
            raise ValueError("; ".join(problems))

    @classmethod
    def original(cls) -> Sampling:
        """The protocol of the DiT paper's figures: 250 DDPM steps, guidance 1.5 on the first three channels."""
        return cls(scheduler="ddpm", steps=250, spacing="linspace", guidance=1.5, guided_channels=3)

    def describe(self) -> str:
        """One line for a table."""
        channels = "all" if self.guided_channels is None else f"first {self.guided_channels}"
        guided = "no guidance" if self.guidance == 1 else f"guidance {self.guidance:g} on {channels} channels"
        rough = "" if self.precision == "fp32" else f", {self.precision}"
        return f"{self.steps} {self.scheduler.upper()} steps, {self.spacing}, {guided}{rough}"


def draw_labels(n: int, classes: int, how: Literal["uniform", "balanced"] = "balanced", seed: int = 0) -> torch.Tensor:
    """(n,) labels: ``balanced`` cycles through the classes, ``uniform`` draws them (the original protocol)."""
    if how == "balanced":
        return torch.arange(n) % classes
    if how == "uniform":
        return torch.randint(0, classes, (n,), generator=generator(seed, "labels"))
    raise ValueError(f"labels {how!r}: they are drawn uniform or balanced")


class Text(Protocol):
    """Prompts as a model's condition: :class:`grafting.text.Embedded` or :class:`grafting.text.TextEncoder`."""

    @property
    def null(self) -> Mapping[str, Any]:
        """The condition, one row, that stands for no prompt."""
        ...

    def __call__(self, prompts: Sequence[str], /) -> Mapping[str, Any]:
        """The condition of ``prompts``, a row each."""
        ...


def pixels_per_latent(vae: nn.Module) -> int:
    """Pixels along a side for one of an autoencoder's latents, an AutoencoderKL's or SANA's AutoencoderDC's; 8 where it
    does not say, as diffusers' pipelines take it."""
    config: Any = vae.config
    names = ("block_out_channels", "encoder_block_out_channels")
    levels = next((getattr(config, name) for name in names if hasattr(config, name)), range(4))
    return 2 ** (len(levels) - 1)


def pixels(pictures: torch.Tensor) -> Any:
    """Pictures (n, C, H, W) in about [-1, 1] as an array of bytes (n, H, W, C)."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


class Pipeline:
    """Samples of a class-conditional or text-to-image transformer, decoded by a VAE if there is one.

    transformer: a module called as ``transformer(z, timestep=t, class_labels=y).sample`` with a diffusers config, or a
    host that takes text. scheduler: the training schedule in diffusers' keys, of a flow its ``shift``; by default what
    the model was taught under (:func:`~grafting.hosts.registry.schedule_of`), a DiT linear 1e-4 … 0.02 over 1,000
    steps. null_class: the label that means "no class"; by default the number of classes. text: what turns prompts into
    conditions, and none into the null condition. null: the null condition, one row, where there is no ``text``. size:
    (H, W) of the latents that are drawn, where not the model's own.

    Raises:
        ValueError: the schedule is not of the model's kind: noise prediction, or a flow; or a size that it cannot draw.
    """

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module | None = None,
        scheduler: Mapping[str, Any] | None = None,
        null_class: int | None = None,
        *,
        text: Text | None = None,
        null: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.transformer, self.vae, self.text = transformer, vae, text
        self.scheduler = dict(scheduler or {})
        self.schedule = _trained_under(schedule_of(transformer), self.scheduler)
        config: Any = transformer.config
        self.channels, self.size = _latents(transformer, size)
        self.host = _host(transformer)
        self.learned_variance = _learned_variance(transformer)
        self.reads_text = self.host is not None and self.host.condition == "captions"
        classes = getattr(config, "num_embeds_ada_norm", None) if self.host is None else self.host.classes(dict(config))
        self.null_class: int = (classes or 0) if null_class is None else null_class
        self.null_text = null if null is not None or text is None else text.null

    @property
    def told_size(self) -> tuple[int, int] | None:
        """(H, W) in pixels of a picture, where the model is told it, as PixArt-alpha is, and an autoencoder says it."""
        if self.vae is None or not getattr(self.transformer, "use_additional_conditions", False):
            return None
        factor = pixels_per_latent(self.vae)
        return self.size[0] * factor, self.size[1] * factor

    def __call__(
        self,
        condition: Condition | Sequence[int] | Sequence[str],
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """(N, channels, H, W) float32 images on the CPU, about [-1, 1]; arguments as in :meth:`latents`."""
        z = self.latents(
            condition, sampling=sampling, seed=seed, first_index=first_index, batch_size=batch_size, progress=progress
        )
        return torch.cat([self.decode(part) for part in z.split(batch_size)]) if len(z) else z

    @torch.no_grad()
    def latents(
        self,
        condition: Condition | Sequence[int] | Sequence[str],
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """(N, C, H, W) float32 samples on the CPU, not decoded.

        condition: N labels; or of a model that takes text, N prompts or what they are turned into. The noise of the
        k-th depends on ``seed`` and ``first_index + k`` alone. progress: counts steps, one being a pass over one batch.

        Raises:
            ValueError: a label out of range, labels for a model that takes text or the reverse, prompts or guidance
                without what embeds text, a batch size below 1, more guided channels than the model has, or a walk that
                a flow does not have.
        """
        sampling = sampling or Sampling()
        given = self._condition(condition, sampling, batch_size)
        samples = count(given)
        batches = range(0, samples, batch_size)
        total, done = sampling.steps * len(batches), 0
        drawn = []

        def step_done() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total)

        with evaluating(self.transformer):
            for start in batches:
                part = rows(given, slice(start, start + batch_size))
                sources = [generator(seed, "sample", first_index + start + k) for k in range(count(part))]
                drawn.append(self._walk(part, sources, sampling, step_done).cpu())
        return torch.cat(drawn) if drawn else torch.empty(0, self.channels, *self.size)

    @torch.no_grad()
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents to (B, channels, H', W') float32 images on the CPU; without a VAE, ``z`` itself."""
        if self.vae is None:
            return z.float().cpu()
        config: Any = self.vae.config
        like = next(self.vae.parameters())
        z = z / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        vae: Any = self.vae
        room = max(1, DECODED // (z.shape[-2] * z.shape[-1] * pixels_per_latent(vae) ** 2))
        with evaluating(self.vae):
            return torch.cat([vae.decode(part.to(like)).sample.float().cpu() for part in z.split(room)])

    def _condition(self, condition: Any, sampling: Sampling, batch_size: int) -> Condition:
        """The condition as rows of tensors, if it is one of this model and can be walked so."""
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size}: it must be at least 1")
        if (sampling.guided_channels or 0) > self.channels:
            raise ValueError(f"{sampling.guided_channels} guided channels: the samples have {self.channels}")
        if self.reads_text:
            return self._texts(condition, sampling)
        if isinstance(condition, Mapping):
            raise ValueError("this model is conditioned on classes: give labels")
        labels = torch.as_tensor(condition, dtype=torch.int64)
        wrong = labels[(labels < 0) | (labels > self.null_class)]
        if len(wrong):
            raise ValueError(
                f"label {int(wrong[0])}: this model knows classes 0 to {self.null_class - 1}, "
                f"and {self.null_class} for no class"
            )
        return labels

    def _texts(self, condition: Any, sampling: Sampling) -> Condition:
        if sampling.guidance != 1 and self.null_text is None:
            raise ValueError(f"guidance {sampling.guidance:g} needs the null condition: give the pipeline text or null")
        if isinstance(condition, Mapping):
            return self._sized(condition)
        prompts = [] if isinstance(condition, (str, torch.Tensor)) else list(condition)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError("this model is conditioned on text: give prompts, or a dictionary of their states")
        if self.text is None:
            raise ValueError("prompts need an encoder: give the pipeline text, or states in the place of prompts")
        return self._sized(self.text(prompts))

    def _sized(self, condition: Mapping[str, Any]) -> Mapping[str, Any]:
        """With the pictures' size, where the model is told it and the condition does not say it."""
        size = self.told_size
        return condition if size is None else {SIZES: picture_sizes(count(condition), *size), **condition}

    def _walk(
        self,
        given: Condition,
        sources: list[torch.Generator],
        sampling: Sampling,
        step_done: Callable[[], None],
    ) -> torch.Tensor:
        like = next(self.transformer.parameters())
        # Drawn on the CPU: a device's own generator would give other numbers on another device.
        z = torch.stack([torch.randn(self.channels, *self.size, generator=s) for s in sources])
        z = z.to(like.device)
        given = each(given, lambda tensor: tensor.to(like) if tensor.is_floating_point() else tensor.to(like.device))
        stepper = self._stepper(sampling, z.device)
        for i, t in enumerate(stepper.timesteps):
            z = stepper.step(self._predict(z, t, given, sampling), i, z, sources)
            step_done()
        return z

    def _stepper(self, sampling: Sampling, device: torch.device) -> Stepper:
        if isinstance(self.schedule, Flow):
            flow = self.schedule
            if isinstance(flow.shift, BySize):
                flow = flow.of_size(_tokens(self.transformer, self.size))
            return flow_stepper(flow, sampling, device)
        return noise_stepper(self._noise() | self.scheduler, sampling, self.learned_variance, device)

    def _noise(self) -> dict[str, Any]:
        """The model's own noise in diffusers' keys."""
        noise = self.schedule
        if not isinstance(noise, Diffusion):
            raise TypeError(f"{noise}: neither noise prediction nor a flow")
        return {"num_train_timesteps": noise.steps, "beta_start": noise.beta_start, "beta_end": noise.beta_end}

    def _predict(self, z: torch.Tensor, t: torch.Tensor, given: Condition, sampling: Sampling) -> torch.Tensor:
        if sampling.guidance == 1:
            return self._model(z, t, given, sampling)
        null = self.null_text if self.reads_text else self.null_class
        nothing = replaced(given, torch.ones(len(z), dtype=torch.bool), null)
        told, free = self._model(torch.cat([z, z]), t, together([given, nothing]), sampling).chunk(2)
        # Channels that are not guided, the variance among them, are those of the conditional half.
        k = sampling.guided_channels or self.channels
        guided = free[:, :k] + sampling.guidance * (told[:, :k] - free[:, :k])
        return torch.cat([guided, told[:, k:]], dim=1)

    def _model(self, z: torch.Tensor, t: torch.Tensor, given: Condition, sampling: Sampling) -> torch.Tensor:
        own, steps = next(self.transformer.parameters()).dtype, t.expand(len(z))
        half = in_half(self.transformer)  # autocast rounds what has to be
        z = z if half else z.to(own)
        with autocast(z.device, "bf16" if half else sampling.precision):
            if self.host is not None:
                return self.host.call(self.transformer, z, steps, given).float()
            out: torch.Tensor = self.transformer(z, timestep=steps, class_labels=given).sample
        return out.float()


def _host(model: nn.Module) -> Host | None:
    """A model's descriptor; one of no family is called as a DiT is, and asked for classes."""
    try:
        return host_for(model)
    except HostError:
        return None


def _learned_variance(model: nn.Module) -> bool:
    """Whether it gives a variance beside every channel; by its configuration where it is of no family."""
    try:
        shape = shape_of(model)
    except HostError:
        config: Any = model.config
        return bool(config.out_channels == 2 * config.in_channels)
    return shape.out_channels == 2 * shape.patch_channels


def _latents(model: nn.Module, size: tuple[int, int] | None) -> tuple[int, tuple[int, int]]:
    """Channels and (H, W) of the latents that a model draws, ``size`` where it is given; by its configuration where it
    is of no family. Raises ValueError for a size that it cannot draw."""
    try:
        shape = shape_of(model)
    except HostError:
        config: Any = model.config
        return config.in_channels, size or (config.sample_size, config.sample_size)
    if size is None:
        return shape.channels, shape.latents
    height, width = size
    if min(size) < 1 or height % shape.patch or width % shape.patch:
        raise ValueError(f"latents of {height} x {width}: multiples of {shape.patch}, for this model's patches")
    return shape.channels, shape.at((height // shape.patch, width // shape.patch)).latents


def _tokens(model: nn.Module, size: tuple[int, int]) -> int:
    """Of latents (H, W)."""
    return size[0] * size[1] // shape_of(model).patch ** 2


def _trained_under(own: Schedule, scheduler: Mapping[str, Any]) -> Schedule:
    """``own`` as ``scheduler`` in diffusers' keys describes it; of noise prediction that is read step by step."""
    if isinstance(own, Flow):
        return own.told(scheduler)
    kind = scheduler.get("prediction_type", "epsilon")
    if kind != "epsilon":
        raise ValueError(f"prediction_type {kind!r}: this model predicts the noise (epsilon)")
    if "shift" in scheduler:
        raise ValueError(f"shift {scheduler['shift']}: of flows, and this model predicts the noise (epsilon)")
    return own
