"""Attention that is linear in the number of tokens: kernelised attention, and the mean beside a local filter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grafting.operators.attention import Attention
from grafting.operators.base import QKV, Grid, Operator, Places, Text, Weights, assign, no_autocast
from grafting.operators.convolution import Filter2d, add_random_taps, make_identity
from grafting.operators.formulas import LinearFormulas, LocalMeanFormulas
from grafting.operators.registry import register

SMALL = 1e-6  # keeps the normaliser off zero where a rectified map silences every key


@register("linear")
class LinearAttention(LinearFormulas, Attention):
    """y_n = Σ_m φ(q_n)·φ(k_m) v_m / Σ_m φ(q_n)·φ(k_m), non-causal, computed through the C x C sums of φ(k) vᵀ.

    The feature map φ is elu + 1 (Katharopoulos et al., arXiv 2006.16236), relu, or the learned softmax map of Hedgehog
    (Zhang et al., arXiv 2402.04347): softmax of [Wx, -Wx] per head, W starting as the identity. With `local` a square
    filter of the values of that side, which starts at zero, is added, as in LiT (arXiv 2501.12976): linear attention
    alone blurs what lies near.
    """

    def make_layers(self) -> None:
        super().make_layers()
        assert self.heads is not None
        if self.options["feature_map"] == "learned":
            size = self.width // self.heads
            self.map_q = nn.Parameter(torch.eye(size).repeat(self.heads, 1, 1))
            self.map_k = nn.Parameter(torch.eye(size).repeat(self.heads, 1, 1))
        if taps := self.options["local"]:
            self.local = Filter2d(self.width, taps)
            for parameter in self.local.parameters():
                nn.init.zeros_(parameter)

    def mapped(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """φ(q), φ(k): each (B, H, N, C), or 2C for the learned map."""
        if self.options["feature_map"] == "relu":
            return F.relu(q), F.relu(k)
        if self.options["feature_map"] == "elu+1":
            return F.elu(q).add_(1), F.elu(k).add_(1)
        q, k = q @ self.map_q, k @ self.map_k
        return torch.cat([q, -q], -1).softmax(-1), torch.cat([k, -k], -1).softmax(-1)

    def joint(self, x: Tensor, text: Text, *, grid: Grid | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As of every attention, but that features of queries and keys are placed, not these themselves."""
        q, k, v = self.split_heads(x)
        q, k = text.normed(q, k)
        return self.mix(q, k, v, grid=grid, text=text), text.placed(k), v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, *, grid: Grid | None = None, text: Text | None = None) -> Tensor:
        """See :class:`Attention`. Where positions turn, they turn φ, and the normaliser sums what is not turned, which
        keeps it positive (Su et al. 2021, arXiv 2104.09864, eq. 19)."""
        near, kind, places = v, v.dtype, None if text is None else text.places
        if text is not None:
            k, v = torch.cat([k, text.keys], dim=1), torch.cat([v, text.values], dim=1)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        q, k = self.mapped(q, k)
        if kind == torch.float16:  # which ends at 65,504: sums over some thousand tokens do not fit
            with no_autocast(v):
                y = self.sums(q.float(), k.float(), v.float(), places)
        else:
            y = self.sums(q, k, v, places)
        y = y.to(kind)
        return y + self.local(near.flatten(2), grid) if self.options["local"] else y

    @staticmethod
    def sums(q: Tensor, k: Tensor, v: Tensor, places: Places | None) -> Tensor:
        """(B, N, D) of φ(q) (B, H, N, C'), and φ(k) and values of the picture's tokens and then the text's."""
        total = q @ k.sum(dim=-2).unsqueeze(-1)  # a product and not a sum: no temporary of the size of q
        if places is not None:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
            parts = k.split([q.shape[1], k.shape[1] - q.shape[1]], dim=1)
            k = torch.cat([places.of_picture(parts[0]), places.of_text(parts[1])], dim=1).transpose(1, 2)
            q = places.of_picture(q).transpose(1, 2)
        state = k.transpose(-1, -2) @ v
        return ((q @ state) / (total + SMALL)).transpose(1, 2).flatten(2)

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        assert self.heads is not None
        size, heads = self.width // self.heads, []
        h = x @ self.qkv_projection.weight.T + self.qkv_projection.bias
        for i in range(self.heads):
            q, k, v = (h[..., j * self.width + i * size :][..., :size] for j in range(3))
            if self.options["feature_map"] == "learned":
                q, k = q @ self.map_q[i], k @ self.map_k[i]
            a, b = self.naive_map(q), self.naive_map(k)
            pairs = torch.einsum("bnc,bmc->bnm", a, b)
            heads.append(pairs @ v / (pairs.sum(-1, keepdim=True) + SMALL))
        y = torch.cat(heads, dim=-1)
        if self.options["local"]:
            y = y + self.local.naive(h[..., 2 * self.width :], grid)
        return self.out_projection(y)

    def naive_map(self, x: Tensor) -> Tensor:
        """φ of one head's queries or keys, from its formula."""
        if self.options["feature_map"] == "learned":
            total = (x.exp() + (-x).exp()).sum(-1, keepdim=True)
            return torch.cat([x.exp() / total, (-x).exp() / total], dim=-1)
        return x.clamp(min=0) if self.options["feature_map"] == "relu" else torch.where(x > 0, x + 1, x.exp())


@register("local_mean")
class LocalMean(LocalMeanFormulas, Operator):
    """out_proj([filter(v), gate(x) ⊙ mean(v)]): values through a centred filter on the grid, beside their mean.

    The filter starts near the identity and the gate near one: a token near its own value and the mean of all, each
    channel with neighbours of its own, which a solved output mixes. Four D x D matrices, as attention and Hyena have.
    """

    def make_layers(self) -> None:
        d, taps = self.width, self.options["kernel"]
        self.value = nn.Linear(d, d)
        self.gate = nn.Linear(d, d)
        self.filter = Filter2d(d, taps)
        self.out_proj = nn.Linear(2 * d, d)
        self.start()

    @classmethod
    def start_version(cls, init: str) -> int:
        return 2  # 1: a filter that passed its input, and a gate of one

    @torch.no_grad()
    def start(self) -> None:
        """Filter to the identity and gate to one, but for a part of PyTorch's random start."""
        make_identity(self.filter, at=self.options["kernel"] // 2)
        add_random_taps(self.filter, slice(None))
        self.gate.reset_parameters()
        self.gate.weight *= 0.3
        self.gate.bias.fill_(1.0)

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        v = self.value(x)
        return torch.cat([self.filter(v, grid), self.gate(x) * v.mean(dim=1, keepdim=True)], dim=-1)

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        v = self.value(x)
        local = self.filter.naive(v, grid)
        mean = sum(v[:, m] for m in range(v.shape[1])) / v.shape[1]
        rows = [torch.cat([local[:, n], self.gate(x[:, n]) * mean], dim=-1) for n in range(x.shape[1])]
        return self.out_proj(torch.stack(rows, dim=1))

    @torch.no_grad()
    def copy_from_attention(self, qkv: QKV, out: Weights) -> bool:
        """Values copied; the output reads half of their filter's and half of their mean's features."""
        d, (wv, bv) = self.width, qkv[4:]
        if wv.shape != (d, d) or out[0].shape != (d, d):
            return False
        assign(self.value, wv, bv)
        assign(self.out_proj, torch.cat([out[0], out[0]], dim=1) / 2, out[1])
        self.start()
        return True
