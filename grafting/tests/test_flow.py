"""Rectified flow: noise and velocity by hand, draws, walks with a known end, and who is taught under which schedule."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logit
from scipy.stats import norm
from test_graft import batch, tiny
from test_study import recipe
from torch import nn

from grafting.claims import ClaimError
from grafting.data import Batches
from grafting.data.pairs import PairsConfig, generate_pairs
from grafting.diffusion import Diffusion, Flow, Levels, draw
from grafting.graft import graft
from grafting.hosts import HostError
from grafting.hosts.dit import DiT
from grafting.hosts.registry import host_for, schedule_of, set_schedule
from grafting.measure.denoising import Triples, denoising_losses
from grafting.plan import Plan
from grafting.random import generator
from grafting.sampling import Pipeline, Sampling
from grafting.searching.scores import carried_errors
from grafting.store.configs import ModelError
from grafting.store.folder import save
from grafting.store.models import open_model
from grafting.study.bench import Study, StudyError
from grafting.study.stages import left_unexplained
from grafting.study.whole import by_timestep
from grafting.training.distill import DistillConfig, distill
from grafting.training.finetune import FinetuneConfig, finetune
from grafting.training.loop import LoopConfig
from grafting.training.objective import teacher_objective

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
FLOWS = "FlowMatchEulerDiscreteScheduler"


class Exact(nn.Module):
    """A model of one class whose velocity is a function of z_t and sigma (B, 1, 1, 1)."""

    def __init__(self, velocity: Velocity, size: int = 4) -> None:
        super().__init__()
        self.velocity, self.told, self.like = velocity, [], nn.Parameter(torch.zeros(1))  # type: ignore[var-annotated]
        self.config = SimpleNamespace(in_channels=2, out_channels=2, sample_size=size, num_embeds_ada_norm=1)
        set_schedule(self, Flow())

    def forward(self, z: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> SimpleNamespace:
        self.told.append(timestep[0].item())
        return SimpleNamespace(sample=self.velocity(z, (timestep.float() / 1000)[:, None, None, None]))


def gaussian(mean: float, deviation: float) -> Velocity:
    """E[noise - z | z_t] for z normal, by the regression of jointly normal variables."""

    def velocity(z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        variance = (1 - sigma).square() * deviation**2 + sigma.square()
        slope = (sigma - (1 - sigma) * deviation**2) / variance
        return slope * (z - (1 - sigma) * mean) - mean

    return velocity


def curved(z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Any velocity that depends on all it is told."""
    return torch.tanh(3 * z.roll(1, 3) + sigma) - 0.3 * z * sigma


def starts(n: int) -> torch.Tensor:
    return torch.stack([torch.randn(2, 4, 4, generator=generator(0, "sample", k)) for k in range(n)])


# -- noise, target, draws ---------------------------------------------------------------------------------------------


def test_noise_and_target_by_hand() -> None:
    z, noise = torch.full((4, 1, 1, 2), 2.0), torch.full((4, 1, 1, 2), -6.0)
    zt = Flow().add_noise(z, torch.tensor([1, 250, 500, 1000]), noise)
    torch.testing.assert_close(zt[:, 0, 0, 0], torch.tensor([1.992, 0.0, -2.0, -6.0]))
    assert Flow().target(z, noise).eq(-8).all() and Diffusion().target(z, noise).equal(noise)
    assert Flow().add_noise(z.bfloat16(), torch.tensor([999] * 4), noise.bfloat16()).dtype == torch.bfloat16


def test_the_target_is_how_fast_the_noise_comes_in() -> None:
    z, noise = (torch.randn(5, 2, 3, 3, dtype=torch.float64) for _ in range(2))
    t, h = torch.tensor([1.5, 300.0, 500.0, 800.0, 999.5], dtype=torch.float64), 0.25
    rate = (Flow().add_noise(z, t + h, noise) - Flow().add_noise(z, t - h, noise)) / (2 * h / 1000)
    torch.testing.assert_close(rate, Flow().target(z, noise))


