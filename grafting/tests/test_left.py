"""What a model's blocks leave unexplained of the teacher's: against sums written out, in every kind of graft."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import nn

from grafting.conditions import MASK, TEXT
from grafting.diffusion import Diffusion
from grafting.graft import Grafted, graft, ungraft
from grafting.hosts import host_for
from grafting.lora import Lora, add_lora
from grafting.measure.denoising import Triples
from grafting.plan import Plan
from grafting.restructure import Drop, Merge
from grafting.study.stages import LOOKED_AT, denoiser, left_unexplained
from grafting.training.features import Unexplained, match_features

SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 4,
    "sample_size": 4,
    "patch_size": 1,
}
TEXTS = {"cross_attention_dim": 8, "caption_channels": 6, "use_additional_conditions": False}


def model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    dit = kind == "dit"
    made = DiTTransformer2DModel(**SIZES, num_embeds_ada_norm=5) if dit else PixArtTransformer2DModel(**SIZES, **TEXTS)
    for parameter in made.parameters():  # what starts at zero would hide what it is multiplied with
        nn.init.normal_(parameter, std=0.2)
    return made.eval()


def triples(kind: str, n: int) -> Triples:
    source = torch.Generator().manual_seed(1)
    z = torch.randn(n, 4, 4, 4, generator=source)
    y: Any = torch.arange(n) % 5
    if kind == "pixart":
        y = {TEXT: torch.randn(n, 3, 6, generator=source), MASK: torch.ones(n, 3)}
    return Triples.draw(z, y, n=n)


def returned(network: nn.Module, block: nn.Module, held: Triples) -> torch.Tensor:
    """What a block returns over all of them, (n, N, D)."""
    kept: list[torch.Tensor] = []
    hook = block.register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad():
        denoiser(network)(Diffusion().add_noise(held.z, held.t, held.noise), held.t, held.y)
    hook.remove()
    (found,) = kept
    return found


PLANS = {
    "delta": Plan.interleaved(operator="hyena_x", share=0.5),
    "merged": Plan(restructure=(Merge(groups="pairs", combine="scale"),)),
    "dropped": Plan(restructure=(Drop(blocks=(1,)),)),
}


def grafted(network: nn.Module, kind: str) -> Grafted:
    handle = graft(network, PLANS.get(kind, PLANS["delta"]), init="random")
    if kind == "lora":
        adapters = add_lora(handle, Lora(rank=2, targets=("mlp",)))
        for name, parameter in adapters.parameters().items():
            nn.init.normal_(parameter, std=0.2) if name else None
    if kind != "private":
        return handle
    own = handle.own_copy()
    ungraft(network)
    return own


@pytest.mark.parametrize("family", ["dit", "pixart"])
@pytest.mark.parametrize("kind", ["delta", "private", "lora", "merged", "dropped"])
def test_shares_are_those_of_sums_written_out(family: str, kind: str) -> None:
    network, held = model(family), triples(family, 22)
    handle = grafted(network, kind)
    found = left_unexplained(handle.model, handle, network, held, 9)
    assert set(found) == {"merged": {"1", "3"}, "dropped": {"1", "2", "3"}}.get(kind, {"0", "1", "2", "3"})
    student = host_for(handle.model).blocks(handle.model)
    last = len(student) - 1
    given = returned(handle.model, student[last], held)
    with nullcontext() if handle.private else handle.teacher():
        wanted = returned(network, host_for(network).blocks(network)[3], held)
    spread = (wanted - wanted.mean((0, 1))).square().sum()
    assert found["3"] == pytest.approx(((given - wanted).square().sum() / spread).item(), rel=1e-4)
    assert found["3"] > 0.001, "there is something to see"


def test_an_unchanged_model_leaves_nothing_and_few_triples_are_looked_at() -> None:
    network, held = model("dit"), triples("dit", LOOKED_AT + 8)
    assert set(left_unexplained(network, None, network, held, 50).values()) == {0.0}
    handle = graft(network, PLANS["delta"], init="random")
    held.z[LOOKED_AT:] = float("nan")  # beyond what is looked at
    whole = left_unexplained(network, handle, network, held, 50)
    parts = left_unexplained(network, handle, network, held, LOOKED_AT)
    assert whole == pytest.approx(parts, rel=1e-6), "the batch changes nothing"


def test_one_batch_is_what_stage_two_matches() -> None:
    torch.manual_seed(0)
    given, wanted = torch.randn(3, 5, 7), 2 + torch.randn(3, 5, 7) * torch.arange(1, 8)
    found = Unexplained()
    found.add(given, wanted)
    assert found.share == pytest.approx(match_features([given], [wanted]).item(), rel=1e-5)
