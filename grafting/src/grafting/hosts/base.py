"""What a descriptor answers. Shapes: B samples, N tokens, D channels of a token, C latent channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from .shapes import KINDS, HostError, HostShape, Kind, Site, shape_of


class Host(ABC):
    """A family of models."""

    family: ClassVar[str]
    class_names: ClassVar[tuple[str, ...]]
    module_of: ClassVar[Mapping[Kind, str]]

    def shape(self, config: Mapping[str, Any]) -> HostShape:
        """Sizes from a diffusers configuration."""
        return shape_of({"_class_name": self.class_names[0], **config})

    @abstractmethod
    def call(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        """The denoiser's output (B, C or 2C, H, W) for latents z (B, C, H, W), timesteps t (B,) and condition c."""

    @abstractmethod
    def gates(self, model: nn.Module, t: torch.Tensor, c: Any) -> dict[Site, torch.Tensor]:
        """By site, the factor (B, 1, D) that scales its output before it is added to the residual stream."""

    def blocks(self, model: nn.Module) -> nn.ModuleList:
        """The transformer's blocks, in order."""
        blocks = model.transformer_blocks
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def sites(self, model: nn.Module) -> list[Site]:
        """Every site, block by block."""
        return [Site(block, kind) for block in range(len(self.blocks(model))) for kind in KINDS]

    def get(self, model: nn.Module, site: Site) -> nn.Module:
        """The module at a site. Raises HostError for a block that does not exist."""
        module: nn.Module = getattr(self._block(model, site), self.module_of[site.kind])
        return module

    def set(self, model: nn.Module, site: Site, module: nn.Module) -> None:
        """Put ``module`` at a site; it is called with hidden states (B, N, D) first, whatever else follows."""
        setattr(self._block(model, site), self.module_of[site.kind], module)

    def _block(self, model: nn.Module, site: Site) -> nn.Module:
        blocks = self.blocks(model)
        if not 0 <= site.block < len(blocks):
            raise HostError(f"{site.name}: this model has blocks 0 to {len(blocks) - 1}")
        return blocks[site.block]

    def width(self, model: nn.Module) -> int:
        """D."""
        return self.shape(_config(model)).width

    def heads(self, model: nn.Module) -> int:
        """Attention heads."""
        return self.shape(_config(model)).heads

    def tokens(self, model: nn.Module) -> int:
        """N at the model's own resolution."""
        return self.shape(_config(model)).tokens

    def grid_of(self, model: nn.Module) -> tuple[int, int]:
        """(H, W) in tokens at the model's own resolution."""
        return self.shape(_config(model)).grid

    def attention_weights(self, module: nn.Module) -> tuple[Any, Any]:
        """((wq, bq, wk, bk, wv, bv), (wo, bo)) of a diffusers attention; weights (D, D), biases (D,) or None."""
        a: Any = module
        qkv = tuple(x for linear in (a.to_q, a.to_k, a.to_v) for x in (linear.weight, linear.bias))
        return qkv, (a.to_out[0].weight, a.to_out[0].bias)

    def mlp_weights(self, module: nn.Module) -> tuple[Any, Any]:
        """((w1, b1), (w2, b2)) of a diffusers feed-forward with tanh-GELU; w1 (rD, D), w2 (D, rD)."""
        m: Any = module
        first, second = m.net[0].proj, m.net[2]
        return (first.weight, first.bias), (second.weight, second.bias)

    def queries_keys(self, module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys (B, heads, N, C) of a diffusers attention on x (B, N, D); queries are scaled already."""
        a: Any = module
        q, k = (linear(x).unflatten(2, (a.heads, -1)).transpose(1, 2) for linear in (a.to_q, a.to_k))
        return q * a.scale, k

    @torch.no_grad()
    def attention_map(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Attention probabilities (B, heads, N, N) of a site's module on its input x (B, N, D)."""
        q, k = self.queries_keys(module, x)
        return (q @ k.transpose(2, 3)).softmax(-1)


def _config(model: nn.Module) -> Mapping[str, Any]:
    config: Any = model.config
    return dict(config)
