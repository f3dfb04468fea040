"""``SD3Transformer2DModel``: Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206), of flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..activations import Streams
from ..conditions import POOLED, TEXT
from ..diffusion import Flow, Schedule
from ..operators import Operator
from .beside_text import BesideText
from .shapes import HostShape, Kind, Role, Site, sd3_shape


class SD3(BesideText):
    """A block has joint attention ``attn`` over picture and text, whose operator among the picture's tokens is a site,
    and an MLP for each, of which ``ff``, the picture's, is one. The second attention ``attn2`` of some blocks of 3.5,
    of the picture alone, is none.

    The condition is a dictionary with ``encoder_hidden_states`` (B, L, D_text) and ``pooled_projections`` (B, P); there
    is no mask, since these models were trained to read padding.
    """

    family = "SD3"
    class_names = ("SD3Transformer2DModel",)
    pipelines = ("StableDiffusion3Pipeline",)

    def sizes(self, config: Mapping[str, Any]) -> HostShape:
        return sd3_shape(config)

    def schedule(self) -> Schedule:
        return Flow()

    def run(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        """c: as said above. Raises HostError without states or pooled projections of the text."""
        self.check_condition(c)
        return model(z, encoder_hidden_states=c[TEXT], pooled_projections=c[POOLED], timestep=t).sample

    def projections(self, role: Role, block: nn.Module | None = None) -> tuple[str, ...]:
        """Those of picture and text; of ``block`` without what it lacks, and where text ends, without its queries,
        which nothing reads."""
        b: Any = block
        ends, second = (False, True) if b is None else (b.context_pre_only, b.attn2 is not None)
        paths = super().projections(role, block)
        if role == "mlp":
            return paths if ends else (*paths, *(path.replace("ff", "ff_context", 1) for path in paths))
        if role == "attn":
            asked = () if ends else ("attn.add_q_proj", "attn.to_add_out")
            other = tuple(path.replace("attn", "attn2", 1) for path in paths) if second else ()
            return (*paths, "attn.add_k_proj", "attn.add_v_proj", *asked, *other)
        return paths

    def gates(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> dict[Site, torch.Tensor]:
        """Third and sixth of the vectors that each block's norms make of timestep and pooled text: of attention the
        picture's, and the text's where that goes on."""
        embedder: Any = model.time_text_embed
        embedded = embedder(t, c[POOLED])
        gates = {}
        for index, block in enumerate(self.blocks(model)):
            b: Any = block
            norms = [b.norm1, *([] if b.context_pre_only else [b.norm1_context])]
            vectors = [norm.linear(norm.silu(embedded)).unflatten(1, (-1, self.width(model))) for norm in norms]
            gates[Site(index, "attn")] = torch.stack([vector[:, 2] for vector in vectors], dim=1)
            gates[Site(index, "mlp")] = vectors[0][:, 5:6]
        return gates

    def streams(self, module: nn.Module, output: Any) -> Streams:
        if isinstance(output, torch.Tensor):
            return (output,)
        # A block returns the text first, and none at the end; attention returns it second, unread at the end.
        text, picture = output if type(module).__name__ == "JointTransformerBlock" else output[::-1]
        ends = text is None or getattr(module, "context_pre_only", False)
        return (picture,) if ends else (picture, text)

    def fitted(self, kind: Kind, operator: Operator | None, original: nn.Module) -> nn.Module | None:
        if kind == "mlp":
            return operator
        from ..joint import Joint

        return Joint(operator, original)

    def queries_keys(
        self, module: nn.Module, x: torch.Tensor, call: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the picture's tokens alone."""
        a: Any = module
        q, k = (linear(x).unflatten(2, (a.heads, -1)).transpose(1, 2) for linear in (a.to_q, a.to_k))
        q, k = q if a.norm_q is None else a.norm_q(q), k if a.norm_k is None else a.norm_k(k)
        return q * a.scale, k

    def norms(self, block: nn.Module) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        b: Any = block
        return b.norm1.norm, b.norm2