def test_tables_begin_with_the_lowest_level() -> None:
    table = torch.arange(1000, dtype=torch.float64)
    found = Flow().at(table, torch.tensor([1, 1000]), torch.zeros(1))
    assert found.flatten().tolist() == [0, 999] and found.shape == (2, 1, 1, 1) and found.dtype == torch.float32
    assert Diffusion().at(table, torch.tensor([0, 999]), torch.zeros(1)).flatten().tolist() == [0, 999]


def test_levels_are_drawn_from_all_that_a_model_is_told() -> None:
    noise, t = draw(torch.Size([40000, 1]), Flow(), 0, 3)
    assert (t.min(), t.max(), t.dtype) == (1, 1000, torch.int64) and len(t.unique()) == 1000
    before, level = draw(torch.Size([40000, 1]), Diffusion(), 0, 3)
    assert noise.equal(before) and t.equal(level + 1)


def test_noise_prediction_is_as_it_was() -> None:
    """What finished runs are known by, and the draws by hand."""
    assert repr(Diffusion()) == "Diffusion(steps=1000, beta_start=0.0001, beta_end=0.02)"
    noise, t = draw(torch.Size([7, 2, 3, 3]), Diffusion(), 4, 9)
    source = generator(4, "noise", 9)
    assert noise.equal(torch.randn(7, 2, 3, 3, generator=source))
    assert t.equal(torch.randint(0, 1000, (7,), generator=source))


def test_levels_by_shares_are_stratified() -> None:
    shares = Flow().level_shares(Levels(centre=-1.0, deviation=1.5, uniform=0.2))
    assert shares is not None and Flow().level_shares(None) is None
    n = 700
    _, t = draw(torch.Size([n, 1]), Flow(), 0, 1, shares)
    counted = torch.bincount(t, minlength=1001)[1:].cumsum(0)
    assert t.min() >= 1 and t.max() <= 1000
    # One of each equal part of the distribution: what lies below a level is its share, but for one draw.
    assert (counted - n * shares.cumsum(0)).abs().max() <= 1


def test_centre_0_and_deviation_2_are_the_papers_logit_normal() -> None:
    shares = Flow().level_shares(Levels(centre=0.0, deviation=2.0, uniform=0.0))
    assert shares is not None and shares.sum().item() == pytest.approx(1, abs=1e-12)
    sigma = np.arange(20, 981) / 1000
    density = norm.pdf(logit(sigma)) / (sigma * (1 - sigma))
    np.testing.assert_allclose(shares.numpy()[19:980], density / 1000, rtol=2e-3)
    assert shares[-1].item() == pytest.approx(norm.sf(logit(0.9995)))  # level 1000, where its logarithm is infinite
    assert shares[0].item() == pytest.approx(norm.cdf(logit(0.0015)))


def test_a_centre_is_of_signal_over_noise_as_it_is_for_noise_prediction() -> None:
    sigma = torch.arange(1, 1000, dtype=torch.float64) / 1000
    for schedule, ratio in (
        (Flow(), 2 * ((1 - sigma) / sigma).log()),
        (Diffusion(), torch.logit(Diffusion().alphas_bar)),
    ):
        for centre in (-1.0, 2.0):
            shares = schedule.level_shares(Levels(centre=centre, deviation=1.5, uniform=0.0))
            assert shares is not None
            assert (shares[: len(ratio)] * ratio).sum().item() == pytest.approx(centre, abs=0.05)
    beyond = Flow().level_shares(Levels(centre=30.0, deviation=0.5, uniform=0.0))
    assert beyond is not None and beyond[0] > 0.99 and beyond.sum().item() == pytest.approx(1)


def test_a_flow_takes_no_weights_by_level() -> None:
    assert Flow().level_weights(5.0, 0.0).eq(1).all() and len(Flow().level_weights(5.0, 0.0)) == 1000
    with pytest.raises(ValueError, match=r"weight_power 0\.5: a flow's error is the velocity's already"):
        Flow().level_weights(5.0, 0.5)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"shift": 0.0}, {"shift": float("inf")}])
def test_flows_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1 level, and a finite shift above 0"):
        Flow(**wrong)


# -- sampling ---------------------------------------------------------------------------------------------------------


