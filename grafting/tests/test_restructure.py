"""Restructured models on tiny random hosts: arithmetic by hand, the wide form against the plain one, and back again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from test_graft import batch, output, tiny
from test_hosts_gates import _pixart
from torch import nn

from grafting import parallel
from grafting.cost import plan_cost, table
from grafting.graft import Grafted, GraftError, graft, ungraft
from grafting.hosts import HostError, Site, bundled_config, host_for
from grafting.measure.speed import flops, parameters
from grafting.parallel import Parallel
from grafting.plan import Edit, Plan, PlanError
from grafting.restructure import Drop, Merge, Reorder, Share
from grafting.settings import SettingsError
from grafting.store.folder import load, save
from grafting.study import RunRecipe, entries, run
from grafting.training.distill import DistillConfig, SiteConfig, distill

PAIRS = Plan(restructure=(Merge(),))
OPERATORS = Plan.explicit(operator="hyena_x", blocks=[1]) + Plan.explicit(
    site="mlp", operator="mlp", blocks=[2], ratio=3
)
EVERYTHING = OPERATORS + Plan(
    restructure=(Merge(groups=((0, 1),), combine="dense"), Share(groups=((2, 4),)), Drop(blocks=(3,)))
)
"""Of six blocks: 0 and 1 side by side, 2 and 4 with one set of weights, 2 in the place of 3 as well, 5 as it is."""


def six() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(1)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=6,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=10,
    ).eval()


def shake(handle: Grafted) -> None:
    """Move what may learn away from its start."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameters in handle.learnable().values():
            for parameter in parameters.values():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=source))


@torch.no_grad()
def by_hand(model: nn.Module, z: torch.Tensor, run: Any) -> torch.Tensor:
    """A DiT's forward pass written out; ``run(h, block)`` runs the blocks, ``block(i, h)`` being block i's output."""
    m: Any = model
    t, y = torch.arange(8) * 100, batch(99)["y"]
    h = m.pos_embed(z)
    h = run(h, lambda i, x: m.transformer_blocks[i](x, timestep=t, class_labels=y))
    embedded = m.transformer_blocks[0].norm1.emb(t, y, hidden_dtype=h.dtype)
    shift, scale = m.proj_out_1(nn.functional.silu(embedded)).chunk(2, dim=1)
    h = m.proj_out_2(m.norm_out(h) * (1 + scale[:, None]) + shift[:, None])
    side = int(h.shape[1] ** 0.5)
    h = h.view(-1, side, side, 2, 2, 8).permute(0, 5, 1, 3, 2, 4)
    return h.reshape(-1, 8, 2 * side, 2 * side)


@pytest.mark.parametrize("combine", ["scale", "dense"])
def test_merged_pairs_are_the_sum_of_weighed_updates(combine: str) -> None:
    model = tiny()
    handle = graft(model, Plan(restructure=(Merge(combine=combine),)))
    assert [group.name for group in handle.groups] == ["blocks.0-1.merge", "blocks.2-3.merge"]
    z = batch(99)["z"]

    def expected(weights: list[torch.Tensor]) -> torch.Tensor:
        def run(h: torch.Tensor, block: Any) -> torch.Tensor:
            for pair, (one, two) in zip(((0, 1), (2, 3)), weights, strict=True):
                p, q = (w.diag() if w.ndim == 1 else w for w in (one, two))
                h = h + (block(pair[0], h) - h) @ p.T + (block(pair[1], h) - h) @ q.T
            return h

        return by_hand(tiny(), z, run)

    combinations = [module.combine for module in handle.groups.values()]
    same = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(output(model), expected([(torch.eye(32), torch.eye(32))] * 2), **same)
    shaken = []
    for c in combinations:
        assert c is not None
        nn.init.normal_(c.weight)
        shaken.append(tuple(c.weight.detach()))
    torch.testing.assert_close(output(model), expected(shaken), **same)  # type: ignore[arg-type]


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("combine", ["scale", "dense"])
def test_three_blocks_side_by_side_are_the_sum_of_theirs(combine: str, wide: bool) -> None:
    model = tiny()
    (group,) = graft(model, Plan(restructure=(Merge(groups=((0, 1, 2),), combine=combine),))).groups.values()
    assert group.combine is not None
    nn.init.normal_(group.combine.weight)
    group.wide = wide
    weights = [w.diag() if w.ndim == 1 else w for w in group.combine.weight.detach()]

    def run(h: torch.Tensor, block: Any) -> torch.Tensor:
        h = h + sum(((block(i, h) - h) @ weight.T for i, weight in enumerate(weights)), torch.zeros(()))
        return block(3, h)

    torch.testing.assert_close(output(model), by_hand(tiny(), batch(99)["z"], run), rtol=1e-5, atol=1e-5)


