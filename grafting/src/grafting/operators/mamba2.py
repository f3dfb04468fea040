"""Mamba-2 (Dao & Gu, arXiv 2405.21060) in plain torch: state-space duality computed in chunks of tokens.

Legend beside the package's: E inner width (expand · D), P channels of a head, H = E / P heads, S state size, L tokens
of a chunk. The layer's weights have the names and shapes of `mamba_ssm.modules.mamba2.Mamba2` (one group, RMS norm
after the gate), so released weights load key by key.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grafting.operators.base import Grid, Operator, full
from grafting.operators.convolution import Filter1d
from grafting.operators.formulas import Mamba2Formulas
from grafting.operators.registry import register

STEP_RANGE = (1e-3, 1e-1)  # of softplus(dt_bias) at the start, log-uniform; with a floor of 1e-4: the published layer's
STEP_FLOOR = 1e-4
DECAY_RANGE = (1.0, 16.0)  # of exp(A_log) at the start


class GatedRMSNorm(nn.Module):
    """y = rms_normalised(x ⊙ silu(z)) ⊙ weight over the last axis."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return F.rms_norm(x * F.silu(z), self.weight.shape, self.weight, self.eps)


@register("mamba2")
class Mamba2(Mamba2Formulas, Operator):
    """h_n = exp(Δ_n A) h_{n-1} + Δ_n x_n B_nᵀ, y_n = h_n C_n + D x_n per head, causal over the raster.

    Within a chunk this is masked attention of C and B; from chunk to chunk only the state (P x S per head) is handed
    on, so the work grows with N · L and not with N². With direction `both` a second recurrence, of its own filter,
    steps and decays, runs over the same projections from the last token to the first, and the two are added: an image
    is no sentence.
    """

    def make_layers(self) -> None:
        inner, state, heads = self.sizes(self.width, self.options)
        channels, kernel = inner + 2 * state, self.options["kernel"]
        self.in_proj = nn.Linear(self.width, inner + channels + heads, bias=False)
        self.conv1d = Filter1d(channels, kernel, before=kernel - 1)
        self.dt_bias, self.A_log, self.D = _recurrence(heads)
        self.norm = GatedRMSNorm(inner)
        self.out_proj = nn.Linear(inner, self.width, bias=False)
        if self.options["direction"] == "both":
            self.conv1d_back = Filter1d(channels, kernel, before=kernel - 1)
            self.dt_bias_back, self.A_log_back, self.D_back = _recurrence(heads)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, N, E), what is filtered (B, N, E + 2S) and the steps before their bias (B, N, H)."""
        inner, state, heads = self.sizes(self.width, self.options)
        z, mixed, step = self.in_proj(x).split([inner, inner + 2 * state, heads], dim=-1)
        return z, mixed, step

    def inputs(self, mixed: Tensor, step: Tensor, back: str = "") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x (B, N, H, P), B and C (B, N, S), step Δ (B, N, H), log decay Δ·A (B, N, H) of one direction."""
        inner, state, heads = self.sizes(self.width, self.options)
        conv, bias, log = (getattr(self, name + back) for name in ("conv1d", "dt_bias", "A_log"))
        mixed = F.silu(conv(mixed))
        u, b, c = mixed.split([inner, state, state], dim=-1)
        # In float32 at least, whatever the model is in: decays are products over many tokens.
        step = F.softplus(full(step) + full(bias))
        return u.unflatten(-1, (heads, -1)), full(b), full(c), step, -step * torch.exp(full(log))

    def scan(self, mixed: Tensor, step: Tensor, back: str = "") -> Tensor:
        """(B, N, E): the recurrence along the tokens as they come."""
        u, b, c, step, decay = self.inputs(mixed, step, back)
        y = chunked_scan(u * step.unsqueeze(-1), decay, b, c, min(self.options["chunk"], u.shape[1]))
        return (y + getattr(self, "D" + back).unsqueeze(-1) * u).flatten(2)

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        z, mixed, step = self.split(x)
        y = self.scan(mixed, step)
        if self.options["direction"] == "both":
            y = y + self.scan(mixed.flip(1), step.flip(1), "_back").flip(1)
        return self.norm(y.to(self.norm.weight.dtype), z)

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        inner, state, _ = self.sizes(self.width, self.options)
        h = x @ self.in_proj.weight.T
        z, mixed, step = h[..., :inner], h[..., inner : 2 * inner + 2 * state], h[..., 2 * inner + 2 * state :]
        y = self.naive_scan(mixed, step, self.conv1d, self.dt_bias, self.A_log, self.D)
        if self.options["direction"] == "both":
            own = self.conv1d_back, self.dt_bias_back, self.A_log_back, self.D_back
            y = y + self.naive_scan(mixed.flip(1), step.flip(1), *own).flip(1)
        y = y * z * torch.sigmoid(z)
        y = y / torch.sqrt(y.square().mean(dim=-1, keepdim=True) + self.norm.eps) * self.norm.weight
        return self.out_proj(y)

    def naive_scan(
        self, mixed: Tensor, step: Tensor, conv: Filter1d, bias: Tensor, log: Tensor, through: Tensor
    ) -> Tensor:
        """The recurrence token by token."""
        inner, state, heads = self.sizes(self.width, self.options)
        mixed = conv.naive(mixed)
        mixed = mixed * torch.sigmoid(mixed)
        u, b, c = mixed[..., :inner], mixed[..., inner : inner + state], mixed[..., inner + state :]
        u = u.reshape(*u.shape[:2], heads, inner // heads)
        step = torch.log1p(torch.exp(step + bias))
        decay = -step * torch.exp(log)
        h = u.new_zeros(*u.shape[:1], *u.shape[2:], b.shape[-1])
        rows = []
        for n in range(mixed.shape[1]):
            added = torch.einsum("bh,bhp,bs->bhps", step[:, n], u[:, n], b[:, n])
            h = torch.exp(decay[:, n])[..., None, None] * h + added
            rows.append(torch.einsum("bhps,bs->bhp", h, c[:, n]) + through[:, None] * u[:, n])
        return torch.stack(rows, dim=1).flatten(2)


def _recurrence(heads: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """dt_bias, A_log and D (H,) as the published layer draws them."""
    low, high = (math.log(bound) for bound in STEP_RANGE)
    step = torch.exp(torch.rand(heads) * (high - low) + low).clamp(min=STEP_FLOOR)
    return (
        nn.Parameter(step + torch.log(-torch.expm1(-step))),  # inverse of softplus
        nn.Parameter(torch.empty(heads).uniform_(*DECAY_RANGE).log()),
        nn.Parameter(torch.ones(heads)),
    )


def chunked_scan(u: Tensor, decay: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """y_n = Σ_{m ≤ n} exp(Σ_{m < i ≤ n} decay_i) (c_n · b_m) u_m, per head, in chunks.

    Args:
        u: inputs (B, N, H, P), already scaled by their steps.
        decay: logarithm of the decay at each token (B, N, H), never positive.
        b, c: (B, N, S), shared by the heads.
        chunk: tokens L computed together.

    Returns:
        (B, N, H, P).
    """
    n = u.shape[1]
    chunks = -(-n // chunk)
    short = chunks * chunk - n
    u = F.pad(u, (0, 0, 0, 0, 0, short)).unflatten(1, (chunks, chunk)).permute(0, 1, 3, 2, 4)  # (B, K, H, L, P)
    sums = F.pad(decay, (0, 0, 0, short)).unflatten(1, (chunks, chunk)).transpose(2, 3).cumsum(-1)  # (B, K, H, L)
    b, c = (F.pad(t, (0, 0, 0, short)).unflatten(1, (chunks, chunk)) for t in (b, c))  # (B, K, L, S)

    # Within a chunk. Later keys are hidden before the exponential, which would overflow on them.
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=u.device).triu(1)
    between = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(later, -torch.inf)
    y = ((c @ b.transpose(-1, -2)).unsqueeze(2) * between.exp()) @ u

    # What each chunk leaves behind at its end, handed on from chunk to chunk: (B, K, H, P, S).
    left = (u * (sums[..., -1:] - sums).exp().unsqueeze(-1)).transpose(-1, -2) @ b.unsqueeze(2)
    state, states = torch.zeros_like(left[:, 0]), []
    for k in range(chunks):
        states.append(state)
        state = state * sums[:, k, :, -1].exp()[..., None, None] + left[:, k]
    read = c.unsqueeze(2) @ torch.stack(states, dim=1).transpose(-1, -2)
    y = y + read * sums.exp().unsqueeze(-1)
    return y.permute(0, 1, 3, 2, 4).flatten(1, 2)[:, :n]
