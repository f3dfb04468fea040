"""The DiT descriptor against the live model."""

from __future__ import annotations

import pytest
import torch

from grafting.hosts import HostError, Site, host_for


def test_map_times_values_is_the_attention() -> None:
    from diffusers.models.attention_processor import Attention

    from grafting.hosts.dit import DiT

    torch.manual_seed(0)
    module = Attention(query_dim=16, heads=2, dim_head=8, bias=True).eval()
    x = torch.randn(2, 9, 16)
    (_, _, _, _, wv, bv), (wo, bo) = DiT().attention_weights(module)
    values = (x @ wv.T + bv).unflatten(2, (2, 8)).transpose(1, 2)
    mixed = (DiT().attention_map(module, x) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed @ wo.T + bo, module(x), atol=1e-5, rtol=1e-5)


def test_unknown_class_names_the_known() -> None:
    with pytest.raises(HostError, match="DiTTransformer2DModel"):
        host_for({"_class_name": "UNet2DModel"})
    assert Site(3, "attn").name == "blocks.3.attn"
