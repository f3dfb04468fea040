"""Grafting and taking out again, on a tiny random DiT."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import grafting
from grafting.activations import Streams, visit_spans
from grafting.graft import Grafted, GraftError, graft, handle_of, ungraft
from grafting.hashes import tensors_hash
from grafting.lora import Lora, add_lora
from grafting.plan import Plan, PlanError
from grafting.restructure import Drop, Merge, Step
from grafting.study.stages import uncopied


def tiny(seed: int = 0) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(seed)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=10,
    ).eval()


def batch(step: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(step)
    return {"z": torch.randn(8, 4, 8, 8, generator=source), "y": torch.randint(0, 10, (8,), generator=source)}


@torch.no_grad()
def output(model: nn.Module) -> torch.Tensor:
    z = batch(99)
    result: torch.Tensor = model(z["z"], timestep=torch.arange(8) * 100, class_labels=z["y"]).sample
    return result


@pytest.mark.parametrize("site", ["attn", "mlp"])
def test_identity_is_bit_exact_and_own_tensors(site: str) -> None:
    model = tiny()
    before = output(model)
    handle = graft(model, Plan.all(site=site, operator="identity"))
    assert torch.equal(output(model), before)
    for switch in handle.switches.values():
        pairs = zip(switch.operator.parameters(), switch.original.parameters(), strict=True)
        assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)


def test_wider_mlp_starts_exact() -> None:
    model = tiny()
    before = output(model)
    graft(model, Plan.all(site="mlp", operator="mlp", ratio=6), calibration=batch)
    torch.testing.assert_close(output(model), before, rtol=0, atol=1e-6)


def test_an_exact_start_needs_no_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """At DiT-XL/2's width those of a wider MLP would be half a gigabyte a site."""
    from grafting import initialise

    made: list[int] = []
    plain = initialise.Moments.__init__

    def counted(self: initialise.Moments, features: int, *rest: object) -> None:
        made.append(features)
        plain(self, features, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(initialise.Moments, "__init__", counted)
    plan = Plan.all(site="mlp", operator="mlp", ratio=6) + Plan.all(site="attn", operator="hyena_x")
    handle = graft(tiny(), plan, calibration=batch, calibration_batches=1)
    assert made == [32] * 4  # of hyena_x alone
    assert {site.name: share for site, share in handle.explained.items() if site.kind == "mlp"} == dict.fromkeys(
        ("blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp", "blocks.3.mlp"), 1.0
    )


def test_teacher_and_student_share_and_switch() -> None:
    model = tiny()
    before, pointers = output(model), {n: p.data_ptr() for n, p in model.named_parameters()}
    handle = graft(model, Plan.interleaved(site="attn", operator="hyena_x"), init="random")
    assert [site.name for site in handle.switches] == ["blocks.1.attn", "blocks.3.attn"]
    student = output(model)
    assert not torch.equal(student, before)
    with handle.teacher() as teacher:
        assert torch.equal(output(teacher), before)
        with handle.student():
            assert torch.equal(output(model), student)
        assert torch.equal(output(model), before)
    assert torch.equal(output(model), student)
    with pytest.raises(RuntimeError), handle.teacher():
        raise RuntimeError
    assert torch.equal(output(model), student)
    now = {n.replace(".original", ""): p.data_ptr() for n, p in model.named_parameters() if ".operator." not in n}
    assert now == pointers


def test_ungraft_restores_the_very_same_modules() -> None:
    model = tiny()
    modules = dict(model.named_modules())
    pointers = {n: p.data_ptr() for n, p in model.named_parameters()}
    before = output(model)
    graft(model, Plan.interleaved(site="attn", operator="swa") + Plan.all(site="mlp", operator="mlp", ratio=3))
    assert ungraft(model) is model
    after = dict(model.named_modules())
    assert after.keys() == modules.keys() and all(after[name] is modules[name] for name in modules)
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == pointers
    assert torch.equal(output(model), before) and handle_of(model) is None
    with pytest.raises(GraftError, match="not grafted"):
        ungraft(model)


def test_none_removes_the_site() -> None:
    model = tiny()
    graft(model, Plan.all(site="attn", operator="none"))
    reference = tiny()
    for block in reference.transformer_blocks:
        nn.init.zeros_(block.attn1.to_out[0].weight)
        nn.init.zeros_(block.attn1.to_out[0].bias)
    assert torch.equal(output(model), output(reference))


@pytest.mark.parametrize("init", ["random", "copy"])
def test_what_is_random_is_seeded_by_block(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        handle = graft(tiny(), Plan.all(site="attn", operator="hyena_x"), init=init, seed=seed)
        made = handle.operators().values()
        return [torch.cat([op.in_proj.weight[:64].flatten(), op.short_filter.weight.flatten()]).detach() for op in made]

    one, again, shifted = weights(5), weights(5), weights(6)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one[1:], shifted[:-1], strict=True))
    assert not torch.equal(one[0], one[1])
    model, state, on_gpu = tiny(), torch.random.get_rng_state(), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", on_gpu.append)
    graft(model, Plan.all(site="attn", operator="hyena_x"), init=init)
    assert torch.equal(torch.random.get_rng_state(), state) and not on_gpu, "the user's generators are left alone"


