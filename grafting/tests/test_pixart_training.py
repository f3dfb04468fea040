"""Both stages and the held-out loss on captions: the dictionary goes where labels go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_hosts_table import pixart
from torch import nn

from grafting.conditions import MASK, TEXT, rows
from grafting.diffusion import Denoiser
from grafting.graft import Grafted, graft, null_identity
from grafting.hosts import host_for
from grafting.measure.denoising import Triples, denoising_losses
from grafting.plan import Plan
from grafting.searching.scores import carried_errors
from grafting.training.distill import DistillConfig, distill
from grafting.training.finetune import FinetuneConfig, finetune
from grafting.training.loop import LoopConfig

N = 12
NULL = {TEXT: torch.full((1, 1, 12), 0.5), MASK: torch.ones(1, 1, dtype=torch.int64)}


def hybrid() -> Grafted:
    torch.manual_seed(0)
    model = pixart()[0].eval()
    nn.init.normal_(model.adaln_single.linear.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    return graft(model, Plan.interleaved(operator="hyena_x"), init="copy")


def denoiser(model: nn.Module) -> Denoiser:
    return lambda z, t, y: host_for(model).call(model, z, t, y)


def captions() -> dict[str, torch.Tensor]:
    """Of one to six tokens."""
    source = torch.Generator().manual_seed(1)
    mask = (torch.arange(6) < torch.arange(N)[:, None] % 6 + 1).long()
    return {TEXT: torch.randn(N, 6, 12, generator=source) * mask[:, :, None], MASK: mask}


def latents() -> torch.Tensor:
    return torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def batches(step: int) -> dict[str, Any]:
    """Four rows at a time; what no caption of a batch needs of the padding is cut off."""
    index = (torch.arange(4) + 4 * step) % N
    return {"z": latents()[index], "y": rows(captions(), index)}


def test_stage_one_learns_from_captions_and_resumes(tmp_path: Path) -> None:
    def run(steps: int, out: Path | None) -> Any:
        handle = hybrid()
        config = DistillConfig(steps=steps, evaluate_every=2, heldout_batches=1, halve=(), warmup=0.0, save_every=1)
        return handle, distill(handle, batches, NULL, config=config, out=out)

    handle, reports = run(8, tmp_path)
    assert reports["blocks.1.attn"].heldout[-1][1] < reports["blocks.1.attn"].heldout[0][1]
    again, other = run(8, tmp_path)
    assert other == reports
    for site, operator in handle.operators().items():
        mine = again.operators()[site].state_dict()
        assert all(torch.equal(mine[name], tensor) for name, tensor in operator.state_dict().items())


def test_dropped_captions_are_the_null_prompt() -> None:
    """With all but all captions dropped, what the captions say makes no difference to what is learnt."""

    def learnt(change: float) -> torch.Tensor:
        handle = hybrid()

        def changed(step: int) -> dict[str, Any]:
            batch = batches(step)
            return batch | {"y": {**batch["y"], TEXT: batch["y"][TEXT] + change}}

        loop = LoopConfig(steps=2, lr=1e-2, clip=1.0, ema=0.5, warmup=0.0, save_every=10)
        config = FinetuneConfig(loop=loop, label_dropout=0.999, teacher_share=(0, 0))
        handle.train_grafted()
        finetune(handle.model, denoiser(handle.model), None, batches=changed, null=NULL, config=config)
        return torch.cat([p.detach().flatten() for op in handle.operators().values() for p in op.parameters()])

    assert torch.equal(learnt(0.0), learnt(3.0))


def test_stage_two_follows_its_teacher_and_keeps_its_null(tmp_path: Path) -> None:
    handle = hybrid()
    mine = handle.own_copy()
    teach = denoiser(handle.model)

    def teacher(z: torch.Tensor, t: torch.Tensor, y: Any) -> torch.Tensor:
        with handle.teacher():
            return teach(z, t, y)

    loop = LoopConfig(steps=3, lr=1e-3, clip=1.0, ema=0.5, warmup=0.0, save_every=1)
    config = FinetuneConfig(loop=loop, checkpointing=True)
    finetune(mine.model, denoiser(mine.model), teacher, batches=batches, null=NULL, config=config, out=tmp_path)
    assert load_file(next(tmp_path.glob("state-*.safetensors")))
    other = {**NULL, TEXT: NULL[TEXT] * 2}
    assert null_identity(other) != null_identity(NULL) and null_identity(10) == 10
    with pytest.raises(ValueError, match="null"):
        finetune(mine.model, denoiser(mine.model), teacher, batches=batches, null=other, config=config, out=tmp_path)


def test_held_out_loss_and_scores_on_captions() -> None:
    handle = hybrid()
    held = Triples.draw(latents(), captions(), n=20)
    whole = denoising_losses(denoiser(handle.model), held)
    parts = denoising_losses(denoiser(handle.model), held, batch_size=3)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)
    moved = replace(held, conditions={**held.conditions, TEXT: held.conditions[TEXT].flip(0)})
    assert not torch.equal(denoising_losses(denoiser(handle.model), moved), whole)
    found = carried_errors(handle, held, batch_size=7)
    assert set(found) == set(handle.switches) and all(0 < error < 10 for error in found.values())
    with pytest.raises(ValueError, match="12 samples and 11 labels"):
        Triples.draw(latents(), rows(captions(), slice(11)), n=5)
