"""``DiTTransformer2DModel``: class-conditional DiT (Peebles & Xie 2022, arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..operators import parallel
from .base import Host
from .shapes import HostShape, Site, dit_shape


class DiT(Host):
    """Every block carries its own timestep and label embedder inside ``norm1.emb``; the head reads block 0's."""

    family = "DiT"
    condition = "labels"
    class_names = ("DiTTransformer2DModel",)
    module_of = {"attn": "attn1", "mlp": "ff"}  # noqa: RUF012 (a ClassVar of the base)

    def sizes(self, config: Mapping[str, Any]) -> HostShape:
        return dit_shape(config)

    def run(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        """c: class labels (B,); the null class is the number of classes."""
        return model(z, timestep=t, class_labels=c).sample

    def example(self, model: nn.Module, batch: int) -> Any:
        """Labels (B,)."""
        return torch.zeros(batch, dtype=torch.int64, device=next(model.parameters()).device)

    def gates(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> dict[Site, torch.Tensor]:
        """Third and sixth of the six adaLN-Zero vectors: the gates of attention and MLP."""
        gates = {}
        for index, block in enumerate(self.blocks(model)):
            norm: Any = block.norm1
            six = norm.linear(norm.silu(norm.emb(t, c, hidden_dtype=norm.linear.weight.dtype))).chunk(6, dim=1)
            gates[Site(index, "attn")], gates[Site(index, "mlp")] = six[2][:, None], six[5][:, None]
        return gates

    def modulation(self, blocks: Sequence[nn.Module], x: torch.Tensor, call: Mapping[str, Any]) -> torch.Tensor:
        """Every block embeds timestep and label by itself."""
        norms: list[Any] = [block.norm1 for block in blocks]
        t, y = call["timestep"], call["class_labels"]
        embedded = torch.stack([norm.silu(norm.emb(t, y, hidden_dtype=x.dtype)) for norm in norms])
        return parallel.linear(embedded, [[norm.linear] for norm in norms]).unflatten(2, (6, -1))

    def batchable(self, blocks: Sequence[nn.Module], call: Mapping[str, Any]) -> bool:
        """Also whether :meth:`modulation` misses nothing of the norms that it stands for."""
        if not super().batchable(blocks, call):
            return False
        norms: list[Any] = [block.norm1 for block in blocks]
        return all(map(parallel.bare, norms)) and parallel.plain([norm.linear for norm in norms])

    def norms(self, block: nn.Module) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        b: Any = block
        return b.norm1.norm, b.norm3

    def first_block(self, block: nn.Module, original: nn.Module, *, runs: bool) -> nn.Module:
        """The head reads the first block's embedder: the original's stays, beside the one that ``block`` runs with."""
        return First(block, original, runs)

    def bare_block(self, block: nn.Module) -> nn.Module:
        return block.block if isinstance(block, First) else block


class First(nn.Module):
    """A block that runs as ``block`` and shows the head the embedder of ``original``, as ``norm1.emb``.

    runs: the original runs elsewhere, so that its embedder is no second child here.
    """

    def __init__(self, block: nn.Module, original: nn.Module, runs: bool) -> None:
        super().__init__()
        norm: Any = original.norm1
        self.block = block
        self.norm1 = SimpleNamespace(emb=norm.emb) if runs else nn.ModuleDict({"emb": norm.emb})

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the host calls a block."""
        result: torch.Tensor = self.block(hidden_states, *args, **kwargs)
        return result
