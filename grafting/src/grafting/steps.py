"""Single steps of a walk from noise to a sample: diffusers' own where they are right, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .diffusion import Flow, Schedule

if TYPE_CHECKING:
    from .sampling import Sampling


def check_walk(schedule: Schedule, sampling: Sampling) -> None:
    """Raises ValueError for a walk that a model of this schedule does not have."""
    if isinstance(schedule, Flow):
        asked = {"scheduler 'ddpm'": sampling.scheduler == "ddpm", "clip": sampling.clip}
        asked[f"spacing {sampling.spacing!r}"] = sampling.spacing != "linspace"
        odd = ", ".join(name for name, wanted in asked.items() if wanted)
        if odd:
            raise ValueError(f"{odd}: a flow is walked by ddim (Euler's step) or dpm++, by linspace and without clip")
    if sampling.steps > schedule.steps:
        raise ValueError(f"{sampling.steps} sampling steps: the schedule has {schedule.steps} noise levels")


class Stepper(Protocol):
    """timesteps: as the model is told them, one for each step."""

    timesteps: torch.Tensor

    def step(self, out: torch.Tensor, i: int, z: torch.Tensor, sources: list[torch.Generator]) -> torch.Tensor:
        """From z (B, C, H, W) and the model's output there, at ``timesteps[i]``, to the next z; a source per sample."""
        ...


class _Ddpm:
    """diffusers' ancestral step, with one source of noise per sample."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.timesteps = scheduler, scheduler.timesteps

    def step(self, out: torch.Tensor, i: int, z: torch.Tensor, sources: list[torch.Generator]) -> torch.Tensor:
        return self.scheduler.step(out, self.timesteps[i], z, generator=sources).prev_sample


class _Ddim:
    """Song et al. 2020 (arXiv 2010.02502), eq. 12 with eta 0.

    diffusers' own step assumes that the next timestep is t - 1000 // steps, which holds for "leading" only.
    """

    def __init__(self, scheduler: Any, clip: bool) -> None:
        self.timesteps, self.clip = scheduler.timesteps, clip
        ends_clean = torch.ones(1, dtype=scheduler.alphas_cumprod.dtype)
        self.alphas_bar = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps.cpu()], ends_clean])

    def step(self, out: torch.Tensor, i: int, z: torch.Tensor, sources: list[torch.Generator]) -> torch.Tensor:
        noise = out[:, : z.shape[1]]
        now, after = float(self.alphas_bar[i]), float(self.alphas_bar[i + 1])
        clean = (z - (1 - now) ** 0.5 * noise) / now**0.5
        if self.clip:
            clean = clean.clamp(-1, 1)
        return after**0.5 * clean + (1 - after) ** 0.5 * noise


class _Euler:
    """Euler's step along the velocity. With clean = z - sigma velocity and noise = clean + velocity it is DDIM's: both
    are mixed anew, at the next sigma."""

    def __init__(self, scheduler: Any) -> None:
        self.timesteps, self.sigmas = scheduler.timesteps, scheduler.sigmas.tolist()

    def step(self, out: torch.Tensor, i: int, z: torch.Tensor, sources: list[torch.Generator]) -> torch.Tensor:
        return z + (self.sigmas[i + 1] - self.sigmas[i]) * out[:, : z.shape[1]]


class _DpmSolver:
    """diffusers' multistep DPM-Solver++; it must not see the variance half, of which it would cut the wrong part."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.timesteps = scheduler, scheduler.timesteps

    def step(self, out: torch.Tensor, i: int, z: torch.Tensor, sources: list[torch.Generator]) -> torch.Tensor:
        return self.scheduler.step(out[:, : z.shape[1]], self.timesteps[i], z).prev_sample


def noise_stepper(
    schedule: Mapping[str, Any], sampling: Sampling, learned_variance: bool, device: torch.device
) -> Stepper:
    """Of a model that predicts the noise of ``schedule``, in diffusers' keys.

    Raises ValueError for more steps than it has levels.
    """
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    common = {key: schedule[key] for key in kept if key in schedule} | {"timestep_spacing": sampling.spacing}
    if sampling.steps > common.get("num_train_timesteps", 1000):
        raise ValueError(
            f"{sampling.steps} sampling steps: the schedule has {common.get('num_train_timesteps', 1000)} noise levels"
        )
    if sampling.scheduler == "dpm++":
        scheduler = DPMSolverMultistepScheduler(**common)
        scheduler.set_timesteps(sampling.steps, device=device)
        return _DpmSolver(scheduler)
    variance = "learned_range" if learned_variance else "fixed_small"
    scheduler = DDPMScheduler(**common, variance_type=variance, clip_sample=sampling.clip)
    scheduler.set_timesteps(sampling.steps, device=device)
    return _Ddpm(scheduler) if sampling.scheduler == "ddpm" else _Ddim(scheduler, sampling.clip)


def flow_stepper(flow: Flow, sampling: Sampling, device: torch.device) -> Stepper:
    """Of diffusers' sigmas: from 1 to what the shift makes of the lowest level, evenly, and then shifted; of an even
    flow, whose shift is one number here, from 1 to a step above 0.

    Raises ValueError for a walk that a flow does not have.
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    check_walk(flow, sampling)
    if sampling.scheduler == "dpm++":
        solver = DPMSolverMultistepScheduler(
            num_train_timesteps=flow.steps,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=flow.shift,
        )
        solver.set_timesteps(sampling.steps, device=device)
        solver.set_begin_index(0)  # its whole timesteps may repeat, so that they do not tell where the walk is
        return _DpmSolver(solver)
    euler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=flow.steps, shift=flow.shift)
    if flow.even:
        euler.set_timesteps(sigmas=[1 - step / sampling.steps for step in range(sampling.steps)], device=device)
    else:
        euler.set_timesteps(sampling.steps, device=device)
    return _Euler(euler)
