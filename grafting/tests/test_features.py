"""What blocks return, matched between student and teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from grafting.data import Batches
from grafting.graft import Grafted, graft
from grafting.plan import Plan
from grafting.restructure import Drop, Merge, Reorder, Share, Step
from grafting.training.features import match_features, returned
from grafting.training.finetune import FinetuneConfig, finetune
from grafting.training.loop import LoopConfig


def _dit(blocks: int = 4) -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=blocks,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
    ).eval()


def test_share_left_unexplained_by_hand() -> None:
    wanted = torch.tensor([[[0.0, 5.0], [2.0, 5.0]]])  # over tokens: variance 1 in one channel, 0 in the other
    given = torch.tensor([[[1.0, 5.0], [2.0, 5.0]]])  # squared distance 1 of 4 values
    assert match_features([given], [wanted]) == pytest.approx(0.25 / 0.5)
    assert match_features([given, wanted], [wanted, wanted]) == pytest.approx(0.25)
    scaled = match_features([7 * given], [7 * wanted])
    assert scaled == pytest.approx(0.5), "a block's size must not weigh it"
    assert torch.isfinite(match_features([given], [torch.zeros_like(wanted)]))


def test_returned_keeps_the_order_and_leaves_nothing_behind() -> None:
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.randn(2, 3)
    with returned([one, two, one]) as found:
        last = one(two(one(x)))
    assert [torch.equal(f, w) for f, w in zip(found, (one(x), two(one(x)), last), strict=True)] == [True] * 3
    assert not one._forward_hooks and not two._forward_hooks


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ((), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]),
        ((Merge(),), [(0, 1), (1, 3), (2, 5)]),
        ((Merge(groups=((1, 2, 3),)),), [(0, 0), (1, 3), (2, 4), (3, 5)]),
        ((Drop(blocks=(2, 5)),), [(0, 0), (1, 2), (2, 3), (3, 5)]),
        ((Share(groups=((1, 4),)),), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]),
        ((Reorder(order=(0, 2, 1, 3, 5, 4)),), [(0, 0), (2, 2), (3, 3), (5, 5)]),
    ],
)
def test_where_both_models_have_been_through_the_same_blocks(
    steps: tuple[Step, ...], wanted: list[tuple[int, int]]
) -> None:
    model = _dit(6)
    plan = Plan(restructure=steps) if steps else Plan.all(operator="local_mean")
    handle = graft(model, plan, init="copy")
    originals = list(handle.originals)
    pairs = handle.meetings(originals)
    student = list(handle.host.blocks(model))
    assert [(s, t) for s, t in pairs] == [(student[a], originals[b]) for a, b in wanted]


def test_a_shared_block_is_seen_once_at_each_of_its_places() -> None:
    model = _dit()
    handle = graft(model, Plan(restructure=(Share(),)))
    blocks = [student for student, _ in handle.meetings(handle.originals)]
    assert len(set(blocks)) == 4 and len(set(handle.model.parameters())) < len(set(_dit().parameters()))
    every: list[torch.Tensor] = []
    for module in handle.groups.values():  # which run in their own place and in that of the block that is gone

        def run(*args: Any, forward: Any = module.forward, **kwargs: Any) -> torch.Tensor:
            every.append(forward(*args, **kwargs))
            return every[-1]

        module.forward = run  # type: ignore[method-assign]
    with torch.no_grad(), returned(blocks) as found:
        handle.host.call(model, torch.randn(2, 2, 8, 8), torch.tensor([5, 700]), torch.tensor([0, 2]))
    assert len(found) == len(every) == 4
    assert all(torch.equal(one, other) for one, other in zip(found, every, strict=True))


def test_a_student_that_uses_blocks_twice_learns_from_what_they_return() -> None:
    handle = graft(_dit(), Plan(restructure=(Share(),)))
    handle.train_grafted()
    pairs, host = handle.meetings(handle.originals), handle.host
    batches = Batches(inputs=torch.randn(6, 2, 8, 8), labels=torch.arange(6) % 3, size=3, seed=0)

    def teacher(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with handle.teacher():
            return host.call(handle.model, z, t, y)

    config = FinetuneConfig(loop=LoopConfig(steps=8, lr=1e-2, log_every=1), features=1.0)
    done = finetune(
        handle.model,
        lambda *x: host.call(handle.model, *x),
        teacher,
        batches=batches,
        null=3,
        config=config,
        pairs=pairs,
    )
    assert done.log[-1]["features"] < done.log[0]["features"]


def _learnt(features: float, *, checkpointing: bool = False) -> tuple[float, dict[str, torch.Tensor], list[str]]:
    """What the student's blocks leave unexplained after stage 2, its weights, and the losses' names."""
    model = _dit()
    handle = graft(model, Plan.all(operator="hyena_x"), init="copy")
    handle.train_grafted()
    batches = Batches(inputs=torch.randn(6, 2, 8, 8), labels=torch.arange(6) % 3, size=3, seed=0)

    def student(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor, h: Grafted = handle) -> torch.Tensor:
        return h.host.call(h.model, z, t, y)

    def teacher(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor, h: Grafted = handle) -> torch.Tensor:
        with h.teacher():
            return h.host.call(h.model, z, t, y)

    pairs = handle.meetings(handle.originals)
    loop = LoopConfig(steps=8, lr=1e-2, ema=0.0, log_every=1)
    config = FinetuneConfig(loop=loop, features=features, checkpointing=checkpointing)
    done = finetune(model, student, teacher, batches=batches, null=3, config=config, pairs=pairs)
    z, t, y = torch.randn(4, 2, 8, 8), torch.tensor([5, 300, 600, 990]), torch.arange(4) % 3
    blocks = [block for block, _ in pairs]
    with torch.no_grad():
        with returned(blocks) as wanted:
            teacher(z, t, y)
        with returned(blocks) as given:
            student(z, t, y)
    return float(match_features(given, wanted)), model.state_dict(), list(done.log[-1])


def test_blocks_come_closer_to_the_teachers() -> None:
    without, _, plain = _learnt(0.0)
    near, weights, named = _learnt(1.0)
    assert near < 0.7 * without
    assert "features" in named and "features" not in plain
    _, again, _ = _learnt(1.0, checkpointing=True)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_features_without_pairs_are_a_sentence() -> None:
    net = nn.Conv2d(2, 4, 3, padding=1)
    batches = Batches(inputs=torch.randn(6, 2, 8, 8), labels=torch.arange(6) % 3, size=3, seed=0)
    config = FinetuneConfig(loop=LoopConfig(steps=1, lr=1e-3), features=1.0)

    def call(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return net(z)

    with pytest.raises(ValueError, match=r"features 1\.0 needs pairs of blocks"):
        finetune(net, call, call, batches=batches, null=3, config=config)
    with pytest.raises(ValueError, match=r"features -1\.0: a weight, 0 or more"):
        replace(config, features=-1.0)
    finetune(
        net, call, None, batches=batches, null=3, config=replace(config, teacher_share=(0.0, 0.0))
    )  # the noise has no blocks
