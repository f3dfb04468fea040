"""Softmax attention over all tokens, and within a window of the raster."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grafting.operators.base import QKV, Grid, Operator, Weights, assign
from grafting.operators.formulas import AttentionFormulas, MultiHeadFormulas, SlidingWindowFormulas
from grafting.operators.registry import register


class Attention(AttentionFormulas, Operator):
    """Projections of the attention operators: q, k, v from one layer D → 3D with bias, one output layer."""

    qkv_name: ClassVar[str] = "qkv"
    out_name = "proj"

    def make_layers(self) -> None:
        setattr(self, self.qkv_name, nn.Linear(self.width, 3 * self.width))
        setattr(self, self.out_name, nn.Linear(self.width, self.width))

    @property
    def qkv_projection(self) -> nn.Linear:
        """The layer that makes queries, keys and values, in this order."""
        layer = getattr(self, self.qkv_name)
        assert isinstance(layer, nn.Linear)
        return layer

    def split_heads(self, x: Tensor, *, padding: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, N + padding, C), zero in the padding."""
        qkv = F.pad(self.qkv_projection(x), (0, 0, 0, padding)) if padding else self.qkv_projection(x)
        b, n, _ = qkv.shape
        assert self.heads is not None
        q, k, v = qkv.view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def naive_softmax(self, x: Tensor, reach: int) -> Tensor:
        """Head by head over all pairs of tokens, those further apart than `reach` left out."""
        q, k, v = self.qkv_projection(x).chunk(3, dim=-1)
        assert self.heads is not None
        size = self.width // self.heads
        index = torch.arange(x.shape[1], device=x.device)
        far = (index[:, None] - index[None, :]).abs() > reach
        heads = []
        for start in range(0, self.width, size):
            part = slice(start, start + size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / size**0.5
            weights = torch.exp(scores.masked_fill(far, -torch.inf))
            heads.append(weights @ v[..., part] / weights.sum(dim=-1, keepdim=True))
        return self.out_projection(torch.cat(heads, dim=-1))

    def copy_from_attention(self, qkv: QKV, out: Weights) -> bool:
        """All four projections copied."""
        d = self.width
        if any(weight is None or weight.shape != (d, d) for weight in (*qkv[::2], out[0])):
            return False
        for i in range(3):
            weight, bias = qkv[2 * i], qkv[2 * i + 1]
            assert weight is not None
            assign(self.qkv_projection, weight, bias, slice(i * d, (i + 1) * d))
        assign(self.out_projection, *out)
        return True


@register("mha")
class MultiHeadAttention(MultiHeadFormulas, Attention):
    """Softmax attention, the operator that DiT's blocks have."""

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        q, k, v = self.split_heads(x)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        return self.naive_softmax(x, reach=x.shape[1])


@register("swa")
class SlidingWindowAttention(SlidingWindowFormulas, Attention):
    """Softmax attention within `window` tokens each side of the raster index.

    Computed in blocks: the queries of a block meet its own keys and `window` more on each side, so the work grows with
    N and not with N², and no key is copied more than 1 + 2·window/block times.
    """

    qkv_name = "Wqkv"
    out_name = "out_proj"

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        n, window = x.shape[1], self.options["window"]
        block = self.block_size(window)
        blocks = -(-n // block)
        q, k, v = self.split_heads(x, padding=blocks * block - n)
        q, k, v = (t.unflatten(2, (blocks, block)) for t in (q, k, v))  # (B, H, blocks, block, C)
        scores = (q * q.shape[-1] ** -0.5) @ self.with_halo(k, window).transpose(-1, -2)
        index = torch.arange(blocks * block, device=x.device).view(blocks, block, 1)
        key = (
            torch.arange(-window, block + window, device=x.device)
            + block * torch.arange(blocks, device=x.device)[:, None]
        )
        key = key[:, None, :]
        hidden = ((index - key).abs() > window) | (key < 0) | ((key >= n) & (index < n))
        bias = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill(hidden, -torch.inf)
        y = torch.softmax(scores + bias, dim=-1) @ self.with_halo(v, window)
        return y.flatten(2, 3)[:, :, :n].transpose(1, 2).flatten(2)

    @staticmethod
    def with_halo(t: Tensor, window: int) -> Tensor:
        """(B, H, blocks, block, C) → (B, H, blocks, block + 2·window, C): each block with its neighbours' ends."""
        before = F.pad(t[:, :, :-1, -window:], (0, 0, 0, 0, 1, 0))
        after = F.pad(t[:, :, 1:, :window], (0, 0, 0, 0, 0, 1))
        return torch.cat([before, t, after], dim=3)

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        return self.naive_softmax(x, reach=self.options["window"])
