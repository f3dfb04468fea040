"""Muon: the orthogonal part against the singular value decomposition, one step by hand, whose the matrices are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_hosts_table import dit, ready
from torch.utils.flop_counter import FlopCounterMode

from grafting.graft import graft
from grafting.lora import Lora, add_lora
from grafting.plan import Plan
from grafting.random import normal
from grafting.training import muon
from grafting.training.loop import Loop, LoopConfig
from grafting.training.muon import Muon, hidden_matrices, orthogonal, step_flops


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(0, 12), st.integers(0, 10_000))
def test_singular_vectors_stay_and_values_come_near_one(rows: int, more: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(3, rows, rows, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(3, rows + more, rows, generator=generator))
    values = 10 ** (-2 * torch.rand(3, rows, generator=generator))
    found = u.mT @ orthogonal(u * values[:, None] @ v.mT) @ v
    kept = found.diagonal(dim1=1, dim2=2)
    assert kept.min() > 0.6 and kept.max() < 1.3  # the norm that is taken out first is at most 3.5 here
    torch.testing.assert_close(found - torch.diag_embed(kept), torch.zeros_like(found), rtol=0, atol=1e-3)


@pytest.mark.parametrize("most", [3, 2, 1])
def test_matrices_of_one_shape_move_as_each_would_alone(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lying and standing, over several steps, beside an optimiser for each; three together, two and one, or each."""
    monkeypatch.setattr(muon, "STACKED", 4 * 9 * most + 1)
    torch.manual_seed(0)
    shapes = [(4, 9), (9, 4), (4, 9), (5, 5)]
    together = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = [torch.nn.Parameter(p.detach().clone()) for p in together]
    many, single = Muon(together, 0.1, weight_decay=0.3), [Muon([p], 0.1, weight_decay=0.3) for p in alone]
    for _ in range(4):
        for p, q in zip(together, alone, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        many.step()
        for one in single:
            one.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q)


def test_products_are_counted_as_torch_counts_them() -> None:
    shapes = [(6, 10), (10, 6), (7, 7), (2, 30)]
    counted = 0
    for shape in shapes:
        with FlopCounterMode(display=False) as counter:
            orthogonal(torch.randn(1, min(shape), max(shape)))
        counted += counter.get_total_flops()
    assert step_flops(torch.empty(shape) for shape in shapes) == counted


def test_two_steps_by_hand() -> None:
    """Nesterov's momentum, 5 % of each gradient, and steps as long as AdamW's: 0.2 of the rate."""
    torch.manual_seed(1)
    before, one, two = torch.randn(3, 30, 64).unbind()
    p = torch.nn.Parameter(before.clone())
    optimizer = Muon([p], 0.01, weight_decay=0.5)
    for gradient in (one, two):
        p.grad = gradient.clone()
        optimizer.step()
    first, average = 0.05 * one, 0.95 * 0.05 * one + 0.05 * two
    wanted = before
    for way in (0.05 * one + 0.95 * first, 0.05 * two + 0.95 * average):
        wanted = wanted * (1 - 0.01 * 0.5) - 0.01 * 0.2 * 64**0.5 * orthogonal(way[None])[0]
    torch.testing.assert_close(p.detach(), wanted, rtol=0, atol=1e-6)
    step = (0.995**2 * before - p.detach()).square().mean().sqrt() / 2**0.5
    assert step == pytest.approx(0.002, rel=0.4)  # two steps, alike in part
    with pytest.raises(ValueError, match=r"Muon takes matrices, given parameters of shapes \[\(3,\)\]"):
        Muon([torch.zeros(3)], 0.1)


def test_the_matrices_are_those_of_linear_layers_inside_of_blocks() -> None:
    from diffusers import PixArtTransformer2DModel

    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "in_channels": 4}
    model = PixArtTransformer2DModel(**shape, cross_attention_dim=16, caption_channels=6, out_channels=8)
    model.transformer_blocks[1].ff.requires_grad_(False)
    mine = hidden_matrices(model)
    names = {name for name, p in model.named_parameters() if p in mine}
    attention = {f"attn{k}.to_{part}.weight" for k in (1, 2) for part in ("q", "k", "v", "out.0")}
    wanted = {f"transformer_blocks.{k}.{name}" for k in (0, 1) for name in attention}
    wanted |= {f"transformer_blocks.0.ff.net.{name}.weight" for name in ("0.proj", "2")}
    assert names == wanted | {f"caption_projection.linear_{k}.weight" for k in (1, 2)}


