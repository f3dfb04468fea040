"""The classifier that judges samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...data import Batches, load_fashion
from ...precision import autocast
from ..loop import StepLosses
from ..team import Team
from .recipe import PretrainRecipe


def classifier(recipe: PretrainRecipe, team: Team) -> tuple[nn.Module, StepLosses]:
    """Cross entropy with smoothed labels."""
    from ...classifier import Classifier

    model = Classifier(**recipe.model).to(team.device)
    source = load_fashion(recipe.folder)
    batches = Batches(inputs=source.images, labels=source.labels, size=recipe.batch, seed=recipe.seed)

    def losses(step: int) -> dict[str, torch.Tensor]:
        batch = batches(step)
        images, labels = team.rows(batch["z"]), team.rows(batch["y"])
        with autocast(team.device, recipe.precision):
            logits = model(images)
        return {"cross_entropy": F.cross_entropy(logits.float(), labels, label_smoothing=0.05)}

    return model, losses