def test_the_head_keeps_the_pretrained_embedder_of_block_0_once_its_copy_has_learnt() -> None:
    model: Any = tiny()
    handle = graft(model, PAIRS)
    shake(handle)
    seen: list[torch.Tensor] = []
    model.norm_out.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    found = output(model)
    z = batch(99)["z"]
    torch.testing.assert_close(found, by_hand(tiny(), z, lambda *_: seen[0]), rtol=1e-5, atol=1e-5)
    copied = tiny()
    copied.transformer_blocks[0].norm1.emb.load_state_dict(  # type: ignore[index, union-attr]
        next(iter(handle.groups.values())).branches[0].norm1.emb.state_dict()  # type: ignore[union-attr]
    )
    assert not torch.allclose(found, by_hand(copied, z, lambda *_: seen[0]), atol=1e-3)


@pytest.mark.parametrize(
    ("steps", "order"),
    [
        ((Drop(blocks=(0,)),), [1, 2, 3]),
        ((Drop(blocks="interleaved 50%"),), [0, 2]),
        ((Reorder(order=(2, 0, 1, 3)),), [2, 0, 1, 3]),
        ((Share(groups=((1, 3),)),), [0, 1, 2, 1]),
        ((Share(groups=((0, 1),)), Drop(blocks=(3,)), Reorder(order=(2, 0, 1))), [2, 0, 0]),
    ],
)
def test_dropped_reordered_and_shared_blocks_with_the_head_of_block_0(steps: Any, order: list[int]) -> None:
    model = tiny()
    before, modules = output(model), dict(model.named_modules())
    handle = graft(model, Plan(restructure=steps))

    def run(h: torch.Tensor, block: Any) -> torch.Tensor:
        for i in order:
            h = block(i, h)
        return h

    assert torch.equal(output(model), by_hand(tiny(), batch(99)["z"], run))
    with handle.teacher():
        assert torch.equal(output(model), before)
    ungraft(model)
    after = dict(model.named_modules())
    assert after.keys() == modules.keys() and all(after[name] is modules[name] for name in modules)
    assert torch.equal(output(model), before)


