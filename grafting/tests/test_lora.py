"""Adapters against hand arithmetic, on small DiT and PixArt models with random weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from grafting.cost import adapter_cost, plan_cost
from grafting.graft import Grafted, graft, handle_of, ungraft
from grafting.hashes import tensors_hash
from grafting.lora import Lora, LoraError, add_lora
from grafting.plan import Plan
from grafting.restructure import Drop, Merge, Reorder, Share
from grafting.settings import SettingsError
from grafting.store.folder import load, save
from grafting.store.manifest import StoreError
from grafting.study.recipe import FinetuneStage
from grafting.study.spending import stage_two_flops

SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 4,
    "sample_size": 4,
    "patch_size": 1,
    "in_channels": 2,
    "out_channels": 4,
}
CLASSES = {"num_embeds_ada_norm": 3}
TEXT = {"cross_attention_dim": 16, "caption_channels": 6, "use_additional_conditions": False}
JOINT = {"joint_attention_dim": 6, "caption_projection_dim": 16, "pooled_projection_dim": 10, "pos_embed_max_size": 8}
JOINT |= {"out_channels": 2, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
HALF = Plan.interleaved(operator="hyena_x")


ATTENTION = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]


def dit() -> nn.Module:
    torch.manual_seed(0)
    return DiTTransformer2DModel(**SIZES, **CLASSES).eval()


def pixart() -> nn.Module:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(**SIZES, **TEXT).eval()


def sd3() -> nn.Module:
    torch.manual_seed(0)
    return SD3Transformer2DModel(**SIZES | JOINT).eval()


hosts = pytest.mark.parametrize("make", [dit, pixart, sd3])


def condition(model: nn.Module) -> Any:
    if isinstance(model, DiTTransformer2DModel):
        return torch.tensor([0, 3, 1])
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, 2:] = 0
    states = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    if isinstance(model, SD3Transformer2DModel):
        return {"encoder_hidden_states": states, "pooled_projections": states.flatten(1)[:, :10]}
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def output(handle: Grafted, model: nn.Module | None = None) -> torch.Tensor:
    model = model or handle.model
    z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    return handle.host.call(model, z, torch.tensor([3, 500, 999]), condition(model))


def adapted(model: nn.Module, plan: Plan = HALF, **settings: Any) -> Grafted:
    """A graft whose adapters do something."""
    handle = graft(model, plan)
    add_lora(handle, Lora(**{"rank": 3, "alpha": 6.0, **settings}))
    assert handle.adapters is not None
    torch.manual_seed(7)
    for name, parameter in handle.adapters.parameters().items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return handle


@hosts
def test_output_is_that_of_weights_with_the_products_added_by_hand(make: Callable[[], nn.Module]) -> None:
    """y = (W + (alpha / rank) B A) x + b in every layer, and so in the model whose weights are these sums."""
    handle = adapted(make())
    other = graft(make(), HALF)
    assert handle.adapters is not None
    learnt = handle.adapters.parameters()
    blocks = handle.host.blocks(other.model)
    for name, layer in handle.adapters.layers.items():
        a, b = (learnt[f"blocks.{name}.{part}.weight"] for part in ("lora_A", "lora_B"))
        number, _, path = name.partition(".")
        plain = blocks[int(number)].get_submodule(path)
        assert isinstance(plain, nn.Linear) and torch.equal(plain.weight, layer.base_layer.weight)
        x = torch.randn(2, 5, a.shape[1])
        with torch.no_grad():
            plain.weight += 6.0 / 3 * b @ a
            torch.testing.assert_close(layer(x), F.linear(x, plain.weight, plain.bias), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output(handle), output(other), rtol=1e-5, atol=2e-6)
    with other.teacher():
        assert not torch.allclose(output(handle), output(other), atol=1e-2)


def test_a_rank_is_measured_by_a_layer_and_not_by_the_shape_of_its_weight() -> None:
    """Which is one column where four bits of two numbers share a byte, as bitsandbytes packs them."""
    handle = graft(dit(), HALF)
    packed: Any = handle.host.blocks(handle.model)[0].attn1.to_q
    packed.weight = nn.Parameter(torch.zeros(packed.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    add_lora(handle, Lora(rank=3))
    with pytest.raises(LoraError, match=r"rank 17: blocks\.0\.attn1\.to_q has 16 channels"):
        add_lora(graft(dit(), HALF), Lora(rank=17))


@hosts
def test_merged_is_unmerged_but_for_rounding_and_leaves_the_handle_alone(make: Callable[[], nn.Module]) -> None:
    handle = adapted(make())
    before = output(handle)
    mine = handle.own_copy()
    assert mine.private and mine.adapters is None
    assert not any("lora" in name for name, _ in mine.model.named_modules())
    torch.testing.assert_close(output(mine), before, rtol=1e-5, atol=2e-6)
    assert not torch.equal(output(mine), before) and torch.equal(output(handle), before)
    assert all(parameter.requires_grad for parameter in mine.model.parameters())
    torch.testing.assert_close(output(handle.own_copy("cpu")), output(mine), rtol=0, atol=0)
    away = handle.own_copy("meta").model
    assert {tensor.device.type for tensor in (*away.parameters(), *away.buffers())} == {"meta"}
    assert torch.equal(output(handle), before)
    handle.settle()
    assert handle.private and handle.adapters is None and torch.equal(output(handle), output(mine))


@hosts
def test_start_teacher_and_removal_are_bit_exact(make: Callable[[], nn.Module]) -> None:
    model = make()
    next(model.parameters()).requires_grad_(False)
    attributes = set(vars(model)) | set(vars(type(model)))
    tensors = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    modules = {name: id(module) for name, module in model.named_modules()}
    pretrained = tensors_hash(model.state_dict())
    handle = graft(model, HALF)
    start = output(handle)
    with handle.teacher():
        original = output(handle)
    add_lora(handle, Lora(rank=4))
    assert torch.equal(output(handle), start)
    assert handle.adapters is not None
    for parameter in handle.adapters.parameters().values():
        nn.init.normal_(parameter)
    moved = output(handle)
    assert not torch.allclose(moved, start, atol=1e-2)
    with handle.teacher():
        assert torch.equal(output(handle), original)
        with handle.student():
            assert torch.equal(output(handle), moved)
        assert torch.equal(output(handle), original)
    assert torch.equal(output(handle), moved)
    ungraft(model)
    assert tensors_hash(model.state_dict()) == pretrained and set(vars(model)) | set(vars(type(model))) == attributes
    assert {name: (id(p), p.requires_grad) for name, p in model.named_parameters()} == tensors
    assert {name: id(module) for name, module in model.named_modules()} == modules
    assert torch.equal(output(handle, model), original)


def test_the_start_follows_from_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found, on_gpu = [], []
    for seed, rest in ((0, 0), (0, 5), (1, 0)):
        handle = graft(dit(), HALF)
        torch.manual_seed(rest)
        state = torch.random.get_rng_state()
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "manual_seed_all", on_gpu.append)
            adapters = add_lora(handle, Lora(), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state) and not on_gpu
        found.append(torch.cat([p.flatten() for p in adapters.parameters().values()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@hosts
def test_operators_and_adapters_learn_and_nothing_else(make: Callable[[], nn.Module]) -> None:
    """peft by itself freezes all that it is given, new operators too."""
    handle = graft(make(), HALF)
    adapters = add_lora(handle, Lora(rank=2))
    assert all(parameter.requires_grad for parameter in handle.model.parameters())
    handle.train_grafted(adapters=True)
    with handle.teacher(), torch.no_grad():
        output(handle)
    output(handle).square().mean().backward()
    learn = {id(p) for op in handle.operators().values() for p in op.parameters()}
    learn |= {id(p) for p in adapters.parameters().values()}
    for name, parameter in handle.model.named_parameters():
        assert parameter.requires_grad == (id(parameter) in learn) == (parameter.grad is not None), name
    moved = {name for name, p in adapters.parameters().items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {name for name in adapters.parameters() if "lora_B" in name}  # A moves once B is not zero
    assert all(p.grad.abs().sum() > 0 for op in handle.operators().values() for p in op.parameters())
    handle.train_grafted()
    assert not any(parameter.requires_grad for parameter in adapters.parameters().values())


@pytest.mark.parametrize(
    ("make", "targets", "wanted"),
    [
        (dit, None, {"attn1": 2 * 4, "ff": 3 * 2}),
        (pixart, None, {"attn1": 2 * 4, "attn2": 4 * 4, "ff": 3 * 2}),
        (pixart, ("cross",), {"attn2": 4 * 4}),
        (dit, ("mlp",), {"ff": 3 * 2}),
        (sd3, None, {"attn": 2 * 8, "attn2": 2 * 4, "ff": 3 * 2, "ff_context": 3 * 2}),
        (sd3, ("attn",), {"attn": 2 * 8, "attn2": 2 * 4}),
        (sd3, ("mlp",), {"ff": 3 * 2, "ff_context": 3 * 2}),
    ],
)
def test_what_is_adapted_and_what_it_costs(
    make: Callable[[], nn.Module], targets: tuple[str, ...] | None, wanted: dict[str, int]
) -> None:
    """Counted in the model, and by torch's own counter over one forward pass with and without."""
    plan = HALF + Plan.explicit(site="mlp", operator="mlp", blocks=[0], ratio=3)
    handle = graft(make(), plan)
    with FlopCounterMode(display=False) as before:
        output(handle)
    adapters = add_lora(handle, Lora(rank=3, targets=targets))
    with FlopCounterMode(display=False) as after:
        output(handle)
    found = [name.split(".")[1] for name in adapters.names]
    assert {module: found.count(module) for module in found} == wanted
    assert not any(name.startswith(("1.attn1", "3.attn1", "1.attn.", "3.attn.", "0.ff.")) for name in adapters.names)
    cost = plan_cost(plan, replace(plan_cost(plan, handle.model).shape, context_tokens=0 if make is dit else 5))
    told = adapter_cost(cost, 3, targets or ("attn", "cross", "mlp"))
    assert told.parameters == sum(p.numel() for p in adapters.parameters().values())
    assert 3 * told.flops == after.get_total_flops() - before.get_total_flops()


