"""Mixed precision for training on processors and cards with bfloat16 units."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

PRECISIONS = ("fp32", "bf16")


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager[Any]:
    """A context in which matrix products run in ``precision``; raises ValueError for an unknown one."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: {' or '.join(PRECISIONS)}")
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


class FullPrecisionCore:
    """An attention processor for diffusers that computes softmax attention itself in float32 under autocast.

    On CPUs torch's bfloat16 backward of scaled-dot-product attention is five times slower than the float32 one, which
    eats what bfloat16 gains in the projections.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x: torch.Tensor) -> torch.Tensor:  # (B, N, D) -> (B, heads, N, D/heads)
            return x.unflatten(2, (attn.heads, -1)).transpose(1, 2).float()

        q, k, v = heads(attn.to_q(hidden_states)), heads(attn.to_k(source)), heads(attn.to_v(source))
        with torch.autocast(hidden_states.device.type, enabled=False):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return attn.to_out[1](attn.to_out[0](y.transpose(1, 2).flatten(2)))


def fast_cpu_attention(model: nn.Module) -> None:
    """Give every attention of a diffusers transformer the processor above; weights stay as they are."""
    from diffusers.models.attention_processor import Attention

    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(FullPrecisionCore())