@pytest.fixture
def double() -> Iterator[None]:
    """Models in double precision, so that two ways to the same sum are compared closely on any processor."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _call(model: nn.Module, condition: Any) -> torch.Tensor:
    z = torch.randn(2, 3 if model.config.in_channels == 3 else 4, *[model.config.sample_size] * 2)  # type: ignore[union-attr, operator]
    return host_for(model).call(model, z, torch.tensor([10, 900]), condition)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rows", [1, 10_000])
@pytest.mark.parametrize("combine", ["scale", "dense"])
@pytest.mark.parametrize("operators", [False, True])
@pytest.mark.parametrize("family", ["dit", "pixart"])
def test_wide_equals_plain_in_outputs_and_gradients(
    family: str, operators: bool, combine: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "BATCHED_ROWS", rows)
    torch.manual_seed(3)
    model, condition = _pixart() if family == "pixart" else (tiny(), torch.tensor([1, 4]))
    model.eval()
    plan = Plan(restructure=(Merge(groups=((0, 1),), combine=combine),))
    handle = graft(model, plan + OPERATORS.__class__(edits=OPERATORS.edits[:1]) if operators else plan)
    shake(handle)
    (module,) = handle.groups.values()
    found = {}
    for wide in (True, False):
        module.wide = wide
        model.zero_grad()
        torch.manual_seed(4)
        trained = _call(model, condition)
        trained.square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        torch.manual_seed(4)
        with torch.inference_mode():
            seen = _call(model, condition).clone()
        found[wide] = (trained.detach(), gradients, seen)
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[True][2], found[False][2], rtol=1e-10, atol=1e-10)
    assert found[True][1].keys() == found[False][1].keys() and len(found[True][1]) > 20
    for name, gradient in found[True][1].items():
        torch.testing.assert_close(gradient, found[False][1][name], rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.usefixtures("double")
def test_the_wide_form_is_taken_and_follows_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = parallel.run_wide

    def watched(host: Any, blocks: list[nn.Module], *rest: Any) -> torch.Tensor:
        calls.append(len(blocks))
        return real(host, blocks, *rest)

    monkeypatch.setattr(parallel, "run_wide", watched)
    model = tiny()
    handle = graft(model, PAIRS)
    output(model)
    assert calls == [2, 2]
    shake(handle)  # in place, after the weights were laid side by side
    wide = output(model)
    for module in handle.groups.values():
        module.wide = False
    assert calls == [2, 2, 2, 2]
    torch.testing.assert_close(output(model), wide, rtol=1e-10, atol=1e-10)
    hook = handle.groups[next(iter(handle.groups))].branches[0].register_forward_hook(lambda *_: None)
    for module in handle.groups.values():
        module.wide = True
    output(model)
    hook.remove()
    assert calls == [2, 2, 2, 2, 2], "a hooked branch is called as itself"


def side_by_side(steps: Any, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of merged pairs as they run by themselves, and block by block; ``steps`` are done to every branch."""
    handle = graft(model, PAIRS)
    for module in handle.groups.values():
        for number, branch in enumerate(module.branches):
            steps(branch, number)
    found = output(model)
    for module in handle.groups.values():
        module.wide = False
    return found, output(model)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("what", ["weights", "eps"])
def test_norms_that_have_weights_or_differ_are_heeded_side_by_side(what: str) -> None:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(**dict(tiny().config) | {"norm_elementwise_affine": what == "weights"}).eval()

    def change(branch: Any, number: int) -> None:
        if what == "eps":
            branch.norm3.eps = [1e-5, 1.0][number]
        else:
            nn.init.normal_(branch.norm3.weight)
            nn.init.normal_(branch.norm3.bias)

    wide, plain = side_by_side(change, model)
    torch.testing.assert_close(wide, plain, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(plain, side_by_side(lambda *_: None, tiny())[1], atol=1e-3)


PLACES = ("", "norm1", "norm1.linear", "norm1.norm", "norm3", "attn1", "attn1.to_q", "attn1.to_out.0", "ff", "ff.net.0")


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("way", ["hook", "forward"])
@pytest.mark.parametrize("place", [*PLACES, "ff.net.0.proj", "ff.net.2"])
def test_what_was_put_around_a_call_is_heeded_side_by_side(place: str, way: str) -> None:
    """A hook, or a forward in the place of the class's own, which is how accelerate and diffusers wrap a module."""

    def change(branch: nn.Module, number: int) -> None:
        module: Any = branch.get_submodule(place)
        if number and way == "hook":
            module.register_forward_hook(lambda _, __, out: _scaled(out))
        elif number:
            own = module.forward
            module.forward = lambda *given, **named: _scaled(own(*given, **named))

    wide, plain = side_by_side(change, tiny())
    torch.testing.assert_close(wide, plain, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(plain, side_by_side(lambda *_: None, tiny())[1], atol=1e-3)


def _scaled(out: Any) -> Any:
    return tuple(1.5 * part for part in out) if isinstance(out, tuple) else 1.5 * out


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layer", ["norm1.linear", "attn1.to_v", "ff.net.2"])
def test_adapters_of_peft_are_heeded_side_by_side(layer: str) -> None:
    peft = pytest.importorskip("peft")

    def change(branch: nn.Module, _: int) -> None:
        peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=[layer]), branch)
        for name, parameter in branch.named_parameters():
            if "lora" in name:
                nn.init.normal_(parameter)

    wide, plain = side_by_side(change, tiny())
    torch.testing.assert_close(wide, plain, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(plain, side_by_side(lambda *_: None, tiny())[1], atol=1e-3)


@pytest.mark.parametrize("family", ["dit", "pixart"])
def test_blocks_side_by_side_compile_whole(family: str) -> None:
    """Without a break; and the weights that a compiled model reads are those that there are."""
    torch.manual_seed(3)
    model, condition = _pixart() if family == "pixart" else (tiny(), torch.tensor([1, 4]))
    handle = graft(model.eval(), PAIRS)
    found: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for compiled in (False, True):
        if compiled:
            model.compile(backend="eager", fullgraph=True)
        for _ in range(2):
            torch.manual_seed(4)
            with torch.no_grad():
                found[compiled].append(_call(model, condition))
                for module in handle.groups.values():
                    for parameter in module.parameters():
                        parameter.neg_()
    for given, wanted in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(given, wanted)
    assert not torch.allclose(*found[False], atol=1e-2)


def test_operators_and_steps_compose_and_keep_the_original_numbers() -> None:
    model = six()
    before = output(model)
    handle = graft(model, EVERYTHING)
    assert [key.name for key in handle.learnable()] == [
        "blocks.1.attn",
        "blocks.2.mlp",
        "blocks.0-1.merge",
        "blocks.2-3+4.share",
    ]
    assert len(host_for(model).blocks(model)) == 4
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names)) and not any(".original." in name for name in names)
    assert not torch.equal(output(model), before)
    with handle.teacher():
        assert torch.equal(output(model), before)
    assert torch.equal(output(ungraft(model)), before)