def test_the_walk_is_of_diffusers_timesteps_and_these_by_hand() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    model, n = Exact(curved), 9
    Pipeline(model)([0], sampling=Sampling(steps=n))
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(n)
    assert model.told == theirs.timesteps.tolist()
    # The lowest level is shifted before they are spaced, and again with all of them.
    lowest = Flow().shifted(torch.tensor(0.001, dtype=torch.float64)).item()
    assert lowest == pytest.approx(3 * 0.001 / 1.002)
    spaced = torch.linspace(1, lowest, n, dtype=torch.float64)
    np.testing.assert_allclose(model.told, 1000 * Flow().shifted(spaced), rtol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_equals_diffusers_step_by_step(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(7)
    z = starts(3)
    for t in theirs.timesteps:
        z = theirs.step(curved(z, t / 1000), t, z).prev_sample
    found = Pipeline(Exact(curved), scheduler={"shift": shift})([0, 0, 0], sampling=Sampling(steps=7))
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-5)


def test_eulers_step_is_ddims() -> None:
    """DDIM of a flow: the clean sample and the noise that the velocity implies, mixed anew at the next sigma."""
    spaced = torch.linspace(1, 3 * 0.001 / 1.002, 6, dtype=torch.float64)
    sigmas = [*(3 * spaced / (1 + 2 * spaced)).tolist(), 0.0]
    z = starts(2).double()
    for now, after in pairwise(sigmas):
        velocity = curved(z, torch.tensor(now))
        clean, noise = z - now * velocity, z + (1 - now) * velocity
        z = (1 - after) * clean + after * noise
    found = Pipeline(Exact(curved))([0, 0], sampling=Sampling(scheduler="ddim", steps=6))
    torch.testing.assert_close(found.double(), z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 12])
def test_dpm_equals_diffusers_step_by_step(steps: int) -> None:
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, num_train_timesteps=1000
    )
    theirs.set_timesteps(steps)
    z = starts(3)
    for t in theirs.timesteps:
        z = theirs.step(curved(z, t / 1000), t, z).prev_sample
    found = Pipeline(Exact(curved))([0, 0, 0], sampling=Sampling(scheduler="dpm++", steps=steps))
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scheduler", "off"), [("ddim", 1e-4), ("dpm++", 4e-3)])
def test_a_point_is_sampled_whatever_the_steps(scheduler: Any, off: float) -> None:
    """The lines are straight, so that Euler is exact; DPM-Solver++ tells whole timesteps, at most one level away."""
    point = torch.linspace(-2, 2, 32).reshape(2, 4, 4)
    model = Exact(lambda z, sigma: (z - point) / sigma)
    for steps in (2, 10):
        found = Pipeline(model)([0] * 3, sampling=Sampling(scheduler=scheduler, steps=steps))
        assert (found - point).abs().max() < off * (1 + point.abs().max())


def test_a_gaussian_is_sampled_and_how_fast_it_is_reached() -> None:
    """The flow takes a noise to mean + deviation x noise; Euler's error is of first order."""
    mean, deviation, n = 1.5, 0.4, 6
    model, wanted = Exact(gaussian(mean, deviation)), mean + deviation * starts(n)

    def error(scheduler: Any, steps: int) -> float:
        found = Pipeline(model)([0] * n, sampling=Sampling(scheduler=scheduler, steps=steps))
        return float((found - wanted).square().mean().sqrt())

    coarse, fine = error("ddim", 40), error("ddim", 160)
    assert fine < 0.01 and 3 < coarse / fine < 5
    assert error("dpm++", 40) < 0.2 * coarse
    backwards = Exact(lambda z, sigma: -gaussian(mean, deviation)(z, sigma))
    assert (Pipeline(backwards)([0] * n, sampling=Sampling(steps=40)) - wanted).abs().mean() > 1


