"""The benchmark of PixArt's shapes, at a size that runs in a moment."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = ["--side", "4", "--heads", "1", "--text", "5", "--threads", "1"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("pixart")


def test_a_stack_is_compared_with_its_bounds(bench: ModuleType, tmp_path: Path) -> None:
    found = bench.main([*SMALL, "--out", str(tmp_path / "pixart.json")])
    assert json.loads((tmp_path / "pixart.json").read_text()) == found
    assert (found["tokens"], found["text_tokens"], found["blocks"], found["swapped"]) == (16, 5, 2, 1)
    assert set(found["seconds"]) == {"plain", "hybrid", "bound"}
    assert found["share_of_time_bound"] == found["speedup"] / found["time_bound"]


def test_bounds_are_those_of_the_true_shapes() -> None:
    """The specification's: half of the cores 1.49x, by the formulas, whatever the stack's depth."""
    from grafting.cost import plan_cost
    from grafting.hosts import bundled_config
    from grafting.plan import Plan

    config = bundled_config("pixart-sigma-2048")
    for depth in (2, 28):
        cost = plan_cost(Plan.interleaved(operator="hyena_x"), config | {"num_layers": depth})
        assert cost.shape.tokens == 16384 and cost.shape.context_tokens == 300
        assert cost.flop_ratio == pytest.approx(1.49, abs=0.01)


def test_the_whole_transformer_runs_once_each_way(bench: ModuleType) -> None:
    found = bench.main([*SMALL, "--whole"])
    assert found["blocks"] == 28 and found["swapped"] == len(bench.BLOCKS) == 14
    assert set(found["peak_bytes"]) == {"plain", "hybrid"} and min(found["peak_bytes"].values()) > 0


def test_a_compiled_model_is_the_same_both_ways(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced without a compiler of its own: what the switches run is followed into the traced model."""
    from grafting.graft import graft
    from grafting.hosts import bundled_config
    from grafting.plan import Plan

    config = bundled_config("pixart-sigma-2048") | {"num_layers": 2, "num_attention_heads": 1}
    model = bench.made(config | {"cross_attention_dim": 72, "sample_size": 8}, torch.device("cpu"), torch.float32)
    handle = graft(model, Plan.interleaved(operator="hyena_x"))
    own = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: own(module, backend="eager"))
    torch.manual_seed(0)
    plain: Any = bench.caller(handle, 5, compiled=False)
    torch.manual_seed(0)
    traced: Any = bench.caller(handle, 5, compiled=True)
    for side in (handle.teacher, handle.student, handle.teacher):
        with torch.inference_mode(), side():
            torch.testing.assert_close(traced(), plain(), rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("more", [[], ["--compile"]])
def test_true_shapes_on_a_gpu(bench: ModuleType, more: list[str]) -> None:
    """bf16 through the fused kernels, at 2048 px."""
    found = bench.main(["--device", "cuda", "--dtype", "bfloat16", "--rounds", "5", *more])
    assert found["tokens"] == 16384 and found["speedup"] > 1
