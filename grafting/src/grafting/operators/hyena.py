"""Gated convolutions: q ⊙ filter(k ⊙ v) with short depthwise filters over the tokens.

Definitions and weight keys follow the released grafts (arXiv 2506.05340); the centred and two-dimensional variants are
ours, because an image is no causal sentence. The value and the gates come from one projection D → 3D in the order
q, k, v.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from grafting.operators.base import QKV, Grid, Operator, Weights, assign
from grafting.operators.convolution import Filter1d, Filter2d, add_random_taps, make_identity
from grafting.operators.formulas import (
    HyenaFormulas,
    HyenaSEFormulas,
    HyenaX2DFormulas,
    HyenaXCentredFormulas,
    HyenaXFormulas,
    HyenaYFormulas,
)
from grafting.operators.registry import register

GATES = 0.1
"""How much of their random start the gates keep beside copied values (``benchmarks/mixing.py``)."""


class Hyena(HyenaFormulas, Operator):
    """The family: in_proj, optional short filter on all 3D channels, v ← k·v, optional inner filter, q·v, out_proj."""

    centred: ClassVar[bool] = False

    def make_layers(self) -> None:
        d = self.width
        self.in_proj = nn.Linear(d, 3 * d)
        if self.has_short:
            self.short_filter = self.make_filter(3 * d)
        if self.has_inner:
            self.inner_filter = self.make_filter(d)
            make_identity(self.inner_filter, at=self.before)
        self.out_proj = nn.Linear(d, d)

    @property
    def before(self) -> int:
        """Taps that look back: all but one in a causal filter, half of the others in a centred one."""
        taps: int = self.options["kernel"]
        return taps // 2 if self.centred else taps - 1

    def make_filter(self, channels: int) -> Filter1d | Filter2d:
        """A new one of this operator's filters."""
        taps: int = self.options["kernel"]
        return Filter2d(channels, taps) if self.dimensions == 2 else Filter1d(channels, taps, before=self.before)

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        return self.gated(self.in_proj(x), grid)

    def lending(self, x: Tensor, *, grid: Grid | None = None) -> tuple[Tensor, Tensor | None]:
        h = self.in_proj(x)
        return self.gated(h, grid), h[..., 2 * self.width :]

    def gated(self, h: Tensor, grid: Grid | None) -> Tensor:
        """From gates and values (B, N, 3D) to the features."""
        if self.has_short:
            h = self.short_filter(h, grid)
        q, k, v = h.split(self.width, dim=-1)
        v = k * v
        if self.has_inner:
            v = self.inner_filter(v, grid)
        return q * v

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        # Written out again and not shared with `features`: a fault in one of them has to show as a difference.
        d = self.width
        h = x @ self.in_proj.weight.T + self.in_proj.bias
        if self.has_short:
            h = self.short_filter.naive(h, grid)
        product = h[..., d : 2 * d] * h[..., 2 * d :]
        if self.has_inner:
            product = self.inner_filter.naive(product, grid)
        return (h[..., :d] * product) @ self.out_proj.weight.T + self.out_proj.bias

    @classmethod
    def start_version(cls, init: str) -> int:
        return 1 if init == "random" else 2  # 1: filters that passed their input, and two gates of one

    @torch.no_grad()
    def copy_from_attention(self, qkv: QKV, out: Weights) -> bool:
        """Values and output are copied, gates start near one, and filters are the identity; the first that values go
        through has random taps too, from torch's generator. So each token starts near its own value.

        Near, and not there. A filter that passes its input alone leaves a solved output nothing to mix tokens by, and
        hardly learns to within a light finetuning; and gates that are one everywhere have equal gradients where no
        filter stands between them, and stay one gate.
        """
        d, (wv, bv) = self.width, qkv[4:]
        if wv.shape != (d, d) or out[0].shape != (d, d):
            return False
        self.in_proj.reset_parameters()
        self.in_proj.weight[: 2 * d] *= GATES
        self.in_proj.bias[: 2 * d] = 1.0
        assign(self.in_proj, wv, bv, slice(2 * d, None))
        filters = [getattr(self, label) for label in ("short_filter", "inner_filter") if hasattr(self, label)]
        for conv in filters:
            make_identity(conv, at=self.before)
        add_random_taps(filters[0], slice(-d, None))
        assign(self.out_proj, *out)
        return True


@register("hyena_se")
class HyenaSE(HyenaSEFormulas, Hyena):
    """Short first filter and short inner filter, both causal over the raster."""


@register("hyena_x")
class HyenaX(HyenaXFormulas, Hyena):
    """First filter only."""


@register("hyena_y")
class HyenaY(HyenaYFormulas, Hyena):
    """Inner filter only."""


@register("hyena_x_centred")
class HyenaXCentred(HyenaXCentredFormulas, Hyena):
    """`hyena_x` whose filter looks as far ahead as back."""

    centred = True


@register("hyena_x_2d")
class HyenaX2D(HyenaX2DFormulas, Hyena):
    """`hyena_x` with a centred square filter on the grid of tokens."""

    centred = True
