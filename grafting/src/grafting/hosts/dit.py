"""``DiTTransformer2DModel``: class-conditional DiT (Peebles & Xie 2022, arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .base import Host, HostShape, Site


class DiT(Host):
    """Every block carries its own timestep and label embedder inside ``norm1.emb``; the head reads block 0's."""

    family = "DiT"
    class_names = ("DiTTransformer2DModel",)
    module_of = {"attn": "attn1", "mlp": "ff"}  # noqa: RUF012 (a ClassVar of the base)

    def shape(self, config: Mapping[str, Any]) -> HostShape:
        side = int(config["sample_size"]) // int(config["patch_size"])
        channels = int(config["in_channels"])
        patch = int(config["patch_size"]) ** 2
        return HostShape(
            family=self.family,
            width=int(config["num_attention_heads"]) * int(config["attention_head_dim"]),
            heads=int(config["num_attention_heads"]),
            depth=int(config["num_layers"]),
            grid=(side, side),
            mlp_ratio=4.0,
            patch_channels=channels * patch,
            out_channels=int(config.get("out_channels") or channels) * patch,
        )

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