@pytest.mark.parametrize("operator", ["hyena_x", "swa"])
def test_solve_beats_copy_and_random(operator: str) -> None:
    """On activations of the teacher that the start has not seen."""
    errors: dict[str, float] = {}
    for init in ("random", "copy", "solve"):
        handle = graft(
            tiny(), Plan.all(site="attn", operator=operator), init=init, calibration=batch, calibration_batches=16
        )
        errors[init] = 0.0

        def measure(
            site: object, x: torch.Tensor, y: Streams, call: object, handle: Grafted = handle, init: str = init
        ) -> None:
            errors[init] += (handle.switches[site].stand_in(x) - y[0]).square().sum().item()

        spans = {site: ((switch, switch),) for site, switch in handle.switches.items()}
        with handle.teacher() as model, visit_spans(spans, measure):
            output(model)
        assert len(handle.explained) == (4 if init == "solve" else 0)
    assert errors["solve"] < errors["random"] and errors["solve"] < errors["copy"]


BARE = Plan.explicit(site="attn", operator="mamba2", blocks=[0]) + Plan.explicit(
    site="attn", operator="swa", blocks=[1, 2]
)


def test_what_was_copied_is_kept_by_site() -> None:
    """Of mamba2 nothing ever is; of a window nothing where the original's projections are of another shape."""
    told = {"blocks.0.attn": False, "blocks.1.attn": True, "blocks.2.attn": True}
    handle = graft(tiny(), BARE, init="copy")
    assert {site.name: found for site, found in handle.copied.items()} == told
    assert handle.own_copy().copied == handle.copied
    assert uncopied(handle) == ["mamba2: nothing to copy, random start"]
    assert not graft(tiny(), BARE, init="random").copied
    odd, attention = tiny(), "transformer_blocks.2.attn1"
    odd.get_submodule(attention).to_k = nn.Linear(32, 16)
    bare = "swa at blocks.2.attn: nothing to copy, random start"
    assert uncopied(graft(odd, BARE, init="copy")) == ["mamba2: nothing to copy, random start", bare]
    assert uncopied(graft(tiny(), BARE, calibration=batch)) == [
        "mamba2: nothing to copy, random start, its last layer solved"
    ]


@pytest.mark.parametrize("keywords", [{"init": "copy", "dtype": torch.float32}, {"init": "random"}])
def test_packed_weights_are_refused_before_anything(keywords: Any) -> None:
    """Of a model that was loaded in four bits; beside them what starts at random can learn, in a type that is named."""
    model = tiny()
    layer: Any = model.get_submodule("transformer_blocks.1.attn1.to_q")
    layer.weight = nn.Parameter(torch.zeros(16 * 32, 1, dtype=torch.uint8), requires_grad=False)
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"^blocks\.1\.attn: its weights are packed as torch\.uint8.*in bfloat16$"):
        graft(model, Plan.all(site="attn", operator="swa"), **keywords)
    assert handle_of(model) is None and dict(model.named_modules()) == before
    assert graft(model, Plan.all(site="attn", operator="swa"), init="random", dtype=torch.float32).operators()


def test_calibration_in_smaller_passes_solves_the_same() -> None:
    def solved(room: int | None) -> tuple[list[torch.Tensor], set[int]]:
        model, sizes = tiny(), set[int]()
        model.register_forward_pre_hook(lambda _, given, named: sizes.add(len(given[0])), with_kwargs=True)
        plan = Plan.all(site="attn", operator="hyena_x")
        handle = graft(model, plan, init="solve", calibration=batch, calibration_room=room)
        return [operator.out_projection.weight for operator in handle.operators().values()], sizes

    (whole, size), (parts, sizes) = solved(None), solved(3)
    assert len(size) == 1 and max(size) > 3 >= max(sizes)
    for mine, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"init": "best"}, "init 'best': one of default, random, copy, solve"),
        ({"init": "solve"}, "needs calibration"),
        ({"calibration": batch, "calibration_batches": 0}, "calibration_batches 0: at least 1"),
        ({"calibration": batch, "calibration_room": -1}, "calibration_room -1: at least 1"),
    ],
)
def test_refusals_leave_the_model_alone(keywords: dict[str, Any], message: str) -> None:
    model = tiny()
    before = dict(model.named_modules())
    with pytest.raises(GraftError, match=message):
        graft(model, Plan.all(site="attn", operator="swa"), **keywords)
    with pytest.raises(PlanError, match="hyena_x"):
        graft(model, Plan.all(site="attn", operator="hyena_z"))

    def broken(step: int) -> dict[str, torch.Tensor]:
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        graft(model, Plan.all(site="attn", operator="swa"), calibration=broken)
    assert dict(model.named_modules()) == before
    assert not any(module._forward_hooks for module in model.modules())
    graft(model, Plan.all(site="attn", operator="swa"))
    with pytest.raises(GraftError, match="grafted already"):
        graft(model, Plan.all(site="attn", operator="swa"))


