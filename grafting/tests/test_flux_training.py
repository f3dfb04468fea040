"""Flux from a plan to a saved model, on tiny weights: taught, finetuned, adapted, analysed, and walked as diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from test_hosts_table import ready
from test_sd3_training import NULL, batches, captions, denoiser, latents
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import grafting
from grafting.conditions import GUIDANCE, POOLED, TEXT, rows
from grafting.cost import adapter_cost, plan_cost
from grafting.diffusion import BySize, Flow
from grafting.graft import Grafted, graft
from grafting.hosts import schedule_of, set_schedule, shape_of
from grafting.hosts.flux import packed, unpacked
from grafting.hosts.shapes import set_text_tokens
from grafting.lora import Lora, add_lora
from grafting.measure.analysis import analyze
from grafting.measure.denoising import Triples, denoising_losses
from grafting.plan import Plan
from grafting.sampling import Pipeline, Sampling
from grafting.searching.scores import carried_errors
from grafting.store.configs import FLOWS, ModelError, check_schedule
from grafting.store.folder import load, save
from grafting.training.distill import DistillConfig, distill
from grafting.training.finetune import FinetuneConfig, finetune
from grafting.training.loop import LoopConfig
from grafting.training.muon import hidden_matrices

DEV: dict[str, Any] = {
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
SCHNELL = DEV | {"shift": 1.0, "use_dynamic_shifting": False}


def hybrid(operator: str = "swa_2d", row: str = "Flux") -> Grafted:
    return graft(ready(row)[0], Plan.all(operator=operator), init="copy")


def test_stage_one_teaches_both_kinds_of_block_and_resumes(tmp_path: Path) -> None:
    def run(out: Path) -> Any:
        handle = hybrid("hyena_x_2d")
        config = DistillConfig(
            steps=8, evaluate_every=2, heldout_batches=1, halve=(), warmup=0.0, save_every=1, gate_weighted=True
        )
        return handle, distill(handle, batches, NULL, config=config, out=out)

    handle, reports = run(tmp_path)
    for block in range(5):
        held = reports[f"blocks.{block}.attn"].heldout
        assert held[-1][1] < held[0][1]
    again, other = run(tmp_path)
    assert other == reports
    for site, operator in handle.operators().items():
        mine = again.operators()[site].state_dict()
        assert all(torch.equal(mine[name], tensor) for name, tensor in operator.state_dict().items())


def test_stage_two_learns_from_its_teacher_and_is_saved_whole(tmp_path: Path) -> None:
    """With what blocks return, with checkpoints, fading in; read again with the side of its latents and its shift."""
    handle = hybrid("linear")
    set_schedule(handle.model, Flow(shift=1.0, even=True))
    mine, teach = handle.own_copy(), denoiser(handle.model)

    def teacher(z: torch.Tensor, t: torch.Tensor, y: Any) -> torch.Tensor:
        with handle.teacher():
            return teach(z, t, y)

    held = Triples.draw(latents(), captions(), n=40, schedule=Flow())

    @torch.no_grad()
    def off() -> float:
        asked = Flow().add_noise(held.z, held.t, held.noise), held.t, held.y
        return (denoiser(mine.model)(*asked) - teacher(*asked)).square().mean().item()

    before = off()
    loop = LoopConfig(steps=16, lr=2e-4, clip=1.0, ema=0.5, warmup=0.0, save_every=10)
    config = FinetuneConfig(
        loop=loop, checkpointing=True, teacher_share=(1.0, 1.0), features=1.0, fade=0.5, label_dropout=0.0
    )
    pairs = mine.meetings(handle.originals)
    replaced = {mine.switches[site]: switch.original for site, switch in handle.switches.items()}
    student, out = denoiser(mine.model), tmp_path / "run"
    finetune(
        mine.model, student, teacher, batches=batches, null=NULL, config=config, out=out, pairs=pairs, replaced=replaced
    )
    assert len(pairs) == 5 and off() < 0.7 * before
    save(mine, tmp_path / "whole")
    other = load(tmp_path / "whole")
    z, t, y = latents()[:2], torch.tensor([1, 1000]), rows(captions(), slice(2))
    with torch.no_grad():
        assert torch.equal(denoiser(other.model)(z, t, y), denoiser(mine.model)(z, t, y))
    assert shape_of(other.model).latents == (8, 8) and schedule_of(other.model) == Flow(shift=1.0, even=True)


def test_adapters_are_of_both_kinds_of_block_and_cost_what_is_said() -> None:
    """Merged they are the same model; Muon's matrices are those of the blocks, but for their modulation."""
    plan = Plan.explicit(operator="swa", blocks=[1, 3])
    handle = graft(ready("Flux")[0], plan)
    set_text_tokens(handle.model, 5)
    z, t, y = latents()[:2], torch.tensor([100, 700]), rows(captions(), slice(2))

    def count() -> int:
        with FlopCounterMode(display=False) as counter:
            denoiser(handle.model)(z, t, y)
        return int(counter.get_total_flops())

    before = count()
    adapters = add_lora(handle, Lora(rank=3))
    cost = adapter_cost(plan_cost(plan, handle.model), 3, ("attn", "mlp"))
    assert cost.parameters == sum(p.numel() for p in adapters.parameters().values())
    assert 2 * cost.flops == count() - before
    found = {block: {name[2:] for name in adapters.names if name[0] == block} for block in "01234"}
    attention = {"attn.to_q", "attn.to_k", "attn.to_v"}
    assert found["4"] == attention | {"proj_mlp", "proj_out"} and found["3"] == {"proj_mlp", "proj_out"}
    assert found["1"] == {f"{ff}.net.{layer}" for ff in ("ff", "ff_context") for layer in ("0.proj", "2")}
    more = {f"attn.add_{k}_proj" for k in "qkv"} | {"attn.to_out.0", "attn.to_add_out"}
    assert found["0"] == found["1"] | attention | more
    with torch.no_grad():
        for name, parameter in adapters.parameters().items():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        given = denoiser(handle.model)(z, t, y)
        torch.testing.assert_close(denoiser(handle.own_copy().model)(z, t, y), given, rtol=1e-4, atol=1e-4)
    model = graft(ready("Flux")[0], Plan.explicit(operator="hyena_x", blocks=[1, 3])).model
    named = dict(model.named_parameters())
    inside = {name for name, p in named.items() if "transformer_blocks." in name and p.ndim == 2 and "norm" not in name}
    assert {name for name, p in named.items() if p in hidden_matrices(model)} == inside | {"context_embedder.weight"}


