"""Every registered operator at every kind of site of every host: a new family is one more row of HOSTS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from grafting.graft import graft, ungraft
from grafting.hosts import host_for
from grafting.hosts.registry import HOSTS as FAMILIES
from grafting.operators import arithmetic, list_operators
from grafting.plan import Plan
from grafting.searching.candidates import candidates
from grafting.searching.costs import timed
from grafting.store.folder import load, save

SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "in_channels": 3,
    "out_channels": 6,
    "sample_size": 8,
    "patch_size": 2,
}
Parts = tuple[nn.Module, Any, tuple[int, int]]
"""A model, the condition of two samples, and the height and width of its latents."""


def dit() -> Parts:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(**SIZES, num_embeds_ada_norm=4), torch.tensor([1, 4]), (8, 8)


def pixart(*, sized: bool = False, side: int = 8, size: tuple[int, int] = (8, 8)) -> Parts:
    """PixArt-Sigma, or -alpha where it is ``sized``: captions of two and of five tokens."""
    from diffusers import PixArtTransformer2DModel

    more = {"cross_attention_dim": 32, "caption_channels": 12, "use_additional_conditions": sized}
    # The embedding of sizes wants a third of the width.
    heads = {"num_attention_heads": 3} if sized else {}
    width = {"cross_attention_dim": 48} if sized else {}
    model = PixArtTransformer2DModel(**SIZES | more | heads | width | {"sample_size": side})
    condition: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "encoder_attention_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]),
    }
    if sized:
        sizes = {
            "resolution": torch.tensor([[64.0, 64.0], [32.0, 128.0]]),
            "aspect_ratio": torch.tensor([[1.0], [4.0]]),
        }
        condition["added_cond_kwargs"] = sizes
    return model, condition, size


def sd3(*, size: tuple[int, int] = (8, 8), large: bool = False) -> Parts:
    """3, or 3.5 as ``large``: with normed queries and keys, and a second attention in its first block."""
    from diffusers import SD3Transformer2DModel

    more: dict[str, Any] = {"joint_attention_dim": 12, "caption_projection_dim": 32, "pooled_projection_dim": 10}
    more |= {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if large else {}
    more |= {"num_layers": 3, "out_channels": 3, "pos_embed_max_size": 16}  # text ends in the last block
    model = SD3Transformer2DModel(**SIZES | more)
    return model, {"encoder_hidden_states": torch.randn(2, 5, 12), "pooled_projections": torch.randn(2, 10)}, size


def sana(*, size: tuple[int, int] = (4, 4), normed: bool = False) -> Parts:
    """1, or 1.5 as ``normed``: with normed queries and keys."""
    from diffusers import SanaTransformer2DModel

    more: dict[str, Any] = {"caption_channels": 12, "cross_attention_dim": 32, "out_channels": 3, "sample_size": 4}
    more |= {"num_cross_attention_heads": 4, "cross_attention_head_dim": 8, "patch_size": 1}
    model = SanaTransformer2DModel(**SIZES | more, qk_norm="rms_norm_across_heads" if normed else None)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    return model, {"encoder_hidden_states": torch.randn(2, 5, 12), "encoder_attention_mask": mask}, size


def flux(*, size: tuple[int, int] = (8, 8), dev: bool = False) -> Parts:
    """schnell, or ``dev``, which is told a guidance: two blocks of two streams, and three of one."""
    from diffusers import FluxTransformer2DModel

    more: dict[str, Any] = {"patch_size": 1, "in_channels": 12, "out_channels": None, "guidance_embeds": dev}
    more |= {"num_single_layers": 3, "joint_attention_dim": 12, "pooled_projection_dim": 10}
    sizes = {key: value for key, value in (SIZES | more).items() if key != "sample_size"}
    model = FluxTransformer2DModel(**sizes, axes_dims_rope=(4, 6, 6))
    model.register_to_config(sample_size=8)
    condition = {"encoder_hidden_states": torch.randn(2, 5, 12), "pooled_projections": torch.randn(2, 10)}
    return model, condition | ({"guidance": torch.tensor([1.0, 4.0])} if dev else {}), size


HOSTS: dict[str, Callable[[], Parts]] = {
    "DiT": dit,
    "PixArt-Sigma": pixart,
    "PixArt-alpha": partial(pixart, sized=True),
    "PixArt-Sigma, no square": partial(pixart, size=(4, 16)),  # as many tokens as mlp_hyena_x is tied to
    "SD3": sd3,
    "SD3.5, no square": partial(sd3, size=(4, 16), large=True),
    "SANA": sana,
    "SANA 1.5, no square": partial(sana, size=(2, 8), normed=True),
    "Flux": flux,
    "Flux dev, no square": partial(flux, size=(4, 16), dev=True),
}
SITES = [(name, "attn" if arithmetic(name).kind == "mixer" else "mlp") for name in list_operators()]


def ready(host: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Any]:
    """Model, z, t and condition."""
    torch.manual_seed(0)
    model, condition, (height, width) = HOSTS[host]()
    # Random models start with gates near zero; these let every site be seen.
    for name, parameter in model.named_parameters():
        opened = ("adaln_single.linear", "time_embed.linear", "norm1.linear", "norm1_context.linear", ".norm.linear")
        if any(part in name for part in opened):
            nn.init.normal_(parameter, std=0.5)
    return model.eval(), torch.randn(2, 3, height, width), torch.tensor([10, 900]), condition


def test_every_family_is_a_row() -> None:
    assert {type(HOSTS[row]()[0]).__name__ for row in HOSTS} == set(FAMILIES)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("operator", "kind"), SITES)
def test_every_operator_on_every_host(host: str, operator: str, kind: str, tmp_path: Path) -> None:
    """Forward, gradient, save and load, undo; and the operator stands where the plan says, alone."""
    model, z, t, condition = ready(host)
    call = partial(host_for(model).call, model, z, t, condition)
    modules, before = dict(model.named_modules()), call().detach()
    handle = graft(model, Plan.explicit(site=kind, operator=operator, blocks=[1]), init="random")
    after = call().detach()
    assert after.shape == before.shape and after.isfinite().all() and not torch.equal(after, before)
    handle.train_grafted()
    call().square().mean().backward()
    (placed,) = handle.operators().values()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in placed.parameters())
    assert any(p.grad.any() for p in placed.parameters() if p.grad is not None)
    save(handle, tmp_path / "graft")
    with handle.teacher():
        assert torch.equal(call(), before)
    assert ungraft(model) is model and dict(model.named_modules()) == modules and torch.equal(call(), before)
    load(tmp_path / "graft", model)
    assert torch.equal(call(), after)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("host", HOSTS)
def test_a_delta_knows_its_model_as_diffusers_loads_it_in_half_precision(
    host: str, half: torch.dtype, tmp_path: Path
) -> None:
    model, *_ = ready(host)
    model.save_pretrained(tmp_path / "published")  # type: ignore[operator]
    save(graft(model, Plan.all(operator="swa"), init="copy"), tmp_path / "graft")
    base = type(model).from_pretrained(tmp_path / "published", torch_dtype=half)  # type: ignore[attr-defined]
    (kind,) = {parameter.dtype for parameter in load(tmp_path / "graft", base).new()}
    assert kind == half


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_s_sites_are_timed_as_the_model_calls_them(host: str) -> None:
    """Beside text, on the grid, at another number of tokens than the model's own."""
    model, *_ = ready(host)
    found = timed(model, candidates(("swa", "mlp_hyena_x", "mix_ffn", "none")), side=6, batch=1, rounds=2)
    names = {"attn": ("swa", "none"), "mlp": ("mlp_hyena_x", "mix_ffn", "none")}
    sites = host_for(model).sites(model)
    assert set(found.changes) == {(site, name) for site in sites for name in names[site.kind]}
    assert found.changes[sites[1], "none"] < 0 < found.whole


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("kind", ["attn", "mlp"])
def test_identity_is_bit_exact_on_every_host(host: str, kind: str) -> None:
    """With captions of other lengths in one batch."""
    model, z, t, condition = ready(host)
    call = partial(host_for(model).call, model, z, t, condition)
    before = call()
    graft(model, Plan.all(site=kind, operator="identity"))
    assert torch.equal(call(), before)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("operator", ["none", "identity", "swa"])
def test_what_is_new_lies_where_the_model_does(host: str, operator: str) -> None:
    """The control *none* too, which beside text has a parameter of its own: on the device named meta, whose tensors
    hold no values."""
    model, *_ = ready(host)
    graft(model.to("meta"), Plan.all(site="attn", operator=operator), init="random", source_hash="unread")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
