"""Pairs that a model draws to be learnt from, as a recipe or the command line asks for them."""

from __future__ import annotations

from pathlib import Path

import torch

from ..data.encoders import encoders_of
from ..data.pairs import Prompts, generate_pairs
from ..data.shards import Encoded
from ..progress import NamedProgress
from ..store.configs import ModelError
from ..store.models import Model
from .recipe import SCENES, PairsStage
from .scenes import world_of


def draw_pairs(
    model: Model,
    stage: PairsStage,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    base: str | None = None,
    progress: NamedProgress | None = None,
) -> Encoded:
    """The pairs of ``stage`` in the folder ``out``; what lies there is gone on with.

    base: the pretrained model of a graft, where that brings what embeds prompts.

    Raises:
        ModelError: prompts for a model of classes, or nothing embeds them.
        ValueError: as :func:`grafting.data.pairs.generate_pairs` and :meth:`grafting.data.pairs.Prompts.read` do.
    """
    encoders = encoders_of(base or model.name, vae=None, text=stage.text, tokens=stage.tokens)
    if stage.prompts is not None and encoders.condition == "labels":
        raise ModelError(f"{model.name} is conditioned on classes: leave out prompts")
    prompts = _prompts(model, stage, seed)
    count = stage.count or (prompts and prompts.length)
    assert count, "the stage says how many, or its file does"
    return generate_pairs(
        model.transformer,
        out,
        count,
        vae=model.autoencoder,
        sampling=stage.sampling,
        config=stage.config(seed=seed),
        prompts=prompts,
        text=lambda: encoders.text(device),
        device=device,
        progress=progress,
    )


def _prompts(model: Model, stage: PairsStage, seed: int) -> Prompts | None:
    if stage.prompts is None:
        return None
    if stage.prompts == SCENES:
        return Prompts.scenes(seed, world_of(model))
    return Prompts.read(Path(stage.prompts), stage.column)
