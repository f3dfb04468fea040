"""What must hold on a GPU as on a CPU. Skipped without one."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel

from grafting.data import Batches
from grafting.graft import graft
from grafting.hosts import host_for
from grafting.operators import build, list_operators
from grafting.plan import Plan
from grafting.sampling import Pipeline, Sampling
from grafting.training.finetune import FinetuneConfig, finetune
from grafting.training.loop import LoopConfig
from grafting.training.team import Team

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", list_operators())
def test_operator_agrees_with_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    operator = build(name, width=64, heads=4, tokens=64).double()
    x = torch.randn(2, 64, 64, dtype=torch.float64, requires_grad=True)
    y = operator(x, grid=(8, 8))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    there = x.detach().cuda().requires_grad_()
    z = operator.cuda()(there, grid=(8, 8))
    torch.testing.assert_close(z.cpu(), y, rtol=1e-8, atol=1e-8)
    (other,) = torch.autograd.grad(z.square().sum(), there)
    torch.testing.assert_close(other.cpu(), gradient, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", list_operators())
def test_operator_in_bfloat16_is_near_float32(name: str) -> None:
    torch.manual_seed(0)
    operator = build(name, width=64, heads=4, tokens=64).cuda()
    x = torch.randn(2, 64, 64, device="cuda")
    exact = operator(x, grid=(8, 8))
    rough = operator.bfloat16()(x.bfloat16(), grid=(8, 8)).float()
    assert (exact - rough).norm() < 0.05 * exact.norm()


def _model() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()


def test_pictures_agree_with_the_cpu() -> None:
    labels, sampling = torch.tensor([1, 2, 3]), Sampling(steps=4, guidance=1.5)
    here = Pipeline(_model())(labels, sampling=sampling)
    there = Pipeline(_model().cuda())(labels, sampling=sampling)
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


def test_stage_two_trains_on_the_device() -> None:
    model = _model().cuda()
    host = host_for(model)
    handle = graft(model, Plan.all(operator="hyena_x"), init="copy")
    handle.train_grafted()
    batches = Batches(inputs=torch.randn(16, 4, 8, 8), labels=torch.arange(16) % 10, size=8, seed=0)

    def teacher(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with handle.teacher():
            return host.call(model, z, t, y)

    def student(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return host.call(model, z, t, y)

    config = FinetuneConfig(loop=LoopConfig(steps=30, lr=1e-3, log_every=1), precision="bf16")
    loop = finetune(model, student, teacher, batches, 10, config, team=Team(device=torch.device("cuda")))
    assert loop.log[-1]["loss"] < loop.log[0]["loss"]