def test_guidance_is_between_two_velocities() -> None:
    class Told(Exact):
        def forward(self, z: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> SimpleNamespace:
            aim = torch.where(class_labels == 0, 1.0, -1.0)[:, None, None, None]
            return SimpleNamespace(sample=(z - aim) / (timestep / 1000)[:, None, None, None])

    found = Pipeline(Told(curved))([0, 0], sampling=Sampling(steps=5, guidance=2.0))
    # Both lines are straight, and so is what lies beyond them: -1 + 2 x (1 - -1).
    torch.testing.assert_close(found, torch.full_like(found, 3.0), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"scheduler": "ddpm"}, "scheduler 'ddpm'"),
        ({"clip": True}, "clip"),
        ({"spacing": "leading"}, "spacing 'leading'"),
        ({"scheduler": "ddpm", "spacing": "leading", "clip": True}, "scheduler 'ddpm', clip, spacing 'leading'"),
    ],
)
def test_walks_that_a_flow_does_not_have(asked: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}: a flow is walked by ddim"):
        Pipeline(Exact(curved))([0], sampling=Sampling(steps=4, **asked))
    with pytest.raises(ValueError, match="2000 sampling steps: the schedule has 1000"):
        Pipeline(Exact(curved))([0], sampling=Sampling(steps=2000))


@pytest.mark.parametrize(
    ("scheduler", "word"),
    [
        ({"prediction_type": "epsilon"}, "prediction_type epsilon"),
        ({"beta_start": 1e-4, "beta_end": 0.02}, "beta_start 0.0001, beta_end 0.02"),
        ({"use_dynamic_shifting": True, "shift": 1.0}, "use_dynamic_shifting True"),
    ],
)
def test_noise_of_the_other_kind_is_refused(scheduler: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}: of flows"):
        Pipeline(Exact(curved), scheduler=scheduler)


@pytest.mark.parametrize(
    ("scheduler", "word"), [({"shift": 3.0}, "shift 3.0: of flows"), ({"prediction_type": "flow_prediction"}, "flow_")]
)
def test_a_model_of_noise_is_no_flow(scheduler: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Pipeline(tiny(), scheduler=scheduler)


def test_noise_that_was_set_on_a_model_is_walked_too() -> None:
    model, sampling = tiny(), Sampling(steps=3)
    wanted = Pipeline(model, scheduler={"beta_end": 0.012})([1, 2], sampling=sampling)
    plain = Pipeline(model)([1, 2], sampling=sampling)
    set_schedule(model, Diffusion(beta_end=0.012))
    assert Pipeline(model)([1, 2], sampling=sampling).equal(wanted) and not plain.equal(wanted)


def test_sd3_is_walked_as_diffusers_walks_it() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
    ).eval()
    texts = {"encoder_hidden_states": torch.randn(3, 5, 12), "pooled_projections": torch.randn(3, 10)}
    told, null = ({key: value[part] for key, value in texts.items()} for part in (slice(2), slice(2, 3)))
    both = {key: torch.cat([value, null[key].repeat(2, *[1] * (value.ndim - 1))]) for key, value in told.items()}
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(4)
    z = torch.stack([torch.randn(4, 8, 8, generator=generator(0, "sample", k)) for k in range(2)])
    for t in theirs.timesteps:
        with torch.no_grad():
            mine, free = model(torch.cat([z, z]), timestep=t.expand(4), **both).sample.chunk(2)
        z = theirs.step(free + 4.0 * (mine - free), t, z).prev_sample
    pipeline = Pipeline(model, null=null)
    assert pipeline.reads_text and pipeline.schedule == schedule_of(model) == Flow()
    found = pipeline(told, sampling=Sampling(steps=4, guidance=4.0))
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-4)


# -- who is taught under what -----------------------------------------------------------------------------------------


def test_a_models_schedule_is_its_familys_unless_it_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    assert schedule_of(model) == host_for(model).schedule() == Diffusion()
    assert schedule_of(nn.Linear(1, 1)) == Diffusion()
    with pytest.raises(HostError):
        host_for(nn.Linear(1, 1))
    monkeypatch.setattr(DiT, "schedule", lambda self: Flow())
    assert schedule_of(model) == Flow()
    set_schedule(model, Flow(shift=5.0))
    assert schedule_of(copy.deepcopy(model)) == Flow(shift=5.0) and schedule_of(tiny()) == Flow()
    handle = graft(model, Plan.interleaved(operator="swa"), init="copy")
    assert schedule_of(handle.model) == schedule_of(handle.own_copy().model) == Flow(shift=5.0)


def flowing(seed: int = 0) -> nn.Module:
    model = tiny(seed)
    set_schedule(model, Flow())
    return model