@pytest.mark.parametrize("train", ["all", "combine"])
def test_stage_1_teaches_groups_and_sites_apart_and_leaves_the_teacher_alone(train: str) -> None:
    config = DistillConfig(
        steps=24, group=SiteConfig(lr=3e-3, weight_decay=0.0, loss="l2"), evaluate_every=6, heldout_batches=1
    )
    model = six()
    before = output(model)
    steps = (Merge(groups=((0, 1),), train=train), *EVERYTHING.restructure[1:])
    handle = graft(model, OPERATORS + Plan(restructure=steps))
    frozen = {n: p.clone() for n, p in handle.groups[next(iter(handle.groups))].named_parameters()}
    reports = distill(handle, batch, 10, config=config)
    assert list(reports) == ["blocks.1.attn", "blocks.2.mlp", "blocks.0-1.merge", "blocks.2-3+4.share"]
    for name in ("blocks.0-1.merge", "blocks.2-3+4.share"):
        assert reports[name].heldout[-1][1] < reports[name].heldout[0][1]
    moved = {n for n, p in handle.groups[next(iter(handle.groups))].named_parameters() if not torch.equal(p, frozen[n])}
    own = {name for name in moved if ".operator." not in name}  # the operator within learns at its own site
    assert "combine.weight" in own and (own == {"combine.weight"} or train == "all")
    alone = graft(six(), OPERATORS)
    assert distill(alone, batch, 10, config=config)["blocks.1.attn"] == reports["blocks.1.attn"]
    with handle.teacher():
        assert torch.equal(output(model), before)
    assert torch.equal(output(ungraft(model)), before)


def test_all_groups_and_sites_learn_from_one_pass_of_the_teacher() -> None:
    handle = graft(six(), EVERYTHING, init="random")
    assert handle.student_blocks is not None and handle.student_blocks.originals is not None
    passes = [0] * 6
    for k, block in enumerate(handle.student_blocks.originals):

        def counted(*_: object, k: int = k) -> None:
            passes[k] += 1

        block.register_forward_hook(counted)
    reports = distill(handle, batch, 10, config=DistillConfig(steps=3, evaluate_every=3, heldout_batches=2))
    assert len(reports) == 4
    assert passes == [3 + 2 * 2] * 6  # three steps, and two batches of held-out images before and after them


