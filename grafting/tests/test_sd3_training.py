"""Stable Diffusion 3 from a plan to a saved model: taught, finetuned, measured, walked, analysed, on tiny weights."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hosts_table import ready
from torch import nn

import grafting
from grafting.conditions import POOLED, TEXT, rows
from grafting.diffusion import Denoiser, Flow
from grafting.graft import Grafted, graft
from grafting.hosts import Site, host_for, schedule_of, set_schedule
from grafting.measure.analysis import analyze
from grafting.measure.denoising import Triples, denoising_losses
from grafting.plan import Plan
from grafting.sampling import Pipeline, Sampling
from grafting.searching.scores import carried_errors
from grafting.store.folder import load, save
from grafting.training.distill import DistillConfig, distill
from grafting.training.finetune import FinetuneConfig, finetune
from grafting.training.loop import LoopConfig

N = 12
NULL = {TEXT: torch.full((1, 5, 12), 0.5), POOLED: torch.zeros(1, 10)}


def hybrid(operator: str = "hyena_x_2d", row: str = "SD3.5, no square") -> Grafted:
    return graft(ready(row)[0], Plan.all(operator=operator), init="copy")


def denoiser(model: nn.Module) -> Denoiser:
    return lambda z, t, y: host_for(model).call(model, z, t, y)


def captions() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    return {TEXT: torch.randn(N, 5, 12, generator=source), POOLED: torch.randn(N, 10, generator=source)}


def latents() -> torch.Tensor:
    return torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def batches(step: int) -> dict[str, Any]:
    index = (torch.arange(4) + 4 * step) % N
    return {"z": latents()[index], "y": rows(captions(), index)}


def test_stage_one_teaches_picture_and_text_and_resumes(tmp_path: Path) -> None:
    def run(out: Path) -> Any:
        handle = hybrid()
        config = DistillConfig(
            steps=8, evaluate_every=2, heldout_batches=1, halve=(), warmup=0.0, save_every=1, gate_weighted=True
        )
        return handle, distill(handle, batches, NULL, config=config, out=out)

    handle, reports = run(tmp_path)
    for block in range(3):
        held = reports[f"blocks.{block}.attn"].heldout
        assert held[-1][1] < held[0][1]
    again, other = run(tmp_path)
    assert other == reports
    for site, operator in handle.operators().items():
        mine = again.operators()[site].state_dict()
        assert all(torch.equal(mine[name], tensor) for name, tensor in operator.state_dict().items())


@pytest.mark.parametrize("share", [(1.0, 1.0), (0.0, 0.0)])
def test_stage_two_learns_from_its_teacher_or_the_velocity(share: tuple[float, float], tmp_path: Path) -> None:
    """With what blocks return, with checkpoints, fading in; and what was learnt is saved whole and read again."""
    handle = hybrid("linear", "SD3")
    mine, teach = handle.own_copy(), denoiser(handle.model)

    def teacher(z: torch.Tensor, t: torch.Tensor, y: Any) -> torch.Tensor:
        with handle.teacher():
            return teach(z, t, y)

    held = Triples.draw(latents(), captions(), n=40, schedule=Flow())

    @torch.no_grad()
    def off() -> float:
        """From the teacher's output, or the velocity: whichever is the target."""
        if not share[0]:
            return denoising_losses(denoiser(mine.model), held, Flow()).mean().item()
        asked = Flow().add_noise(held.z, held.t, held.noise), held.t, held.y
        return (denoiser(mine.model)(*asked) - teacher(*asked)).square().mean().item()

    before = off()
    # A copied start is near its teacher already, which steps as long as the velocity takes would lead it away from.
    loop = LoopConfig(steps=30, lr=2e-4 if share[0] else 2e-3, clip=1.0, ema=0.5, warmup=0.0, save_every=10)
    config = FinetuneConfig(
        loop=loop, checkpointing=True, teacher_share=share, features=float(share[0]), fade=0.5, label_dropout=0.0
    )
    pairs = mine.meetings(handle.originals)
    replaced = {mine.switches[site]: switch.original for site, switch in handle.switches.items()}
    finetune(
        mine.model,
        denoiser(mine.model),
        teacher,
        batches=batches,
        null=NULL,
        config=config,
        out=tmp_path / "run",
        pairs=pairs,
        replaced=replaced,
    )
    assert off() < (0.7 if share[0] else 1.0) * before
    save(mine, tmp_path / "whole")
    other = load(tmp_path / "whole")
    z, t, y = latents()[:2], torch.tensor([1, 1000]), rows(captions(), slice(2))
    with torch.no_grad():
        assert torch.equal(denoiser(other.model)(z, t, y), denoiser(mine.model)(z, t, y))


