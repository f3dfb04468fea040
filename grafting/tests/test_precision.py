"""The attention processor for training computes what diffusers' own does."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DiTTransformer2DModel

from grafting.training.precision import autocast, fast_cpu_attention


def _model() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        num_layers=2,
        sample_size=6,
        patch_size=2,
        num_embeds_ada_norm=4,
    ).eval()


def test_outputs_and_gradients_are_those_of_the_default_processor() -> None:
    plain = _model()
    fast = copy.deepcopy(plain)
    fast_cpu_attention(fast)
    z, t, y = torch.randn(3, 3, 6, 6), torch.tensor([0, 500, 999]), torch.tensor([0, 4, 2])
    a, b = (m(z, timestep=t, class_labels=y).sample for m in (plain, fast))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    a.square().mean().backward()
    b.square().mean().backward()
    for (name, p), q in zip(plain.named_parameters(), fast.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_core_stays_in_float32_under_autocast() -> None:
    model = _model()
    fast_cpu_attention(model)
    z, t, y = torch.randn(3, 3, 6, 6), torch.tensor([0, 500, 999]), torch.tensor([0, 4, 2])
    exact = model(z, timestep=t, class_labels=y).sample
    with autocast("cpu", "bf16"):
        rough = model(z, timestep=t, class_labels=y).sample
    assert not torch.equal(exact, rough)
    assert (exact - rough.float()).norm() < 0.03 * exact.norm()


def test_unknown_precision_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="precision 'fp8': fp32 or bf16"):
        autocast("cpu", "fp8")
