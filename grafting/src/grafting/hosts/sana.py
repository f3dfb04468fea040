"""``SanaTransformer2DModel``: SANA and SANA 1.5 (Xie et al., arXiv 2410.10629 and 2501.18427), of flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from ..activations import Streams, as_tokens
from ..conditions import MASK, TEXT
from ..diffusion import Flow, Schedule
from ..operators import Operator
from ..precision import full_products
from .pixart import PixArt
from .shapes import HostError, HostShape, Role, Site, sana_shape, shape_of


class Sana(PixArt):
    """Blocks as PixArt's, but ``attn1`` is linear attention with relu as its feature map, and ``ff`` a gated MLP with a
    3 x 3 filter that works on the grid: it is called with (B, D, H, W), and so is what stands in its place.

    The condition is a dictionary with ``encoder_hidden_states`` and, where they are padded, ``encoder_attention_mask``.
    """

    family = "SANA"
    class_names = ("SanaTransformer2DModel",)
    pipelines = ("SanaPipeline",)

    def sizes(self, config: Mapping[str, Any]) -> HostShape:
        return sana_shape(config)

    def schedule(self) -> Schedule:
        return Flow()

    def run(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        """c: as said above. Raises HostError without text states, or of a model that is told its guidance.

        The sums of linear attention over all tokens are in float32, as the model has them, under autocast too.
        """
        config: Any = model.config
        if config.guidance_embeds:
            raise HostError("a SANA that is told its guidance is a Sprint, which was taught by other means than flows")
        if not isinstance(c, Mapping) or TEXT not in c:
            raise HostError(f"a SANA is conditioned on a dictionary with {TEXT} (B, L, D_text)")
        given = {TEXT: c[TEXT], MASK: c.get(MASK)}
        with full_products(z.device):
            return model(z, timestep=t * config.timestep_scale, **given).sample

    def example(self, model: nn.Module, batch: int) -> Any:
        """Captions of as many tokens as costs count (:func:`~grafting.hosts.shapes.set_text_tokens`)."""
        like, tokens = next(model.parameters()), shape_of(model).context_tokens
        text = torch.zeros(
            batch, tokens, cast(Any, model.config).caption_channels, device=like.device, dtype=like.dtype
        )
        found: dict[str, Any] = {TEXT: text, MASK: torch.ones(text.shape[:2], dtype=torch.int64, device=like.device)}
        return found

    def gates(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> dict[Site, torch.Tensor]:
        """Rows 2 and 5 of each block's ``scale_shift_table`` plus the timestep's embedding."""
        embedder, scale = cast(Any, model.time_embed), cast(Any, model.config).timestep_scale
        embedded, _ = embedder(t * scale, batch_size=len(t), hidden_dtype=embedder.linear.weight.dtype)
        return self.table_gates(model, embedded)

    def projections(self, role: Role, block: nn.Module | None = None) -> tuple[str, ...]:
        """None of the MLP, whose layers are convolutions."""
        return () if role == "mlp" else super().projections(role, block)

    def streams(self, module: nn.Module, output: Any) -> Streams:
        """Also of the MLP, which gives (B, D, H, W)."""
        return (as_tokens(output),)

    def attention_weights(self, module: nn.Module) -> tuple[Any, Any]:
        """With the norms' own weights in the rows of queries and keys, where 1.5 has them.

        Of a query that leaves its length, which the normaliser of linear attention cancels; of a key not.
        """
        a: Any = module
        (wq, bq, wk, bk, wv, bv), out = super().attention_weights(module)
        if a.norm_q is not None:
            wq, bq = wq * a.norm_q.weight[:, None], None if bq is None else bq * a.norm_q.weight
            wk, bk = wk * a.norm_k.weight[:, None], None if bk is None else bk * a.norm_k.weight
        return (wq, bq, wk, bk, wv, bv), out

    def copy_mlp(self, original: nn.Module, operator: Operator) -> bool:
        m: Any = original
        first, filters, last = m.conv_inverted, m.conv_depth, m.conv_point
        return operator.copy_from_mix_ffn(
            (first.weight.flatten(1), first.bias),
            (filters.weight, filters.bias),
            (last.weight.flatten(1), last.bias),
        )

    def queries_keys(
        self, module: nn.Module, x: torch.Tensor, call: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Through norm and feature map."""
        a: Any = module
        q, k = a.to_q(x), a.to_k(x)
        q, k = q if a.norm_q is None else a.norm_q(q), k if a.norm_k is None else a.norm_k(k)
        q, k = (F.relu(y).unflatten(2, (a.heads, -1)).transpose(1, 2) for y in (q, k))
        return q, k

    def weighed(self, scores: torch.Tensor) -> torch.Tensor:
        """Shares of the sum; a query that all keys are zero to attends to none."""
        return scores / (scores.sum(-1, keepdim=True) + 1e-15)
