"""PixArt as a host: grids of any shape, under checkpointing too, and what is no site stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_hosts_table import pixart
from torch import nn

from grafting.activations import visit_spans
from grafting.graft import Grafted, graft, ungraft
from grafting.hosts import Site, host_for
from grafting.operators import OperatorError, get
from grafting.plan import Plan

T = torch.tensor([10, 900])
TWO_D = ("hyena_x_2d", "local_mean")
"""Operators that see the grid's rows and columns."""


def hybrid(operator: str, **of: Any) -> tuple[Grafted, Callable[[torch.Tensor], torch.Tensor]]:
    """A random PixArt with this operator everywhere and its gates open, and how it is called."""
    torch.manual_seed(0)
    model, condition, _ = pixart(**of)
    nn.init.normal_(model.adaln_single.linear.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    handle = graft(model.eval(), Plan.all(operator=operator), init="random")
    for name, parameter in model.named_parameters():
        if name.endswith("filter.weight"):  # some start as the identity, which has no orientation
            nn.init.normal_(parameter, std=0.5)
    return handle, lambda z: handle.host.call(model, z, T, condition)


def latents(height: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("operator", TWO_D)
@pytest.mark.parametrize("size", [(4, 16), (16, 4), (6, 10)])
def test_grid_of_latents_that_are_no_square(operator: str, size: tuple[int, int]) -> None:
    """Inside the host, on 16 tokens as on other numbers, against the naive form on the grid that the input has."""
    handle, call = hybrid(operator)
    seen: dict[Site, tuple[torch.Tensor, torch.Tensor]] = {}
    spans = {site: ((module, module),) for site, module in handle.operators().items()}
    with visit_spans(spans, lambda site, x, y, call: seen.update({site: (x, *y)})), torch.no_grad():
        assert call(latents(*size)).shape == (2, 6, *size)
    height, width = size[0] // 2, size[1] // 2
    for site, (x, y) in seen.items():
        module: Any = handle.operators()[site]
        right = module.out_projection(module.features(x, grid=(height, width)))
        torch.testing.assert_close(y, right, rtol=0, atol=0)
        naive = module.naive(x, grid=(height, width))
        torch.testing.assert_close(y, naive, rtol=1e-4, atol=1e-5)
        turned = module.naive(x, grid=(width, height))
        assert (naive - turned).abs().max() > 1e-3, "the orientation matters here"


def gradients(handle: Grafted) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in handle.model.parameters() if p.grad is not None]
    handle.model.zero_grad()
    return found


@pytest.mark.parametrize("operator", TWO_D)
def test_grids_under_checkpointing(operator: str) -> None:
    """Two passes of one number of tokens before the way back: each block runs again over its own pass's grid."""
    handle, call = hybrid(operator)
    model: Any = handle.model

    def run() -> list[torch.Tensor]:
        tall, wide = call(latents(16, 4)), call(latents(4, 16))
        (tall.square().mean() + 2 * wide.square().mean()).backward()
        return gradients(handle)

    plain = run()
    model.enable_gradient_checkpointing()
    own = model._gradient_checkpointing_func
    again = run()
    assert len(plain) == len(again) and all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert model._gradient_checkpointing_func is own


def test_a_failed_pass_leaves_the_model_as_it_was() -> None:
    handle, call = hybrid("hyena_x")
    model: Any = handle.model
    model.enable_gradient_checkpointing()
    own = model._gradient_checkpointing_func
    with pytest.raises(RuntimeError):
        call(torch.randn(2, 5, 8, 8))
    assert model._gradient_checkpointing_func is own
    ungraft(handle.model)
    assert not model._forward_pre_hooks and not model._forward_hooks


def test_a_private_copy_reads_its_own_grid() -> None:
    handle, call = hybrid("hyena_x_2d")
    mine = handle.own_copy()
    assert mine.raster is not handle.raster
    condition = pixart()[1]
    with torch.no_grad():
        before = handle.host.call(mine.model, latents(4, 16), T, condition)
        call(latents(16, 4))
        assert mine.raster.grid == (2, 8) and handle.raster.grid == (8, 2)
        assert torch.equal(handle.host.call(mine.model, latents(4, 16), T, condition), before)


def test_a_solved_start_reads_the_grid_of_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, condition, _ = pixart()
    made, grids = get("hyena_x_2d"), []
    features = made.features

    def watched(self: Any, x: torch.Tensor, *, grid: Any = None) -> torch.Tensor:
        grids.append(tuple(grid))
        return features(self, x, grid=grid)

    monkeypatch.setattr(made, "features", watched)

    def batch(index: int) -> dict[str, Any]:
        return {"z": latents(*[(4, 16), (16, 4)][index]), "y": condition}

    plan = Plan.explicit(site="attn", operator="hyena_x_2d", blocks=[0])
    handle = graft(model.eval(), plan, init="solve", calibration=batch, calibration_batches=2)
    assert grids == [(2, 8), (8, 2)] and 0 < handle.explained[Site(0, "attn")] <= 1


def test_mlp_hyena_x_is_tied_to_the_model_s_tokens() -> None:
    torch.manual_seed(0)
    model, condition, _ = pixart()
    handle = graft(model.eval(), Plan.all(site="mlp", operator="mlp_hyena_x"), init="random")
    call = partial(handle.host.call, model)
    assert call(latents(4, 16), T, condition).shape == (2, 6, 4, 16)
    with pytest.raises(OperatorError, match="tied to 16 tokens but was given 15"):
        call(latents(6, 10), T, condition)


def test_cross_attention_is_no_site_and_its_text_reaches_it() -> None:
    handle, _ = hybrid("hyena_x")
    model, condition = handle.model, pixart()[1]
    assert handle.host.module_of == {"attn": "attn1", "mlp": "ff"}
    assert [site.kind for site in handle.host.sites(model)] == ["attn", "mlp"] * 2
    with torch.no_grad():
        before = handle.host.call(model, latents(8, 8), T, condition)
        condition["encoder_hidden_states"][0, 2:] += 1  # masked
        assert torch.equal(handle.host.call(model, latents(8, 8), T, condition), before)
        condition["encoder_hidden_states"][0, 0] += 1
        after = handle.host.call(model, latents(8, 8), T, condition)
    assert not torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])


def test_alpha_s_sizes_are_context_and_move_the_gates() -> None:
    torch.manual_seed(0)
    model, condition, _ = pixart(sized=True)
    host, z = host_for(model.eval()), latents(8, 8)
    nn.init.normal_(model.adaln_single.linear.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    one, gates = host.call(model, z, T, condition), host.gates(model, z, T, condition)
    condition["added_cond_kwargs"]["resolution"] = condition["added_cond_kwargs"]["resolution"] * 4
    other, moved = host.call(model, z, T, condition), host.gates(model, z, T, condition)
    site = Site(1, "mlp")
    assert not torch.equal(one, other) and not torch.equal(gates[site], moved[site])