def test_a_delta_comes_back_and_the_first_screen_of_python_works_on_it(tmp_path: Path) -> None:
    model, z, t, condition = ready("Flux dev, no square")
    call = denoiser(model)
    before = call(z, t, condition)
    handle = grafting.graft(model, grafting.Plan.interleaved(operator="linear", share=0.6), init="random")
    after = call(z, t, condition)
    save(handle, tmp_path)
    assert json.loads((tmp_path / "graft.json").read_text())["schedule"] is None
    grafting.ungraft(model)
    assert torch.equal(call(z, t, condition), before)
    assert load(tmp_path, model).plan == handle.plan and torch.equal(call(z, t, condition), after)


def test_a_folder_of_diffusers_keeps_the_side_of_its_latents(tmp_path: Path) -> None:
    model, z, t, condition = ready("Flux")
    model.save_pretrained(tmp_path / "transformer")
    FlowMatchEulerDiscreteScheduler(**SCHNELL).save_pretrained(tmp_path / "scheduler")
    found = grafting.open_model(str(tmp_path)).transformer
    assert shape_of(found).latents == (8, 8) and shape_of(found).context_tokens == 256
    assert schedule_of(found) == Flow(shift=1.0, even=True)
    with torch.no_grad():
        assert torch.equal(denoiser(found)(z, t, condition), denoiser(model)(z, t, condition))


def test_a_teacher_is_measured_and_analysed() -> None:
    model, *_ = ready("Flux")
    assert schedule_of(model) == Flow(shift=BySize(), even=True) and repr(schedule_of(model)) == "Flow(steps=1000)"
    held = Triples.draw(latents(), captions(), n=30, schedule=Flow())
    losses = denoising_losses(denoiser(model), held, Flow())
    torch.testing.assert_close(losses, denoising_losses(denoiser(model), held, Flow(), batch_size=7))
    found = analyze(model, conditions=captions(), samples=4, sampling=Sampling(steps=3))
    assert found.blocks == tuple(range(5)) and found.grid == (4, 4) and len(found.timesteps) == 3
    assert found.raster.sum(-1).allclose(torch.ones((), dtype=torch.float64))
    assert [site.name for site in found.sites][3:5] == ["blocks.1.mlp", "blocks.2.attn"]
    counts = {spread.count for spreads in found.spreads.values() for spread in spreads}
    assert counts == {4 * 16 * 32}, "of the picture's tokens alone"


