"""What was replaced goes out of its sites while the new operators learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import grafting
from grafting.cost import plan_cost
from grafting.graft import Grafted, graft
from grafting.plan import Plan
from grafting.restructure import Merge
from grafting.store.models import Model, open_model
from grafting.study.material import Material
from grafting.study.recipe import FinetuneStage, depended_on
from grafting.study.spending import stage_two_flops
from grafting.study.stages import stage_two
from grafting.training.finetune import FinetuneConfig, fading, finetune
from grafting.training.loop import LoopConfig

STAGE = FinetuneStage(steps=10, batch=4, lr=1e-3, fade=0.5, ema=0.0, save_every=1, log_every=1)


@pytest.fixture
def model(tiny_teacher: Path) -> Model:
    return open_model(str(tiny_teacher))


def hybrid(model: Model, operator: str = "swa") -> Grafted:
    return graft(model.transformer, Plan.interleaved(operator=operator, share=0.5), init="random")


def test_shares_by_step() -> None:
    config = FinetuneConfig(loop=LoopConfig(steps=10, lr=1e-3), fade=0.5)
    assert [config.faded(step) for step in range(10)] == pytest.approx([0.8, 0.6, 0.4, 0.2, *[0.0] * 6])
    assert not any(replace(config, fade=0.0).faded(step) for step in range(10))


@pytest.mark.parametrize("operator", ["swa", "none"])
def test_a_site_returns_the_mixture_and_gradients_pass_through_both(model: Model, operator: str) -> None:
    handle = hybrid(model, operator)
    switch = next(iter(handle.switches.values()))
    assert switch.original is not None
    x = torch.randn(2, handle.host.tokens(handle.model), handle.host.width(handle.model), requires_grad=True)
    mine, theirs = switch.stand_in(x), switch.original(x)
    with fading({switch: switch.original}):
        switch.fade = 0.25
        given = switch(x)
        assert torch.allclose(given, 0.75 * mine + 0.25 * theirs, atol=1e-6)
        assert all(p.requires_grad for p in switch.original.parameters()), "a copy was frozen, not the teacher's own"
        assert not [name for name in switch.state_dict() if "fading" in name]
        found = torch.autograd.grad(given.square().sum(), x)[0]
    wanted = torch.autograd.grad((0.75 * switch.stand_in(x) + 0.25 * switch.original(x)).square().sum(), x)[0]
    assert torch.allclose(found, wanted, atol=1e-4)
    assert torch.equal(switch(x), switch.stand_in(x)) and not switch.fading


def test_it_trains_the_hybrid_alone_at_the_end(model: Model, tmp_path: Path) -> None:
    """The first loss is that of the mixture, measured by hand; the teacher keeps its bits; a killed run goes on."""
    handle, material = hybrid(model), Material(model)
    before = {name: tensor.clone() for name, tensor in handle.model.state_dict().items()}
    trained, loop = stage_two(handle, STAGE, material, out=tmp_path / "whole")
    assert isinstance(trained, Grafted) and trained.private
    after = handle.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(switch.fade == 0 and not switch.fading for switch in trained.switches.values())
    at_once, plain = stage_two(handle, replace(STAGE, fade=0.0), material)
    assert isinstance(at_once, Grafted) and loop.log[0]["loss"] < plain.log[0]["loss"], "it begins next to the teacher"
    assert set(trained.model.state_dict()) == set(at_once.model.state_dict())

    def stopping(step: int) -> dict[str, torch.Tensor]:
        if step == 3:  # while it fades
            raise KeyboardInterrupt
        return batches(step)

    batches = material.batches(STAGE.batch, 0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(material, "batches", lambda *_, **__: stopping)
        stage_two(handle, STAGE, material, out=tmp_path / "killed")
    again, _ = stage_two(handle, STAGE, material, out=tmp_path / "killed")
    assert isinstance(again, Grafted)
    pairs = zip(again.model.state_dict().values(), trained.model.state_dict().values(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    with pytest.raises(ValueError, match="fade"):
        stage_two(handle, replace(STAGE, fade=0.3), material, out=tmp_path / "killed")


def test_operators_alone_fade_in_too(model: Model) -> None:
    handle, material = hybrid(model), Material(model)
    trained, loop = stage_two(handle, replace(STAGE, train="grafted"), material)
    assert trained is handle and len(loop.log) == 10
    assert all(switch.fade == 0 and not switch.fading for switch in handle.switches.values())


def test_what_fades_is_paid_for(model: Model) -> None:
    cost = plan_cost(Plan.interleaved(operator="swa", share=0.5), model.transformer)
    there = sum(site.flops_before for site in cost.sites)
    apart = stage_two_flops(cost, STAGE) - stage_two_flops(cost, replace(STAGE, fade=0.0))
    assert apart == pytest.approx(5 * 4 * 3 * there)


def test_what_cannot_fade_is_refused(model: Model) -> None:
    material, plan = Material(model), Plan(restructure=(Merge(),))
    with pytest.raises(ValueError, match=r"fade 0\.9: from 0 to 0\.8"):
        FinetuneStage(steps=10, fade=0.9)
    handle = graft(model.transformer, plan)
    with pytest.raises(ValueError, match="blocks were restructured"):
        stage_two(handle, STAGE, material)
    grafting.ungraft(model.transformer)
    alone = hybrid(model).own_copy()
    with pytest.raises(ValueError, match="there is no teacher"):
        stage_two(alone, replace(STAGE, target="noise"), material)
    call = grafting.denoiser(alone.model)
    config = FinetuneConfig(loop=LoopConfig(steps=10, lr=1e-3), teacher_share=(0, 0), fade=0.5)
    with pytest.raises(ValueError, match=r"fade 0\.5 needs what was replaced"):
        finetune(alone.model, call, None, batches=material.batches(4, 0), null=material.null, config=config)


def test_runs_from_before_there_was_a_fade_are_the_same() -> None:
    assert "fade" not in depended_on(replace(STAGE, fade=0.0)) and depended_on(STAGE)["fade"] == 0.5
