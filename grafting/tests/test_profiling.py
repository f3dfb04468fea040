"""``grafting profile``: a plan before there are data, and what a graft costs beside what it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hosts_table import ready

from grafting.cli import main
from grafting.cost import plan_cost
from grafting.graft import graft
from grafting.hosts import host_for, shape_of
from grafting.lora import Lora, add_lora
from grafting.measure.speed import latency
from grafting.plan import Plan
from grafting.store.folder import save
from grafting.store.models import open_model

SHORT = ["--rounds", "2", "--batch", "1"]
COMPARED = {"speedup", "speedup_low", "speedup_high", "flop_bound", "time_bound", "sites"}


def told(capsys: pytest.CaptureFixture[str], *given: Any) -> dict[str, Any]:
    """What ``profile`` prints as JSON."""
    capsys.readouterr()
    assert main(["profile", *map(str, given), *SHORT, "--json"]) == 0, capsys.readouterr().err
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def refused(capsys: pytest.CaptureFixture[str], *given: Any) -> str:
    """The sentence that ``profile`` refuses with."""
    capsys.readouterr()
    assert main(["profile", *map(str, given), *SHORT]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def count(folder: Path) -> int:
    return sum(p.numel() for p in open_model(str(folder)).transformer.parameters())


def same_but_times(found: Mapping[str, Any]) -> dict[str, Any]:
    timed = ("milliseconds", "speedup", "time_bound", "peak", "model")
    return {name: value for name, value in found.items() if not name.startswith(timed)}


@pytest.fixture
def whole(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A graft that keeps all weights and names its teacher, as ``finetune`` writes it."""
    handle = graft(open_model(str(tiny_teacher)).transformer, Plan.interleaved(operator="swa")).own_copy()
    save(handle, tmp_path / "whole", base=str(tiny_teacher))
    return tmp_path / "whole"


