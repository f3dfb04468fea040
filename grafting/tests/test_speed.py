"""Speed measures against counts by hand; times only in their order, never in seconds."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from grafting.measure.speed import flops, latency, parameters, peak_bytes, time_bound, without_cores


class Attention(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])


def test_flops_count_the_attention_core_and_leave_the_module_alone():
    module, x = Attention(), torch.randn(2, 100, 16)
    before = module(x)
    projections, core = 2 * 2 * 100 * 16 * 64, 2 * 4 * 100 * 100 * 16
    assert flops(module, x) == projections + core
    assert torch.equal(module(x), before)


def test_parameters_count_shared_once():
    a = nn.Linear(3, 4)
    assert parameters(nn.Sequential(a, a)) == 16


def test_calls_are_interleaved_and_ordered():
    order = []

    def call(name, seconds):
        order.append(name)
        time.sleep(seconds)

    timed = latency({"slow": lambda: call("slow", 0.01), "fast": lambda: call("fast", 0.001)}, rounds=3, warmup=1)
    assert order == ["slow", "fast"] * 4
    assert timed["slow"].minimum >= 0.01 and timed["fast"].speedup_over(timed["slow"]) > 1
    for figure in timed.values():
        assert figure.minimum <= figure.low <= figure.median <= figure.high and figure.rounds == 3
    with pytest.raises(ValueError, match="1 rounds"):
        latency({}, rounds=1)


@pytest.mark.parametrize(
    ("kind", "device", "waits"),
    [("cuda", "cuda:1", "cuda:1"), ("xpu", "xpu", "xpu"), ("cuda", None, "the current one"), ("cuda", "cpu", None)],
)
def test_the_clock_waits_for_the_device_that_is_timed(kind, device, waits, monkeypatch):
    """Of whatever kind, before and after a call, and for no other; an accelerator stands in that is not here."""
    seen = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(
        torch.accelerator, "synchronize", lambda given=None: seen.append(str(given or "the current one"))
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda given=None: seen.append("CUDA's own"))
    latency({"call": lambda: seen.append("call")}, rounds=2, warmup=0, device=device)
    assert seen == ([waits, "call", waits] if waits else ["call"]) * 2
    seen.clear()
    time_bound(lambda: seen.append("call"), [], rounds=2, device=device)
    assert set(seen) == {"call", waits} - {None}


def test_peak_counts_what_is_held_together():
    x = torch.zeros(1000)  # 4,000 bytes

    def chain():
        y = x + 1
        y = y + 1  # two of them alive while the second is made
        y = y + 1
        return y.view(10, 100).add_(1)

    def keep():
        return [x + k for k in range(5)]

    assert peak_bytes(chain) == 8_000
    assert peak_bytes(keep) == 20_000


def test_skipping_cores_of_chosen_modules_only():
    torch.manual_seed(0)
    first, second, x = Attention(), Attention(), torch.randn(2, 9, 16)
    model = nn.Sequential(first, second)
    before = model(x)
    only_values = first.out(first.qkv(x)[..., 32:])
    with without_cores([first]):
        torch.testing.assert_close(model(x), second(only_values))
    assert torch.equal(model(x), before)
    assert not first._forward_hooks and not first._forward_pre_hooks


@pytest.mark.parametrize("row", ["SD3", "SD3.5, no square"])
def test_of_joint_attention_only_what_the_picture_reads_of_itself_is_skipped(row: str) -> None:
    """By hand, in a block where text goes on and in the last; its second attention stays."""
    from test_hosts_table import ready
    from test_joint import D, H, L, N, merged, parts
    from torch.utils.flop_counter import FlopCounterMode

    from grafting.cost import plan_cost
    from grafting.hosts import Site, host_for, shape_of
    from grafting.plan import Plan

    model, z, t, condition = ready(row)
    host = host_for(model)
    x, text = torch.randn(2, N, D), torch.randn(2, L, D)
    for block in (1, 2):
        attention = host.get(model, Site(block, "attn"))
        q, _, _, _, tk, tv = parts(attention, x, text)
        wanted = attention.to_out[0](merged((q @ tk.mT / (D // H) ** 0.5).softmax(-1) @ tv))
        whole = attention(x, encoder_hidden_states=text)
        with without_cores([attention]):
            picture, told = attention(hidden_states=x, encoder_hidden_states=text)
        torch.testing.assert_close(picture, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(told[:, :, : D if block == 1 else 0], whole[1][:, :, : D if block == 1 else 0])
        assert not torch.allclose(picture, whole[0], atol=1e-3)
    sizes = shape_of({**model.config, "_class_name": "SD3Transformer2DModel", "text_tokens": L})
    shape = sizes.at((z.shape[2] // 2, z.shape[3] // 2))
    model, z, t = model.to("meta"), z.to("meta"), t.to("meta")
    condition = {key: value.to("meta") for key, value in condition.items()}

    def count(blocks: list[int], whole: bool = False) -> int:
        inside = [host.blocks(model)[b] if whole else host.get(model, Site(b, "attn")) for b in blocks]
        with FlopCounterMode(display=False) as counter, torch.no_grad(), without_cores(inside):
            host.call(model, z, t, condition)
        return int(counter.get_total_flops())

    core, every = 2 * 4 * N * N * D, count([])
    assert [every - count(blocks) for blocks in ([0], [2], [0, 1, 2])] == [core, core, 3 * core]
    assert every - count([0], whole=True) == (1 + (row != "SD3")) * core
    cost = plan_cost(Plan.all(operator="swa"), shape)
    assert 2 * cost.flops_before * (1 - 1 / cost.core_bound) == pytest.approx(3 * core)


def test_the_time_bound_exceeds_one_where_the_core_dominates():
    model, x = Attention(8), torch.randn(1, 2048, 8)
    assert time_bound(lambda: model(x), [model], rounds=3).speedup > 2


def test_a_diffusers_transformer_counts_as_its_formula_and_loses_its_cores():
    from diffusers import DiTTransformer2DModel

    width, tokens, depth = 32, 64, 2
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=depth,
        sample_size=8,
        patch_size=1,
        num_embeds_ada_norm=5,
    ).eval()
    inputs = {"timestep": torch.tensor([5]), "class_labels": torch.tensor([1])}
    z = torch.randn(1, 4, 8, 8)
    per_block = 24 * tokens * width**2 + 4 * tokens**2 * width  # projections, MLP, core
    # Per block and sample: the timestep's two layers and adaLN's six outputs.
    conditioning = 2 * (256 * width + width * width + width * 6 * width)
    # The head embeds once more, modulates by two outputs, and projects; the patch embedding is a convolution.
    head = 2 * (256 * width + width * width + width * 2 * width) + 2 * tokens * width * 8
    counted = flops(model, z, **inputs)
    assert counted == depth * (per_block + conditioning) + head + 2 * tokens * 4 * width
    block = model.transformer_blocks[0]
    torch.nn.init.normal_(block.norm1.linear.weight)  # adaLN starts with closed gates
    with torch.no_grad():
        before = model(z, **inputs).sample
        with without_cores([block.attn1]):
            assert not torch.allclose(model(z, **inputs).sample, before, atol=1e-3)
        assert torch.equal(model(z, **inputs).sample, before)


@pytest.mark.parametrize(
    ("site", "names"), [("attn", ["teacher", "hybrid", "whole", "bound"]), ("mlp", ["teacher", "hybrid"])]
)
def test_speed_and_bound_of_a_hybrid_are_timed_in_turn(
    site: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections.abc import Callable, Mapping

    from test_graft import tiny

    from grafting.graft import graft
    from grafting.measure import beside
    from grafting.measure.speed import Latency
    from grafting.plan import Plan
    from grafting.study import timing
    from grafting.study.recipe import SpeedStage

    made: list[dict[str, Latency]] = []

    def once(calls: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, Latency]:
        made.append(latency(calls, rounds=rounds, warmup=0, device=device))
        return made[-1]

    monkeypatch.setattr(beside, "latency", once)
    handle = graft(tiny(), Plan.all(site=site, operator="swa" if site == "attn" else "mlp"), init="random")
    (row,) = timing.speed_rows(handle, handle.model, SpeedStage(batch=1, rounds=2))
    (timed,) = made
    assert list(timed) == names and row["speedup"] == timed["hybrid"].speedup_over(timed["teacher"])
    wanted = timed["bound"].speedup_over(timed["whole"]) if "bound" in timed else None
    assert row["time_bound"] == wanted


@pytest.mark.parametrize("private", [False, True])
def test_each_clock_runs_what_it_is_called_after(private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which operators and originals each runs, and in which blocks an attention core: the bound's lacks those alone
    that the hybrid swaps."""
    from collections.abc import Callable, Mapping

    from test_graft import tiny
    from torch.overrides import TorchFunctionMode

    from grafting.graft import graft, ungraft
    from grafting.measure import beside, speed
    from grafting.measure.speed import Latency
    from grafting.plan import Plan
    from grafting.study import timing
    from grafting.study.recipe import SpeedStage

    teacher = tiny()
    originals = [block.attn1 for block in teacher.transformer_blocks]
    handle = graft(teacher, Plan.interleaved(site="attn", operator="swa"), init="random")
    if private:
        handle = handle.own_copy()
        ungraft(teacher)
    operators = {site.block: operator for site, operator in handle.operators().items()}
    kept = [block.attn1 for block in handle.model.transformer_blocks]
    ran: list[str] = []
    places: list[int] = []
    cores: list[int] = []
    found: dict[str, tuple[list[str], list[int]]] = {}
    intercepted: list[Any] = []

    def spy(*given: Any) -> Any:
        intercepted.append(given)
        return without_cores(*given)

    def watch(module: nn.Module, name: str, block: int) -> None:
        def note(*_: object) -> None:
            ran.append(f"{name} {block}")
            places.append(block)

        module.register_forward_pre_hook(note)

    for block, module in enumerate(originals):
        watch(module, "original", block)
        if block in operators:
            watch(operators[block], "operator", block)
        elif private:
            watch(kept[block], "copy", block)

    class Cores(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is nn.functional.scaled_dot_product_attention:
                cores.append(places[-1])
            return func(*args, **(kwargs or {}))

    def once(calls: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, Latency]:
        assert device == next(teacher.parameters()).device
        for name, call in calls.items():
            ran.clear()
            cores.clear()
            intercepted.clear()
            with Cores(), torch.no_grad():
                call()
            # What intercepts each of torch's calls takes time of its own, which neither model's is to hold.
            assert len(intercepted) == (name in ("whole", "bound"))
            found[name] = (list(ran), list(cores))
        return dict.fromkeys(calls, Latency(minimum=1.0, low=1.0, median=1.0, high=1.0, rounds=rounds, threads=1))

    monkeypatch.setattr(beside, "latency", once)
    monkeypatch.setattr(speed, "without_cores", spy)
    timing.speed_rows(handle, teacher, SpeedStage(batch=1, rounds=2))
    whole, mine = [f"original {block}" for block in range(4)], "copy" if private else "original"
    assert found["teacher"] == found["whole"] == (whole, [0, 1, 2, 3])
    assert found["hybrid"] == ([f"{mine} 0", "operator 1", f"{mine} 2", "operator 3"], [0, 2])
    assert found["bound"] == (whole, [0, 2])