def test_the_target_is_the_update_of_the_blocks_one_after_the_other() -> None:
    """A dropped block whose neighbour was given both updates leaves the whole as it was."""
    handle = graft(tiny(), Plan(restructure=(Drop(blocks=(2,)),)))
    (pupil,) = handle.pupils().values()
    seen: list[torch.Tensor] = []
    blocks = host_for(tiny()).blocks(tiny())
    x = torch.randn(8, 16, 32)
    call = {"timestep": torch.arange(8), "class_labels": torch.zeros(8, dtype=torch.int64)}
    with torch.no_grad():
        end = blocks[2](blocks[1](x, **call), **call)
        ((given, wanted),) = pupil.answer(x, (end,), call)
        seen.append(blocks[1](x, **call) - x)
    assert torch.equal(wanted, end - x) and torch.equal(given, seen[0])
    ((first, last),) = pupil.spans
    originals = handle.student_blocks.originals  # type: ignore[union-attr]
    assert first is originals[1] and last is originals[2]  # type: ignore[index]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = DistillConfig(steps=8, evaluate_every=4, heldout_batches=1, save_every=1)

    def teach(out: Path | None, stop: int | None = None) -> dict[str, torch.Tensor]:
        handle = graft(six(), EVERYTHING, init="random")

        def batches(step: int) -> dict[str, torch.Tensor]:
            if step == stop:
                raise KeyboardInterrupt
            return batch(step)

        if stop is None:
            distill(handle, batches, 10, config=config, out=out)
        else:
            with pytest.raises(KeyboardInterrupt):
                distill(handle, batches, 10, config=config, out=out, heldout=batch)
        return {f"{key.name}.{n}": p.detach() for key, ps in handle.learnable().items() for n, p in ps.items()}

    whole = teach(None)
    teach(tmp_path, stop=5)
    again = teach(tmp_path)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("kind", ["delta", "whole", "own"])
@pytest.mark.parametrize(
    "steps",
    [
        EVERYTHING.restructure,
        (Merge(train="combine"), Reorder(order=(2, 3, 0, 1, 4, 5))),
        (Share(groups=((1, 3),)), Reorder(order=(1, 0, 2, 3, 5, 4))),
    ],
)
def test_round_trips(tmp_path: Path, kind: str, steps: Any) -> None:
    plan = OPERATORS + Plan(restructure=steps)
    assert Plan.from_yaml(plan.to_yaml()) == plan and Plan.from_yaml(plan.to_yaml()).digest == plan.digest
    base = six()
    base.transformer_blocks[0].norm3.eps = 1e-3  # type: ignore[index, union-attr]
    handle = graft(base, plan)
    shake(handle)
    student = output(base)
    if kind == "own":
        handle = handle.own_copy()
        with torch.no_grad():
            for parameter in handle.model.parameters():
                parameter.mul_(1.05)
        assert torch.equal(output(base), student)
        with pytest.raises(GraftError, match="no original"):
            ungraft(handle.model)
    save(handle, tmp_path, whole=kind == "whole" or None)
    other = six()
    other.transformer_blocks[0].norm3.eps = 1e-3  # type: ignore[index, union-attr]
    before = output(other)
    again = load(tmp_path, other if kind == "delta" else None)
    torch.testing.assert_close(output(again.model), output(handle.model), rtol=0, atol=0)
    size = (tmp_path / "graft.safetensors").stat().st_size
    learnt = sum(p.numel() for ps in handle.learnable().values() for p in ps.values())
    if kind == "delta":
        assert size < 4 * learnt + 20_000
        assert torch.equal(output(ungraft(other)), before)
    else:
        assert again.private and size < 4 * sum(p.numel() for p in handle.model.parameters()) + 20_000


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((Merge(groups=((0, 2),)),), ["group [0, 2]", "follow each other"]),
        ((Merge(groups=((1, 0),)),), ["group [1, 0]", "follow each other"]),
        ((Merge(groups=((0, 1), (1, 2))),), ["block 1 is merged by step 0 already"]),
        ((Merge(groups=((3, 4),)),), ["block 4", "0 to 3"]),
        ((Merge(groups=((3,),)),), ["[3]", "at least two"]),
        ((Merge(groups=()),), ["no groups"]),
        ((Merge(groups="triples"),), ["'triples'", "pairs"]),
        ((Merge(combine="sum", train="none"),), ["combine 'sum'", "scale, dense", "train 'none'"]),
        ((Drop(blocks=()),), ["no blocks"]),
        ((Drop(blocks="second"),), ["'second'"]),
        ((Drop(blocks=(1, 1)),), ["block 1 is dropped by step 0 already"]),
        ((Drop(blocks="all"),), ["every block"]),
        ((Merge(groups=((0, 1),)), Drop(blocks=(1,))), ["block 1 is dropped by step 1 already"]),
        ((Reorder(order=(0, 1, 2)),), ["[0, 1, 2]", "0, 1, 2, 3 once"]),
        ((Reorder(order=(3, 2, 1, 0)), Reorder(order=(3, 2, 1, 0))), ["reordered by step 0 already"]),
        ((Merge(), Reorder(order=(0, 2, 1, 3))), ["[0, 1]", "[2, 3]", "stay together"]),
        ((Share(groups=((0, 0),)), Merge(groups=((2, 9),))), ["block 0 is shared", "block 9"]),
    ],
)
def test_bad_steps_are_told_at_once_and_change_nothing(steps: Any, words: list[str]) -> None:
    model = tiny()
    modules = dict(model.named_modules())
    plan = Plan(edits=(Edit(site="attn", blocks=(0,), operator="typo"),), restructure=steps)
    with pytest.raises(PlanError) as caught:
        graft(model, plan)
    assert all(word in str(caught.value) for word in [*words, "typo"]), str(caught.value)
    assert dict(model.named_modules()) == modules
    with pytest.raises(PlanError):
        plan.layout(model)


