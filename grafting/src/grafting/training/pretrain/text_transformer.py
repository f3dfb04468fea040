"""Text-to-image transformers over the latents of scenes.

Shapes: latents (n, C, h, w) float16; the condition of B captions is the dictionary of :mod:`grafting.conditions`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...conditions import each
from ...data import Batches
from ...diffusion import Diffusion, draw, drop_labels
from ...files import save_safetensors_atomic
from ...hashes import tensors_hash
from ...hosts import host_for
from ...precision import autocast
from ...progress import ProgressLine
from ...text import NULL, Embedded, minilm
from ..loop import StepLosses
from ..objective import teacher_objective
from ..team import Team
from .autoencoder import encode
from .pictures import identity, scenes, what_lies_where
from .recipe import PretrainRecipe
from .scaffold import begin_text, erect
from .transformer import LATENTS, kept, trained_autoencoder

PROMPTS = "prompts.safetensors"
"""The states of a run's captions, in its folder."""

CHUNK = 512
"""Scenes drawn and encoded at a time."""


def text_transformer(recipe: PretrainRecipe, out: Path, team: Team) -> tuple[nn.Module, StepLosses]:
    """A PixArt on latents scaled to unit deviation; captions are replaced by the empty one once, outside of it."""
    model = network(recipe)
    start(model)
    model.to(team.device)
    z, captions = pool(recipe, out, team)
    prompts = embedded(captions, out / PROMPTS, team)
    across = model.config.sample_size // model.config.patch_size
    things = what_lies_where(recipe, len(z), across) if recipe.semantics else None
    batches = Batches(inputs=z, labels=torch.arange(len(z)), size=recipe.batch, seed=recipe.seed)
    texts = prompts.indices(captions)
    diffusion, host = Diffusion(), host_for(model)
    weights = diffusion.level_weights(recipe.weight_cap, recipe.weight_power)
    shares = diffusion.level_shares(recipe.levels)

    def losses(step: int) -> dict[str, torch.Tensor]:
        batch = batches(step)
        clean = batch["z"].float()
        noise, t = draw(clean.shape, diffusion, recipe.seed, step, shares)
        text = drop_labels(prompts.rows(texts[batch["y"]]), recipe.label_dropout, prompts.null, recipe.seed, step)
        clean, t, noise, text = (each(part, team.rows) for part in (clean, t, noise, text))
        with autocast(team.device, recipe.precision):

            def denoise(zt: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
                return host.call(model, zt, t, c)

            parts = teacher_objective(denoise, diffusion, clean, t, text, noise, weights)
            if things is not None:
                parts["semantics"] = recipe.semantics * model.semantics.error(team.rows(things[batch["y"]]))
            return parts

    return model, losses


def scaffolded(model: Any, recipe: PretrainRecipe, out: Path) -> None:
    """Put around the model of a run in ``out``, on the CPU, what its recipe says helps it to learn.

    The states are those of the captions of its pool, whichever others are kept beside them.
    """
    from safetensors import safe_open

    with safe_open(out / LATENTS, "pt") as file:
        captions = _captions(file.get_tensor("captions"))
    states = Embedded.load(out / PROMPTS).only([NULL, *captions]).values.float()
    erect(model, states if recipe.whiten else None, semantics=recipe.semantics > 0)
    if recipe.fresh_text:
        begin_text(model, states)


def network(recipe: PretrainRecipe) -> Any:
    """The PixArt that the recipe describes, as diffusers starts it."""
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(**{key: value for key, value in recipe.model.items() if key != "_class_name"})


def start(model: Any) -> None:
    """PixArt's own start with every gate at zero, so that a block begins as the identity and the output as zero.

    Linear layers by Xavier's rule without bias, the output of cross-attention at zero (Chen et al. 2023, arXiv
    2310.00426, its code's ``initialize_weights``); what the blocks share of the noise level, and their own tables, at
    zero as DiT has them. The projection of captions keeps Xavier's rule: its 0.02 is for text states ten times as wide.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embedder = model.adaln_single.emb.timestep_embedder
    for linear in (embedder.linear_1, embedder.linear_2):
        nn.init.normal_(linear.weight, std=0.02)
    nn.init.xavier_uniform_(model.pos_embed.proj.weight.data.flatten(1))  # as the linear layer that it is
    nn.init.zeros_(model.pos_embed.proj.bias)
    nn.init.zeros_(model.adaln_single.linear.weight)
    nn.init.zeros_(model.proj_out.weight)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.scale_shift_table)
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.scale_shift_table)


def pool(recipe: PretrainRecipe, out: Path, team: Team) -> tuple[torch.Tensor, list[str]]:
    """Scaled latents (n, C, h, w) float16 and captions of the run's scenes, kept in ``out`` for the next start."""
    autoencoder = trained_autoencoder(recipe, team)
    made_of = {
        "autoencoder": tensors_hash(autoencoder.state_dict()),
        "scenes": f"{identity(recipe)} {recipe.world} {recipe.seed} {recipe.pool}",
    }
    cache = out / LATENTS
    if (there := kept(cache, made_of)) is not None:
        return there["z"], _captions(there["captions"])
    scale: float = autoencoder.config.scaling_factor  # type: ignore[union-attr, assignment]
    parts, captions, progress = [], [], ProgressLine(recipe.pool, 0, "scenes encoded")
    for first in range(0, recipe.pool, CHUNK):
        pictures, texts = scenes(recipe, range(first, min(first + CHUNK, recipe.pool)))
        parts.append((encode(autoencoder, pictures, batch=64) * scale).half())
        captions += texts
        if team.leads:
            progress.show(len(captions))
    z = torch.cat(parts)
    if team.leads:
        text = torch.tensor([*"\n".join(captions).encode()], dtype=torch.uint8)
        save_safetensors_atomic(cache, {"z": z, "captions": text}, made_of)
    team.wait()
    return z, captions


def _captions(text: torch.Tensor) -> list[str]:
    return bytes(text.numpy()).decode().split("\n")


def embedded(captions: list[str], path: Path, team: Team) -> Embedded:
    """The states of the distinct captions and of the empty one, kept at ``path`` for the next start.

    The encoder is loaded only where they are not all there.
    """
    wanted = dict.fromkeys([NULL, *captions])
    if path.is_file():
        kept = Embedded.load(path)
        if all(caption in kept.places for caption in wanted):
            return kept
    progress = ProgressLine(len(wanted), 0, "captions embedded")
    made = minilm().embed(wanted, progress=(lambda done, _: progress.show(done)) if team.leads else None)
    if team.leads:
        made.save(path)
    team.wait()
    return made
