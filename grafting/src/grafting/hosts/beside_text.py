"""What families have in common whose blocks carry text beside the picture, in joint attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from ..conditions import POOLED, TEXT
from .base import Host
from .shapes import HostError, shape_of


class BesideText(Host):
    """The condition is a dictionary with ``encoder_hidden_states`` (B, L, D_text) and ``pooled_projections`` (B, P);
    there is no mask, since padding is read. Blocks are not rearranged."""

    module_of = {"attn": "attn", "mlp": "ff"}  # noqa: RUF012 (a ClassVar of the base)

    def check_condition(self, c: Any) -> None:
        """Raises HostError without states or pooled projections of the text."""
        if not isinstance(c, Mapping) or TEXT not in c or POOLED not in c:
            raise HostError(
                f"models of {self.family} are conditioned on a dictionary with {TEXT} (B, L, D_text) and "
                f"{POOLED} (B, P)"
            )

    def example(self, model: nn.Module, batch: int) -> Any:
        """Prompts of as many tokens as costs count (:func:`~grafting.hosts.shapes.set_text_tokens`)."""
        like, config = next(model.parameters()), cast(Any, model.config)
        side: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        return {
            TEXT: torch.zeros(batch, shape_of(model).context_tokens, config.joint_attention_dim, **side),
            POOLED: torch.zeros(batch, config.pooled_projection_dim, **side),
        }

    def batchable(self, blocks: Sequence[nn.Module], call: Mapping[str, Any]) -> bool:
        return False