def test_starts_and_stage_one_are_of_the_models_own_noise() -> None:
    plan, told = Plan.explicit(site="attn", operator="hyena_x", blocks=[1]), {"calibration": batch}
    own, given, other = (
        graft(model, plan, init="solve", diffusion=schedule, **told)  # type: ignore[arg-type]
        for model, schedule in ((flowing(), None), (tiny(), Flow()), (tiny(), None))
    )
    assert own.explained == given.explained != other.explained
    config = DistillConfig(steps=2, evaluate_every=1)
    found, wanted = distill(own, batch, 10, config=config), distill(given, batch, 10, config=config, diffusion=Flow())
    assert found == wanted != distill(other, batch, 10, config=config)


def test_what_is_measured_is_shown_the_models_own_noise() -> None:
    model = flowing()
    handle = graft(model, Plan.explicit(site="attn", operator="swa", blocks=[1]), init="copy")
    held = Triples.draw(batch(0)["z"], batch(0)["y"], n=6, schedule=schedule_of(model))
    seen: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    carried_errors(handle, held)
    left_unexplained(model, handle, model, held, 6)
    hook.remove()
    sigma = held.t[:, None, None, None] / 1000
    assert len(seen) == 3
    for shown in seen:
        torch.testing.assert_close(shown, (1 - sigma) * held.z + sigma * held.noise)


def test_triples_are_of_the_schedules_levels_and_the_error_is_the_velocitys() -> None:
    z, y = batch(0)["z"], batch(0)["y"]
    flow, noise = (Triples.draw(z, y, n=2000, schedule=schedule) for schedule in (Flow(), None))
    assert flow.t.equal(noise.t + 1) and flow.noise.equal(noise.noise) and (flow.t.min(), flow.t.max()) == (1, 1000)
    few = Triples.draw(z, y, n=9, schedule=Flow())
    seen = iter(zip(few.z.split(4), few.noise.split(4), strict=True))

    def oracle(zt: torch.Tensor, t: torch.Tensor, _: Any) -> torch.Tensor:
        z, noise = next(seen)
        sigma = t[:, None, None, None] / 1000
        torch.testing.assert_close(zt, (1 - sigma) * z + sigma * noise)
        return torch.cat([noise - z + 0.5, torch.full_like(z, 99.0)], 1)  # with half a channel too many

    losses = denoising_losses(oracle, few, batch_size=4)
    torch.testing.assert_close(losses, torch.full((9,), 0.25, dtype=torch.float64), atol=1e-6, rtol=0)
    nothing = denoising_losses(lambda zt, t, y: torch.zeros_like(zt), few)
    torch.testing.assert_close(nothing, (few.noise - few.z).double().square().flatten(1).mean(1))


def test_the_bound_is_of_noise_prediction_alone() -> None:
    z, noise = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    model = lambda zt, t, y: torch.cat([zt, zt], 1)  # noqa: E731
    t = torch.tensor([1, 300, 600, 1000])
    parts = teacher_objective(model, Flow(), z, t, None, noise)
    zt = Flow().add_noise(z, t, noise)
    assert parts.keys() == {"mse"}
    assert parts["mse"].item() == pytest.approx((zt - (noise - z)).square().mean().item(), rel=1e-5)
    assert "bound" in teacher_objective(model, Diffusion(), z, t - 1, None, noise)


class Slope(nn.Module):
    """A velocity of slope x z_t, whatever the level."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))
        set_schedule(self, Flow())

    def forward(self, z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.slope * z


@pytest.mark.parametrize("sign", [1, -1])
def test_finetuning_on_the_velocity_finds_the_known_best_slope(sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least squares over all levels, data and noise; of a target turned round it is the slope turned round."""
    if sign < 0:
        monkeypatch.setattr(Flow, "target", lambda self, z, noise: z - noise)
    model, z = Slope(), 2 * torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    config = FinetuneConfig(
        loop=LoopConfig(steps=250, lr=2e-2, ema=0.95, log_every=50), teacher_share=(0.0, 0.0), label_dropout=0.0
    )
    batches = Batches(inputs=z, labels=torch.zeros(512, dtype=torch.int64), size=128, seed=0)
    finetune(model, model, None, batches=batches, null=1, config=config)
    monkeypatch.undo()
    sigma, signal = torch.arange(1, 1001, dtype=torch.float64) / 1000, z.square().mean().item()
    square = ((1 - sigma).square() * signal + sigma.square()).mean().item()
    best = (sigma - (1 - sigma) * signal).mean().item() / square
    assert best < -0.8 and model.slope.item() == pytest.approx(sign * best, abs=0.02)
    held = Triples.draw(z, torch.zeros(512, dtype=torch.int64), n=2048, schedule=Flow())
    loss, least = denoising_losses(model, held).mean().item(), 1 + signal - best**2 * square
    assert loss == pytest.approx(least, rel=0.02) if sign > 0 else loss > 2 * least


