"""Softmax attention over all tokens, within a window of the raster, and within a square of the grid."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grafting.operators.base import QKV, Grid, Operator, Text, Weights, assign, full, no_autocast
from grafting.operators.convolution import grid_of
from grafting.operators.formulas import (
    AttentionFormulas,
    MultiHeadFormulas,
    SlidingWindowFormulas,
    SquareWindowFormulas,
)
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
        layer: nn.Linear = getattr(self, self.qkv_name)
        return layer

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, N, H, C)."""
        assert self.heads is not None
        q, k, v = self.qkv_projection(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        return q, k, v

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        return self.mix(*self.split_heads(x), grid=grid)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, *, grid: Grid | None = None, text: Text | None = None) -> Tensor:
        """Queries, keys and values (B, N, H, C) to (B, N, D).

        text: keys and values of text, which every query sees beside those of the picture that it may see, under one
        normaliser; ``q`` and ``k`` are normed and placed already.
        """
        raise NotImplementedError

    def joint(self, x: Tensor, text: Text, *, grid: Grid | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, N, D) of tokens that see text too, and the keys and values (B, N, H, C) that text may see."""
        q, k, v = self.split_heads(x)
        q, k = (text.placed(t) for t in text.normed(q, k))
        return self.mix(q, k, v, grid=grid, text=text), k, v

    def naive_softmax(self, x: Tensor, far: Tensor) -> Tensor:
        """Head by head over all pairs of tokens, those that are `far` (N, N) left out."""
        q, k, v = self.qkv_projection(x).chunk(3, dim=-1)
        assert self.heads is not None
        size = self.width // self.heads
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

    def mix(self, q: Tensor, k: Tensor, v: Tensor, *, grid: Grid | None = None, text: Text | None = None) -> Tensor:
        if text is not None:
            k, v = torch.cat([k, text.seen], dim=1), torch.cat([v, text.values], dim=1)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        return self.naive_softmax(x, torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device))


@register("swa")
class SlidingWindowAttention(SlidingWindowFormulas, Attention):
    """Softmax attention within `window` tokens each side of the raster index.

    Computed in blocks: the queries of a block meet its own keys and `window` more on each side, so the work grows with
    N and not with N², and no key is copied more than 1 + 2·window/block times.
    """

    qkv_name = "Wqkv"
    out_name = "out_proj"

    def mix(self, q: Tensor, k: Tensor, v: Tensor, *, grid: Grid | None = None, text: Text | None = None) -> Tensor:
        n, window, device = q.shape[1], self.options["window"], q.device
        block = self.block_size(window)
        blocks = -(-n // block)
        if padding := blocks * block - n:
            q, k, v = (F.pad(t, (0, 0, 0, 0, 0, padding)) for t in (q, k, v))
        q, k, v = (t.transpose(1, 2).unflatten(2, (blocks, block)) for t in (q, k, v))  # (B, H, blocks, block, C)
        scores = _logits(q, self.with_halo(k, window).transpose(-1, -2))
        index = torch.arange(blocks * block, device=device).view(blocks, block, 1)
        key = (
            torch.arange(-window, block + window, device=device) + block * torch.arange(blocks, device=device)[:, None]
        )
        key = key[:, None, :]
        hidden = ((index - key).abs() > window) | (key < 0) | ((key >= n) & (index < n))
        bias = torch.zeros(hidden.shape, dtype=scores.dtype, device=device).masked_fill(hidden, -torch.inf)
        y = _softmax(q, scores + bias, self.with_halo(v, window), text)
        return y.flatten(2, 3)[:, :, :n].transpose(1, 2).flatten(2)

    @staticmethod
    def with_halo(t: Tensor, window: int) -> Tensor:
        """(B, H, blocks, block, C) → (B, H, blocks, block + 2·window, C): each block with its neighbours' ends."""
        before = F.pad(t[:, :, :-1, -window:], (0, 0, 0, 0, 1, 0))
        after = F.pad(t[:, :, 1:, :window], (0, 0, 0, 0, 0, 1))
        return torch.cat([before, t, after], dim=3)

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        index = torch.arange(x.shape[1], device=x.device)
        return self.naive_softmax(x, (index[:, None] - index[None, :]).abs() > self.options["window"])


