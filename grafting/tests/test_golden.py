"""Golden losses: a tiny run whose figures were written down once, so that no change of the arithmetic goes unseen.

Tolerances are wide enough for another processor's rounding and far too narrow for a changed draw, rate or objective.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel

from grafting.data import Batches
from grafting.graft import graft
from grafting.hosts import host_for
from grafting.plan import Plan
from grafting.training.distill import DistillConfig, distill
from grafting.training.finetune import FinetuneConfig, finetune
from grafting.training.loop import LoopConfig

STAGE_ONE = [0.2615613, 0.2207362, 0.232328, 0.2499507, 0.2181708, 0.2407928]
STAGE_TWO = [0.0171504, 0.3355333, 0.6272063, 0.8956647, 1.2360122, 1.7358592]


def _run() -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
    ).eval()
    host = host_for(model)
    batches = Batches(inputs=torch.randn(24, 2, 8, 8), labels=torch.arange(24) % 3, size=8, seed=5)
    handle = graft(model, Plan.interleaved(operator="hyena_x"), init="random", seed=3)
    reports = distill(handle, batches, 3, config=DistillConfig(steps=6, evaluate_every=6, seed=7))
    (report,) = reports.values()
    handle.train_grafted()

    def teacher(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with handle.teacher():
            return host.call(model, z, t, y)

    def student(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return host.call(model, z, t, y)

    config = FinetuneConfig(loop=LoopConfig(steps=6, lr=1e-3, log_every=1), teacher_share=(1.0, 0.0), seed=11)
    loop = finetune(model, student, teacher, batches=batches, null=3, config=config)
    return [loss for _, loss in report.curve], [row["loss"] for row in loop.log]


def test_losses_are_the_ones_written_down() -> None:
    first, second = _run()
    assert first == pytest.approx(STAGE_ONE, rel=2e-4)
    assert second == pytest.approx(STAGE_TWO, rel=2e-4)