@pytest.mark.parametrize(
    ("plan", "last"),
    [
        (Plan(), ["attn.add_k_proj", "attn.add_v_proj", *ATTENTION, "ff.net.0.proj", "ff.net.2"]),
        (Plan.all(operator="swa"), ["ff.net.0.proj", "ff.net.2"]),
        (Plan.all(site="mlp", operator="mlp", ratio=2), ["attn.add_k_proj", "attn.add_v_proj", *ATTENTION]),
    ],
)
def test_of_sd3_the_text_has_adapters_and_the_second_attention(plan: Plan, last: list[str]) -> None:
    """Where a block has them, and where anything reads what they make: in the last block no queries of the text."""
    handle = graft(sd3(), plan)
    with FlopCounterMode(display=False) as before:
        output(handle)
    adapters = add_lora(handle, Lora(rank=3))
    with FlopCounterMode(display=False) as after:
        output(handle).square().mean()
    cost = plan_cost(plan, replace(plan_cost(plan, handle.model).shape, context_tokens=5))
    told = adapter_cost(cost, 3, ("attn", "cross", "mlp"))
    assert told.parameters == sum(p.numel() for p in adapters.parameters().values())
    assert 3 * told.flops == after.get_total_flops() - before.get_total_flops()
    found = {block: [name[2:] for name in adapters.names if name[0] == block] for block in "0123"}
    second = {f"attn2.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert sorted(found["3"]) == sorted(last) and second <= {*found["0"]} and not second & {*found["2"]}
    assert {*found["0"]} == {*found["2"]} | second and {*found["0"]} == {*found["1"]}
    assert {*found["2"]} - {*found["3"]} >= ({"attn.add_q_proj", "attn.to_add_out"} if "attn.to_q" in last else set())
    assert ("ff.net.2" in found["2"]) == ("ff.net.2" in last) and "ff_context.net.2" in found["2"]
    output(handle).square().mean().backward()
    learnt = {name: p.grad for name, p in adapters.parameters().items() if "lora_B" in name}
    assert all(grad is not None and grad.any() for grad in learnt.values())


def test_a_step_costs_what_the_counter_says() -> None:
    """A backward pass through frozen weights has no gradient of these: torch counts both passes, SDPA as products."""
    with torch.random.fork_rng():
        model = DiTTransformer2DModel(**SIZES | {"num_layers": 12, "sample_size": 16}, **CLASSES).eval()
    handle = graft(model, Plan())
    adapters = add_lora(handle, Lora(rank=4))
    handle.train_grafted(adapters=True)
    z, t = torch.randn(2, 2, 16, 16), torch.tensor([3, 999])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        handle.host.call(model, z, t, torch.tensor([0, 1])).square().mean().backward()
    stage = FinetuneStage(steps=1, batch=2, train="lora", lora=adapters.settings, target="noise")
    cost = plan_cost(Plan(), model)
    told = stage_two_flops(cost, stage)
    assert told == pytest.approx(counted.get_total_flops(), rel=0.02)
    assert stage_two_flops(cost, replace(stage, target="teacher")) == told + 2 * cost.flops_before
    again = stage_two_flops(cost, replace(stage, checkpointing=True)) - told
    assert again == 2 * (cost.flops_after + adapter_cost(cost, 4, ("attn", "mlp")).flops)


@hosts
@pytest.mark.parametrize("plan", [HALF, Plan()])
def test_a_delta_holds_operators_and_adapters_and_comes_back(
    make: Callable[[], nn.Module], plan: Plan, tmp_path: Path
) -> None:
    handle = adapted(make(), plan, targets=("attn", "mlp"))
    assert handle.adapters is not None
    save(handle, tmp_path)
    new = [*handle.adapters.parameters().values()]
    new += [p for operator in handle.operators().values() for p in operator.parameters()]
    manifest = json.loads((tmp_path / "graft.json").read_text())
    assert manifest["lora"] == {"rank": 3, "alpha": 6.0, "targets": ["attn", "mlp"]}
    assert sum(4 * p.numel() for p in new) < manifest["file"]["bytes"] < sum(4 * p.numel() for p in new) + 12_000
    again = load(tmp_path, make())
    assert again.adapters is not None and again.adapters.settings == handle.adapters.settings
    assert torch.equal(output(again), output(handle))
    with again.teacher(), handle.teacher():
        assert torch.equal(output(again), output(handle))
    assert tensors_hash(ungraft(again.model).state_dict()) == again.source_hash
    text = (tmp_path / "README.md").read_text()
    assert "LoRA of rank 3 on attn, mlp" in text and "pip install ./grafting peft" in text


def test_a_whole_folder_holds_them_merged(tmp_path: Path) -> None:
    handle = adapted(dit())
    save(handle, tmp_path, whole=True)
    whole = load(tmp_path)
    assert whole.private and whole.adapters is None and handle.adapters is not None
    torch.testing.assert_close(output(whole), output(handle), rtol=1e-5, atol=2e-6)
    add_lora(whole, Lora(rank=2))
    mine = output(whole)
    save(whole, tmp_path / "again")
    torch.testing.assert_close(output(load(tmp_path / "again")), mine, rtol=1e-5, atol=2e-6)


def test_a_folder_whose_adapters_do_not_fit_leaves_the_base_alone(tmp_path: Path) -> None:
    save(adapted(dit()), tmp_path)
    manifest = json.loads((tmp_path / "graft.json").read_text())
    for told, word in (
        ({"rank": 2}, r"lora\.blocks\.0\.attn1\.to_q\.lora_A\.weight is \(3, 16\), must be \(2, 16\)"),
        ({"rnk": 2}, "lora: unknown key 'rnk': did you mean 'rank'"),
        ({"targets": ["cross"]}, "the blocks of a DiT have attn, mlp"),
        (None, "is of no use here"),
    ):
        (tmp_path / "graft.json").write_text(json.dumps(manifest | {"lora": told}))
        base = dit()
        before = {name: id(module) for name, module in base.named_modules()}
        with pytest.raises((StoreError, LoraError), match=word):
            load(tmp_path, base)
        assert handle_of(base) is None and {name: id(module) for name, module in base.named_modules()} == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0, "alpha": -1.0, "targets": ("atn",)}, ["rank 0: at least 1", "alpha -1.0: above 0", "mean 'attn'"]),
        ({"targets": ()}, ["name at least one of attn, cross, mlp"]),
        ({"targets": ("mlp", "mlp")}, ["each once"]),
        ({"alpha": float("nan")}, ["alpha nan: above 0"]),
    ],
)
def test_bad_settings_are_told_all_at_once(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Lora(**settings)
    assert len(caught.value.problems) == len(words) and all(word in str(caught.value) for word in words)


def test_what_cannot_be_adapted_is_refused_before_anything_is_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    def refused(handle: Grafted, word: str, **settings: Any) -> None:
        before = {name: id(module) for name, module in handle.model.named_modules()}
        with pytest.raises(LoraError, match=word):
            add_lora(handle, Lora(**settings))
        assert {name: id(module) for name, module in handle.model.named_modules()} == before

    refused(graft(dit(), HALF), "targets cross: the blocks of a DiT have attn, mlp", targets=("cross", "mlp"))
    refused(graft(dit(), HALF), r"rank 17: blocks\.0\.attn1\.to_q has 16 channels", rank=17)
    refused(graft(dit(), Plan.all(operator="hyena_x")), "targets attn: all of these train in full", targets=("attn",))
    refused(adapted(dit()), "has adapters already: merge them")
    model = dit()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_k"]), model)
    refused(graft(model, HALF), "has adapters already")
    tied = dit()
    tied.transformer_blocks[2].attn1.to_q.weight = tied.transformer_blocks[0].attn1.to_q.weight  # type: ignore
    refused(graft(tied, HALF), r"blocks\.0\.attn1\.to_q, blocks\.2\.attn1\.to_q: the weight is shared")
    assert add_lora(handle_of(tied), Lora(targets=("mlp",))).names  # type: ignore[arg-type]
    looped = dit()
    looped.transformer_blocks[3] = looped.transformer_blocks[2]  # type: ignore[index, operator]
    refused(graft(looped, Plan()), r"blocks\.2\.attn1\.to_q, blocks\.2\.attn1\.to_k", targets=("attn",))
    odd = dit()
    odd.transformer_blocks[1].ff.net[2] = nn.Identity()  # type: ignore
    refused(graft(odd, HALF), r"blocks\.1\.ff\.net\.2 is Identity")
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(graft(dit(), HALF), r"pip install peft$")


COMBINED = Plan(restructure=(Merge(groups=((0, 1),), train="combine"), Drop(blocks=(3,))))
"""Blocks 0 and 1 side by side with frozen branches, 2 in the place of 3 as well, which learns as a whole."""


@pytest.mark.parametrize("make", [dit, pixart])
@pytest.mark.parametrize(
    ("plan", "wanted"),
    [
        (COMBINED, {0, 1}),
        (COMBINED + Plan.explicit(operator="hyena_x", blocks=[1]), {0, 1}),
        (Plan(restructure=(Merge(groups=((1, 2),)),)), {0, 3}),
        (Plan(restructure=(Share(groups=((1, 2),)), Reorder(order=(3, 1, 2, 0)))), {0, 3}),
    ],
)
def test_restructured_blocks_have_adapters_where_they_are_frozen(
    make: Callable[[], nn.Module], plan: Plan, wanted: set[int], tmp_path: Path
) -> None:
    model = make()
    pretrained = tensors_hash(model.state_dict())
    original = output(graft(copy_of := make(), Plan()), copy_of)
    handle = graft(model, plan)
    start = output(handle)
    adapters = add_lora(handle, Lora(rank=3))
    assert {int(name.split(".")[0]) for name in adapters.names} == wanted and torch.equal(output(handle), start)
    for parameter in adapters.parameters().values():
        nn.init.normal_(parameter, std=0.3)
    moved = output(handle)
    assert not torch.allclose(moved, start, atol=1e-2)
    with handle.teacher():
        assert torch.equal(output(handle), original)
    torch.testing.assert_close(output(handle.own_copy()), moved, rtol=1e-5, atol=5e-6)
    cost = plan_cost(plan, replace(plan_cost(plan, model).shape, context_tokens=5 if make is pixart else 0))
    roles = ("attn", "cross", "mlp")
    assert adapter_cost(cost, 3, roles).parameters == sum(p.numel() for p in adapters.parameters().values())
    save(handle, tmp_path)
    assert torch.equal(output(load(tmp_path, make())), moved)
    assert tensors_hash(ungraft(model).state_dict()) == pretrained