def test_edits_of_blocks_that_run_no_longer_are_refused() -> None:
    plan = Plan.all(operator="swa") + Plan(restructure=(Drop(blocks=(1,)), Share(groups=((2, 3),))))
    text = "; ".join(plan.check(tiny()).problems)
    assert "block 1 is dropped" in text and "block 3 runs with the weights of block 2" in text


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"merge": "pairs", "combin": "scale"}, "did you mean 'combine'"),
        ({"merge": [0, 1]}, "lists of blocks"),
        ({"merge": "pairs", "drop": [1]}, "merge and drop in one entry"),
        ({"drop": [1.5]}, "a list of blocks or a pattern"),
        ({"reorder": "all"}, "a list of blocks"),
        ({"share": 3}, "'pairs' or lists"),
        ({"fold": [1]}, "exactly one of merge, drop, reorder, share"),
        ("merge", "no mapping"),
        ({"merge": "pairs", "combine": 3}, "combine 3"),
    ],
)
def test_bad_yaml_is_told(entry: Any, words: str) -> None:
    with pytest.raises(PlanError, match="restructure 1") as caught:
        Plan.from_dict({"restructure": [{"drop": "first 25%"}, entry]})
    assert words in str(caught.value)
    with pytest.raises(PlanError, match="list of steps"):
        Plan.from_dict({"restructure": "pairs"})


def test_a_merged_block_has_no_sites() -> None:
    model = tiny()
    graft(model, PAIRS)
    with pytest.raises(HostError, match="restructured"):
        host_for(model).get(model, Site(0, "attn"))


def test_moving_the_student_moves_the_teacher() -> None:
    handle = graft(tiny(), PAIRS)
    handle.model.to(torch.float64)
    with handle.teacher() as teacher:
        assert {p.dtype for p in teacher.parameters()} == {torch.float64}
    assert isinstance(next(iter(handle.groups.values())), Parallel)