def test_of_a_graft_they_are_the_operators_and_the_adapters() -> None:
    from diffusers import PixArtTransformer2DModel

    pytest.importorskip("peft")
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "in_channels": 4}
    model = PixArtTransformer2DModel(**shape, cross_attention_dim=16, caption_channels=6, out_channels=8)
    handle = graft(model, Plan.explicit(site="attn", operator="hyena_x", blocks=[1]), init="random")
    add_lora(handle, Lora(rank=2, targets=("attn", "mlp")))
    handle.train_grafted(adapters=True)
    mine, trained = hidden_matrices(model), {name: p for name, p in model.named_parameters() if p.requires_grad}
    rest = {name.rpartition("operator.")[2] for name, p in trained.items() if p not in mine}
    assert rest == {"in_proj.bias", "out_proj.bias", "short_filter.weight", "short_filter.bias"}
    names = [name for name, p in trained.items() if p in mine]
    adapted = 2 * (4 + 2 * 2)  # A and B of block 0's attention and of both MLPs
    assert len(names) == len(mine) == adapted + 2 and sum("lora_" in name for name in names) == adapted


def test_a_dit_has_those_of_its_attention_and_mlps() -> None:
    model, *_ = dit()
    mine = hidden_matrices(model)
    layers = {f"attn1.to_{part}.weight" for part in ("q", "k", "v", "out.0")} | {
        "ff.net.0.proj.weight",
        "ff.net.2.weight",
    }
    wanted = {f"transformer_blocks.{block}.{layer}" for block in (0, 1) for layer in layers}
    assert {name for name, p in model.named_parameters() if p in mine} == wanted


@pytest.mark.parametrize("row", ["SD3", "SD3.5, no square"])
@pytest.mark.parametrize("operator", [None, "hyena_x", "mha", "none"])
def test_of_sd3_they_are_those_of_picture_and_text(row: str, operator: str | None) -> None:
    """All matrices of its blocks but their modulation's, what a graft keeps beside its operators among them."""
    model, *_ = ready(row)
    if operator is not None:
        graft(model, Plan.explicit(operator=operator, blocks=[1, 2]), init="copy")
    named = dict(model.named_parameters())
    mine = {name for name, p in named.items() if p in hidden_matrices(model)}
    inside = {name for name, p in named.items() if name.startswith("transformer_blocks.") and p.ndim == 2}
    assert mine == {name for name in inside if ".norm1" not in name} | {"context_embedder.weight"}
    places = {name.removeprefix("transformer_blocks.0.").removesuffix(".weight") for name in mine}
    assert {"attn.add_q_proj", "attn.to_add_out", "attn.to_q", "ff_context.net.2", "ff.net.0.proj"} <= places
    assert ("attn2.to_q" in places) == (row != "SD3")
    if operator is not None:
        assert any(".attn.operator.kept.to_q" in name for name in mine) == (operator != "mha")


class Inside(torch.nn.Module):
    """One matrix that is Muon's, one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.ff, self.out = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.ff(x)))


def test_a_loop_with_both_optimisers_continues_to_the_same_bits(tmp_path: Path) -> None:
    def run(folder: Path, until: int | None = None) -> Loop:
        torch.manual_seed(0)
        model = Inside()

        def losses(step: int) -> dict[str, torch.Tensor]:
            x = normal((4, 6), 3, "x", step)
            return {"mse": (model(x) - x.flip(1)).square().mean()}

        loop = Loop(model, losses, LoopConfig(steps=9, lr=1e-2, optimizer="muon"), folder, "tiny")
        loop.run(until)
        return loop

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", 5)
    run(tmp_path / "cut")
    a, b = (load_file(tmp_path / name / "state-9.safetensors") for name in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    moments = {key for key in a if key.startswith("optimizer/")}
    adam = {
        f"optimizer/{kind}/{name}"
        for kind in ("exp_avg", "exp_avg_sq", "step")
        for name in ("ff.bias", "out.weight", "out.bias")
    }
    assert moments == adam | {"optimizer/momentum/ff.weight"}
    assert [type(one).__name__ for one in whole.optimizers] == ["Muon", "AdamW"]
    with pytest.raises(ValueError, match="optimizer 'sgd': adamw or muon"):
        LoopConfig(steps=1, lr=1e-3, optimizer="sgd")
    with pytest.raises(ValueError, match="optimizer muon: the model trains no matrix of a transformer's blocks"):
        Loop(torch.nn.Linear(3, 3), lambda _: {}, LoopConfig(steps=1, lr=1e-3, optimizer="muon"), None, "tiny")
