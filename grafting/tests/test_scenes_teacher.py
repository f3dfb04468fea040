"""The bundled text-to-image teacher: what its card promises, and diffusers' own pipeline with a graft of it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import grafting
from grafting.files import sha256
from grafting.random import generator
from grafting.sampling import Pipeline, Sampling
from grafting.scenes import evaluation_prompts
from grafting.store.models import open_model
from grafting.study import RunRecipe
from grafting.study.scenes import judged, scene_prompts, world_of
from grafting.teachers import PROMPTS, teacher_folder, teachers
from grafting.text import NULL

pytestmark = pytest.mark.skipif("scenes" not in teachers(), reason="no bundled text-to-image teacher ships yet")
RECIPES = files("grafting") / "recipes"
MIB = 2**20


def test_the_card_says_what_lies_there() -> None:
    home, card = teacher_folder("scenes"), grafting.load_bundle("scenes").card
    for part, told in card["parts"].items():
        path = home / part / "diffusion_pytorch_model.safetensors"
        assert sha256(path) == told["sha256"] and path.stat().st_size <= 25 * MIB
    assert sha256(home / PROMPTS) == card["prompts"]["sha256"] and (home / PROMPTS).stat().st_size <= 10 * MIB
    config: Any = grafting.load_teacher("scenes").config
    assert config.num_layers >= 10 and config.num_layers % 2 == 0 and config.out_channels == 2 * config.in_channels
    assert (config.sample_size // config.patch_size) ** 2 >= 64


def test_the_card_s_samples_are_those_of_its_recipes() -> None:
    """Every part is a shipped recipe of the same model, that goes on from the one before; none ran longer than told."""
    training = grafting.load_bundle("scenes").card["training"]
    steps = {part["recipe"]: part["steps"] for part in training["parts"]}
    recipes = {name: yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in steps}
    assert all(0 < steps[name] <= recipe["loop"]["steps"] for name, recipe in recipes.items())
    assert training["samples"] == sum(steps[name] * recipe["batch"] for name, recipe in recipes.items())
    assert [name for name, recipe in recipes.items() if "model" in recipe] == ["scenes-transformer"]
    starts = [recipe.get("start") for recipe in recipes.values()]
    homes = [f"out/scenes/{name.removeprefix('scenes-')}/model" for name in recipes]
    assert starts == [None, *homes[:-1]]
    last = list(recipes.values())[-1]["world"]
    assert grafting.load_bundle("scenes").card["world"] == {key: last[key] for key in last if key != "weights"}


def test_every_prompt_of_the_recipe_is_kept() -> None:
    """So that the study needs no text encoder but for its pairs."""
    model = open_model("scenes")
    evaluate = RunRecipe.from_yaml((RECIPES / "pixart-scenes.yaml").read_text()).evaluate
    assert evaluate.prompts >= 2000 and evaluate.prompts % 6 == 0
    assert model.prompts is not None
    asked = {prompt.text for prompt in scene_prompts(model, evaluate.prompts, evaluate.held_out)}
    assert asked | {NULL} == set(model.prompts.prompts)


def test_the_figures_of_card_and_pages_are_those_that_were_measured() -> None:
    told = grafting.load_bundle("scenes").card["scenes"]
    page = (teacher_folder("scenes") / "README.md").read_text()
    for task, right in told["right"].items():
        assert f"| {task.replace('_', ' ')} | {100 * right / told['each']:.1f} % |" in page
    assert told["each"] * len(told["right"]) == told["prompts"]
    overall = 100 * sum(told["right"].values()) / told["prompts"]
    docs = (Path(__file__).resolve().parents[1] / "docs" / "teacher.md").read_text()
    assert (
        f"of {told['prompts']:,} it gives {overall:.0f} %" in page
        and f"| {overall:.0f} % of {told['prompts']:,} |" in docs
    )


@pytest.mark.heavy
def test_it_draws_what_it_is_asked_for() -> None:
    """A few prompts of the task that is learnt first; the card has the figures of more."""
    model = open_model("scenes")
    prompts = [p for p in evaluation_prompts(96, world=world_of(model)) if p.task == "single_object"]
    pipeline = Pipeline(model.transformer, model.autoencoder, text=model.prompts)
    pictures = pipeline([p.text for p in prompts], sampling=Sampling(scheduler="dpm++", steps=12, guidance=3.0))
    right = sum(verdict.correct for verdict in judged(prompts, [pictures]))
    swapped = [*prompts[1:], prompts[0]]
    wrong = sum(verdict.correct for verdict in judged(swapped, [pictures]))
    assert right >= len(prompts) / 2 > wrong


def test_a_graft_of_it_runs_in_diffusers_own_pipeline() -> None:
    """The page's code; its picture is the one that grafting draws from the same noise."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "pixart.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "PixArtSigmaPipeline" in code]
    # The page draws from the pipeline's own noise; this gives it the first sample's of a seed.
    noise = torch.randn(1, 4, 16, 16, generator=generator(5, "sample", 0))
    scope: dict[str, Any] = {"noise": noise}
    exec(code.replace("negative_prompt=None,", "negative_prompt=None, latents=noise,"), scope)
    model, sampling = scope["model"], Sampling(scheduler="dpm++", steps=4, guidance=3.0)
    pipeline = Pipeline(model.transformer, model.autoencoder, text=model.prompts)
    mine = pipeline([scope["prompt"]], sampling=sampling, seed=5)
    assert mine.shape == (1, 3, 64, 64) and mine.std() > 0.01
    torch.testing.assert_close((mine / 2 + 0.5).clamp(0, 1), scope["picture"], atol=1e-3, rtol=1e-3)
