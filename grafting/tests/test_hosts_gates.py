"""The gates that descriptors report are what really scales a site's output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, SanaTransformer2DModel
from torch import nn

from grafting.hosts import HostError, Site, host_for


class Constant(nn.Module):
    """Answers every call with a constant of the input's shape."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full_like(hidden_states, self.value)


def _dit() -> tuple[nn.Module, Any]:
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        num_layers=2,
        sample_size=6,
        patch_size=2,
        num_embeds_ada_norm=4,
    )
    return model, torch.tensor([1, 4])


def _pixart(*, sized: bool = False) -> tuple[nn.Module, Any]:
    heads, width = (3, 24) if sized else (2, 16)  # the embedding of sizes wants a third of the width
    model = PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=6,
        patch_size=2,
        cross_attention_dim=width,
        caption_channels=12,
        use_additional_conditions=sized,
    )
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    return model, {"encoder_hidden_states": torch.randn(2, 5, 12), "encoder_attention_mask": mask}


def _alpha() -> tuple[nn.Module, Any]:
    """PixArt-alpha, which is told the size of the latents at hand where the condition does not say it."""
    return _pixart(sized=True)


def _sana() -> tuple[nn.Module, Any]:
    model = SanaTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        in_channels=3,
        out_channels=3,
        num_layers=2,
        sample_size=6,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=12,
        timestep_scale=0.5,
    )
    return model, _pixart()[1]


@pytest.mark.parametrize("size", [(6, 6), (4, 8)])
@pytest.mark.parametrize("make", [_dit, _pixart, _alpha, _sana])
@pytest.mark.parametrize("site", [Site(0, "attn"), Site(0, "mlp"), Site(1, "attn"), Site(1, "mlp")])
def test_gate_is_what_a_unit_output_adds(make: Any, size: tuple[int, int], site: Site) -> None:
    if make is _dit and size[0] != size[1]:
        pytest.skip("a DiT draws squares")
    torch.manual_seed(0)
    model, condition = make()
    model.eval()
    host = host_for(model)
    block = host.blocks(model)[site.block]
    # Alone in its block, so that nothing after the site depends on what it added.
    for name in ("attn1", "attn2", "ff"):
        if isinstance(getattr(block, name, None), nn.Module):
            setattr(block, name, Constant(0.0))
    z, t = torch.randn(2, 3, *size), torch.tensor([10, 900])
    outputs: list[torch.Tensor] = []
    block.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        for value in (0.0, 1.0):
            host.set(model, site, Constant(value))
            host.call(model, z, t, condition)
        gate = host.gates(model, z, t, condition)[site]
    assert gate.shape == (2, 1, model.config.num_attention_heads * 8)
    assert (gate[0] - gate[1]).abs().max() > 1e-4, "the gate depends on the timestep"
    torch.testing.assert_close(outputs[1] - outputs[0], gate.expand_as(outputs[0]), rtol=1e-4, atol=1e-5)


def test_pixart_masks_padding_and_refuses_a_bare_condition() -> None:
    torch.manual_seed(0)
    model, condition = _pixart()
    model.eval()
    host = host_for(model)
    z, t = torch.randn(2, 3, 6, 6), torch.tensor([10, 900])
    with torch.no_grad():
        before = host.call(model, z, t, condition)
        condition["encoder_hidden_states"][0, 3:] = 7.0
        after = host.call(model, z, t, condition)
        condition["encoder_hidden_states"][0, 0] = 7.0
        moved = host.call(model, z, t, condition)
    assert torch.equal(before, after) and not torch.equal(before, moved)
    with pytest.raises(HostError, match="encoder_hidden_states"):
        host.call(model, z, t, torch.tensor([1, 2]))