def test_carried_errors_are_of_the_pictures_stream() -> None:
    held = Triples.draw(latents(), captions(), n=30, schedule=Flow())
    errors = {operator: carried_errors(hybrid(operator), held, batch_size=7) for operator in ("mha", "swa", "none")}
    assert all(error < 1e-9 for error in errors["mha"].values())
    assert all(error > 1e-6 for operator in ("swa", "none") for error in errors[operator].values())


@pytest.mark.parametrize(("row", "scheduler"), [("Flux", SCHNELL), ("Flux dev, no square", DEV)])
def test_a_graft_runs_in_diffusers_own_pipeline(row: str, scheduler: dict[str, Any]) -> None:
    """Of the grafted model as of the teacher's, guided by a second pass or by what dev is told, with either shift."""
    handle, dev = hybrid(row=row), "dev" in row
    parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae")
    pipe = FluxPipeline(
        transformer=handle.model,
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        **dict.fromkeys(parts),
    )
    pipe.set_progress_bar_config(disable=True)
    asked, noise = rows(captions(), slice(2)), torch.randn(2, 3, 8, 8)
    given = pipe(
        prompt_embeds=asked[TEXT],
        pooled_prompt_embeds=asked[POOLED],
        negative_prompt_embeds=NULL[TEXT].expand(2, -1, -1),
        negative_pooled_prompt_embeds=NULL[POOLED].expand(2, -1),
        true_cfg_scale=2.0,
        guidance_scale=2.5,
        num_inference_steps=4,
        latents=packed(noise),
        height=8 * pipe.vae_scale_factor,
        width=8 * pipe.vae_scale_factor,
        output_type="latent",
    ).images
    drawn = iter(noise)  # the pipeline draws each sample's by itself
    told = asked | ({GUIDANCE: torch.full((2,), 2.5)} if dev else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: next(drawn))
        mine = Pipeline(handle.model, null=NULL, scheduler=scheduler).latents(
            told, sampling=Sampling(steps=4, guidance=2.0)
        )
    torch.testing.assert_close(mine, unpacked(given, (4, 4)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096, 16384])
@pytest.mark.parametrize("more", [{}, {"base_shift": 0.3, "max_shift": 2.0, "base_image_seq_len": 100}])
def test_a_shift_by_size_is_diffusers_own(tokens: int, more: dict[str, Any]) -> None:
    from grafting.steps import flow_stepper

    config = DEV | more
    flow = Flow(shift=BySize(), even=True).told(config)
    mu = calculate_shift(
        tokens,
        config["base_image_seq_len"],
        config["max_image_seq_len"],
        config["base_shift"],
        config["max_shift"],
    )
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 7, 7), mu=mu)
    ours: Any = flow_stepper(flow.of_size(tokens), Sampling(steps=7), torch.device("cpu"))
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    torch.testing.assert_close(torch.tensor(ours.sigmas), theirs.sigmas)


@pytest.mark.parametrize("whole", [False, True])
def test_a_shift_by_size_goes_with_a_graft(whole: bool, tmp_path: Path) -> None:
    model, wanted = ready("Flux")[0], Flow(shift=BySize(max_shift=1.3), even=True)
    set_schedule(model, wanted)
    save(graft(model, Plan.interleaved(operator="swa")), tmp_path, whole=whole)
    told = json.loads((tmp_path / "graft.json").read_text())["schedule"]
    assert told["shift"]["max_shift"] == 1.3 and told["even"] is True
    assert schedule_of(load(tmp_path, None if whole else ready("Flux")[0]).model) == wanted


def test_schedules_that_flux_does_not_have_are_refused(tmp_path: Path) -> None:
    own, path = Flow(shift=BySize(), even=True), tmp_path / "scheduler_config.json"
    for told, word in (
        (
            DEV | {"time_shift_type": "linear"},
            "time_shift_type linear: .* or one that grows as diffusers' mu, are known",
        ),
        (DEV | {"use_karras_sigmas": True}, "use_karras_sigmas True"),
        (DEV | {"base_image_seq_len": 5000}, "base_image_seq_len 5000, max_image_seq_len 4096: the first is less"),
    ):
        path.write_text(json.dumps({"_class_name": FLOWS, **told}))
        with pytest.raises(ModelError, match=word):
            check_schedule(path, own)
    path.write_text(json.dumps({"_class_name": FLOWS, **DEV}))
    assert check_schedule(path, own) == own
    with pytest.raises(ModelError, match="use_dynamic_shifting True"):
        check_schedule(path, Flow())
