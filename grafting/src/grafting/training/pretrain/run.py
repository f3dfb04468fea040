"""A pretraining run from its recipe to the model's folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ...claims import claim
from ...files import sha256
from ..loop import Loop, StepLosses
from ..team import Team
from .autoencoder import autoencoder, set_latent_scale
from .classifier import classifier
from .pictures import first, identity
from .recipe import SCENES, PretrainRecipe
from .scaffold import take_down
from .text_transformer import scaffolded, text_transformer
from .transformer import transformer

SCALE_PICTURES = 5000


def pretrain(
    recipe: PretrainRecipe, out: Path | str, *, until: int | None = None, team: Team | None = None
) -> nn.Module:
    """Run or continue ``recipe`` in the folder ``out`` and write the model (EMA weights) to ``out/model``.

    until: stop after this step; the state is saved and a later call goes on. team: the processes that share the work,
    and their device; alone on the CPU by default. Returns the model with its EMA weights.
    """
    team, recipe, out = team or Team(device=torch.device("cpu")), recipe.completed(), Path(out)
    torch.manual_seed(recipe.seed)
    model, losses = _begin(recipe, out, team)
    if recipe.start:
        (weights,) = Path(recipe.start).glob("*.safetensors")
        model.load_state_dict(load_file(weights))
    if recipe.helped:
        scaffolded(model.cpu(), recipe, out)
        model.to(team.device)
    if team.leads:
        claim(out / "settings.json", _depends(recipe), begun=(out / "state.json").is_file())
    team.wait()
    loop = Loop(model, losses, recipe.loop, out, recipe.kind, team)
    loop.run(until)
    loop.use_ema()
    if recipe.helped:
        take_down(model)
    model.eval()
    if recipe.kind == "autoencoder":
        set_latent_scale(model, first(recipe, SCALE_PICTURES))
    if team.leads:
        model.save_pretrained(out / "model")  # type: ignore[operator]
    team.wait()
    return model


def _begin(recipe: PretrainRecipe, out: Path, team: Team) -> tuple[nn.Module, StepLosses]:
    if recipe.kind == "autoencoder":
        return autoencoder(recipe, team)
    if recipe.kind == "classifier":
        return classifier(recipe, team)
    if recipe.data == SCENES:
        return text_transformer(recipe, out, team)
    return transformer(recipe, out, team)


def _depends(recipe: PretrainRecipe) -> dict[str, Any]:
    """What the weights depend on: the settings, and the bytes behind the folders that they name."""
    found = {key: value for key, value in asdict(recipe).items() if key != "notes"}
    del found["loop"]["save_every"]  # says when to write, not what
    found["data"] = identity(recipe)
    for part in ("autoencoder", "start"):
        if found[part]:
            found[part] = {path.name: sha256(path) for path in sorted(Path(found[part]).glob("*.safetensors"))}
    return found