def test_a_teacher_is_measured_walked_and_analysed() -> None:
    model, *_ = ready("SD3.5, no square")
    assert schedule_of(model) == Flow()
    held = Triples.draw(latents(), captions(), n=30, schedule=Flow())
    assert held.t.min() >= 1 and held.t.max() <= 1000
    torch.testing.assert_close(
        denoising_losses(denoiser(model), held, Flow()), denoising_losses(denoiser(model), held, Flow(), batch_size=7)
    )
    drawn = Pipeline(model, null=NULL)(
        rows(captions(), slice(3)), sampling=Sampling(steps=3, guidance=2.0), batch_size=2
    )
    assert drawn.shape == (3, 3, 8, 8) and drawn.isfinite().all()
    found = analyze(model, conditions=captions(), samples=4, sampling=Sampling(steps=3))
    assert found.blocks == (0, 1, 2) and found.grid == (4, 4)
    assert found.raster.sum(-1).allclose(torch.ones((), dtype=torch.float64))


def test_carried_errors_are_of_the_pictures_stream() -> None:
    """By hand: what each stand-in's error adds there through its gate, beside the stream after the block."""
    held = Triples.draw(latents(), captions(), n=30, schedule=Flow())
    asked = Flow().add_noise(held.z, held.t, held.noise), held.t, held.y

    @torch.no_grad()
    def by_hand(handle: Grafted) -> dict[Site, float]:
        gates: dict[int, torch.Tensor] = {}
        added: dict[int, torch.Tensor] = {}
        found: dict[Site, float] = {}

        def norm(block: int, output: Any) -> None:
            gates[block] = output[1][:, None]

        def site(block: int, told: dict[str, Any], output: Any) -> None:
            stand_in = handle.operators()[Site(block, "attn")]
            mine, _ = stand_in(told["hidden_states"], grid=(4, 4), context=told["encoder_hidden_states"])
            added[block] = gates[block] * (mine - output[0])

        def after(block: int, output: Any) -> None:
            found[Site(block, "attn")] = (added[block].square().sum() / output[1].square().sum()).item()

        with ExitStack() as stack:
            stack.enter_context(handle.teacher())
            for number, block in enumerate(handle.model.transformer_blocks):  # type: ignore[union-attr, arg-type]
                for module, look in ((block.norm1, norm), (block, after)):
                    told = lambda _, args, output, look=look, n=number: look(n, output)  # noqa: E731
                    stack.callback(module.register_forward_hook(told).remove)
                told = lambda _, args, kwargs, output, n=number: site(n, kwargs, output)  # noqa: E731
                stack.callback(block.attn.register_forward_hook(told, with_kwargs=True).remove)
            denoiser(handle.model)(*asked)
        return found

    errors: dict[str, dict[Site, float]] = {}
    for operator in ("mha", "swa", "hyena_x_2d", "none"):
        handle = hybrid(operator)
        errors[operator] = carried_errors(handle, held, batch_size=7)
        assert errors[operator] == pytest.approx(by_hand(handle), rel=1e-3, abs=1e-10)
    assert all(error < 1e-9 for error in errors["mha"].values())
    assert all(error > 1e-6 for operator in ("swa", "hyena_x_2d", "none") for error in errors[operator].values())


def test_a_graft_runs_in_diffusers_own_pipeline() -> None:
    """Of the grafted model as of the teacher's: Euler's walk with a shift of 3, as ours is."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    handle = hybrid(row="SD3")
    empty: dict[str, Any] = {f"{part}{k}": None for part in ("text_encoder", "tokenizer") for k in ("", "_2", "_3")}
    pipe = StableDiffusion3Pipeline(
        transformer=handle.model, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **empty
    )
    pipe.set_progress_bar_config(disable=True)
    asked, noise = rows(captions(), slice(2)), torch.randn(2, 3, 8, 8)
    given = pipe(
        prompt_embeds=asked[TEXT],
        pooled_prompt_embeds=asked[POOLED],
        negative_prompt_embeds=NULL[TEXT].expand(2, -1, -1),
        negative_pooled_prompt_embeds=NULL[POOLED].expand(2, -1),
        guidance_scale=3.0,
        num_inference_steps=4,
        latents=noise,
        height=8 * pipe.vae_scale_factor,
        width=8 * pipe.vae_scale_factor,
        output_type="latent",
    ).images
    drawn = iter(noise)  # the pipeline draws each sample's by itself
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: next(drawn))
        mine = Pipeline(handle.model, null=NULL).latents(asked, sampling=Sampling(steps=4, guidance=3.0))
    torch.testing.assert_close(mine, given, rtol=1e-4, atol=1e-4)


def test_the_first_screen_of_python_works_on_it(tmp_path: Path) -> None:
    model, *_ = ready("SD3")
    handle = grafting.graft(model, grafting.Plan.interleaved(operator="swa_2d"))
    save(handle, tmp_path / "delta")
    grafting.ungraft(model)
    assert load(tmp_path / "delta", model).plan == handle.plan


def test_a_shift_of_its_own_goes_with_a_graft_that_needs_no_pretrained_model(tmp_path: Path) -> None:
    model, *_ = ready("SD3")
    set_schedule(model, Flow(shift=1.5))
    save(graft(model, Plan.interleaved(operator="swa")).own_copy(), tmp_path)
    assert schedule_of(load(tmp_path).model) == Flow(shift=1.5)
