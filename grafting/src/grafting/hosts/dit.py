"""``DiTTransformer2DModel``: class-conditional DiT (Peebles & Xie 2022, arXiv 2212.09748)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import Host
from .shapes import Site


class DiT(Host):
    """Every block carries its own timestep and label embedder inside ``norm1.emb``; the head reads block 0's."""

    family = "DiT"
    class_names = ("DiTTransformer2DModel",)
    module_of = {"attn": "attn1", "mlp": "ff"}  # noqa: RUF012 (a ClassVar of the base)

    def call(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        """c: class labels (B,); the null class is the number of classes."""
        return model(z, timestep=t, class_labels=c).sample

    def gates(self, model: nn.Module, t: torch.Tensor, c: Any) -> dict[Site, torch.Tensor]:
        """Third and sixth of the six adaLN-Zero vectors: the gates of attention and MLP."""
        gates = {}
        for index, block in enumerate(self.blocks(model)):
            norm: Any = block.norm1
            six = norm.linear(norm.silu(norm.emb(t, c, hidden_dtype=norm.linear.weight.dtype))).chunk(6, dim=1)
            gates[Site(index, "attn")], gates[Site(index, "mlp")] = six[2][:, None], six[5][:, None]
        return gates
