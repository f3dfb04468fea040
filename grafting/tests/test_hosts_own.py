"""A model family of one's own, registered: the page's examples, a subclass under another name, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from test_docs import blocks
from torch import nn

import grafting
from grafting.cost import plan_cost
from grafting.data import Batches
from grafting.hosts import HostError, host_for, registry
from grafting.hosts.dit import DiT
from grafting.study.material import null_class

SIZES: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "sample_size": 4}
SIZES |= {"patch_size": 1, "in_channels": 1, "out_channels": 2, "num_embeds_ada_norm": 3}
PLAN = grafting.Plan.explicit(operator="local_mean", blocks=[1])


class SlimDiT(DiTTransformer2DModel):  # type: ignore[misc]
    """A DiT under another name."""


class Bare(nn.Module):
    """What diffusers neither saves nor loads."""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What a test registers is known to it alone."""
    tables: tuple[dict[str, Any], ...] = (registry.HOSTS, registry.CLASSES, registry.SHAPES)
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


@pytest.fixture
def slim() -> Any:
    torch.manual_seed(0)
    grafting.hosts.register(DiT(), SlimDiT)
    return SlimDiT(**SIZES).eval()


def test_the_page_s_transformer_is_grafted_distilled_saved_loaded_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    alike, own = blocks("docs/hosts.md", "python")
    exec(alike, scope)
    assert isinstance(host_for(scope["SlimDiT"](**SIZES)), DiT)
    exec(own, scope)
    model, handle, again = scope["model"], scope["handle"], scope["again"]
    assert handle.host.family == "MyDiT" and again.model is model and len(again.switches) == 2
    assert tuple(scope["images"].shape) == (3, 4, 8, 8) and null_class(model) == 3
    for site, operator in handle.operators().items():
        for name, tensor in operator.state_dict().items():
            assert torch.equal(again.operators()[site].state_dict()[name], tensor)
    grafting.save(again, tmp_path / "whole", whole=True)
    grafting.ungraft(model)
    model.save_pretrained(tmp_path / "plain" / "transformer")
    z, t, y = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 3])
    opened = grafting.open_model(tmp_path / "plain").transformer
    assert torch.equal(opened(z, t, y), model(z, t, y))
    grafted = grafting.open_model(tmp_path / "whole").transformer
    assert not torch.equal(grafted(z, t, y), model(z, t, y))


def test_the_page_s_gates_are_what_scales_a_site_s_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(blocks("docs/hosts.md", "python")[1], scope)
    model = grafting.ungraft(scope["model"])
    z, t, y = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 3])
    gates, seen = host_for(model).gates(model, z, t, y), {}
    for k, block in enumerate(model.blocks):  # type: ignore[arg-type, union-attr]
        block.mixer.forward = lambda x, k=k: torch.ones_like(x)
        block.register_forward_pre_hook(lambda _, args, k=k: seen.update({k: args[0]}))
        block.mlp.forward = torch.zeros_like
    model(z, t, y)
    for site, gate in gates.items():
        if site.kind == "attn" and site.block + 1 in seen:
            change = seen[site.block + 1] - seen[site.block]
            torch.testing.assert_close(change, gate.expand_as(change), atol=1e-5, rtol=1e-5)


def test_a_subclass_is_what_its_host_says_wherever_its_weights_are_from(slim: Any, tmp_path: Path) -> None:
    DiTTransformer2DModel(**SIZES).save_pretrained(tmp_path / "published")
    taken = SlimDiT.from_pretrained(tmp_path / "published").eval()  # whose configuration names the class of the file
    handle = grafting.graft(taken, PLAN, init="copy")
    batches = Batches(inputs=torch.randn(8, 1, 4, 4), labels=torch.arange(8) % 3, size=4, seed=0)
    grafting.distill(handle, batches, null=3, config=grafting.DistillConfig(steps=1))
    z, t, y = torch.randn(2, 1, 4, 4), torch.tensor([3, 900]), torch.tensor([0, 3])
    wanted = handle.host.call(taken, z, t, y)
    grafting.save(handle, tmp_path / "delta")
    grafting.save(handle, tmp_path / "whole", whole=True)
    grafting.ungraft(taken)
    assert not torch.equal(handle.host.call(taken, z, t, y), wanted)
    assert torch.equal(handle.host.call(grafting.load(tmp_path / "delta", taken).model, z, t, y), wanted)
    whole = grafting.load(tmp_path / "whole").model
    assert type(whole) is SlimDiT and torch.equal(handle.host.call(whole, z, t, y), wanted)
    registry.HOSTS.pop("SlimDiT"), registry.CLASSES.pop("SlimDiT"), registry.SHAPES.pop("SlimDiT")
    with pytest.raises(HostError, match=r"no host descriptor for SlimDiT: .*; grafting\.hosts\.register adds one$"):
        grafting.load(tmp_path / "whole")


def test_a_subclass_is_opened_from_its_folder_and_costs_what_its_base_does(slim: Any, tmp_path: Path) -> None:
    slim.save_pretrained(tmp_path / "mine")
    opened = grafting.open_model(tmp_path / "mine").transformer
    assert type(opened) is SlimDiT
    assert plan_cost(PLAN, opened) == plan_cost(PLAN, DiTTransformer2DModel(**SIZES))
    with pytest.raises(ValueError, match="2 x 8 tokens: a DiT puts its tokens together as a square"):
        plan_cost(PLAN, opened, grid=(2, 8))


def test_what_is_no_host_or_no_class_or_taken_is_refused(slim: Any) -> None:
    again = type("SlimDiT", (DiTTransformer2DModel,), {"__module__": SlimDiT.__module__})
    grafting.hosts.register(DiT(), again)  # a cell of a notebook that runs again
    assert registry.class_named("SlimDiT") is again
    other = type("SlimDiT", (DiTTransformer2DModel,), {"__module__": "elsewhere"})
    for host, kinds, message in (
        (DiT, (SlimDiT,), "is no host: give an instance"),
        (DiT(), (), "no class is given that DiT describes"),
        (DiT(), (Bare,), "Bare'> is no class of diffusers' ModelMixin and ConfigMixin"),
        (DiT(), (slim,), r"\) is no class of diffusers' ModelMixin"),
        (DiT(), (other,), "another SlimDiT is registered already"),
        (DiT(), (DiTTransformer2DModel,), "another DiTTransformer2DModel is registered already"),
    ):
        with pytest.raises(HostError, match=message):
            grafting.hosts.register(host, *kinds)  # type: ignore[arg-type]


def test_blocks_of_which_no_norms_are_told_are_merged_one_by_one() -> None:
    """Also where they are diffusers' own: the same blocks of a DiT, of which the norms are told, run as one batch."""

    class Quiet(DiT):
        norms = grafting.hosts.Host.norms

    torch.manual_seed(0)
    model = SlimDiT(**SIZES).eval()
    merged = grafting.Plan.from_dict({"restructure": [{"merge": "pairs"}]})
    z, t, y = torch.randn(2, 1, 4, 4), torch.tensor([3, 500]), torch.tensor([0, 2])
    outputs = []
    for host in (DiT(), Quiet()):
        grafting.hosts.register(host, SlimDiT)
        grafting.graft(model, merged)
        outputs.append(host.call(model, z, t, y))
        grafting.ungraft(model)
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-4)