@pytest.mark.parametrize(
    "steps",
    [
        (Merge(),),
        (Merge(groups=((0, 1, 2),), combine="dense"),),
        (Drop(blocks=(0, 3)), Merge(groups=((1, 2),), train="combine")),
        EVERYTHING.restructure,
        (Reorder(order=(1, 0, 2, 3, 4, 5)),),
    ],
)
def test_costs_are_what_is_counted(steps: Any) -> None:
    plan = Plan(restructure=steps)
    handle = graft(six(), plan)
    cost = plan_cost(plan, handle.model)
    z, t, y = torch.empty(1, 4, 8, 8), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with handle.teacher():
        before = flops(handle.model, z, timestep=t, class_labels=y)
        assert parameters(handle.model) == cost.shape.parameters
    assert flops(handle.model, z, timestep=t, class_labels=y) - before == cost.flops_after - cost.flops_before
    assert parameters(handle.model) == cost.parameters_after
    learnt = sum(p.numel() for ps in handle.learnable().values() for p in ps.values())
    assert learnt == cost.new_parameters == sum(group.new_parameters for group in cost.groups)
    composed = plan_cost(OPERATORS + Plan(restructure=EVERYTHING.restructure), handle.model)
    assert composed.flop_ratio <= composed.flop_bound and composed.sites[1].runs == 2
    handle = graft(six(), OPERATORS + Plan(restructure=EVERYTHING.restructure))
    learnt = sum(p.numel() for ps in handle.learnable().values() for p in ps.values())
    assert (learnt, parameters(handle.model)) == (composed.new_parameters, composed.parameters_after)
    assert "blocks.0-1.merge" in table(composed) and "parameters  " in table(composed)


def test_controls_of_a_merged_plan_and_its_recipe() -> None:
    recipe = RunRecipe.from_yaml((files("grafting") / "recipes" / "depth-half.yaml").read_text())
    found = {entry.name: entry for entry in entries(recipe, tiny())}
    assert found["none"].plan == Plan(restructure=(Drop(blocks="interleaved 50%"),))
    assert "merge pairs, combine scale" in found["hybrid"].description
    mixed = replace(recipe, plans={"a": OPERATORS + Plan(restructure=(Merge(groups=((0, 1, 2),)),))})
    (none,) = (entry.plan for entry in entries(mixed, tiny()) if entry.name == "none")
    assert none == Plan(restructure=(Drop(blocks=(1, 2)),))
    with pytest.raises(SettingsError, match="as lists"):
        entries(replace(recipe, plans={"a": Plan(restructure=(Merge(), Drop(blocks=(0,))))}), tiny())


def test_a_study_of_half_the_depth(tiny_teacher: Path, tmp_path: Path) -> None:
    recipe = RunRecipe.from_dict(
        {
            "teacher": str(tiny_teacher),
            "plan": {"restructure": [{"merge": "pairs"}]},
            "distill": {"steps": 4, "batch": 8, "evaluate_every": 2, "group": {"lr": 1e-4}},
            "finetune": {"steps": 4, "batch": 8},
            "evaluate": {"triples": 16, "samples": 0, "grid": 0},
            "speed": {"batch": 1, "rounds": 2},
            "controls": ["none", "untrained"],
        }
    )
    results = run(recipe, tmp_path, say=lambda _: None)
    assert [model.name for model in results.models] == ["teacher", "hybrid", "none", "untrained"]
    assert results.models[-1].description == "the hybrid's start, no training"
    # What a control was taught by is told too: of *none* the plan that it is, and of what learns nothing there is none.
    assert [cost.model for cost in results.costs] == ["hybrid", "none"]
    assert results.costs[0].parts["stage 2"] > results.costs[1].parts["stage 2"] > 0
    assert results.speed[0].time_bound is None and results.costs[0].parts["stage 1"] > 0
    assert "blocks.0-1.merge" in {curve.name for curve in results.curves}
    opened = load(tmp_path / "hybrid" / "model")
    assert [group.name for group in opened.groups] == ["blocks.0-1.merge", "blocks.2-3.merge"]
    assert len(host_for(opened.model).blocks(opened.model)) == 2


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "restructure.md").read_text()
    (plan,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    layout = Plan.from_yaml(plan).layout({**bundled_config("dit-xl-2-256"), "num_layers": 12})
    assert layout is not None and [group.name for group in layout.places[:2]] == [
        "blocks.2-5.merge",
        "blocks.0-1.merge",
    ]
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    assert "blocks.0-1.merge" in capsys.readouterr().out