def test_a_run_goes_on_under_another_shift_which_is_of_sampling_alone(tmp_path: Path) -> None:
    """And under no other schedule."""
    assert Flow(shift=2.0) != Flow() and repr(Flow(shift=2.0)) == repr(Flow()) == "Flow(steps=1000)"
    plan, config = Plan.explicit(operator="swa", blocks=[1]), DistillConfig(steps=2, evaluate_every=1, save_every=1)

    def one(schedule: Any) -> Any:
        handle = graft(tiny(), plan, init="copy")
        return distill(handle, batch, 10, config=config, out=tmp_path / "one", diffusion=schedule)

    def two(schedule: Any, out: str, until: int = 4) -> float:
        model = Slope()
        set_schedule(model, schedule)
        loop = LoopConfig(steps=4, lr=1e-2, save_every=1)
        told = FinetuneConfig(loop=loop, teacher_share=(0.0, 0.0), label_dropout=0.0)

        def batches(step: int) -> dict[str, torch.Tensor]:
            if step == until:
                raise KeyboardInterrupt
            z = torch.randn(16, 1, 8, 8, generator=generator(0, "z", step))
            return {"z": z, "y": torch.zeros(16, dtype=torch.int64)}

        with suppress(KeyboardInterrupt):
            finetune(model, model, None, batches=batches, null=1, config=told, out=tmp_path / out)
        return model.slope.item()

    assert one(Flow(shift=2.0)) == one(Flow())
    cut = two(Flow(shift=2.0), "cut", 2)
    assert two(Flow(), "cut") == two(Flow(), "whole") != cut
    for again in (one, partial(two, out="cut")):
        with pytest.raises(ValueError, match="schedule"):
            again(Flow(steps=500))


def test_weights_by_level_are_refused_before_a_step() -> None:
    config = FinetuneConfig(loop=LoopConfig(steps=1, lr=1e-3), teacher_share=(0.0, 0.0), weight_power=1.0)
    model = Slope()
    with pytest.raises(ValueError, match="weight_power 1: a flow's error is the velocity's already"):
        finetune(model, model, None, batches=batch, null=10, config=config)
    assert model.slope.item() == 0


def test_a_study_says_what_a_flow_has_not_before_it_trains(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiT, "schedule", lambda self: Flow())
    told = recipe(tiny_teacher)
    assert told.finetune is not None
    wrong = replace(
        told,
        finetune=replace(told.finetune, weight_power=0.5),
        evaluate=replace(told.evaluate, scheduler="ddpm", spacing="leading"),
    )
    with pytest.raises(
        StudyError, match=r"weight_power 0\.5: .*; scheduler 'ddpm', spacing 'leading': a flow is walked"
    ):
        Study(wrong, tmp_path / "wrong")
    study = Study(told, tmp_path / "right")
    assert study.triples.schedule == Flow()


def test_losses_by_timestep_have_a_flows_last_level_in_the_last_part() -> None:
    t = torch.arange(1, 1001)
    apart = (t > 900).double()
    found = by_timestep(apart, torch.zeros(1000), t, torch.arange(1000) % 7)
    assert [figure.value for figure in found] == pytest.approx([0.0] * 9 + [100 / 101], abs=1e-9)


# -- models on disk ---------------------------------------------------------------------------------------------------


def stored(folder: Path, **scheduler: Any) -> str:
    tiny().save_pretrained(folder / "transformer")  # type: ignore[operator]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return str(folder)


