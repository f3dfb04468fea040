"""What a text-to-image run has learnt so far: its averaged weights, drawn and judged while training goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from ...files import misfits, read_json, save_safetensors_atomic, write_text_atomic
from ...progress import Progress
from ...sampling import Pipeline, Sampling, pixels
from ...tasks import Scores, scores
from ..team import Team
from .recipe import SCENES, PretrainRecipe
from .scaffold import take_down
from .text_transformer import embedded, network, scaffolded
from .transformer import trained_autoencoder

WALK = Sampling(scheduler="dpm++", steps=20, guidance=3.0)


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """The scores at a step, and the pictures (n, 3, side, side) in about [-1, 1] that were judged, task by task."""

    step: int
    samples: int
    scores: Scores
    pictures: torch.Tensor


def score(
    recipe: PretrainRecipe, out: Path, count: int, *, sampling: Sampling = WALK, progress: Progress | None = None
) -> Progressed:
    """Scores of ``count`` evaluation prompts of the recipe's world, drawn by the averaged weights saved in ``out``.

    The scores are added to ``out/scores.jsonl``, the latents kept in ``out/drawn.safetensors``.

    Raises:
        ValueError: a recipe of something else, or ``out`` holds no state of it.
    """
    from ...scenes import evaluation_prompts
    from ...scenes.scorer import verdicts

    if recipe.data != SCENES or recipe.kind != "transformer":
        raise ValueError("only a transformer that learns from scenes is scored by drawing them")
    if not (out / "state.json").is_file():
        raise ValueError(f"{out} holds no state yet: the run saves one every {recipe.loop.save_every} steps")
    team = Team(device=torch.device("cpu"))
    state = read_json(out / "state.json", ("step", "file"))
    tensors = load_file(out / state["file"])
    model = network(recipe.completed())
    if recipe.helped:
        scaffolded(model, recipe, out)
    averaged = {key.removeprefix("ema/"): tensor for key, tensor in tensors.items() if key.startswith("ema/")}
    if problems := misfits(averaged, dict(model.named_parameters())):
        raise ValueError(f"{out} holds the state of another model: {problems}")
    model.load_state_dict(averaged, strict=False)  # buffers are the model's own
    if recipe.helped:
        take_down(model)
    prompts = evaluation_prompts(count, world=recipe.world)
    texts = [prompt.text for prompt in prompts]
    kept = embedded(texts, out / "evaluated.safetensors", team)
    pipeline = Pipeline(model.eval(), trained_autoencoder(recipe, team), text=kept)
    z = pipeline.latents(texts, sampling=sampling, progress=progress)
    pictures = torch.cat([pipeline.decode(part) for part in z.split(64)])
    found = scores(verdicts(prompts, list(pixels(pictures))))
    save_safetensors_atomic(out / "drawn.safetensors", {"z": z})
    seen = state["step"] * recipe.batch
    row = {"step": state["step"], "samples": seen, "prompts": count, "protocol": sampling.describe()}
    row |= {task.task: round(task.value, 4) for task in (*found.tasks, found.overall)}
    before = (out / "scores.jsonl").read_text() if (out / "scores.jsonl").is_file() else ""
    write_text_atomic(out / "scores.jsonl", before + json.dumps(row) + "\n")
    return Progressed(step=state["step"], samples=seen, scores=found, pictures=pictures)
