"""``PixArtTransformer2DModel``: PixArt-alpha and -Sigma (Chen et al., arXiv 2310.00426 and 2403.04692)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import nn

from ..conditions import MASK, SIZES, TEXT, picture_sizes
from .base import Host
from .shapes import HostError, HostShape, Site, pixart_shape, shape_of


class PixArt(Host):
    """``attn1`` is self-attention and a site, ``attn2`` cross-attention and none; one ``adaln_single`` for all blocks.

    The condition is a dictionary with ``encoder_hidden_states`` and, as the model asks for them,
    ``encoder_attention_mask`` and ``added_cond_kwargs``. Where it has not the last, a model that is told its pictures'
    sizes is told those of the latents at hand.
    """

    family = "PixArt"
    class_names = ("PixArtTransformer2DModel",)
    module_of = {"attn": "attn1", "mlp": "ff"}  # noqa: RUF012 (a ClassVar of the base)
    cross_attention = "attn2"
    pipelines: ClassVar[tuple[str, ...]] = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")

    def sizes(self, config: Mapping[str, Any]) -> HostShape:
        return pixart_shape(config)

    def run(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        """c: keyword arguments of the model, as said above. Raises HostError without text states."""
        if not isinstance(c, Mapping) or "encoder_hidden_states" not in c:
            raise HostError("a PixArt model is conditioned on a dictionary with encoder_hidden_states (B, L, D_text)")
        given = {SIZES: _sizes(model, len(z), z.shape[-2], z.shape[-1]), **c}
        return model(z, timestep=t, **given).sample

    def example(self, model: nn.Module, batch: int) -> Any:
        """Captions of as many tokens as costs count (:func:`~grafting.hosts.shapes.set_text_tokens`)."""
        like, config = next(model.parameters()), cast(Any, model.config)
        side: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        tokens = shape_of(model).context_tokens
        text = torch.zeros(batch, tokens, config.caption_channels or config.cross_attention_dim, **side)
        found: dict[str, Any] = {TEXT: text, MASK: torch.ones(text.shape[:2], dtype=torch.int64, device=like.device)}
        return found

    def gates(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> dict[Site, torch.Tensor]:
        """Rows 2 and 5 of each block's ``scale_shift_table`` plus the timestep's embedding."""
        adaln: Any = model.adaln_single
        added = (c.get(SIZES) if isinstance(c, Mapping) else None) or _sizes(model, len(z), z.shape[-2], z.shape[-1])
        embedded, _ = adaln(t, added, batch_size=len(t), hidden_dtype=adaln.linear.weight.dtype)
        return self.table_gates(model, embedded)

    def table_gates(self, model: nn.Module, embedded: torch.Tensor) -> dict[Site, torch.Tensor]:
        """Of the timestep's embedding (B, 6D), to which each block adds its table."""
        gates = {}
        for index, block in enumerate(self.blocks(model)):
            table: Any = block.scale_shift_table
            six = table[None] + embedded.reshape(len(embedded), 6, -1)
            gates[Site(index, "attn")], gates[Site(index, "mlp")] = six[:, 2:3], six[:, 5:6]
        return gates

    def modulation(self, blocks: Sequence[nn.Module], x: torch.Tensor, call: Mapping[str, Any]) -> torch.Tensor:
        """Every block adds its table to the one embedding of the timestep."""
        tables = torch.stack([block.scale_shift_table for block in blocks])  # type: ignore[misc]
        return tables[:, None] + call["timestep"].reshape(len(x), 6, -1)

    def norms(self, block: nn.Module) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        b: Any = block
        return b.norm1, b.norm2

    def between(self, blocks: Sequence[nn.Module], y: torch.Tensor, call: Mapping[str, Any]) -> torch.Tensor:
        """Cross-attention to the text, block by block."""
        text = {
            "encoder_hidden_states": call["encoder_hidden_states"],
            "attention_mask": call["encoder_attention_mask"],
        }
        cross: list[Any] = [block.attn2 for block in blocks]
        return torch.stack([part + attend(part, **text) for attend, part in zip(cross, y, strict=True)])


FACTOR = 8
"""Pixels along a side of a latent where no autoencoder says it, as diffusers' pipeline takes it; PixArt-alpha's own."""


def _sizes(model: nn.Module, batch: int, height: int, width: int) -> dict[str, torch.Tensor | None]:
    """``added_cond_kwargs`` of latents of ``height`` x ``width``: resolution (B, 2) in pixels and aspect ratio (B, 1),
    as diffusers' pipeline gives them; None each for a model that is not told."""
    if not model.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    like = next(model.parameters())
    return {name: told.to(like) for name, told in picture_sizes(batch, FACTOR * height, FACTOR * width).items()}