def test_the_shift_of_a_pipelines_folder_is_kept_with_its_model_and_grafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    monkeypatch.setattr(DiT, "schedule", lambda self: Flow())
    home = stored(tmp_path / "home", **json.loads(FlowMatchEulerDiscreteScheduler(shift=2.5).to_json_string()))
    network = open_model(home).transformer
    assert schedule_of(network) == Flow(shift=2.5)
    handle = graft(network, Plan.interleaved(operator="swa"), init="copy")
    save(handle, tmp_path / "delta", base=home)
    save(handle.own_copy(), tmp_path / "whole", base=home)
    for name in ("delta", "whole"):
        assert schedule_of(open_model(str(tmp_path / name)).transformer) == Flow(shift=2.5)
    sparse = stored(tmp_path / "sparse", _class_name=FLOWS)
    assert schedule_of(open_model(sparse).transformer) == Flow(shift=1.0)  # diffusers' own default


def test_another_shift_is_drawn_again_and_not_trained_again(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiT, "schedule", lambda self: Flow())
    teacher, scheduler = tmp_path / "teacher", tmp_path / "teacher" / "scheduler" / "scheduler_config.json"
    shutil.copytree(tiny_teacher, teacher)
    scheduler.parent.mkdir()

    def opened(shift: float) -> Study:
        scheduler.write_text(json.dumps({"_class_name": FLOWS, "shift": shift}))
        return Study(recipe(teacher), tmp_path / "out", lambda line: None)

    def pairs(study: Study) -> None:
        config = PairsConfig(batch=2, shard=4)
        generate_pairs(study.teacher, tmp_path / "pairs", 4, sampling=Sampling(steps=2), config=config)

    own, other = opened(3.0), opened(2.0)
    before, after = (study.sample(study.entries[0]) for study in (own, other))
    assert before is not None and after is not None and not torch.equal(before, after)
    for entry in own.entries:
        assert own.settings(entry) == other.settings(entry)  # a shift is a sampler's alone
    assert "walked" not in own._sampling(own.entries[1]), "what was drawn under the family's own keeps its key"
    pairs(own)
    with pytest.raises(ClaimError, match=r"walked\.shift None there, 2\.0 now"):
        pairs(other)


def test_what_a_whole_graft_says_of_its_schedule_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretrained model's folder, or the hub, is asked by a manifest of old alone, which says nothing of it."""
    from grafting.store import models

    monkeypatch.setattr(DiT, "schedule", lambda self: Flow())
    home = stored(tmp_path / "home", _class_name=FLOWS, shift=2.0)
    asked: list[str] = []

    def hub_file(name: str, file: str) -> Path:
        asked.append(f"{name} {file}")
        return Path(home) / file

    monkeypatch.setattr(models, "hub_file", hub_file)
    monkeypatch.setattr(models, "own_autoencoder", lambda _: None)
    for base in (home, "owner/name"):
        for shift in (1.5, 3.0):  # the second is the family's own
            network, folder = open_model(home).transformer, tmp_path / base.replace("/", " ") / str(shift)
            set_schedule(network, Flow(shift=shift))
            save(graft(network, Plan.interleaved(operator="swa"), init="copy"), folder, whole=True, base=base)
            assert schedule_of(open_model(str(folder)).transformer) == Flow(shift=shift) and not asked
        manifest = json.loads((folder / "graft.json").read_text())
        del manifest["schedule"]
        (folder / "graft.json").write_text(json.dumps(manifest))
        assert schedule_of(open_model(str(folder)).transformer) == Flow(shift=2.0)
    assert asked == ["owner/name scheduler/scheduler_config.json"]


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({"_class_name": FLOWS, "use_dynamic_shifting": True}, "use_dynamic_shifting True"),
        ({"_class_name": FLOWS, "num_train_timesteps": 500}, "num_train_timesteps 500"),
        ({"_class_name": "DDIMScheduler"}, f"_class_name DDIMScheduler: a flow's is {FLOWS}"),
        ({}, "_class_name None"),
    ],
)
def test_schedules_of_a_flow_that_are_not_known(
    found: dict[str, Any], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiT, "schedule", lambda self: Flow())
    with pytest.raises(ModelError, match=word):
        open_model(stored(tmp_path, **found))


def test_a_flows_schedule_beside_a_model_of_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="this model predicts noise"):
        open_model(stored(tmp_path, _class_name=FLOWS, shift=3.0))
