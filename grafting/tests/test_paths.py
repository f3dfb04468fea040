"""Text and a Path are the same to what takes a file, a folder or a MODEL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import grafting
from grafting.data import LabelledImages, read_subset, write_subset
from grafting.data.pairs import Prompts
from grafting.measure.suggest import read_ranking
from grafting.plan import PlanError
from grafting.settings import SettingsError
from grafting.study.table import TableRecipe
from grafting.teachers import teacher_folder
from grafting.training.pretrain.recipe import PretrainRecipe
from grafting.verbs.recipes import recipe_source

PLAN = "edits: [{site: attn, blocks: [1], operator: local_mean}]\n"
RECIPE = f"plan: {{{PLAN.strip()}}}\ndistill: {{steps: 1, batch: 8}}\nfinetune: null\ncalibration: 8\n"
RECIPE += "controls: []\nspeed: null\nevaluate: {triples: 4, grid: 0}\n"
READERS: dict[str, tuple[Callable[[Any], Any], str, type[ValueError]]] = {
    "a plan": (grafting.Plan.from_yaml, PLAN, PlanError),
    "a study": (grafting.RunRecipe.from_yaml, f"teacher: fashion\n{RECIPE}", SettingsError),
    "a table": (TableRecipe.from_yaml, recipe_source("table"), SettingsError),
    "a model": (PretrainRecipe.from_yaml, recipe_source("fashion-classifier"), SettingsError),
}
BOTH = pytest.mark.parametrize("given", [str, Path])


@BOTH
@pytest.mark.parametrize("what", READERS)
def test_a_yaml_file_by_its_name(what: str, given: type, tmp_path: Path) -> None:
    read, text, error = READERS[what]
    for name in ("x.yaml", "x.yml"):
        (tmp_path / name).write_text(text)
        assert read(given(tmp_path / name)) == read(text)
    with pytest.raises(error, match=r"^\S+absent\.yaml: no such file$"):
        read(given(tmp_path / "absent.yaml"))


@pytest.fixture(scope="module")
def model(tiny_teacher: Path) -> Any:
    return grafting.open_model(str(tiny_teacher))


@BOTH
def test_a_model_and_its_data(given: type, tiny_teacher: Path, model: Any, tmp_path: Path) -> None:
    opened = grafting.open_model(given(tiny_teacher))
    assert opened.name == str(tiny_teacher)
    there = grafting.Material(opened, given(tiny_teacher / "images.npz"))
    assert there.identity == grafting.Material(model).identity
    images = LabelledImages(images=torch.rand(3, 1, 4, 4), labels=torch.arange(3))
    write_subset(given(tmp_path / "data.npz"), images, images)
    assert read_subset(given(tmp_path / "data.npz")).labels.tolist() == [0, 1, 2]


@BOTH
def test_both_stages_keep_their_state_in_a_folder(given: type, tiny_teacher: Path, tmp_path: Path) -> None:
    opened = grafting.open_model(given(tiny_teacher))
    material = grafting.Material(opened)
    handle = grafting.graft(opened.transformer, grafting.Plan.from_yaml(PLAN), init="copy")
    one, two = (given(tmp_path / name) for name in ("one", "two"))
    grafting.stage_one(handle, grafting.DistillStage(steps=1, batch=8), material, out=one)
    grafting.stage_two(handle, grafting.FinetuneStage(steps=1, batch=8), material, out=two)
    assert (tmp_path / "one" / "distill.json").is_file() and (tmp_path / "two" / "state.json").is_file()
    grafting.save(handle, given(tmp_path / "graft"), base=given(tiny_teacher))
    found = grafting.open_model(given(tmp_path / "graft"), base=given(tiny_teacher))
    assert found.graft is not None and found.graft.plan == handle.plan
    assert grafting.open_model(given(tmp_path / "graft")).graft is not None


@BOTH
def test_a_study_and_a_search(given: type, tiny_teacher: Path, tmp_path: Path) -> None:
    recipe = grafting.RunRecipe.from_yaml(f"teacher: {tiny_teacher}\n{RECIPE}")
    grafting.run(recipe, given(tmp_path / "study"), say=lambda _: None)
    assert (tmp_path / "study" / "report.html").is_file()
    scoring: Any = {"scoring": _few(), "points": 2, "data": given(tiny_teacher / "images.npz")}
    front = grafting.search(given(tiny_teacher), ["local_mean"], out=given(tmp_path / "search"), **scoring)
    assert front.model == str(tiny_teacher) and (tmp_path / "search" / "scores").is_dir()


def _few() -> Any:
    from grafting.searching.scores import Scoring

    return Scoring(triples=4, calibration=8, batch=4)


@BOTH
def test_prompts_and_rankings(given: type, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a disc\n")
    assert Prompts.read(given(tmp_path / "prompts.txt")).at(0) == "a disc"
    home = teacher_folder("fashion")
    assert read_ranking(given(home)) == read_ranking(given(home / "analysis.json"))
