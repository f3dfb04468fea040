"""Recipes: round trips, and refusals that name everything at once."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import fields
from importlib.resources import files
from typing import Any

import pytest
import yaml

from grafting.diffusion import Levels
from grafting.hosts import bundled_config
from grafting.operators import list_operators
from grafting.settings import SettingsError
from grafting.study.recipe import DistillStage, FinetuneStage, RunRecipe, depended_on
from grafting.training.distill import SiteConfig

TEXT = """
teacher: fashion
plan: {edits: [{site: attn, blocks: interleaved 50%, operator: hyena_x}]}
distill: {steps: 200, attn: {lr: 1e-3}}
finetune: {steps: 300, lr: 2e-4, target: mixture}
evaluate: {triples: 2000, samples: 500}
controls: [none, untrained]
"""


def test_recipe_survives_its_own_yaml() -> None:
    recipe = RunRecipe.from_yaml(TEXT)
    assert RunRecipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.plans["hybrid"].edits[0].operator == "hyena_x"
    assert recipe.distill is not None and recipe.distill.attn.lr == 1e-3 and recipe.distill.attn.loss == "l1"
    assert recipe.finetune is not None and recipe.finetune.config(seed=1).teacher_share == (1.0, 0.0)


def test_every_problem_is_told_at_once_with_the_nearest_key() -> None:
    bad = """
techer: fashion
plan: {edits: [{site: attn, blocks: all, operator: hyena_x, option: 3}]}
distill: {stps: 3, attn: {lr: fast}}
finetune: {steps: 2, target: tacher}
evaluate: {steps: 1, samples: many}
speed: {sides: 3}
controls: [non]
"""
    with pytest.raises(SettingsError) as caught:
        RunRecipe.from_yaml(bad)
    message = str(caught.value)
    for part in (
        "unknown key 'techer': did you mean 'teacher'",
        "teacher is missing",
        "unknown key 'option'",
        "unknown key 'stps': did you mean 'steps'",
        "attn: lr is 'fast', must be a number",
        "target 'tacher': one of teacher, mixture, noise",
        "samples is 'many', must be a whole number",
        "sides is 3, must be a list",
    ):
        assert part in message, part
    assert len(caught.value.problems) == len(set(caught.value.problems))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("controls=[non]", "did you mean 'none'"),
        ("budget=-1", "budget -1.0: 0 or above"),
        ("init=slove", "did you mean 'solve'"),
        ("evaluate.steps=1", "at least 2"),
        ("distill.clip=0", "clip 0.0: above 0"),
        ("finetune.lr=-1", "lr -1.0: above 0"),
        ("plans={teacher: {edits: []}}", "both plan and plans"),
        ("plan.edits.3.site=mlp", "has no entry '3'"),
        ("budget", "give key=value"),
    ],
)
def test_bad_values_are_refused(change: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        RunRecipe.from_yaml(TEXT, [change])


@pytest.mark.parametrize("other", ["half-none", "pairs", "self"])
def test_a_plan_is_not_called_as_what_a_run_keeps_itself(other: str) -> None:
    plan = "{edits: [{site: attn, blocks: all, operator: hyena_x}]}"
    with pytest.raises(SettingsError, match=rf"plan '{other}': this name is a control's, the pairs' or the teacher's"):
        RunRecipe.from_yaml(f"teacher: x\nplans: {{half: {plan}, {other}: {plan}}}\ncontrols: [none]\n")


def test_a_plan_that_replaces_no_operator_has_no_self() -> None:
    merged = "teacher: x\nplan: {restructure: [{merge: pairs}]}\ncontrols: [none, self]\n"
    with pytest.raises(SettingsError, match="control self: plan hybrid replaces no operator"):
        RunRecipe.from_yaml(merged)


def test_overrides_reach_into_lists_and_missing_sections() -> None:
    changed = RunRecipe.from_yaml(TEXT, ["plan.edits.0.operator=swa", "speed.sides=[8, 32]", "distill.steps=7"])
    assert changed.plans["hybrid"].edits[0].operator == "swa" and changed.distill is not None
    assert changed.distill.steps == 7 and changed.speed is not None and changed.speed.sides == (8, 32)


def test_budget_scales_both_stages_and_zero_leaves_the_start_alone() -> None:
    half = RunRecipe.from_yaml(TEXT, ["budget=0.5"]).stages
    assert half[0] is not None and half[1] is not None and (half[0].steps, half[1].steps) == (100, 150)
    assert RunRecipe.from_yaml(TEXT, ["budget=0"]).stages == (None, None)


def arrived(stage: Any, *configs: Any) -> set[str]:
    """The settings of a stage that configurations of the same names hold as they are; all others must have none."""
    own = {f.name for f in fields(stage)}
    found = [(f, config) for config in configs for f in fields(config) if f.name in own]
    for f, config in found:
        assert getattr(config, f.name) == getattr(stage, f.name) != f.default, f.name
    return {f.name for f, _ in found}


def test_every_setting_of_a_stage_arrives_where_it_is_used() -> None:
    """None of them is the default, neither of the stage nor of what it is handed to."""
    sites = (SiteConfig(lr=k, weight_decay=k / 10, loss="huber") for k in (1.0, 2.0, 3.0))
    one = DistillStage(
        steps=7, batch=3, **dict(zip(("attn", "mlp", "group"), sites, strict=True)), clip=3.0, warmup=0.3,
        halve=(0.4,), gate_weighted=True, levels=Levels(centre=1.0), label_dropout=0.3, evaluate_every=2,
        heldout_batches=5, floor=0.2, patience=4, precision="bf16", save_every=9,
    )  # fmt: skip
    two = FinetuneStage(
        steps=7, batch=3, lr=0.5, target="mixture", train="grafted", weight_decay=0.3, warmup=0.3, schedule="constant",
        clip=3.0, ema=0.4, ema_horizon=0.6, optimizer="muon", levels=Levels(centre=1.0), weight_power=0.5,
        weight_cap=9.0, label_dropout=0.3, variance_weight=0.7, features=0.4, fade=0.3, precision="bf16",
        checkpointing=True, micro_batch=2, save_every=9, log_every=8,
    )  # fmt: skip
    first, second = one.config(seed=5), two.config(seed=6)
    assert {f.name for f in fields(one)} - arrived(one, first) == {"batch"}
    assert {f.name for f in fields(two)} - arrived(two, second, second.loop) == {"batch", "target", "train", "lora"}
    assert (first.seed, second.seed, second.teacher_share) == (5, 6, (1.0, 0.0))
    changed = [getattr(stage, f.name) != f.default for stage in (one, two) for f in fields(stage) if f.name != "lora"]
    assert all(changed)


def test_how_often_a_stage_writes_is_nothing_that_it_learns_from() -> None:
    """Keys that are there name how often a loss is noted, which they have to go on with: they name the default."""
    told = depended_on(FinetuneStage(steps=1))
    assert depended_on(FinetuneStage(steps=1, save_every=3, log_every=3)) == told and told["log_every"] == 10
    assert depended_on(DistillStage(steps=1, save_every=3)) == depended_on(DistillStage(steps=1))


@pytest.mark.parametrize("first", ["import grafting.graft", "from grafting.graft import Grafted", "import grafting"])
def test_public_names_whatever_was_imported_first(first: str) -> None:
    code = f"""
{first}
import grafting, types
assert all(callable(getattr(grafting, name)) for name in grafting.__all__ if name not in ("hosts", "operators"))
from grafting import graft, load, operators, save, ungraft
from grafting.graft import Grafted
assert isinstance(graft, types.FunctionType) and isinstance(grafting.graft, types.FunctionType)
assert operators.build("swa", width=8, heads=2, tokens=4).width == 8 and Grafted.__module__ == "grafting.graft"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def shipped() -> dict[str, str]:
    folder = files("grafting") / "recipes"
    texts = {entry.name.removesuffix(".yaml"): entry.read_text() for entry in folder.iterdir()}
    return {name: text for name, text in texts.items() if "kind" not in yaml.safe_load(text)}


