"""The ablations that ship: each vary what they say they vary, and fit the bundled teacher."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from grafting.hosts import host_for
from grafting.measure.suggest import read_ranking
from grafting.store.configs import config_of
from grafting.study import run
from grafting.study.making import run_rows
from grafting.study.publish import publish
from grafting.study.recipe import RunRecipe
from grafting.study.rows import none_of, rows
from grafting.study.table import TableRecipe
from grafting.study.whole import Table
from grafting.teachers import teacher_folder, teachers

pytestmark = pytest.mark.skipif("fashion" not in teachers(), reason="no bundled teacher ships yet")


def text(name: str) -> str:
    return (files("grafting") / "recipes" / f"ablation-{name}.yaml").read_text()


@pytest.mark.parametrize("name", ["half", "loss", "samples"])
def test_runs_fit_the_teacher(name: str) -> None:
    recipe, config = RunRecipe.from_yaml(text(name)), config_of("fashion")
    assert host_for(config).family == "DiT"
    for plan in recipe.plans.values():
        assert plan.check(config).problems == ()


def test_halves_are_five_different_halves() -> None:
    plans = RunRecipe.from_yaml(text("half")).plans
    halves = {name: {r.site.block for r in plan.resolve(config_of("fashion"))} for name, plan in plans.items()}
    assert all(len(half) == 6 for half in halves.values()) and len(set(map(frozenset, halves.values()))) == 5
    order = read_ranking(teacher_folder("fashion")).order
    assert halves["most-local"] == set(order[:6]) and halves["least-local"] == set(order[6:])


def test_losses_and_samples_are_set_as_the_recipes_say() -> None:
    for loss in ("l1", "l2", "huber"):
        changed = [f"distill.attn.loss={loss}", f"distill.mlp.loss={loss}"]
        one, two = RunRecipe.from_yaml(text("loss"), changed).stages
        assert one is not None and (one.attn.loss, one.mlp.loss) == (loss, loss) and two is None
    recipe = RunRecipe.from_yaml(text("samples"), ["images=100", "beside=[a, b]"])
    assert recipe.images == 100 and recipe.beside == ("a", "b") and recipe.finetune is None


@pytest.mark.parametrize(("name", "count"), [("start", 14), ("target", 28), ("data", 13)])
def test_tables_have_their_rows(name: str, count: int) -> None:
    recipe = TableRecipe.from_yaml(text(name))
    found = rows(recipe, config_of("fashion"), 184_192)
    assert len(found) == count and not [row.name for row in found if row.problem]
    if name == "start":
        starts = {row.recipe.init for row in found if row.role == "hybrid" and row.recipe is not None}
        assert starts == {"random", "copy", "solve"}
    if name == "target":
        stages = {row.label: row.recipe.finetune for row in found if row.recipe is not None and row.role == "hybrid"}
        told = {label: stage and (stage.target, stage.features) for label, stage in stages.items()}
        assert told == {
            "hyena_x_2d": ("teacher", 1.0),
            "hyena_x_2d-output": ("teacher", 0.0),
            "hyena_x_2d-mixture": ("mixture", 0.0),
            "hyena_x_2d-noise": ("noise", 1.0),
        }
    # What an operator is worth is read beside what leaving its sites out comes to, under the same settings.
    assert [row.name for row in found if row.role == "hybrid" and none_of(row, found) is None] == []
    if name == "data":
        assert {row.images for row in found} == {None, 80, 800, 8000}
        assert all(set(row.steps) <= {"stage 2"} for row in found)


SMALL = ("calibration=16", "evaluate.triples=6", "evaluate.batch=6")


@pytest.mark.parametrize("name", ["half", "loss", "samples"])
def test_runs_go_from_end_to_end(name: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """In small: every plan of theirs is taught, measured and told."""
    cuts = [f"teacher={tiny_teacher}", "distill.steps=2", "distill.batch=4", *SMALL]
    if name == "half":
        ranking = {"model": "tiny", "distance": "raster", "reach": 2, "values": [0.1, 0.9, 0.2, 0.8]}
        (tmp_path / "analysis.json").write_text(json.dumps({"ranking": ranking}))
        cuts += [
            "finetune.steps=2",
            "finetune.batch=4",
            "evaluate.samples=4",
            "evaluate.steps=2",
            "evaluate.bootstraps=2",
        ]
        cuts += [f"analysis={tmp_path / 'analysis.json'}", "distill.heldout_batches=1"]
    else:
        cuts += ["evaluate.grid=2", "evaluate.steps=2", *(["images=8"] if name == "samples" else [])]
    recipe = RunRecipe.from_yaml(text(name), cuts)
    results = run(recipe, tmp_path / "out", say=lambda line: None)
    told = {model.name: model for model in results.models}
    assert set(recipe.plans) < set(told)
    assert all(told[plan].denoising_difference is not None for plan in recipe.plans)
    assert {curve.stage for curve in results.curves} >= {f"{plan}: stage 1" for plan in recipe.plans}
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("name", ["start", "target", "data"])
def test_tables_go_from_end_to_end(name: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """In small, and of each of their settings the row of the least budget or images alone."""
    cuts = [f"teacher={tiny_teacher}", "trained_on=3000", "finetune.batch=4", "evaluate.samples=4", "evaluate.steps=2"]
    cuts += ["evaluate.bootstraps=2", *SMALL]
    plain = TableRecipe.from_yaml(text(name))
    cuts += [f"starts.{start}.distill.batch=4" for start in plain.starts]
    changes = {"budgets": "[0.02]", "images": "[8]"}
    cuts += [
        f"rows.{number}.{key}={value}"
        for number, group in enumerate(plain.rows)
        for key, value in changes.items()
        if getattr(group, key)
    ]
    table = Table(TableRecipe.from_yaml(text(name), cuts), tmp_path / "out", lambda line: None)
    assert run_rows(table, table.rows, lambda: None) == {}
    made = publish(table)
    assert {row.label for row in made.rows} == {"teacher", *(group.name for group in plain.rows)} and not made.missing
    # Each setting is another model; but what learns on the teacher's output in place of itself is the teacher.
    losses = {row.name: row.loss.value for row in made.rows if row.loss and row.name != "procedure"}
    assert len(set(losses.values())) == len(losses)
