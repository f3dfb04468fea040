"""What a recipe takes, told beforehand, against what finished runs were billed and against arithmetic by hand."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from grafting.cli import main
from grafting.cost import host_flops
from grafting.expect import stated
from grafting.hosts import shape_of
from grafting.store.configs import config_of
from grafting.study import RunRecipe
from grafting.study.outlook import bills, outlook
from grafting.teachers import teacher_folder


def shipped(recipe: str, *changes: str) -> RunRecipe:
    """A recipe that ships."""
    return RunRecipe.from_yaml((files("grafting") / "recipes" / f"{recipe}.yaml").read_text(), changes)


@pytest.mark.parametrize(("teacher", "recipe"), [("fashion", "full"), ("scenes", "pixart-scenes")])
def test_what_a_finished_run_was_billed(teacher: str, recipe: str) -> None:
    found = {model.name: model.parts for model in bills(shipped(recipe), shape_of(config_of(teacher)))}
    billed = json.loads((teacher_folder(teacher) / "runs" / recipe / "results.json").read_text())["costs"]
    pairs = {part: flops for part, flops in found["teacher"].items() if part == "pairs"}
    assert billed
    for cost in billed:
        told = {part: flops for part, flops in found[cost["model"]].items() if part != "measuring"}
        parts = {"stage 2" if part == "LoRA" else part: flops for part, flops in cost["parts"].items()}
        assert {**pairs, **told} == pytest.approx(parts), cost["model"]


def test_measuring_by_hand() -> None:
    shape = shape_of(config_of("fashion"))
    changes = ("evaluate.samples=30", "evaluate.grid=4", "evaluate.steps=7", "evaluate.triples=11")
    for guidance, passes in ((1, 30 * 7 + 11), (3, 30 * 7 * 2 + 11)):
        recipe = shipped("demo", *changes, f"evaluate.guidance={guidance}", "controls=[untrained,procedure]")
        teacher, hybrid, untrained, procedure = bills(recipe, shape)
        assert teacher.parts == {"measuring": passes * host_flops(shape)}
        assert list(hybrid.parts) == ["solved start", "stage 1", "stage 2", "measuring"]
        # At random and untrained, the same operators; the teacher on its own output stays the teacher.
        assert untrained.parts == {"measuring": hybrid.parts["measuring"]} and procedure.parts == {}
    looked = bills(shipped("demo", *changes, "evaluate.stages=true", "evaluate.guidance=3"), shape)[1]
    assert looked.parts["measuring"] == pytest.approx(hybrid.parts["measuring"] * (passes + 2 * 11) / passes)
    (still,) = (model for model in bills(shipped("demo", "finetune.target=noise"), shape) if model.name == "procedure")
    assert still.parts["stage 2"] > 0 and "stage 1" not in still.parts


def test_without_a_budget_only_the_start_is_made() -> None:
    found = bills(shipped("demo", "budget=0"), shape_of(config_of("fashion")))
    assert {part for model in found for part in model.parts} == {"solved start", "measuring"}


def test_time_is_flops_at_the_rate() -> None:
    recipe, shape = shipped("demo"), shape_of(config_of("fashion"))
    flops = sum(model.flops for model in bills(recipe, shape))
    assert f"{flops / 1e12:,.2f}" in outlook(recipe, shape, stated(1e12)).splitlines()[-2]
    assert outlook(recipe, shape, stated(flops / 10)).splitlines()[-2].endswith("10 s")


def test_the_command_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "demo", "--dry-run", "--tflops", "10"]) == 0
    told = capsys.readouterr().out
    assert "hybrid" in told and "at 10 TFLOP/s (stated, not measured);" in told
    assert list(tmp_path.iterdir()) == []
    assert main(["run", "demo", "--tflops", "10"]) == 2
    assert "--dry-run" in capsys.readouterr().err