@register("swa_2d")
class SquareWindowAttention(SquareWindowFormulas, Attention):
    """Softmax attention within `window` rows and columns each side on the grid; at its edges the square is cut.

    Computed in tiles: the queries of a tile meet its own keys and `window` rows and columns more all around, so the
    work grows with N and not with N². Each frame of a video is a grid for itself.
    """

    def mix(self, q: Tensor, k: Tensor, v: Tensor, *, grid: Grid | None = None, text: Text | None = None) -> Tensor:
        b, n, heads, size = q.shape
        frames, height, width = grid_of(n, grid)
        window, tile = self.options["window"], self.tile_size(self.options["window"])
        rows, columns = -(-height // tile), -(-width // tile)
        around = (0, 0, 0, 0, 0, columns * tile - width, 0, rows * tile - height)
        # (B, rows · tile, columns · tile, H, C)
        q, k, v = (F.pad(t.reshape(b * frames, height, width, heads, size), around) for t in (q, k, v))
        q = q.unflatten(2, (columns, tile)).unflatten(1, (rows, tile)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)
        k, v = (self.with_halo(t, window, tile) for t in (k, v))  # (B, rows, columns, H, C, keys)
        scores = _logits(q, k)
        near = _near(height, tile, window, q.device)[:, None, :, None, :, None]
        near = near & _near(width, tile, window, q.device)[None, :, None, :, None, :]
        near = near.flatten(4, 5).flatten(2, 3).unsqueeze(2)  # (rows, columns, 1, queries, keys)
        bias = torch.zeros(near.shape, dtype=scores.dtype, device=q.device).masked_fill(~near, -torch.inf)
        # Heads before the tiles, as text has them.
        q, scores, v = (t.movedim(3, 1) for t in (q, scores + bias, v.transpose(-1, -2)))
        y = _softmax(q, scores, v, text).movedim(1, 3)
        y = (
            y.unflatten(4, (tile, tile))
            .permute(0, 1, 4, 2, 5, 3, 6)
            .reshape(b * frames, rows * tile, columns * tile, -1)
        )
        return y[:, :height, :width].reshape(b, n, -1)

    @staticmethod
    def with_halo(t: Tensor, window: int, tile: int) -> Tensor:
        """(B, rows · tile, columns · tile, H, C) → (B, rows, columns, H, C, keys): each tile with what lies around."""
        span = tile + 2 * window
        padded = F.pad(t, (0, 0, 0, 0, window, window, window, window))
        return padded.unfold(1, span, tile).unfold(2, span, tile).flatten(5)

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        _, height, width = grid_of(x.shape[1], grid)
        index = torch.arange(x.shape[1], device=x.device)
        frame, row, column = index // (height * width), index // width % height, index % width
        apart = torch.stack([(place[:, None] - place[None, :]).abs() for place in (row, column)]).amax(0)
        return self.naive_softmax(x, (apart > self.options["window"]) | (frame[:, None] != frame[None, :]))


def _softmax(q: Tensor, scores: Tensor, v: Tensor, text: Text | None) -> Tensor:
    """Softmax over ``scores`` (B, H, …, n, m) of values ``v`` (B, H, …, m, C), and over text where there is some.

    q: queries (B, H, …, n, C). Frames of one sample, which B counts here, see the same text.
    """
    if text is None:
        return torch.softmax(scores, dim=-1).to(v.dtype) @ v
    total = scores.logsumexp(dim=-1, keepdim=True)
    read, share = read_text((q * q.shape[-1] ** -0.5).flatten(2, -2), text, total.flatten(2, -2))
    near = (scores - total).exp().to(v.dtype) @ v
    return read.view_as(near) + share.view_as(total) * near


def _logits(q: Tensor, k: Tensor) -> Tensor:
    """Scaled products (…, n, m) of queries (…, n, C) and keys (…, C, m), in float32 at least, as fused kernels have
    them: what half precision rounds off a large logit is a percent of its weight."""
    with no_autocast(q):
        return (full(q) * q.shape[-1] ** -0.5) @ full(k)


def read_text(q: Tensor, text: Text, other: Tensor) -> tuple[Tensor, Tensor]:
    """What queries q (B, H, n, C), scaled already, read of ``text``: (B, H, n, C); and the share (B, H, n, 1) of their
    attention that goes elsewhere, to what has the logarithm ``other`` (B or 1, H or 1, n or 1, 1) of all its weights.

    Attention over the text and one key more, as fused kernels have it: a channel of the queries holds ``other``, and
    the next what half precision leaves of it; the key is one in both and nothing else. Its value is one in the first,
    which then says the share.
    """
    frames, size = len(q) // len(text.keys), q.shape[-1]
    rough = other.to(_product(q))
    parts = torch.cat([rough, other - rough], dim=-1).to(q.dtype)
    more = F.pad(parts.expand(*q.shape[:-1], 2), (0, 6))  # kernels take multiples of eight
    keys, values = (
        F.pad(t.repeat_interleave(frames, 0).transpose(1, 2), (0, 8, 0, 1)) for t in (text.seen, text.values)
    )
    one, both = (torch.zeros(keys.shape[-2:], dtype=q.dtype, device=q.device) for _ in range(2))
    one[-1, size], both[-1, size : size + 2] = 1, 1
    found = F.scaled_dot_product_attention(torch.cat([q, more], dim=-1), keys + both, values + one, scale=1.0)
    return found[..., :size], found[..., size : size + 1]


def _product(x: Tensor) -> torch.dtype:
    """The type in which matrix products read ``x``."""
    kind = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def _near(side: int, tile: int, window: int, device: torch.device) -> Tensor:
    """(tiles, tile, tile + 2·window): along one axis, which keys of a tile and its halo each query may see."""
    tiles = torch.arange(-(-side // tile), device=device)[:, None] * tile
    query = (tiles + torch.arange(tile, device=device)).unsqueeze(2)
    key = (tiles + torch.arange(-window, tile + window, device=device)).unsqueeze(1)
    # A query of the padding sees all, for it must see something.
    return ((query - key).abs() <= window) & (key >= 0) & (key < side) | (query >= side)