TEACHERS = {
    "DiT-XL-2-256x256.pt": "dit-xl-2-256",
    "facebook/DiT-XL-2-256": "dit-xl-2-256",
    "PixArt-alpha/PixArt-Sigma-XL-2-2K-MS": "pixart-sigma-2048",
    "black-forest-labs/FLUX.1-dev": "flux-dev-1024",
}


def config_of_teacher(name: str) -> dict[str, Any]:
    """Of a teacher on the hub, its bundled configuration; of a bundled one, that of the recipe which trained it."""
    if name in TEACHERS:
        return bundled_config(TEACHERS[name])
    model: dict[str, Any] = yaml.safe_load((files("grafting") / "recipes" / f"{name}-transformer.yaml").read_text())[
        "model"
    ]
    return {"_class_name": "DiTTransformer2DModel", **model}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_fit_their_teachers(name: str) -> None:
    recipe = RunRecipe.from_yaml(shipped()[name])
    config = config_of_teacher(recipe.teacher)
    for plan in recipe.plans.values():
        assert plan.check(config).problems == ()


def test_every_operator_has_a_recipe_at_half_of_the_sites() -> None:
    recipes = {name: RunRecipe.from_yaml(text) for name, text in shipped().items() if name.startswith("fashion-")}
    edits = [plan.edits[0] for recipe in recipes.values() for plan in recipe.plans.values()]
    assert {edit.operator for edit in edits} == set(list_operators())
    assert all(edit.blocks == "interleaved 50%" for edit in edits)


def test_a_recipe_is_copied_and_pickled_and_stays_what_it_was() -> None:
    text = (files("grafting") / "recipes" / "searched-half.yaml").read_text()
    recipe = RunRecipe.from_yaml(text)
    for again in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert again == recipe and again.plans is not recipe.plans and again.to_yaml() == recipe.to_yaml()
    with pytest.raises(TypeError):
        recipe.plans["interleaved"] = recipe.plans["searched-any"]  # type: ignore[index]
    with pytest.raises(TypeError):
        recipe.plans["searched-any"].edits[0].options["ratio"] = 6  # type: ignore[index]


def test_the_papers_recipe_says_the_released_settings() -> None:
    """Section 2 of the specification: epochs and batches turned into steps, shares of steps into steps."""
    recipe = RunRecipe.from_yaml(shipped()["dit-xl-2-paper"])
    one, two = recipe.stages
    assert one is not None and two is not None and recipe.init == "random"
    assert (one.steps * one.batch, [share * 200 for share in one.halve]) == (200 * 8_000, [50, 100, 150])
    assert (one.attn.lr, one.attn.weight_decay, one.attn.loss) == (5e-4, 0, "l1")
    assert (one.mlp.lr, one.mlp.weight_decay, one.mlp.loss, one.clip) == (1e-3, 1e-5, "l2", 10)
    assert (two.steps * two.batch, two.lr, two.warmup * two.steps) == (100 * 128_000, 1e-4, 500)
    assert (two.target, two.clip, two.weight_decay, two.schedule) == ("noise", 10, 0, "constant")
    assert two.ema == 0.9999 and two.ema_horizon * two.steps >= 1 / (1 - two.ema) * 0.999
    sampling = recipe.evaluate.sampling
    assert sampling == type(sampling).original() and recipe.evaluate.labels == "uniform"