def test_a_mask_that_no_operator_reads_is_refused_and_the_originals_read_it() -> None:
    model = tiny()
    site = graft(model, Plan.all(operator="swa")).switches
    switch, x = next(iter(site.values())), torch.randn(2, 16, 32)
    with pytest.raises(ValueError, match="attention_mask: SlidingWindow"):
        switch(x, attention_mask=torch.zeros(2, 1, 16))
    assert switch(x, attention_mask=None).shape == x.shape


@pytest.mark.parametrize("name", ["make_student", "conventions"])
def test_a_graft_that_fails_halfway_leaves_no_hook(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setitem(graft.__globals__, name, full)
    with pytest.raises(MemoryError):
        graft(model, Plan.from_yaml("restructure: [{merge: pairs}]"))
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks and handle_of(model) is None


def test_an_interrupted_pass_leaves_checkpointing_as_it_was() -> None:
    """Ctrl-C within a block: no hook after the pass sees it, and the next pass begins as any other."""
    model = tiny()
    model.enable_gradient_checkpointing()  # type: ignore[operator]
    own = model._gradient_checkpointing_func
    handle = graft(model, Plan.all(operator="swa_2d"), init="random")
    wanted = output(model)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    hook = next(iter(handle.switches.values())).register_forward_pre_hook(interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            output.__wrapped__(model)  # type: ignore[attr-defined]
    hook.remove()
    found = output.__wrapped__(model)  # type: ignore[attr-defined]
    found.sum().backward()
    assert torch.equal(found.detach(), wanted) and model._gradient_checkpointing_func is own


def test_own_copy_leaves_the_teacher_and_cannot_be_taken_out() -> None:
    model = tiny()
    whole_hash = tensors_hash(model.state_dict())
    handle: Grafted = graft(model, Plan.interleaved(site="attn", operator="swa"))
    mine = handle.own_copy()
    assert torch.equal(output(mine.model), output(model)) and mine.source_hash == whole_hash
    with torch.no_grad():
        for parameter in mine.model.parameters():
            parameter.add_(1.0)
    with pytest.raises(GraftError, match=whole_hash[:12]):
        ungraft(mine.model)
    with pytest.raises(GraftError, match="no teacher"), mine.teacher():
        pass
    assert tensors_hash(ungraft(model).state_dict()) == whole_hash


@pytest.mark.parametrize(
    "steps", [(), (Merge(groups=((0, 1),), combine="scale"), Drop(blocks=(2,)))], ids=["sites", "blocks"]
)
def test_a_deep_copy_is_another_grafted_model(steps: tuple[Step, ...]) -> None:
    model = tiny()
    before = output(model)
    handle = graft(model, Plan.interleaved(operator="swa") + Plan(restructure=steps))
    add_lora(handle, Lora(rank=2))
    with torch.no_grad():
        for parameter in handle.new():
            parameter.add_(torch.full_like(parameter, 0.02))
    grafted = output(model)
    twin = copy.deepcopy(model)
    mine = grafting.handle_of(twin)
    assert mine is not None and mine is not handle and mine.plan == handle.plan
    assert torch.equal(output(twin), grafted) and not torch.allclose(grafted, before)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    with torch.no_grad():
        for parameter in mine.new():
            parameter.zero_()
    assert not torch.equal(output(twin), grafted)
    with mine.teacher():
        assert torch.equal(output(twin), before) and torch.equal(output(model), grafted)
    assert torch.equal(output(ungraft(twin)), before) and torch.equal(output(model), grafted)
    assert pickle.loads(pickle.dumps(handle.plan)) == handle.plan


def test_gradient_parity_of_an_identity_graft() -> None:
    def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
        b = batch(0)
        model(b["z"], timestep=torch.arange(8), class_labels=b["y"]).sample.square().mean().backward()
        named = model.named_parameters()
        return {n.replace(".operator", ""): p.grad for n, p in named if p.grad is not None and ".original" not in n}

    plain, grafted = tiny(), tiny()
    graft(grafted, Plan.all(site="attn", operator="identity"))
    one, two = gradients(plain), gradients(grafted)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_ungraft_restores_what_required_a_gradient() -> None:
    model = tiny()
    for k, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(k % 3 == 0)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    graft(model, Plan.all(site="attn", operator="swa")).train_grafted()
    assert not any(p.requires_grad for name, p in model.named_parameters() if "operator" not in name)
    ungraft(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