def test_a_plan_is_timed_before_there_are_data(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--operator", "mlp:ratio=3", "--site", "mlp", "--blocks", "1,2"]
    assert main(["plan", str(tiny_teacher), *named, "--out", str(tmp_path / "plan.yaml"), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    plain, found = told(capsys, tiny_teacher), told(capsys, tiny_teacher, *named)
    assert set(found) >= COMPARED and found["sites"] == 2 and found["time_bound"] is None
    assert found["speedup_low"] <= found["speedup"] <= found["speedup_high"] and found["speedup"] > 0
    assert found["flop_bound"] == planned["flop_bound"]
    assert found["GFLOPs per sample before"] == planned["flops_before"] / 1e9 == plain["GFLOPs per sample"]
    assert found["GFLOPs per sample"] == planned["flops_after"] / 1e9
    assert found["parameters before"] == plain["parameters"] == count(tiny_teacher)
    assert plain["parameters"] - found["parameters"] == 2 * (2 * 32 * 32 + 32), "a unit of the hidden ones in four less"
    by_file = told(capsys, tiny_teacher, "--plan", tmp_path / "plan.yaml")
    assert same_but_times(by_file) == same_but_times(found)
    assert "speedup" not in plain and plain["time bound of every core"] > 0


def test_what_people_read_has_before_and_after_in_a_line(
    tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(tiny_teacher), "--operator", "hyena_x", *SHORT]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    before, after = map(int, lines["parameters"].split(" -> "))
    assert before == count(tiny_teacher) and after > before
    assert " -> " in lines["GFLOPs"] and " -> " in lines["milliseconds"] and "…" in lines["speedup"]
    assert {"flop_bound", "time_bound"} <= set(lines) and "speedup_low" not in lines


def test_the_clocks_of_a_plan_go_in_turn(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[list[str], int]] = []

    def once(calls: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device) -> Any:
        seen.append((list(calls), rounds))
        return latency(calls, rounds=rounds, warmup=0, device=device)

    monkeypatch.setattr("grafting.measure.beside.latency", once)
    found = told(capsys, tiny_teacher, "--operator", "swa", "--blocks", "all")
    assert seen == [(["teacher", "hybrid", "whole", "bound"], 2)] and found["time_bound"] > 0
    both = found["milliseconds before"] / found["milliseconds"]
    assert found["speedup"] == pytest.approx(both)


@pytest.mark.parametrize("row", ["SD3", "Flux dev, no square"])
def test_hosts_whose_text_stands_beside_the_picture_take_a_plan(
    row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, *_ = ready(row)
    model.save_pretrained(tmp_path / "transformer")  # type: ignore[operator]
    found = told(capsys, tmp_path, "--operator", "swa", "--side", "2x8", "--text-tokens", "5")
    assert set(found) >= COMPARED and found["text tokens"] == 5
    assert (found["tokens"], found["grid"]) == (16, "2 x 8")
    config = {**model.config, "_class_name": type(model).__name__, "text_tokens": 5}  # type: ignore[dict-item]
    plan = Plan.interleaved(site="attn", operator="swa", share=0.5)
    cost = plan_cost(plan, config, grid=(2, 8))
    assert found["GFLOPs per sample"] == cost.flops_after / 1e9 and found["flop_bound"] == cost.flop_bound
    assert found["parameters before"] == sum(p.numel() for p in model.parameters()) == cost.shape.parameters
    handle = graft(model, plan, init="random").own_copy()
    assert found["parameters"] == sum(p.numel() for p in handle.model.parameters()) == cost.parameters_after


def test_a_restructured_plan_is_timed_too(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan.from_dict({"restructure": [{"merge": [[0, 1], [2, 3]]}]})
    (tmp_path / "plan.yaml").write_text(plan.to_yaml())
    found = told(capsys, tiny_teacher, "--plan", tmp_path / "plan.yaml")
    handle = graft(open_model(str(tiny_teacher)).transformer, plan)
    student, teacher = handle.own_copy().model, count(tiny_teacher)
    assert found["parameters"] == sum(p.numel() for p in student.parameters())
    assert found["parameters before"] == teacher and found["time_bound"] is None


def test_a_whole_graft_stands_beside_the_model_that_it_names(
    whole: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, whole)
    assert set(found) >= COMPARED and "not compared" not in found
    assert found["parameters before"] == found["parameters"] == count(tiny_teacher)
    as_delta = told(capsys, tiny_teacher, "--operator", "swa")
    assert same_but_times(found) == same_but_times(as_delta)
    assert same_but_times(told(capsys, whole, "--base", tiny_teacher)) == same_but_times(found)


def test_a_whole_graft_whose_base_is_gone_is_told_alone(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, whole)
    manifest = json.loads((whole / "graft.json").read_text())
    for name, word in ((str(tmp_path / "gone"), "say with --base"), (None, "give it with --base"), ("fashion", "hash")):
        manifest["base"]["name"] = name
        (whole / "graft.json").write_text(json.dumps(manifest))
        alone = told(capsys, whole)
        assert word in alone["not compared"] and "speedup" not in alone and alone["milliseconds"] > 0
        kept = ("parameters", "GFLOPs per sample", "GFLOPs per sample before", "flop_bound")
        assert [alone[key] for key in kept] == [found[key] for key in kept]
    assert "fashion is not the teacher of" in refused(capsys, whole, "--base", "fashion")
    assert "gone" in refused(capsys, whole, "--base", tmp_path / "gone")


def test_a_delta_and_its_adapters_have_before_and_after(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = open_model(str(tiny_teacher)).transformer
    handle = graft(model, Plan.all(operator="hyena_x"), init="random")
    add_lora(handle, Lora(rank=2))
    save(handle, tmp_path / "delta", base=str(tiny_teacher))
    cost = plan_cost(handle.plan, shape_of(model))
    found = told(capsys, tmp_path / "delta")
    assert found["adapters"] == "merged" and set(found) >= COMPARED
    assert (found["parameters before"], found["parameters"]) == (cost.shape.parameters, cost.parameters_after)
    assert found["GFLOPs per sample"] == cost.flops_after / 1e9 < found["GFLOPs per sample before"]


def test_weights_in_half_are_compared_in_half(
    whole: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host, types = type(host_for(open_model(str(tiny_teacher)).transformer)), set[Any]()
    run = host.run

    def watched(self: Any, model: torch.nn.Module, *given: Any) -> torch.Tensor:
        types.update(p.dtype for p in model.parameters())
        return run(self, model, *given)

    monkeypatch.setattr(host, "run", watched)
    for given in ((whole,), (tiny_teacher, "--operator", "hyena_x")):
        assert set(told(capsys, *given, "--weights", "bf16")) >= COMPARED
    assert types == {torch.bfloat16}


def test_what_does_not_go_together_is_refused(
    whole: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, word in (
        ((whole, "--operator", "swa"), "is a graft: a plan is timed in a pretrained model"),
        ((tiny_teacher, "--base", "fashion"), "is no graft"),
        ((tiny_teacher, "--operator", "hyena_z"), "hyena_z"),
        ((tiny_teacher, "--analysis", "x.json"), "give --blocks or --plan too"),
        ((tiny_teacher, "--side", "2x8"), "2 x 8 tokens: a DiT puts its tokens together as a square"),
        ((tiny_teacher, "--operator", "mlp_hyena_x", "--site", "mlp", "--side", "5"), "tokens"),
    ):
        assert word in refused(capsys, *given)
