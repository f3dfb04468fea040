"""The ablations that ship: each vary what they say they vary, and fit the bundled teacher."""

from __future__ import annotations

from importlib.resources import files

import pytest

from grafting.hosts import host_for
from grafting.measure.suggest import read_ranking
from grafting.store.configs import config_of
from grafting.study.recipe import RunRecipe
from grafting.study.rows import none_of, rows
from grafting.study.table import TableRecipe
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
